"""Packets of an exact size from a socket that ignores what its kernel knows of the path, and the
ICMP errors that come back; paths of other sizes, and what kernels have learnt of them.

Not here: the ways that they take (the tests).
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, ip_address
from typing import Self

import pytest

from tests.contract.dataplane_fabric import LOCAL, A, B, Fabric, Node
from tests.contract.frames import Guest, checksum, ipv4, udp_socket
from tests.contract.namespaces import Namespace, wait_for
from vmmobility.engine.dataplane import Forwarding
from vmmobility.wire.values import Nve

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


# -- paths from a to b in dataplane_fabric.py ------------------------------------------------

OUTER = {4: 20, 6: 40}
LEAST = {4: 68, 6: 1280}
LOCATOR = {4: "10.0.1.2", 6: "fd00:1::2"}
TUNNELLED = replace(LOCAL, plugged=False, forwarding=Forwarding.REDIRECT, target=B)


def set_mtu(fabric: Fabric, mtu: int) -> None:
    """Of the link between r1 and r2, in the middle of the tunnel from a to b."""
    r1, r2 = fabric.routers
    r1.ip("link", "set", "tor2", "mtu", str(mtu))
    r2.ip("link", "set", "tor1", "mtu", str(mtu))


def forget_paths(fabric: Fabric) -> None:
    """What the kernels have learnt of paths' MTUs."""
    for space in (fabric.host, fabric.a.space, fabric.b.space, fabric.c.space):
        space.ip("route", "flush", "cache")
        space.ip("-6", "route", "flush", "cache")


@contextlib.contextmanager
def redirected(fabric: Fabric) -> Iterator[Guest]:
    """A guest at b, to which a redirects."""
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(TUNNELLED)
    guest = fabric.b.plug()
    yield guest
    guest.close()


RELAY = pytest.mark.parametrize("standing_fabric", ["relay"], indirect=True)
"""What the kernel's tunnels do otherwise (docs/dataplane.md, MTU)."""


def learn(fabric: Fabric, version: int, path: int, send: Callable[[], object]) -> None:
    """Let a packet find a path that a does not know yet: an ipip device keeps to itself what a
    router says of it, and tells of the next one.  An ip6tnl device and a relay tell at once."""
    if (fabric.back_end, version) != ("kernel", 4) or path >= 1500:
        return
    send()
    way = ("route", "get", str(B.locator(version)))
    wait_for(lambda: f"mtu {path}" in fabric.a.space.ip(*way), f"a path of {path} octets is known")


def too_big(node: Node) -> int:
    return node.traffic().too_big


def dont_fragment(packet: bytes) -> bytes:
    """The packet with that bit set, if it is IPv4, and its checksum right."""
    if packet[0] >> 4 == 6:
        return packet
    head = packet[:6] + bytes([packet[6] | 0x40]) + packet[7:10] + b"\0\0" + packet[12:20]
    return head[:10] + checksum(head).to_bytes(2, "big") + packet[12:]


def encapsulated(packet: bytes, version: int, peer: Nve) -> bytes:
    """As a would send it to the peer."""
    if version == 4:
        return ipv4(LOCATOR[4], str(peer.ipv4), 4, packet)
    ends = IPv6Address(LOCATOR[6]).packed + IPv6Address(str(peer.ipv6)).packed
    return struct.pack("!IHBB", 6 << 28, len(packet), 41, 64) + ends + packet
