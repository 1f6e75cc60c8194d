"""Tunnels' netlink messages, both ways; who is accepted, and where tunnelled packets go (pure)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest

from vmmobility.drivers.linux import filter, tunnel_guard
from vmmobility.drivers.linux.netlink import attribute, parse_attributes
from vmmobility.drivers.linux.ownership import (
    FLOOR_METRIC,
    INSIDE_TABLE,
    KERNEL_TUNNELS,
    MAIN_TABLE,
    ROUTE_METRIC,
    TUN_NAME,
    TUNNELLED_TABLE,
)
from vmmobility.drivers.linux.plan import Plan, RouteWish, TunnelWays, plan
from vmmobility.drivers.linux.policy_rules import Rule, new_rule
from vmmobility.drivers.linux.rtnetlink import NextHop
from vmmobility.drivers.linux.settings import LinuxSettings
from vmmobility.drivers.linux.tunnel_guard import Held
from vmmobility.drivers.linux.tunnel_messages import (
    Encapsulation,
    encapsulation_attributes,
    link_kind,
    new_tunnel,
    read_encapsulation,
)
from vmmobility.engine.dataplane import Forwarding, VmDataPlane
from vmmobility.errors import DataPlaneError
from vmmobility.wire.values import Interface, Nve, VmKey

ENDS = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}


def encapsulation(version: int) -> Encapsulation:
    source, destination = ENDS[version]
    return Encapsulation(ip_address(source), ip_address(destination))


@pytest.mark.parametrize("version", [4, 6])
def test_an_encapsulation_reads_as_it_was_written(version: int) -> None:
    made = encapsulation(version)
    assert read_encapsulation(parse_attributes(encapsulation_attributes(made))) == made


def test_a_route_without_one_has_none() -> None:
    assert read_encapsulation({}) is None


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    "more",
    [attribute(4, b"\x09"), attribute(6, b"\x80\x00"), attribute(1, b"\0" * 7 + b"\1")],
    ids=["hops", "flags", "id"],
)
def test_other_fields_than_ours_make_it_unusual(version: int, more: bytes) -> None:
    found = parse_attributes(encapsulation_attributes(encapsulation(version)))
    found[22] += more  # the last of a kind counts
    read = read_encapsulation(found)
    assert read is not None
    assert (read.source, read.destination) == tuple(map(ip_address, ENDS[version]))
    assert not read.usual


def test_another_kind_has_no_ends() -> None:
    mpls = {21: b"\1\0", 22: attribute(1, b"\0\1\1\0")}
    assert read_encapsulation(mpls) == Encapsulation(None, None, usual=False)


def test_an_encapsulation_without_ends_is_not_written() -> None:
    with pytest.raises(ValueError, match="both its ends"):
        encapsulation_attributes(Encapsulation(None, None))


@pytest.mark.parametrize(("version", "kind"), [(4, "ipip external"), (6, "ip6tnl external")])
def test_a_new_device_is_of_the_kind_that_is_looked_for(version: int, kind: str) -> None:
    body = new_tunnel("vmmob-x", version, 1400).body
    found = parse_attributes(body[16:])
    assert link_kind(found) == kind
    assert found[3] == b"vmmob-x\0"
    assert int.from_bytes(found[4], "little") == 1400


def test_a_link_of_no_kind_has_none() -> None:
    assert link_kind({}) == ""
    assert link_kind({18: attribute(1, b"veth\0")}) == "veth"
    assert link_kind({18: attribute(1, b"ipip\0")}) == "ipip"


def test_a_rule_without_a_table_drops() -> None:
    drops = new_rule(Rule(4, "vmmob-ip4", 0, 78)).body
    leads = new_rule(Rule(4, "vmmob-ip4", 7700, 77, mark=0x766D0077)).body
    assert (drops[7], leads[7]) == (6, 1)  # FR_ACT_BLACKHOLE, FR_ACT_TO_TBL
    assert 10 not in parse_attributes(drops[12:])
    assert parse_attributes(leads[12:])[10] == (0x766D0077).to_bytes(4, "little")


# -- plans -----------------------------------------------------------------------------------------

A = Nve("a", IPv4Address("10.0.1.1"), IPv6Address("fd00:1::1"))
B = Nve("b", IPv4Address("10.0.2.1"), IPv6Address("fd00:2::1"))
C = Nve("c", IPv4Address("10.0.3.1"), None)
HERE = Nve("here", IPv4Address("10.0.9.1"), IPv6Address("fd00:9::1"))
SETTINGS = LinuxSettings(HERE.ipv4, HERE.ipv6, Path())
PREFIXES = (ip_network("10.77.0.5/32"), ip_network("fd77::/64"))
STATE = VmDataPlane(
    VmKey(0, "vm"), (Interface(bytes(6), PREFIXES),), plugged=True, forwarding=Forwarding.LOCAL,
    accept_from=(A, B, C),
)  # fmt: skip
KERNEL = TunnelWays(KERNEL_TUNNELS, names_peers=True)
RELAY = TunnelWays(dict.fromkeys((4, 6), TUN_NAME), names_peers=False)


def planned(ways: TunnelWays, settings: LinuxSettings = SETTINGS, **changes: object) -> Plan:
    state = replace(STATE, **changes)  # type: ignore[arg-type]
    return plan(state, settings, lambda address: "far away", ways)


def in_main(made: Plan) -> list[RouteWish]:
    """The VM's routes of the main table, without what lies beneath them."""
    return [w for w in made.routes if w.table == MAIN_TABLE and w.metric == ROUTE_METRIC]


