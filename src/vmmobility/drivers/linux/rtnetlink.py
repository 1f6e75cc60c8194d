"""rtnetlink messages as values: links, addresses, neighbours and routes, both ways.

Builders give a `netlink.Request`; parsers read the bodies of a dump.  The IP family is a
parameter everywhere.  Not here: rules (policy_rules.py), tunnels' own words (tunnel_messages.py),
sending (netlink.py), or what we want (plan.py).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from vmmobility.drivers.linux.circuit_messages import CircuitLink, master_of, read_circuit
from vmmobility.drivers.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    Attributes,
    Netlink,
    Refusal,
    Request,
    attribute,
    number,
    parse_attributes,
    text,
    u32,
)
from vmmobility.drivers.linux.ownership import ROUTE_METRIC, ROUTE_PROTOCOL
from vmmobility.drivers.linux.tunnel_messages import (
    Encapsulation,
    encapsulation_attributes,
    link_kind,
    read_encapsulation,
)
from vmmobility.errors import DataPlaneError
from vmmobility.wire.values import Address, Prefix

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30

RTN_UNICAST, RTN_BLACKHOLE = 1, 6
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_NOWHERE = 0, 253, 255
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_IFA_F_NODAD, _IFA_F_PERMANENT = 0x02, 0x80
_NUD_PERMANENT = 0x80

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")

_AF = {4: socket.AF_INET, 6: socket.AF_INET6}
_VERSION = {socket.AF_INET: 4, socket.AF_INET6: 6}


@dataclass(frozen=True, slots=True)
class Link:
    """An interface as the kernel shows it; `running`: up, attached, and its queue at work."""

    index: int
    name: str
    mac: bytes
    mtu: int
    queue_length: int
    up: bool
    running: bool
    loopback: bool
    tx_packets: int
    kind: str = ""
    circuit: CircuitLink | None = None
    master: int = 0


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where a route leads: an interface (0: a blackhole), perhaps through a gateway or a tunnel."""

    ifindex: int
    gateway: Address | None = None
    tunnel: Encapsulation | None = None


class RouteName(NamedTuple):
    """Which route: the kernel has one of ours for each."""

    table: int
    prefix: Prefix
    metric: int = ROUTE_METRIC


@dataclass(frozen=True, slots=True)
class Route:
    """A route of ours."""

    table: int
    prefix: Prefix
    hop: NextHop
    metric: int = ROUTE_METRIC

    @property
    def name(self) -> RouteName:
        return RouteName(self.table, self.prefix, self.metric)


def new_route(route: Route) -> Request:
    """Install the route, or turn the one of this name to the new next hop without a hole."""
    return Request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, _route_body(route))


def delete_route(route: Route) -> Request:
    """Remove exactly this route of ours."""
    return Request(RTM_DELROUTE, 0, _route_body(route))


def _route_body(route: Route) -> bytes:
    prefix, hop = route.prefix, route.hop
    kind = RTN_UNICAST if hop.ifindex else RTN_BLACKHOLE
    scope = _SCOPE_LINK if prefix.version == 4 and hop.ifindex and hop.gateway is None else 0
    header = _ROUTE.pack(
        _AF[prefix.version], prefix.prefixlen, 0, 0,
        route.table if route.table < 256 else 0, ROUTE_PROTOCOL, scope, kind, 0,
    )  # fmt: skip
    parts = [header, attribute(1, prefix.network_address.packed), u32(15, route.table)]
    parts.append(u32(6, route.metric))
    if hop.ifindex:
        parts.append(u32(4, hop.ifindex))
    if hop.gateway is not None:
        parts.append(attribute(5, hop.gateway.packed))
    if hop.tunnel is not None and hop.tunnel.destination is not None:
        parts.append(encapsulation_attributes(hop.tunnel))
    return b"".join(parts)


@contextmanager
def reading() -> Iterator[None]:
    """An answer that is cut off, or holds no address where one belongs, is a DataPlaneError."""
    try:
        yield
    except (struct.error, ValueError) as error:
        raise DataPlaneError(
            f"netlink: the kernel's answer cannot be read: {error}", "resynchronise later"
        ) from error


