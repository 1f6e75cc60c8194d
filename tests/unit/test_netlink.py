"""netlink.py and rtnetlink.py: bytes packed and read; batches against the real kernel."""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network

import pytest

from vmmobility.drivers.linux import rtnetlink
from vmmobility.drivers.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    Netlink,
    Refusal,
    attribute,
    number,
    parse_attributes,
    split_messages,
    text,
    u32,
)
from vmmobility.drivers.linux.rtnetlink import NextHop, Route


def test_attributes_are_padded_and_read_back() -> None:
    packed = attribute(1, b"\1\2\3\4\5") + u32(4, 70000) + text(3, "eth0")
    assert len(packed) % 4 == 0
    found = parse_attributes(packed)
    assert found == {1: b"\1\2\3\4\5", 4: struct.pack("=I", 70000), 3: b"eth0\0"}
    assert number(found[4]) == 70000


@pytest.mark.parametrize("tail", [b"\1", b"\3\0\1\0", b"\xff\0\1\0abcd"])
def test_a_broken_tail_is_left_out(tail: bytes) -> None:
    assert parse_attributes(u32(4, 1) + tail) == {4: struct.pack("=I", 1)}


def test_messages_are_split_with_their_padding() -> None:
    one = struct.pack("=IHHII", 18, 2, 0, 7, 0) + b"ab" + b"\0\0"
    two = struct.pack("=IHHII", 16, 3, 0, 8, 0)
    assert list(split_messages(one + two)) == [(2, 0, 7, b"ab"), (3, 0, 8, b"")]
    assert list(split_messages(one + two[:9])) == [(2, 0, 7, b"ab")]


@pytest.mark.parametrize(
    ("prefix", "gateway", "scope"),
    [
        ("10.0.0.5/32", None, 253),
        ("10.0.0.0/24", "10.9.0.1", 0),
        ("fd00::5/128", None, 0),
        ("fd00::/64", "fd09::1", 0),
    ],
)
def test_a_route_names_table_protocol_metric_and_hop(
    prefix: str, gateway: str | None, scope: int
) -> None:
    hop = NextHop(3, ip_address(gateway) if gateway else None)
    request = rtnetlink.new_route(Route(7700, ip_network(prefix), hop))
    assert request.flags == NLM_F_CREATE | NLM_F_REPLACE
    _, length, _, _, _, protocol, scoped, kind, _ = struct.unpack_from("=BBBBBBBBI", request.body)
    found = parse_attributes(request.body[12:])
    assert (length, protocol, scoped, kind) == (ip_network(prefix).prefixlen, 77, scope, 1)
    assert [number(found[k]) for k in (15, 6, 4)] == [7700, 7, 3]
    assert found.get(5) == (ip_address(gateway).packed if gateway else None)


def test_a_route_without_interface_is_a_blackhole() -> None:
    request = rtnetlink.new_route(Route(7700, rtnetlink.default_prefix(6), NextHop(0)))
    assert request.body[7] == 6
    assert 4 not in parse_attributes(request.body[12:])


def test_neighbours_are_kept_up_to_sixteen_a_prefix() -> None:
    prefixes = [ip_network(p) for p in ("10.0.0.0/28", "10.1.0.0/27", "fd00::/124", "fd01::/64")]
    found = rtnetlink.host_addresses(prefixes)
    assert len(found) == 32
    assert {a.version for a in found} == {4, 6}


def test_refusals_speak() -> None:
    assert str(Refusal(17, "")) == "File exists [EEXIST]"
    assert str(Refusal(22, "Nexthop has invalid gateway")) == "Nexthop has invalid gateway [EINVAL]"


def test_the_kernel_shows_its_loopback() -> None:
    with Netlink() as netlink:
        (lo,) = [link for link in rtnetlink.links(netlink) if link.name == "lo"]
        assert lo.loopback
        assert rtnetlink.link_named(netlink, "lo") is not None
        assert rtnetlink.link_named(netlink, "no-such-link") is None
        assert rtnetlink.look_up(netlink, ip_address("127.0.0.1")) == NextHop(0)


@pytest.mark.netns
def test_one_refusal_in_a_batch_does_not_stop_the_others() -> None:
    from tests.contract.namespaces import Namespace

    space = Namespace("u")
    try:
        netlink = space.call(Netlink)
        good = [
            Route(7700, ip_network(f"10.{i >> 8}.{i & 255}.0/24"), NextHop(1)) for i in range(450)
        ]
        bad = Route(7700, ip_network("10.200.0.0/24"), NextHop(4242))
        requests = [rtnetlink.new_route(route) for route in (*good[:225], bad, *good[225:])]
        outcomes = netlink.batch(requests)
        assert [i for i, outcome in enumerate(outcomes) if outcome is not None] == [225]
        assert set(rtnetlink.routes_of_ours(netlink)) == set(good)
        netlink.close()
    finally:
        space.close()