def tunnelled(made: Plan) -> dict[str, tuple[str, str]]:
    """Prefix -> (interface, peer or "") of table 7700."""
    return {
        str(w.prefix): (w.interface, str(w.tunnel.destination) if w.tunnel else "")
        for w in made.routes
        if w.table == TUNNELLED_TABLE
    }


def accepted(made: Plan) -> set[str]:
    return {f"{peer} {prefix}" for peer, prefix in made.accepted}


def test_a_local_vm_takes_from_all_that_it_should() -> None:
    made = planned(KERNEL)
    assert accepted(made) == {
        "10.0.1.1 10.77.0.5/32", "10.0.2.1 10.77.0.5/32", "10.0.3.1 10.77.0.5/32",
        "fd00:1::1 fd77::/64", "fd00:2::1 fd77::/64",
    }  # fmt: skip
    assert {interface[:3] for interface, _ in tunnelled(made).values()} == {"vmt"}


def test_a_redirect_never_takes_from_its_target() -> None:
    made = planned(KERNEL, forwarding=Forwarding.REDIRECT, target=B)
    assert accepted(made) == {
        "10.0.1.1 10.77.0.5/32", "10.0.3.1 10.77.0.5/32", "fd00:1::1 fd77::/64"
    }  # fmt: skip
    assert tunnelled(made) == {
        "10.77.0.5/32": ("vmmob-ip4", "10.0.2.1"), "fd77::/64": ("vmmob-ip6", "fd00:2::1")
    }  # fmt: skip


def test_a_redirect_takes_nothing_of_a_family_that_its_target_has_not() -> None:
    made = planned(KERNEL, forwarding=Forwarding.REDIRECT, target=C)
    assert accepted(made) == {"10.0.1.1 10.77.0.5/32", "10.0.2.1 10.77.0.5/32"}
    assert tunnelled(made) == {"10.77.0.5/32": ("vmmob-ip4", "10.0.3.1")}
    assert [failure.item for failure in made.failures] == ["route fd77::/64"]


def test_a_vm_that_is_only_plugged_takes_nothing() -> None:
    made = planned(KERNEL, forwarding=Forwarding.NONE)
    assert made.accepted == frozenset()
    assert tunnelled(made) == {}


def test_a_node_without_a_locator_of_the_family_makes_no_tunnel_of_it() -> None:
    settings = replace(SETTINGS, ipv6=None)
    ways = TunnelWays({4: "vmmob-ip4"}, names_peers=True)
    made = planned(ways, settings, forwarding=Forwarding.REDIRECT, target=B)
    assert tunnelled(made) == {"10.77.0.5/32": ("vmmob-ip4", "10.0.2.1")}
    assert [failure.item for failure in made.failures] == ["route fd77::/64"]


@pytest.mark.parametrize("forwarding", [Forwarding.LOCAL, Forwarding.REDIRECT, Forwarding.NONE])
def test_the_relays_table_says_where_its_packets_go(forwarding: Forwarding) -> None:
    made = planned(RELAY, forwarding=forwarding, target=B)
    assert {peer for _, peer in tunnelled(made).values()} == {""}
    main = {w.interface: w.tunnel for w in in_main(made)}
    if forwarding is Forwarding.REDIRECT:
        assert main == {TUN_NAME: None}


