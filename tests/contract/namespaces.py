"""Network namespaces for driver contracts: a thread in each, so that a driver can live inside.

setns() holds for a thread, so each namespace has one thread with an event loop: coroutines run
in it, sockets are made in it, and its child processes inherit it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_PATIENCE_S = 60.0  # in a guest without KVM, on a busy machine, processes start slowly


def wait_for(condition: Callable[[], T], what: str, deadline_s: float = 20.0) -> T:
    """Ask until the condition is true; fails with what was last seen."""
    end = time.monotonic() + deadline_s
    while True:
        seen = condition()
        if seen:
            return seen
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}; last seen: {seen!r}")
        time.sleep(0.002)


def run(*words: str) -> str:
    """Run a program to its end; answers its output."""
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


class Namespace:
    """One namespace: `call` runs a function in it, `await_` a coroutine."""

    def __init__(self, name: str) -> None:
        self.name = f"dp{os.getpid()}{name}"
        run("ip", "netns", "add", self.name)
        self.loop = asyncio.new_event_loop()
        self._entered = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        assert self._entered.wait(_PATIENCE_S)
        self.ip("link", "set", "lo", "up")
        # No duplicate address detection on links that nobody else can be on: even with no
        # solicitation to send the kernel waits for up to a second (rtr_solicitation_delay).
        self.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")

    def _live(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        assert libc.setns(descriptor, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        os.close(descriptor)
        self.loop.call_soon(self._entered.set)
        self.loop.run_forever()
        self.loop.close()

    def await_(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(_PATIENCE_S)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        async def inside() -> T:
            return function(*arguments)

        return self.await_(inside())

    def ip(self, *words: str) -> str:
        return run("ip", "-n", self.name, *words)

    def run(self, *words: str) -> str:
        return run("ip", "netns", "exec", self.name, *words)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_PATIENCE_S)
        run("ip", "netns", "del", self.name)


def join(
    left: Namespace, left_name: str, right: Namespace, right_name: str, number: int, mtu: int = 1500
) -> None:
    """A veth between two namespaces: 10.0.NUMBER.1 and fd00:NUMBER::1 left, .2 and ::2 right.

    Answers when the kernel has given both ends their link-local addresses, whose routes would
    else come up under the test.
    """
    left.ip("link", "add", left_name, "type", "veth", "peer", "name", right_name,
            "netns", right.name)  # fmt: skip
    for space, name, host in ((left, left_name, 1), (right, right_name, 2)):
        space.ip("addr", "add", f"10.0.{number}.{host}/24", "dev", name)
        space.ip("addr", "add", f"fd00:{number}::{host}/64", "dev", name, "nodad")
        space.ip("link", "set", name, "mtu", str(mtu), "up")
    _wait_for_link_local(left, left_name)
    _wait_for_link_local(right, right_name)


def _wait_for_link_local(space: Namespace, link: str) -> None:
    def shown() -> bool:
        return "fe80::" in space.ip("-6", "route", "show", "table", "local", "dev", link)

    wait_for(shown, f"a link-local address of {link}")
