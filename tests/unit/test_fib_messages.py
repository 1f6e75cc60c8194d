"""fib_messages.py: routes of several next hops packed and read; what is none of ours to look at."""

from __future__ import annotations

import random
import struct
from ipaddress import ip_address, ip_network

import pytest

from vmmobility.drivers.linux import rtnetlink
from vmmobility.drivers.linux.fib_messages import FibRoute, Hop, drop, lead, read_route
from vmmobility.drivers.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    attribute,
    number,
    parse_attributes,
    u32,
)

TABLES = (254, 7701)


def hop(ifindex: int, gateway: str | None = None, onlink: bool = False) -> Hop:
    return Hop(ifindex, ip_address(gateway) if gateway else None, onlink)


def message(
    prefix: str = "10.0.0.0/8", *attributes: bytes, table: int = 254, **header: int
) -> bytes:
    net = ip_network(prefix)
    fields = {"source": 0, "tos": 0, "protocol": 188, "kind": 1, "flags": 0, **header}
    packed = struct.pack(
        "=BBBBBBBBI", 2 if net.version == 4 else 10, net.prefixlen, fields["source"],
        fields["tos"], table, fields["protocol"], 0, fields["kind"], fields["flags"],
    )  # fmt: skip
    return packed + attribute(1, net.network_address.packed) + b"".join(attributes)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    ("prefix", "hops"),
    [
        ("10.77.0.5/32", [hop(3, "10.0.1.2")]),
        ("10.77.0.0/24", [hop(3, "10.0.1.2"), hop(4, "10.0.2.2")]),
        ("10.77.0.5/32", [hop(3, "fd00:1::2")]),
        ("10.77.0.5/32", [hop(3, "fd00:1::2"), hop(4, "10.0.2.2", onlink=True)]),
        ("fd77::5/128", [hop(3, "fd00:1::2")]),
        ("fd77::5/128", [hop(3, "fd00:1::2", onlink=True)]),
        ("::/0", [hop(3, "fe80::1"), hop(4, "fe80::1"), hop(5, "fe80::1")]),
    ],
)
def test_what_is_packed_is_read(prefix: str, hops: list[Hop], table: int) -> None:
    net = ip_network(prefix)
    request = lead(table, net, hops)
    assert (request.kind, request.flags) == (rtnetlink.RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)
    route = read_route(request.body, TABLES)
    assert route is not None
    assert (route.prefix, route.table, route.hops) == (net, table, tuple(hops))
    assert (route.metric, route.protocol, route.kind_text) == (7, 77, "unicast")
    assert route.ours
    assert route.decides


def test_a_removal_names_no_next_hop_unless_exact() -> None:
    ways = (hop(3, "10.0.1.2"), hop(4, "10.0.2.2"))
    route = FibRoute(4, 32, int(ip_address("10.77.0.5")), 7701, 7, 77, 1, ways)
    request = drop(route)
    assert (request.kind, request.body[6]) == (rtnetlink.RTM_DELROUTE, 255)
    found = parse_attributes(request.body[12:])
    assert {kind: number(found[kind]) for kind in (15, 6)} == {15: 7701, 6: 7}
    assert found.keys() == {1, 15, 6}
    assert 9 in parse_attributes(drop(route, exactly=True).body[12:])


@pytest.mark.parametrize(
    "body",
    [
        message(table=99),
        message("10.0.0.0/8", u32(15, 7700)),
        message(source=8),
        message(tos=16),
        message(flags=0x200),
        b"\x07" + message()[1:],
    ],
    ids=["table", "long table", "source", "tos", "cloned", "family"],
)
def test_what_only_some_packets_take_is_left_out(body: bytes) -> None:
    assert read_route(body, TABLES) is None


def test_dead_next_hops_are_left_out() -> None:
    dead = struct.pack("=HBBi", 16, 1, 0, 3) + attribute(5, bytes([10, 0, 1, 2]))
    down = struct.pack("=HBBi", 16, 16, 0, 4) + attribute(5, bytes([10, 0, 2, 2]))
    route = read_route(message("10.0.0.0/8", attribute(9, dead + down)), TABLES)
    assert route is not None
    assert route.hops == (hop(4, "10.0.2.2"),), "without carrier it leads all the same"
    alone = read_route(message("10.0.0.0/8", u32(4, 3), flags=1), TABLES)
    assert alone is not None
    assert not alone.decides


def test_objects_kinds_and_defaults() -> None:
    route = read_route(message("0.0.0.0/0", u32(4, 3), u32(30, 12), u32(6, 20)), TABLES)
    assert route is not None
    assert (route.nh_id, route.metric, route.prefix) == (12, 20, ip_network("0.0.0.0/0"))
    for kind, name in ((6, "blackhole"), (7, "unreachable"), (8, "prohibit"), (9, "throw")):
        route = read_route(message("fd00::/8", u32(4, 1), kind=kind), TABLES)
        assert route is not None
        assert (route.kind_text, route.hops, route.decides) == (name, (), True)


def test_damaged_messages_are_none_or_an_error() -> None:
    draw = random.Random(1)
    whole = lead(254, ip_network("10.7.0.0/16"), [hop(3, "10.0.1.2"), hop(4, "fd00::2")]).body
    for _ in range(3000):
        damaged = bytearray(whole[: draw.choice((len(whole), draw.randrange(len(whole))))])
        for _ in range(draw.randrange(3)):
            if damaged:
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            read_route(bytes(damaged), TABLES)
        except (ValueError, IndexError, struct.error):
            continue