def test_a_wish_leads_to_the_interface_that_it_names() -> None:
    (wish,) = in_main(planned(KERNEL, forwarding=Forwarding.REDIRECT, target=C))
    tunnel = Encapsulation(HERE.ipv4, C.ipv4)
    assert wish.route(7).hop == NextHop(7, tunnel=tunnel)


@pytest.mark.parametrize("forwarding", [Forwarding.LOCAL, Forwarding.REDIRECT])
def test_beneath_a_vms_route_lies_a_blackhole(forwarding: Forwarding) -> None:
    made = planned(RELAY, forwarding=forwarding, target=B)
    beneath = [w for w in made.routes if w.metric == FLOOR_METRIC]
    assert [(w.table, w.route(0).hop) for w in beneath] == [(MAIN_TABLE, NextHop(0))] * len(beneath)
    assert [w.prefix for w in beneath] == [w.prefix for w in in_main(made)] != []


def test_senders_outside_are_told_no_peer_by_the_route() -> None:
    settings = replace(SETTINGS, dc_prefixes=(ip_network("10.0.0.0/8"),))
    made = planned(KERNEL, settings, forwarding=Forwarding.REDIRECT, target=C)
    ways = {w.table: w.tunnel for w in made.routes if w.metric == ROUTE_METRIC}
    tunnel = Encapsulation(HERE.ipv4, C.ipv4)
    assert (ways[MAIN_TABLE], ways[INSIDE_TABLE]) == (None, tunnel)


# -- the guard -------------------------------------------------------------------------------------

LISTED = [
    {"table": {"family": "inet", "name": "vmmobility_tunnels", "handle": 1}},
    {"set": {"name": "accepted4", "elem": [
        {"concat": ["10.0.1.1", 172818437]},
        {"concat": ["10.0.1.1", {"range": [172883968, 172949503]}]},
    ]}},
    {"set": {"name": "accepted6", "elem": [
        {"concat": ["fd00:1::1", "0xfd770000000000000000000000000005"]},
    ]}},
    {"set": {"name": "refused4", "elem": [
        {"elem": {"val": "10.77.0.5", "counter": {"packets": 3, "bytes": 9}}},
        {"elem": {"val": {"prefix": {"addr": "10.78.0.0", "len": 16}}, "counter": {"packets": 1}}},
    ]}},
    {"set": {"name": "refused6"}},
    {"chain": {"name": "arriving", "handle": 5, "hook": "input"}},
    {"rule": {"chain": "arriving", "handle": 6, "expr": [{"accept": None}]}},
]  # fmt: skip


def held(monkeypatch: pytest.MonkeyPatch, listed: object) -> Held:
    async def list_json(*what: str) -> object:
        return listed

    monkeypatch.setattr(filter, "list_json", list_json)
    return asyncio.run(tunnel_guard.read_held())


def test_what_nft_lists_of_the_guard_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = held(monkeypatch, LISTED)
    assert read.there
    assert {f"{peer} {prefix}" for peer, prefix in read.accepted} == {
        "10.0.1.1 10.77.0.5/32", "10.0.1.1 10.78.0.0/16", "fd00:1::1 fd77::5/128"
    }  # fmt: skip
    assert {str(p): n for p, n in read.refused.items()} == {"10.77.0.5/32": 3, "10.78.0.0/16": 1}
    assert "handle" not in read.rules


def test_no_table_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert held(monkeypatch, None) == Held()


@pytest.mark.parametrize(
    "elem", [{"concat": ["10.0.1.1"]}, {"concat": ["10.0.1.1", "x"]}, {"concat": ["no", 1]}, 7]
)
def test_a_listing_of_another_shape_is_an_error(
    monkeypatch: pytest.MonkeyPatch, elem: object
) -> None:
    with pytest.raises(DataPlaneError, match="lists the guard"):
        held(monkeypatch, [{"set": {"name": "accepted4", "elem": [elem]}}])


def test_pairs_are_written_as_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    script = tunnel_guard.accept_script(held(monkeypatch, LISTED).accepted)
    assert script.splitlines() == [
        "add element inet vmmobility_tunnels accepted4 { 10.0.1.1 . 0xa4d0005 }",
        "add element inet vmmobility_tunnels accepted4 { 10.0.1.1 . 0xa4e0000-0xa4effff }",
        "add element inet vmmobility_tunnels accepted6 "
        "{ fd00:1::1 . 0xfd770000000000000000000000000005 }",
    ]
