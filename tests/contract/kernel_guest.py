"""A guest with a kernel of its own: a namespace whose network card copies frames by a thread.

It is plugged in at several NVEs at once: it hears all of them, and speaks where it lives now.
Not here: what it talks about (the tests).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading

from tests.contract.namespaces import Namespace, wait_for
from vmmobility.drivers.linux.tap import create_tap, open_tap

_GATEWAYS = {4: "169.254.1.1", 6: "fe80::1"}


class KernelGuest:
    """name: of its namespace      own: its addresses by IP version."""

    def __init__(self, name: str, mac: bytes, own: dict[int, str]) -> None:
        self.space = Namespace(name)
        self._hosts: dict[str, int] = {}
        self._speaks_at = ""
        self._stop_read, self._stop_write = os.pipe()
        self.space.call(create_tap, "eth0")
        self._card = self.space.call(open_tap, "eth0")
        self.space.ip("link", "set", "eth0", "address", mac.hex(":"), "mtu", "1500")
        for version, address in own.items():
            nodad = ["nodad"] if version == 6 else []
            self.space.ip("addr", "add", address, "dev", "eth0", *nodad)
        self.space.ip("link", "set", "eth0", "up")
        self.space.ip("route", "add", "default", "via", _GATEWAYS[4], "dev", "eth0", "onlink")
        self.space.ip("-6", "route", "add", "default", "via", _GATEWAYS[6], "dev", "eth0")
        self._thread = threading.Thread(target=self._copy, name=f"card of {name}")
        self._thread.start()

    def plug(self, space: Namespace, tap: str) -> None:
        """Hold a tap of an NVE open, too."""
        self._hosts[space.name] = space.call(open_tap, tap)
        # The kernel starts the tap's queue a moment after it was attached to.
        wait_for(lambda: "state UP" in space.ip("link", "show", tap), f"{tap} up")

    def speak_at(self, space: Namespace) -> None:
        """From now on its frames leave there."""
        self._speaks_at = space.name

    def listen(self, version: int, address: str, port: int) -> socket.socket:
        """A TCP socket that waits inside."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        server = self.space.call(lambda: socket.socket(family, socket.SOCK_STREAM))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(4)
        return server

    def _copy(self) -> None:
        while True:
            hosts = dict(self._hosts)
            ready, _, _ = select.select([self._stop_read, self._card, *hosts.values()], [], [], 0.1)
            if self._stop_read in ready:
                return
            for name, host in hosts.items():
                if host in ready:
                    _pass_on(host, self._card)
                if name == self._speaks_at and self._card in ready:
                    _pass_on(self._card, host)
            if not self._speaks_at and self._card in ready:
                _pass_on(self._card, None)

    def close(self) -> None:
        os.write(self._stop_write, b"x")
        self._thread.join(5)
        for descriptor in (*self._hosts.values(), self._card, self._stop_read, self._stop_write):
            os.close(descriptor)
        self.space.close()


def _pass_on(source: int, target: int | None) -> None:
    """All frames that wait; one for which the other side has no room is lost, as on a wire."""
    with contextlib.suppress(BlockingIOError):
        while True:
            frame = os.read(source, 65536)
            if target is not None:
                with contextlib.suppress(BlockingIOError):
                    os.write(target, frame)
