"""Doing something inside a network namespace without leaving this process.

A helper thread enters the namespace, so that the caller's own thread never changes.
Not here: making namespaces (namespaces.py).  Rests on setns(2).
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vmmobility.errors import LabError

T = TypeVar("T")
NETNS = Path("/run/netns")
WATCHER_NICE = 10
_CLONE_NEWNET = 0x40000000


def set_namespace(name: str) -> None:
    """Move the calling thread into the network namespace `name` of /run/netns."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(NETNS / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"cannot enter {name}: {os.strerror(error)}")
    finally:
        os.close(fd)


def inside(name: str, work: Callable[[], T]) -> T:
    """Run `work` inside the namespace and return what it returns; sockets stay there."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            set_namespace(name)
            results.append(work())
        except BaseException as error:  # handed to the caller below
            errors.append(error)

    thread = threading.Thread(target=body, name=f"inside {name}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def yield_the_cpu(process: int = 0) -> None:
    """Let everything else go first: this thread, or a process, only watches what others do."""
    os.setpriority(os.PRIO_PROCESS, process or threading.get_native_id(), WATCHER_NICE)


def python(module: str, *arguments: str, namespace: str | None = None) -> list[str]:
    """The command that runs one of our modules, as this interpreter would, in a namespace."""
    enter = ["ip", "netns", "exec", namespace] if namespace else []
    return [*enter, sys.executable, "-m", module, *arguments]


def python_environment() -> dict[str, str]:
    """The environment in which our modules are found, installed or not."""
    source = str(Path(__file__).resolve().parents[2])
    old = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{source}:{old}" if old else source}


def udp_ask(name: str, address: str, port: int, question: bytes, timeout_s: float) -> bytes:
    """Ask over UDP from inside the namespace; the answer, or a LabError after `timeout_s`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = inside(name, lambda: socket.socket(family, socket.SOCK_DGRAM))
    last = "no answer"
    with sock:
        sock.settimeout(min(0.5, timeout_s))
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                sock.sendto(question, (address, port))
                return sock.recv(65536)
            except TimeoutError:
                continue
            except OSError as error:
                last = error.strerror or str(error)
                time.sleep(0.05)
    raise LabError(f"{address} port {port} does not answer {name}: {last}",
                   f"waited {timeout_s:g} s; look at its routes")  # fmt: skip
