"""Route messages of any kind, both ways: several next hops, gateways of either family, objects.

FibRoute is whoever's route, as a look-up needs it.  Not here: the table that they make up
(fib_table.py), the socket they come from (fib.py), routes with one next hop (rtnetlink.py).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

from vmmobility.drivers.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    Netlink,
    Request,
    attribute,
    number,
    parse_attributes,
    u32,
)
from vmmobility.drivers.linux.ownership import ROUTE_METRIC, ROUTE_PROTOCOL
from vmmobility.drivers.linux.rtnetlink import (
    RTM_DELROUTE,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTN_UNICAST,
    reading,
)
from vmmobility.wire.values import Address, Prefix

_ROUTE = struct.Struct("=BBBBBBBBI")
_HOP = struct.Struct("=HBBi")
_AF = {4: socket.AF_INET, 6: socket.AF_INET6}
_VERSION = {int(family): version for version, family in _AF.items()}
_OCTETS = {4: 4, 6: 16}
_DST, _OIF, _GATEWAY, _PRIORITY, _MULTIPATH, _TABLE, _VIA, _NH_ID = 1, 4, 5, 6, 9, 15, 18, 30
_CLONED = 0x200
_DEAD, _ONLINK = 0x1, 0x4
_SCOPE_NOWHERE = 255
"""In a removal: whatever the route's scope."""

_KINDS = {1: "unicast", 2: "local", 6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw"}


class Hop(NamedTuple):
    """One next hop: an interface, perhaps through a gateway.

    onlink: the gateway is not checked to be in a connected subnet
    """

    ifindex: int
    gateway: Address | None
    onlink: bool = False


@dataclass(frozen=True, slots=True)
class FibRoute:
    """A route as the kernel shows it.

    bits:  the prefix's address as a number, `length` its length
    hops:  those that are alive; empty for a kind that leads nowhere
    nh_id: the next hop object that it names, 0 for none
    """

    version: int
    length: int
    bits: int
    table: int
    metric: int
    protocol: int
    kind: int
    hops: tuple[Hop, ...]
    nh_id: int = 0

    @property
    def prefix(self) -> Prefix:
        """The prefix as people know it."""
        return ip_network((self.bits.to_bytes(_OCTETS[self.version], "big"), self.length))

    @property
    def ours(self) -> bool:
        """Whether it bears our number."""
        return self.protocol == ROUTE_PROTOCOL

    @property
    def kind_text(self) -> str:
        """`unicast`, `blackhole`, …"""
        return _KINDS.get(self.kind, f"kind {self.kind}")

    @property
    def decides(self) -> bool:
        """Whether a look-up ends here: it leads somewhere, or nowhere on purpose."""
        return bool(self.hops) or self.kind != RTN_UNICAST


@lru_cache(maxsize=1 << 16)
def _address(packed: bytes) -> IPv4Address | IPv6Address:
    return ip_address(packed)


def read_route(body: bytes, tables: Collection[int]) -> FibRoute | None:
    """A route of one of the tables; None for others, and for those that some packets only take.

    Raises ValueError, IndexError or struct.error for bytes that are no route (see `reading`).
    """
    family, length, source, tos, table, protocol, _, kind, flags = _ROUTE.unpack_from(body)
    version = _VERSION.get(family)
    if version is None or source or tos or flags & _CLONED:
        return None
    found = parse_attributes(body[_ROUTE.size :])
    if _TABLE in found:
        table = number(found[_TABLE])
    if table not in tables:
        return None
    packed = found.get(_DST, b"")
    if len(packed) not in (0, _OCTETS[version]) or length > 8 * _OCTETS[version]:
        raise ValueError(f"a route to {packed.hex()}/{length}")
    hops: tuple[Hop, ...] = ()
    if kind == RTN_UNICAST:
        if _MULTIPATH in found:
            hops = tuple(_several(found[_MULTIPATH]))
        elif _OIF in found and not flags & _DEAD:
            hops = (Hop(number(found[_OIF]), _gateway(found), bool(flags & _ONLINK)),)
    return FibRoute(
        version,
        length,
        int.from_bytes(packed, "big"),
        table,
        number(found.get(_PRIORITY, b"")),
        protocol,
        kind,
        hops,
        number(found.get(_NH_ID, b"")),
    )


def _gateway(found: dict[int, bytes]) -> Address | None:
    if _GATEWAY in found:
        return _address(found[_GATEWAY])
    return _address(found[_VIA][2:]) if _VIA in found else None


def _several(data: bytes) -> Iterator[Hop]:
    offset = 0
    while offset + _HOP.size <= len(data):
        length, flags, _, ifindex = _HOP.unpack_from(data, offset)
        if length < _HOP.size or offset + length > len(data):
            raise ValueError("a list of next hops that is cut off")
        found = parse_attributes(data[offset + _HOP.size : offset + length])
        if not flags & _DEAD:
            yield Hop(ifindex, _gateway(found), bool(flags & _ONLINK))
        offset += (length + 3) & ~3


def dump_routes(netlink: Netlink, tables: Collection[int]) -> Iterator[FibRoute]:
    """Every route of the tables, of both families, in the kernel's order."""
    for family in _AF.values():
        bodies = netlink.dump(RTM_GETROUTE, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))
        with reading():
            for body in bodies:
                route = read_route(body, tables)
                if route is not None:
                    yield route


def lead(table: int, prefix: Prefix, hops: Sequence[Hop]) -> Request:
    """Install our route, or turn the one of this name to the new next hops without a hole."""
    body = _head(table, prefix, ROUTE_METRIC, 0, RTN_UNICAST)
    body += _way(prefix.version, hops)
    return Request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)


def drop(route: FibRoute, *, exactly: bool = False) -> Request:
    """Remove a route of ours; `exactly`: the one of these next hops among several of its name."""
    body = _head(route.table, route.prefix, route.metric, _SCOPE_NOWHERE, 0)
    if exactly:
        body += _way(route.version, route.hops)
    return Request(RTM_DELROUTE, 0, body)


def _head(table: int, prefix: Prefix, metric: int, scope: int, kind: int) -> bytes:
    header = _ROUTE.pack(
        _AF[prefix.version], prefix.prefixlen, 0, 0,
        table if table < 256 else 0, ROUTE_PROTOCOL, scope, kind, 0,
    )  # fmt: skip
    destination = attribute(_DST, prefix.network_address.packed)
    return header + destination + u32(_TABLE, table) + u32(_PRIORITY, metric)


def _way(version: int, hops: Sequence[Hop]) -> bytes:
    """One next hop or several: in a list each bears its own flags."""
    if len(hops) == 1 and not hops[0].onlink:
        return u32(_OIF, hops[0].ifindex) + _through(version, hops[0])
    packed = b""
    for hop in hops:
        through = _through(version, hop)
        flags = _ONLINK if hop.onlink else 0
        packed += _HOP.pack(_HOP.size + len(through), flags, 0, hop.ifindex) + through
    return attribute(_MULTIPATH, packed) if packed else b""


def _through(version: int, hop: Hop) -> bytes:
    if hop.gateway is None:
        return b""
    if hop.gateway.version == version:
        return attribute(_GATEWAY, hop.gateway.packed)
    return attribute(_VIA, struct.pack("=H", _AF[hop.gateway.version]) + hop.gateway.packed)
