"""One contract for every DataPlane: what becomes of senders outside the data centres (Section 3).

Then what only a kernel has: rules, the guard's chain.  Packets: test_dataplane_outside_packets.py.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest

from tests.contract.planes import (
    ABSENT,
    BOTH,
    DC,
    FAR,
    NEAR,
    OTHER,
    REDIRECT,
    TAP,
    VM,
    LinuxHands,
    Plane,
    state,
)
from vmmobility.drivers.linux import rtnetlink
from vmmobility.drivers.linux.driver import LinuxDataPlane
from vmmobility.drivers.linux.netlink import Request
from vmmobility.drivers.linux.outside import collapsed
from vmmobility.drivers.linux.ownership import MAIN_TABLE
from vmmobility.drivers.linux.rtnetlink import NextHop, Route
from vmmobility.engine.dataplane import Forwarding, Outside, RedirectPolicy, VmDataPlane

VMS = {4: "10.77.0.5", 6: "fd77::5"}
SENDERS = {4: ("10.0.99.7", "10.0.200.7"), 6: ("fd00:99::7", "2001:db8::7")}  # inside, outside


def ways(plane: Plane) -> set[tuple[str, str]]:
    """What senders inside and outside find: the same in both families, else both ways show."""
    return {(plane.way(VMS[v], SENDERS[v][0]), plane.way(VMS[v], SENDERS[v][1])) for v in (4, 6)}


def redirect(outside: Outside, **changes: object) -> VmDataPlane:
    return state(**{**REDIRECT, "outside": outside, **changes})


EXPECTED = {
    Outside.DROP: ("tunnel", "tunnel"),  # which the guard refuses them
    Outside.QUEUE: ("tunnel", f"tap {TAP}"),
}


@pytest.mark.parametrize("outside", Outside)
def test_senders_inside_and_outside_are_led_apart(dc_plane: Plane, outside: Outside) -> None:
    assert dc_plane.apply(redirect(outside)) == []
    assert ways(dc_plane) == {EXPECTED[outside]}
    assert dc_plane.audit() == []


@pytest.mark.parametrize("outside", Outside)
@pytest.mark.parametrize("before", Outside)
def test_one_turns_into_the_other(dc_plane: Plane, before: Outside, outside: Outside) -> None:
    dc_plane.apply(redirect(before))
    assert dc_plane.apply(redirect(outside)) == []
    assert ways(dc_plane) == {EXPECTED[outside]}
    assert dc_plane.apply(state()) == []
    assert ways(dc_plane) == {(f"tap {TAP}", f"tap {TAP}")}
    assert dc_plane.apply(redirect(outside)) == []
    assert dc_plane.apply(state(**ABSENT)) == []
    assert ways(dc_plane) == {("fabric", "fabric")}
    assert dc_plane.audit() == []


def test_without_taps_nothing_can_wait_and_is_dropped(dc_plane: Plane) -> None:
    assert dc_plane.apply(redirect(Outside.QUEUE, plugged=False)) == []
    assert ways(dc_plane) == {EXPECTED[Outside.DROP]}


@pytest.mark.parametrize("outside", Outside)
def test_a_host_route_is_no_tunnel_and_carries_everybody(dc_plane: Plane, outside: Outside) -> None:
    assert dc_plane.apply(redirect(outside, target=NEAR)) == []
    assert "via 10.0.1.2" in dc_plane.leads(BOTH[0])
    assert "via fd00:1::2" in dc_plane.leads(BOTH[1])
    assert dc_plane.way(*(VMS[4], SENDERS[4][0])) == dc_plane.way(*(VMS[4], SENDERS[4][1]))


@pytest.mark.parametrize("outside", Outside)
def test_where_no_prefix_is_configured_everybody_is_inside(plane: Plane, outside: Outside) -> None:
    assert plane.apply(redirect(outside)) == []
    assert ways(plane) == {("tunnel", "tunnel")}
    assert plane.audit() == []


def test_what_cannot_be_redirected_keeps_both_ways(dc_plane: Plane) -> None:
    dc_plane.apply(redirect(Outside.QUEUE))
    wrong = redirect(Outside.QUEUE, policy=RedirectPolicy.HOST_ROUTE)
    assert len(dc_plane.apply(wrong)) == 2
    assert ways(dc_plane) == {EXPECTED[Outside.QUEUE]}
    assert len(dc_plane.resync(wrong)) == 2
    assert ways(dc_plane) == {EXPECTED[Outside.QUEUE]}


def test_one_family_without_a_target_leaves_the_other_alone(dc_plane: Plane) -> None:
    found = dc_plane.apply(redirect(Outside.QUEUE, target=replace(FAR, ipv6=None)))
    assert [failure.item for failure in found] == ["route fd77::5/128"]
    assert dc_plane.way(VMS[4], SENDERS[4][0]) == "tunnel"
    assert dc_plane.way(VMS[6], SENDERS[6][0]) == "fabric"


def test_an_address_can_change_its_vm(dc_plane: Plane) -> None:
    dc_plane.apply(redirect(Outside.QUEUE))
    assert dc_plane.apply(state(OTHER, 5, **REDIRECT), state(**ABSENT)) == []
    assert ways(dc_plane) == {EXPECTED[Outside.DROP]}
    assert dc_plane.apply(state(OTHER, 5, **ABSENT)) == []
    assert ways(dc_plane) == {("fabric", "fabric")}
    assert dc_plane.audit() == []


def test_a_resync_after_a_restart_makes_what_is_wanted_then(dc_plane: Plane) -> None:
    dc_plane.apply(redirect(Outside.QUEUE), state(OTHER, 6, **REDIRECT, outside=Outside.QUEUE))
    dc_plane.close()
    dc_plane.start()
    assert dc_plane.resync(redirect(Outside.DROP)) == []
    assert ways(dc_plane) == {EXPECTED[Outside.DROP]}
    assert dc_plane.way("10.77.0.6", SENDERS[4][0]) == "fabric"


def test_prefixes_longer_and_shorter(dc_plane: Plane) -> None:
    prefixes = tuple(ip_network(p) for p in ("10.78.0.0/25", "10.78.0.16/28", "fd78::/80"))
    made = redirect(Outside.QUEUE)
    wide = replace(made, interfaces=(replace(made.interfaces[0], prefixes=prefixes),))
    assert dc_plane.apply(wide) == []
    assert dc_plane.audit() == []
    assert dc_plane.apply(replace(wide, plugged=False, forwarding=Forwarding.NONE)) == []
    assert dc_plane.audit() == []


# -- the kernel alone -------------------------------------------------------------------------


def hands(plane: Plane) -> LinuxHands:
    assert isinstance(plane.hands, LinuxHands)
    return plane.hands


def guard(plane: Plane) -> str:
    return hands(plane).space.run("nft", "list", "chain", "inet", "vmmobility", "tunnels")


RULE = "rule IPv4 of packets from 10.77.0.0/24, table 7702, priority 79"
CHANGES = {
    "the tunnel's route is gone": (
        ("ip", "route", "del", "10.77.0.5/32", "table", "7702"),
        {(VM, "route 10.77.0.5/32 in table 7702")},
    ),
    "it leads elsewhere": (
        ("ip", "-6", "route", "replace", "fd77::5/128", "dev", "eth0", "table", "7702",
         "proto", "77", "metric", "7"),
        {(VM, "route fd77::5/128 in table 7702")},
    ),
    "a stray": (
        ("ip", "route", "add", "10.77.0.9/32", "dev", "eth0", "table", "7702",
         "proto", "77", "metric", "7"),
        {(None, "route 10.77.0.9/32 in table 7702")},
    ),
    "a rule is gone": (
        ("ip", "rule", "del", "from", "10.77.0.0/24", "lookup", "7702"),
        {(None, RULE)},
    ),
    "a rule too many": (
        ("ip", "rule", "add", "from", "10.0.200.0/24", "lookup", "7702", "priority", "79",
         "protocol", "77"),
        {(None, "rule IPv4 of packets from 10.0.200.0/24, table 7702, priority 79")},
    ),
    "the guard is empty": (
        ("nft", "flush", "chain", "inet", "vmmobility", "tunnels"),
        {(None, "filter tables")},
    ),
    "the guard is gone": (
        ("nft", "delete", "chain", "inet", "vmmobility", "tunnels"),
        {(None, "filter tables")},
    ),
    "the guard lets somebody through": (
        ("nft", "insert", "rule", "inet", "vmmobility", "tunnels", "ip", "saddr", "10.0.200.0/24",
         "accept"),
        {(None, "filter tables")},
    ),
    "an address is not counted": (
        ("nft", "delete", "element", "inet", "vmmobility", "outside4", "{ 10.77.0.5 }"),
        {(VM, "counter 10.77.0.5/32")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_other_hands_changes_are_found_and_repaired(linux_dc_plane: Plane, change: str) -> None:
    command, expected = CHANGES[change]
    linux_dc_plane.apply(redirect(Outside.QUEUE))
    before = guard(linux_dc_plane)
    hands(linux_dc_plane).space.run(*command)
    found = linux_dc_plane.audit()
    assert {(drift.vm, drift.item) for drift in found} == expected
    assert all(drift.repaired for drift in found), found
    assert linux_dc_plane.audit() == []
    assert guard(linux_dc_plane) == before
    assert ways(linux_dc_plane) == {EXPECTED[Outside.QUEUE]}


def test_other_prefixes_after_a_restart_make_other_rules_and_another_guard(
    linux_dc_plane: Plane,
) -> None:
    plane = linux_dc_plane
    more = (*DC, ip_network("10.0.200.0/24"), ip_network("2001:db8::/32"))
    many = tuple(ip_network(f"172.16.{n}.0/25") for n in range(60))
    plane.resync(redirect(Outside.QUEUE))
    space = hands(plane).space
    old = plane.plane
    assert isinstance(old, LinuxDataPlane)
    for wanted in (more, (*DC, *many), (), DC):
        plane.close()
        settings = replace(old._settings, dc_prefixes=wanted)
        plane.plane = space.call(LinuxDataPlane, settings)
        plane.start()
        assert plane.resync(redirect(Outside.QUEUE)) == []
        rules = [r for r in space.ip("rule").splitlines() if "7702" in r]
        assert len(rules) == sum(p.version == 4 for p in collapsed(wanted))
        assert plane.audit() == []
        apart = EXPECTED[Outside.QUEUE]
        everybody = wanted in (more, ())
        assert ways(plane) == {("tunnel", "tunnel") if everybody else apart}
        assert ("saddr" in guard(plane)) == bool(wanted)
    plane.close()


def test_a_refused_route_leaves_the_old_way(
    linux_dc_plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    linux_dc_plane.apply(redirect(Outside.QUEUE))
    real = rtnetlink.new_route

    def to_no_interface(route: Route) -> Request:
        return real(replace(route, hop=NextHop(4242)) if route.table == MAIN_TABLE else route)

    monkeypatch.setattr(rtnetlink, "new_route", to_no_interface)
    found = linux_dc_plane.apply(redirect(Outside.DROP))
    assert {failure.item for failure in found} == {f"route {prefix}" for prefix in BOTH}
    assert ways(linux_dc_plane) == {EXPECTED[Outside.QUEUE]}
    monkeypatch.undo()
    assert linux_dc_plane.apply(redirect(Outside.DROP)) == []
    assert ways(linux_dc_plane) == {EXPECTED[Outside.DROP]}


def test_nothing_is_left_behind(linux_dc_plane: Plane) -> None:
    linux_dc_plane.apply(redirect(Outside.QUEUE))
    linux_dc_plane.remove_all()
    space = hands(linux_dc_plane).space
    assert "7702" not in space.ip("rule") + space.ip("-6", "rule")
    assert "proto 77" not in space.ip("route", "show", "table", "all")
    assert "vmmobility" not in space.run("nft", "list", "ruleset")