def routes_of_ours(netlink: Netlink) -> Iterator[Route]:
    """Every route with our protocol number, of both families and all tables.

    This and all that read the kernel's answers raise DataPlaneError for one that is none.
    """
    with reading():
        yield from _routes_of_ours(netlink)


def _routes_of_ours(netlink: Netlink) -> Iterator[Route]:
    for family, version in _VERSION.items():
        header = _ROUTE.pack(family, 0, 0, 0, 0, ROUTE_PROTOCOL, 0, 0, 0)
        for body in netlink.dump(RTM_GETROUTE, header):
            fields = _ROUTE.unpack_from(body)
            if fields[5] != ROUTE_PROTOCOL:
                continue
            found = parse_attributes(body[_ROUTE.size :])
            bits = found.get(1, bytes(4 if version == 4 else 16))
            table = number(found[15]) if 15 in found else fields[4]
            ifindex = number(found.get(4, b"\0")) if fields[7] == RTN_UNICAST else 0
            gateway = ip_address(found[5]) if 5 in found else None
            prefix = ip_network((bits, fields[1]))
            hop = NextHop(ifindex, gateway, read_encapsulation(found))
            yield Route(table, prefix, hop, number(found.get(6, b"\0")))


def look_up(netlink: Netlink, destination: Address) -> NextHop | Refusal:
    """The kernel's route to an address; a route that is not unicast gives interface 0."""
    header = _ROUTE.pack(_AF[destination.version], destination.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    answer = netlink.get(RTM_GETROUTE, header + attribute(1, destination.packed))
    if isinstance(answer, Refusal):
        return answer
    with reading():
        return _next_hop(answer)


def _next_hop(answer: bytes) -> NextHop:
    found = parse_attributes(answer[_ROUTE.size :])
    if _ROUTE.unpack_from(answer)[7] != RTN_UNICAST:
        return NextHop(0)
    # RTA_VIA (18): an IPv4 route through an IPv6 gateway is not adjacency either.
    gateway = ip_address(found[5]) if 5 in found else None
    if 18 in found:
        gateway = ip_address(found[18][2:])
    return NextHop(number(found.get(4, b"\0")), gateway, read_encapsulation(found))


def set_link(
    index: int,
    *,
    up: bool | None = None,
    mac: bytes | None = None,
    mtu: int | None = None,
    queue_length: int | None = None,
) -> Request:
    """Change an interface: only what is given."""
    flags, mask = (_IFF_UP if up else 0), (_IFF_UP if up is not None else 0)
    parts = [_LINK.pack(socket.AF_UNSPEC, 0, index, flags, mask)]
    if mac is not None:
        parts.append(attribute(1, mac))
    if mtu is not None:
        parts.append(u32(4, mtu))
    if queue_length is not None:
        parts.append(u32(13, queue_length))
    return Request(RTM_NEWLINK, 0, b"".join(parts))


def delete_link(index: int) -> Request:
    """Remove an interface and all that hangs on it."""
    return Request(RTM_DELLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0))


def links(netlink: Netlink) -> Iterator[Link]:
    """Every interface."""
    for body in netlink.dump(RTM_GETLINK, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        yield read_link(body)


def link_named(netlink: Netlink, name: str) -> Link | None:
    """One interface by its name, or None."""
    request = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + text(3, name)
    answer = netlink.get(RTM_GETLINK, request)
    if isinstance(answer, Refusal):
        return None
    return read_link(answer)


def read_link(body: bytes) -> Link:
    """The interface that a message is about."""
    with reading():
        return _link(body)


def _link(body: bytes) -> Link:
    _, kind, index, flags, _ = _LINK.unpack_from(body)
    found = parse_attributes(body[_LINK.size :])
    # struct rtnl_link_stats64 begins with rx_packets, tx_packets.
    counters = struct.unpack_from("=2Q", found.get(23, bytes(16)))
    return Link(
        index=index,
        name=name_of(found),
        mac=found.get(1, b""),
        mtu=number(found.get(4, b"\0")),
        queue_length=number(found.get(13, b"\0")),
        up=bool(flags & _IFF_UP),
        running=bool(flags & _IFF_RUNNING),
        loopback=kind == 772,
        tx_packets=counters[1],
        kind=link_kind(found),
        circuit=read_circuit(found),
        master=master_of(found),
    )


def name_of(found: Attributes) -> str:
    """An interface's name; that of a stranger's may be no UTF-8."""
    return found.get(3, b"").rstrip(b"\0").decode(errors="replace")


def new_address(index: int, address: Address, length: int) -> Request:
    """Give an interface an address, without duplicate address detection."""
    version = address.version
    # A host-only IPv4 gateway address stays off the wire's routes: scope link.
    scope = _SCOPE_LINK if version == 4 or address.is_link_local else _SCOPE_UNIVERSE
    flags = _IFA_F_PERMANENT | (_IFA_F_NODAD if version == 6 else 0)
    body = _ADDRESS.pack(_AF[version], length, flags, scope, index)
    body += attribute(2, address.packed) + attribute(1, address.packed)
    return Request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body)


