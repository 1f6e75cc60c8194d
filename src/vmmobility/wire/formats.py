"""How single values look inside options: names, addresses, prefixes, interfaces, NVEs.

    name:      octets of UTF-8, without a length (it fills the rest of its option)
    address:   family (1 octet: 4 or 6), then 4 or 16 octets
    prefix:    family (1), prefix length in bits (1), then 4 or 16 octets, host bits zero
    interface: MAC (6), then prefixes
    NVE:       length of the NVE-ID (1), NVE-ID, then at most one address of each family

Rests on values and cursor.
"""

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeVar

from vmmobility.errors import DecodeError
from vmmobility.wire.cursor import Cursor
from vmmobility.wire.values import Address, Interface, Nve, Prefix

MAX_NAME = 64  # octets of a VM-ID
MAX_NODE_NAME = 32  # octets of an NVE-ID or another node's name (the seal has room for 32)
Numbered = TypeVar("Numbered", bound=IntEnum)


def member(kind: type[Numbered], value: int) -> Numbered:
    """The enumeration's member of that number; DecodeError("bad-value") if there is none."""
    try:
        return kind(value)
    except ValueError:
        raise DecodeError("bad-value", f"{kind.__name__} has no number {value}") from None


def text(data: bytes) -> str:
    """Printable UTF-8; DecodeError("bad-value") otherwise."""
    try:
        decoded = data.decode("utf-8")
    except UnicodeDecodeError:
        raise DecodeError("bad-value", "text is not UTF-8") from None
    if not decoded.isprintable():
        raise DecodeError("bad-value", "text is not printable")
    return decoded


def clip_text(value: str, octets: int) -> bytes:
    """At most `octets` octets of printable UTF-8, cut between characters; never empty."""
    printable = "".join(c if c.isprintable() else "?" for c in value) or "?"
    return printable.encode("utf-8", "replace")[:octets].decode("utf-8", "ignore").encode()


def check_name(value: str, most: int = MAX_NAME) -> str:
    """A VM-ID or NVE-ID: 1 to `most` octets of printable UTF-8 without spaces or '/'.

    Raises ValueError.
    """
    if not 1 <= len(value.encode("utf-8", "replace")) <= most:
        raise ValueError(f"a name has 1 to {most} octets: {value[:80]!r}")
    if not value.isprintable() or " " in value or "/" in value:
        raise ValueError(f"a name has no space, '/' or unprintable character: {value!r}")
    return value


def name(value: str, most: int = MAX_NAME) -> bytes:
    return check_name(value, most).encode()


def _decoded_name(data: bytes, most: int = MAX_NAME) -> str:
    try:
        return check_name(text(data), most)
    except ValueError as error:
        raise DecodeError("bad-value", str(error)) from None


def take_name(cursor: Cursor) -> str:
    return _decoded_name(cursor.rest())


def address(value: Address) -> bytes:
    return bytes([value.version]) + value.packed


def take_address(cursor: Cursor, family: int) -> Address:
    if family == 4:
        return IPv4Address(cursor.take(4))
    if family == 6:
        return IPv6Address(cursor.take(16))
    raise DecodeError("bad-value", f"address family {family} is neither 4 nor 6")


def prefix(value: Prefix) -> bytes:
    return bytes([value.version, value.prefixlen]) + value.network_address.packed


def take_prefix(cursor: Cursor) -> Prefix:
    family, length = cursor.uint(1), cursor.uint(1)
    network = take_address(cursor, family)
    try:
        if isinstance(network, IPv4Address):
            return IPv4Network((network, length))
        return IPv6Network((network, length))
    except ValueError as error:
        raise DecodeError("bad-value", str(error)) from None


def interface(value: Interface) -> bytes:
    if len(value.mac) != 6:
        raise ValueError("a MAC has 6 octets")
    return value.mac + b"".join(prefix(p) for p in value.prefixes)


def take_interface(cursor: Cursor) -> Interface:
    mac = cursor.take(6)
    if mac[0] & 1 or mac == bytes(6):
        raise DecodeError("bad-value", "an interface's MAC is a group's or zero")
    prefixes: list[Prefix] = []
    while cursor.left:
        prefixes.append(take_prefix(cursor))
    return Interface(mac, tuple(prefixes))


def nve(value: Nve) -> bytes:
    identity = name(value.nve_id, MAX_NODE_NAME)
    return bytes([len(identity)]) + identity + b"".join(address(a) for a in value.locators)


def take_nve(cursor: Cursor) -> Nve:
    identity = _decoded_name(cursor.take(cursor.uint(1)), MAX_NODE_NAME)
    found: dict[int, Address] = {}
    while cursor.left:
        family = cursor.uint(1)
        if family in found:
            raise DecodeError("bad-value", f"two IPv{family} locators")
        found[family] = _locator(take_address(cursor, family))
    v4, v6 = found.get(4), found.get(6)
    assert v4 is None or isinstance(v4, IPv4Address)
    assert v6 is None or isinstance(v6, IPv6Address)
    return Nve(identity, v4, v6)


def _locator(value: Address) -> Address:
    """design: link-local is never a locator; nor are loopback, multicast and unspecified."""
    if value.is_link_local or value.is_multicast or value.is_loopback or value.is_unspecified:
        raise DecodeError("bad-value", f"{value} cannot be a locator")
    return value
