"""The NDP responder of the taps: what proxy_arp is for IPv4, for IPv6.

A guest with an on-link prefix (fd01::5/64) asks for neighbours that live in other racks; the
answer is the gateway's MAC, and routing does the rest.  The kernel's own proxy_ndp would need
one entry an address.  Not here: fe80::1 itself (the kernel answers) and duplicate address
detection (never answered: RFC 4861 Section 7.2.3 leaves `::` to the owner of the address).
Rests on one AF_PACKET socket with a filter in the kernel; it lives in the relay process.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_network
from typing import Any

_ETH_P_IPV6 = 0x86DD
_ICMPV6 = 58
_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT = 135, 136
_SO_ATTACH_FILTER = 26
_ROUTER, _SOLICITED = 0x80, 0x40
_LINK_LOCAL = IPv6Network("fe80::/10")

# Accept only ICMPv6 (octet 6 of the IPv6 header) of type 135 (first octet behind it).
_FILTER = (
    (0x30, 0, 0, 6), (0x15, 0, 3, _ICMPV6),
    (0x30, 0, 0, 40), (0x15, 0, 1, _NEIGHBOUR_SOLICITATION),
    (0x06, 0, 0, 0x40000), (0x06, 0, 0, 0),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GuestPort:
    """A tap: the guest's MAC and its own IPv6 prefixes, which are never answered for."""

    mac: bytes
    own: tuple[IPv6Network, ...]


def read_ports(orders: Sequence[Mapping[str, Any]]) -> dict[str, GuestPort]:
    """Ports by tap name from their JSON orders.  Raises ValueError or KeyError."""
    ports = {}
    for order in orders:
        networks = [ip_network(text) for text in order["own"]]
        own = tuple(n for n in networks if isinstance(n, IPv6Network))
        ports[str(order["name"])] = GuestPort(bytes.fromhex(order["mac"].replace(":", "")), own)
    return ports


def answer(
    packet: bytes, sender_mac: bytes, port: GuestPort, gateway_mac: bytes, gateway: IPv6Address
) -> bytes | None:
    """The Neighbor Advertisement (an IPv6 packet) for a solicitation, or None for silence."""
    if len(packet) < 64 or packet[7] != 255 or sender_mac != port.mac:
        return None
    source, target = IPv6Address(packet[8:24]), IPv6Address(packet[48:64])
    if source.is_unspecified or target.is_multicast or target in _LINK_LOCAL:
        return None
    if source not in _LINK_LOCAL and not any(source in network for network in port.own):
        return None
    if any(target in network for network in port.own):
        return None
    # RFC 4861 Section 7.2.8: a proxy leaves the Override flag clear.
    body = struct.pack("!BBHI", _NEIGHBOUR_ADVERTISEMENT, 0, 0, (_ROUTER | _SOLICITED) << 24)
    body += target.packed + b"\x02\x01" + gateway_mac
    ends = gateway.packed + source.packed
    checksum = _checksum(ends + struct.pack("!II", len(body), _ICMPV6) + body)
    body = body[:2] + checksum.to_bytes(2, "big") + body[4:]
    return struct.pack("!IHBB", 6 << 28, len(body), _ICMPV6, 255) + ends + body


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class NeighbourProxy:
    """Answers solicitations on our taps.  `handle()` when `fileno()` is readable."""

    def __init__(self, gateway_mac: bytes, gateway: IPv6Address) -> None:
        self._gateway_mac = gateway_mac
        self._gateway = gateway
        self.ports: dict[str, GuestPort] = {}
        self.answered = 0
        self._socket = socket.socket(
            socket.AF_PACKET,
            socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.htons(_ETH_P_IPV6),
        )
        program = b"".join(struct.pack("=HBBI", *step) for step in _FILTER)
        buffer = ctypes.create_string_buffer(program)
        order = struct.pack("HL", len(_FILTER), ctypes.addressof(buffer))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, order)

    def fileno(self) -> int:
        """The socket's descriptor, for epoll."""
        return self._socket.fileno()

    def handle(self, most: int = 64) -> None:
        """Answer up to `most` waiting solicitations; what cannot be sent is left out."""
        for _ in range(most):
            try:
                packet, address = self._socket.recvfrom(2048)
            except OSError:
                return
            port = self.ports.get(address[0])
            if port is None:
                continue
            reply = answer(packet, address[4], port, self._gateway_mac, self._gateway)
            if reply is None:
                continue
            try:
                self._socket.sendto(reply, (address[0], _ETH_P_IPV6, 0, 0, address[4]))
                self.answered += 1
            except OSError:
                continue

    def close(self) -> None:
        """Stop answering."""
        self._socket.close()
