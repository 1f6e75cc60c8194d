"""Ethernet frames for tests, packed by hand: ARP, Neighbor Solicitation, UDP; and a guest's tap."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address

from tests.contract.namespaces import Namespace, wait_for
from vmmobility.drivers.linux.tap import open_tap

BROADCAST = b"\xff" * 6


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def arp_request(mac: bytes, sender: str, target: str, source: bytes | None = None) -> bytes:
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    body += mac + IPv4Address(sender).packed + bytes(6) + IPv4Address(target).packed
    return BROADCAST + (source or mac) + b"\x08\x06" + body


def arp_reply_mac(frame: bytes, target: str) -> bytes | None:
    """The MAC in an ARP reply that speaks for `target`."""
    if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\x02":
        return frame[22:28] if frame[28:32] == IPv4Address(target).packed else None
    return None


def ipv6(source: str, target: str, protocol: int, body: bytes, hops: int = 64) -> bytes:
    ends = IPv6Address(source).packed + IPv6Address(target).packed
    place = 2 if protocol == 58 else 6
    total = checksum(ends + struct.pack("!II", len(body), protocol) + body)
    body = body[:place] + total.to_bytes(2, "big") + body[place + 2 :]
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, hops) + ends + body


def ipv4(source: str, target: str, protocol: int, body: bytes, ttl: int = 64) -> bytes:
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, ttl, protocol, 0)
    header += IPv4Address(source).packed + IPv4Address(target).packed
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + body


def udp(source: str, target: str, payload: bytes, hops: int = 64) -> bytes:
    body = struct.pack("!HHHH", 4000, 4000, 8 + len(payload), 0) + payload
    version = ip_address(source).version
    return (ipv4 if version == 4 else ipv6)(source, target, 17, body, hops)


def solicitation(mac: bytes, source: str, target: str) -> bytes:
    packed = IPv6Address(target).packed
    group = str(IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + packed[13:]))
    body = struct.pack("!BBHI", 135, 0, 0, 0) + packed
    if source != "::":
        body += b"\x01\x01" + mac
    return b"\x33\x33\xff" + packed[13:] + mac + b"\x86\xdd" + ipv6(source, group, 58, body, 255)


def advertised_mac(frame: bytes, target: str) -> bytes | None:
    """The link-layer address in a Neighbor Advertisement for `target`."""
    if frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == 136:
        if frame[62:78] != IPv6Address(target).packed:
            return None
        return frame[80:86]
    return None


def payload_of(frame: bytes) -> bytes | None:
    """The payload of a UDP frame to port 4000."""
    start = 14 + (20 if frame[12:14] == b"\x08\x00" else 40)
    protocol = frame[23] if frame[12:14] == b"\x08\x00" else frame[20]
    if protocol != 17 or frame[start + 2 : start + 4] != (4000).to_bytes(2, "big"):
        return None
    return frame[start + 8 :]


class Guest:
    """Whoever holds a tap open: its frames are read and written raw."""

    def __init__(self, space: Namespace, tap: str, mac: bytes, gateway_mac: bytes) -> None:
        self.mac, self._gateway_mac = mac, gateway_mac
        self.descriptor = space.call(open_tap, tap)
        # The kernel starts the tap's queue a moment after it was attached to.
        wait_for(lambda: "state UP" in space.ip("link", "show", tap), f"{tap} up")

    def send(self, frame: bytes) -> None:
        os.write(self.descriptor, frame)

    def send_packet(self, packet: bytes, source: bytes | None = None) -> None:
        kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
        self.send(self._gateway_mac + (source or self.mac) + kind + packet)

    def frames(self) -> list[bytes]:
        """All frames that wait."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(os.read(self.descriptor, 65536))
        return found

    def find(
        self, wanted: Callable[[bytes], bytes | None], deadline_s: float = 3.0
    ) -> bytes | None:
        """The first frame's answer that is not None, or None at the deadline."""
        end = time.monotonic() + deadline_s
        while (left := end - time.monotonic()) > 0:
            if select.select([self.descriptor], [], [], left)[0]:
                for frame in self.frames():
                    found = wanted(frame)
                    if found is not None:
                        return found
        return None

    def close(self) -> None:
        os.close(self.descriptor)


def udp_socket(space: Namespace, version: int, address: str) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    one = space.call(lambda: socket.socket(family, socket.SOCK_DGRAM))

    def bound() -> bool:
        # A program that a driver starts at this moment has a closed one's copy until it runs.
        with contextlib.suppress(OSError):
            one.bind((address, 4000))
            return True
        return False

    wait_for(bound, f"{address} port 4000 is free")
    one.settimeout(3)
    return one


@contextlib.contextmanager
def udp_sockets(
    space: Namespace, addresses: Mapping[int, str]
) -> Iterator[dict[int, socket.socket]]:
    """One a family, by version; a test that fails leaves no port taken to the next."""
    with contextlib.ExitStack() as closing:
        yield {v: closing.enter_context(udp_socket(space, v, a)) for v, a in addresses.items()}
