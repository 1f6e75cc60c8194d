"""Senders inside and outside the data centres: the relay's look-up, rules, routes, guard's text."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from tests.unit.test_relay_table import HOST, PEER, TARGET, order, packet, table
from vmmobility.drivers.linux import inside
from vmmobility.drivers.linux.inside import Inside
from vmmobility.drivers.linux.outside import (
    collapsed,
    guard_rules,
    guard_script,
    inside_rules,
    queues_outside,
)
from vmmobility.drivers.linux.relay_control import Control
from vmmobility.drivers.linux.relay_table import Verdict
from vmmobility.engine.dataplane import Forwarding, Outside, VmDataPlane, outside_of
from vmmobility.wire.values import VmKey

DC = tuple(ip_network(p) for p in ("10.0.0.0/16", "10.77.0.0/24", "fd00::/16", "fd77::5/128"))
INSIDE = ("10.0.0.0", "10.0.255.255", "10.77.0.255", "fd00::", "fd00:ffff::1", "fd77::5")
OUTSIDE = ("10.1.0.0", "9.255.255.255", "10.77.1.0", "fd01::", "fcff::1", "fd77::4", "fd77::6")


@pytest.mark.parametrize("sender", [*INSIDE, *OUTSIDE])
def test_who_is_inside(sender: str) -> None:
    found = Inside(map(str, DC))
    for _ in range(2):  # looked up, and remembered
        assert found.holds(memoryview(ip_address(sender).packed)) is (sender in INSIDE)
    assert bool(outside_of([ip_network(sender)], DC)) is (sender in OUTSIDE)


def test_without_prefixes_everybody_is_inside() -> None:
    assert all(Inside().holds(ip_address(sender).packed) for sender in OUTSIDE)
    assert outside_of([ip_network("10.1.0.0/16")], ()) == []


def test_a_family_without_prefixes_is_outside() -> None:
    assert not Inside(["10.0.0.0/8"]).holds(ip_address("fd00::1").packed)


def test_it_agrees_with_the_library_and_does_not_grow_without_end(monkeypatch) -> None:
    monkeypatch.setattr(inside, "_REMEMBERED", 50)
    found, chance = Inside(DC), random.Random(7)
    for _ in range(2000):
        sender = chance.choice((4, 16))
        packed = bytes([10, chance.choice((0, 77)), 0, chance.randrange(256)])
        if sender == 16:
            packed = (
                bytes([0xFD, chance.choice((0, 0x77))]) + bytes(13) + bytes([chance.randrange(9)])
            )
        address = ip_address(packed)
        wanted = any(address in network for network in DC)
        assert found.holds(packed) is wanted
        assert len(found._known) <= 50


@pytest.mark.parametrize("wrong", ["10.0.0.1/8", "here", ""])
def test_what_is_no_prefix_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"host bits|appear to be"):
        Inside([wrong])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mode", ["local", "redirect"])
def test_the_relay_drops_what_a_peer_brings_from_outside(version: int, mode: str) -> None:
    made = table(order(mode=mode))
    arrived = packet(version)
    assert made.from_peer(arrived, version, PEER[version])[0] is not Verdict.DROP
    made.inside = Inside(["10.77.0.0/16", "fd77::/16"])
    assert made.from_peer(arrived, version, PEER[version])[:2] == (Verdict.DROP, "outside")
    assert made.from_peer(arrived, version, TARGET[version])[:2] == (Verdict.DROP, "not_accepted")
    assert made.counters()["0/vm"]["drop_outside"] == 1
    made.inside = Inside([HOST[version]])
    assert made.from_peer(arrived, version, PEER[version])[0] is not Verdict.DROP


def test_the_relay_is_told_with_its_table(tmp_path) -> None:
    class Proxy:
        ports: tuple[object, ...] = ()
        answered = 0

    made = table(order())
    control = Control(tmp_path / "relay.sock", made, Proxy(), [])  # type: ignore[arg-type]
    whole = {"op": "set", "entries": [order()], "ports": [], "inside": ["10.77.0.0/16"]}
    control._do(whole)
    assert not made.inside.holds(ip_address(HOST[4]).packed)
    before = made.inside
    with pytest.raises(ValueError, match="host bits"):
        control._do({**whole, "entries": [], "inside": ["10.77.0.1/16"]})
    assert made.inside is before
    assert made.counters().keys() == {"0/vm"}
    control._do({"op": "change", "put": []})
    assert made.inside is before
    control.close()


def test_prefixes_in_one_another_make_one_rule() -> None:
    nested = (ip_network("10.0.1.0/24"), *DC, ip_network("fd00:1::/32"), DC[0])
    assert set(collapsed(nested)) == set(DC)
    assert [rule.source for rule in inside_rules(nested)] == collapsed(DC)
    assert inside_rules(()) == []


STATE = VmDataPlane(VmKey(0, "vm"), (), plugged=True, forwarding=Forwarding.REDIRECT)


@pytest.mark.parametrize(
    ("outside", "plugged", "prefixes", "queues"),
    [
        (Outside.DROP, True, DC, False),
        (Outside.QUEUE, True, DC, True),
        (Outside.QUEUE, False, DC, False),
        (Outside.QUEUE, True, (), False),
    ],
)
def test_who_waits_where(outside, plugged, prefixes, queues) -> None:
    state = replace(STATE, outside=outside, plugged=plugged)
    assert queues_outside(state, prefixes) is queues


def test_the_guard_lets_pass_what_is_inside_or_meets_no_tunnel_and_nothing_else() -> None:
    assert guard_rules(()) == []
    rules = guard_rules(DC[:2])  # IPv4 alone: nobody speaks IPv6 inside
    assert rules == [
        'iifname != "vmmob-*" oifname != "vmmob-*" accept',
        "ip saddr { 10.0.0.0/16, 10.77.0.0/24 } accept",
        "ip daddr @outside4 drop",
        "ip6 daddr @outside6 drop",
        "counter drop",
    ]
    assert "hook forward" in guard_script(DC, "digest/6")
    assert guard_script(DC, "digest/6").count("add rule") == 1 + len(guard_rules(DC))
