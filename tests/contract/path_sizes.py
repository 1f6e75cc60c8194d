"""Packets of an exact size from a socket that ignores what its kernel knows of the path, and the
ICMP errors that come back.

Not here: the ways that they take (the tests).
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

from tests.contract.frames import udp_socket
from tests.contract.namespaces import Namespace

HEADERS = {4: 28, 6: 48}
"""Octets of the IP and UDP headers."""
_LEVEL = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
_MTU_DISCOVER = {4: 10, 6: 23}
_RECVERR = {4: 11, 6: 25}
_PMTUDISC_DONT, _PMTUDISC_PROBE = 0, 3
_ORIGIN = {4: 2, 6: 3}
_KIND = {4: (3, 4), 6: (2, 0)}
_ADDRESS = {4: slice(20, 24), 6: slice(24, 40)}


@dataclass(frozen=True)
class Told:
    """A Fragmentation Needed or Packet Too Big that the sender got."""

    source: str
    mtu: int


class SizedSender:
    """A UDP socket; fragments: let IPv4 packets be fragmented (no Don't Fragment)."""

    def __init__(
        self, space: Namespace, version: int, address: str, fragments: bool = False
    ) -> None:
        self.version, self._address = version, address
        self._socket = udp_socket(space, version, address)
        self._socket.setblocking(False)
        mode = _PMTUDISC_DONT if fragments else _PMTUDISC_PROBE
        self._socket.setsockopt(_LEVEL[version], _MTU_DISCOVER[version], mode)
        self._socket.setsockopt(_LEVEL[version], _RECVERR[version], 1)

    def send(self, octets: int, target: str, first: bytes = b"x") -> bytes:
        """A packet of so many octets, IP header included; its payload."""
        payload = first.ljust(octets - HEADERS[self.version], b"x")
        while True:
            try:
                self._socket.sendto(payload, (target, 4000))
            except OSError as error:
                # What an error that came has to say is in the queue; this packet was not sent.
                if error.errno == 90 and octets > 1500:
                    raise
                continue
            return payload

    def told(self, deadline_s: float = 3.0) -> Told | None:
        """The next ICMP error about size, or None."""
        end = time.monotonic() + deadline_s
        while (left := end - time.monotonic()) > 0:
            poll = select.poll()
            poll.register(self._socket, 0)
            poll.poll(left * 1000)
            with contextlib.suppress(BlockingIOError):
                _, control, _, _ = self._socket.recvmsg(2048, 512, 0x2000 | socket.MSG_DONTWAIT)
                for level, kind, content in control:
                    if (level, kind) == (_LEVEL[self.version], _RECVERR[self.version]):
                        found = self._read(content)
                        if found is not None:
                            return found
        return None

    def _read(self, content: bytes) -> Told | None:
        _, origin, one, code, _, mtu, _ = struct.unpack_from("@IBBBBII", content)
        if origin != _ORIGIN[self.version] or (one, code) != _KIND[self.version]:
            return None
        return Told(str(ip_address(content[_ADDRESS[self.version]])), mtu)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
