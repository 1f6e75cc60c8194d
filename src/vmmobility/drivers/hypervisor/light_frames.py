"""Frames by which a light VM's network card announces it: gratuitous ARP, unsolicited NA.

Pure bytes.  Not here: sending them (light_nic.py).  Rests on nothing.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

_BROADCAST = b"\xff" * 6
_ALL_NODES = IPv6Address("ff02::1")


def announcement(mac: bytes, address: IPv4Address | IPv6Address) -> bytes:
    """The frame that tells the link where `address` is now."""
    if isinstance(address, IPv4Address):
        return _gratuitous_arp(mac, address)
    return _unsolicited_advertisement(mac, address)


def _gratuitous_arp(mac: bytes, address: IPv4Address) -> bytes:
    head = struct.pack("!6s6sH", _BROADCAST, mac, 0x0806)
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    return head + body + mac + address.packed + b"\0" * 6 + address.packed


def _unsolicited_advertisement(mac: bytes, address: IPv6Address) -> bytes:
    override = 0x20000000
    option = struct.pack("!BB6s", 2, 1, mac)
    body = struct.pack("!I16s", override, address.packed) + option
    length = 4 + len(body)
    pseudo = address.packed + _ALL_NODES.packed + struct.pack("!I3xB", length, 58)
    checksum = _checksum(pseudo + struct.pack("!BBH", 136, 0, 0) + body)
    icmp = struct.pack("!BBH", 136, 0, checksum) + body
    head = struct.pack("!6s6sH", bytes.fromhex("333300000001"), mac, 0x86DD)
    ip = struct.pack("!IHBB16s16s", 6 << 28, length, 58, 255, address.packed, _ALL_NODES.packed)
    return head + ip + icmp


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
