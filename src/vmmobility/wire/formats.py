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


def printable(value: str) -> str:
    """The text with '?' for every character that is unprintable or was not UTF-8; never empty."""
    return "".join(c if c.isprintable() and c != "\ufffd" else "?" for c in value) or "?"


def clip_text(value: str, octets: int) -> bytes:
    """At most `octets` octets of printable UTF-8, cut between characters; never empty."""
    return printable(value).encode()[:octets].decode("utf-8", "ignore").encode()


def take_words(cursor: Cursor) -> str:
    """Text for people: what cannot be printed becomes '?', for words never spoil a message."""
    return printable(cursor.rest().decode("utf-8", "replace"))


def check_name(value: str, most: int = MAX_NAME) -> str:
    """A VM-ID or NVE-ID: 1 to `most` octets of printable UTF-8 without spaces or '/'.

    Raises ValueError.
    """
    if not value.isprintable() or " " in value or "/" in value:
        raise ValueError(f"a name has no space, '/' or unprintable character: {value[:80]!r}")
    if not 1 <= len(value.encode()) <= most:
        raise ValueError(f"a name has 1 to {most} octets: {value[:80]!r}")
    return value


def name(value: str, most: int = MAX_NAME) -> bytes:
    return check_name(value, most).encode()


def _decoded_name(data: bytes, most: int = MAX_NAME) -> str:
    try:
        return check_name(data.decode("utf-8"), most)
    except ValueError as error:  # UnicodeDecodeError is one
        raise DecodeError("bad-value", str(error)) from None


def take_name(cursor: Cursor) -> str:
    return _decoded_name(cursor.rest())


def node_name(value: str) -> bytes:
    """A node's name among other values: its length (1 octet) before it."""
    identity = name(value, MAX_NODE_NAME)
    return bytes([len(identity)]) + identity


def take_node_name(cursor: Cursor) -> str:
    return _decoded_name(cursor.take(cursor.uint(1)), MAX_NODE_NAME)


def take_last_node_name(cursor: Cursor) -> str:
    """One that ends an option."""
    return _decoded_name(cursor.rest(), MAX_NODE_NAME)


def take_ipv4(cursor: Cursor) -> IPv4Address:
    """Four octets without a family."""
    return IPv4Address(cursor.take(4))


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


def check_mac(value: bytes) -> bytes:
    """An interface's MAC: 6 octets, not zero, not a group's.  Raises ValueError."""
    if len(value) != 6 or value[0] & 1 or value == bytes(6):
        raise ValueError(f"an interface's MAC is 6 octets, no group's, not zero: {value.hex(':')}")
    return value


def interface(value: Interface) -> bytes:
    return check_mac(value.mac) + b"".join(prefix(p) for p in value.prefixes)


def take_interface(cursor: Cursor) -> Interface:
    try:
        mac = check_mac(cursor.take(6))
    except ValueError as error:
        raise DecodeError("bad-value", str(error)) from None
    prefixes: list[Prefix] = []
    while cursor.left:
        prefixes.append(take_prefix(cursor))
    return Interface(mac, tuple(prefixes))


def nve(value: Nve) -> bytes:
    return node_name(value.nve_id) + b"".join(address(check_locator(a)) for a in value.locators)


def take_nve(cursor: Cursor) -> Nve:
    identity = take_node_name(cursor)
    found: dict[int, Address] = {}
    while cursor.left:
        family = cursor.uint(1)
        if family in found:
            raise DecodeError("bad-value", f"two IPv{family} locators")
        found[family] = take_locator(cursor, family)
    v4, v6 = found.get(4), found.get(6)
    assert v4 is None or isinstance(v4, IPv4Address)
    assert v6 is None or isinstance(v6, IPv6Address)
    return Nve(identity, v4, v6)


def check_locator(value: Address) -> Address:
    """Link-local is never a locator; nor are loopback, multicast and unspecified (ValueError)."""
    if value.is_link_local or value.is_multicast or value.is_loopback or value.is_unspecified:
        raise ValueError(f"{value} cannot be a locator")
    return value


def take_locator(cursor: Cursor, family: int) -> Address:
    value = take_address(cursor, family)
    try:
        return check_locator(value)
    except ValueError as error:
        raise DecodeError("bad-value", str(error)) from None
