"""When a host route comes to and goes from kernels: their own notifications, in many namespaces.

Not here: who makes the route.  Rests on rtnetlink's multicast groups.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterable
from ipaddress import ip_address

from vmmobility.lab.inside import inside
from vmmobility.wire.values import Address

_GROUPS = 0x40 | 0x400  # IPv4 and IPv6 routes
_NEW, _DELETE = 24, 25
_DESTINATION = 1
_MAIN = 254
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=8BI")
_ATTRIBUTE = struct.Struct("=HH")


class FibWatch:
    """Listens in these namespaces from its making until close()."""

    def __init__(self, namespaces: Iterable[str]) -> None:
        self._sockets = {inside(name, _listener): name for name in namespaces}
        self.seen: dict[tuple[str, Address], tuple[bool | None, float]] = {}

    def wait(self, names: Iterable[str], address: Address, there: bool, within_s: float) -> float:
        """Until all of these kernels have got the host route, or lost it; when the last one did."""
        wanted = {(name, address) for name in names}
        deadline = time.monotonic() + within_s
        while missing := [key for key in wanted if self.seen.get(key, (None, 0.0))[0] is not there]:
            left = deadline - time.monotonic()
            if left <= 0:
                what = "has not come to" if there else "has not left"
                raise AssertionError(f"{address} {what} {sorted(name for name, _ in missing)}")
            for ready in select.select(list(self._sockets), [], [], left)[0]:
                self._read(ready)
        return max(self.seen[key][1] for key in wanted)

    def _read(self, ready: socket.socket) -> None:
        at, data = time.monotonic(), ready.recv(1 << 16)
        while len(data) >= _HEADER.size:
            length, kind = _HEADER.unpack_from(data)[:2]
            if kind in (_NEW, _DELETE):
                address = _host(data[_HEADER.size : length])
                if address is not None:
                    self.seen[self._sockets[ready], address] = (kind == _NEW, at)
            data = data[(length + 3) & ~3 :]

    def close(self) -> None:
        """Listen no longer."""
        for one in self._sockets:
            one.close()


def _listener() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    made.bind((0, _GROUPS))
    return made


def _host(message: bytes) -> Address | None:
    """The destination of a host route of the main table; None of any other."""
    family, bits, _, _, table = _ROUTE.unpack_from(message)[:5]
    if table != _MAIN or bits != (32 if family == socket.AF_INET else 128):
        return None
    data = message[_ROUTE.size :]
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if kind == _DESTINATION:
            return ip_address(data[_ATTRIBUTE.size : length])
        data = data[(length + 3) & ~3 :]
    return None