def addresses(netlink: Netlink) -> Iterator[tuple[int, Address]]:
    """Every address as (interface index, address)."""
    with reading():
        yield from _addresses(netlink)


def subnets(netlink: Netlink) -> Iterator[tuple[int, Prefix]]:
    """What every address says is on its link, as (interface index, prefix)."""
    with reading():
        for family in _VERSION:
            for body in netlink.dump(RTM_GETADDR, _ADDRESS.pack(family, 0, 0, 0, 0)):
                fields = _ADDRESS.unpack_from(body)
                # IFA_ADDRESS: where the link has another end with an address of its own, that one.
                bits = parse_attributes(body[_ADDRESS.size :]).get(1)
                if bits:
                    yield fields[4], ip_network((bits, fields[1]), strict=False)


def _addresses(netlink: Netlink) -> Iterator[tuple[int, Address]]:
    for family in _VERSION:
        for body in netlink.dump(RTM_GETADDR, _ADDRESS.pack(family, 0, 0, 0, 0)):
            found = parse_attributes(body[_ADDRESS.size :])
            bits = found.get(2) or found.get(1)
            if bits:
                yield _ADDRESS.unpack_from(body)[4], ip_address(bits)


def new_neighbour(index: int, address: Address, mac: bytes) -> Request:
    """A permanent neighbour: no resolution, nothing learnt from the guest."""
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, _neighbour(index, address, mac))


def delete_neighbour(index: int, address: Address) -> Request:
    """Forget a neighbour."""
    return Request(RTM_DELNEIGH, 0, _neighbour(index, address, None))


def _neighbour(index: int, address: Address, mac: bytes | None) -> bytes:
    body = _NEIGHBOUR.pack(_AF[address.version], index, _NUD_PERMANENT, 0, 0)
    body += attribute(1, address.packed)
    if mac is not None:
        body += attribute(2, mac) + attribute(12, bytes([ROUTE_PROTOCOL]))
    return body


def permanent_neighbours(netlink: Netlink) -> Iterator[tuple[int, Address, bytes]]:
    """Every permanent neighbour as (interface index, address, MAC)."""
    with reading():
        yield from _permanent_neighbours(netlink)


def _permanent_neighbours(netlink: Netlink) -> Iterator[tuple[int, Address, bytes]]:
    for family in _VERSION:
        for body in netlink.dump(RTM_GETNEIGH, _NEIGHBOUR.pack(family, 0, 0, 0, 0)):
            _, index, state, _, _ = _NEIGHBOUR.unpack_from(body)
            found = parse_attributes(body[_NEIGHBOUR.size :])
            if state & _NUD_PERMANENT and 1 in found and 2 in found:
                yield index, ip_address(found[1]), found[2]


def default_prefix(version: int) -> Prefix:
    """0.0.0.0/0 or ::/0."""
    return ip_network("0.0.0.0/0") if version == 4 else IPv6Network("::/0")


def host_addresses(prefixes: Iterable[Prefix], most: int = 16) -> list[Address]:
    """Every address of the prefixes that hold at most `most` (/28, /124): kept as neighbours.

    A longer list would cost more than it saves; there ARP and NDP resolve as on any link.
    """
    found: list[IPv4Address | IPv6Address] = []
    for prefix in prefixes:
        if prefix.num_addresses <= most:
            found.extend(prefix)
    return list(dict.fromkeys(found))
