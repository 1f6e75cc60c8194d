"""An audit finds what other hands have changed, repairs it, and touches nothing else.

First for every DataPlane, then what only a kernel has: neighbours, settings, filters, a relay.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.dataplane_fabric import HOST, LOCAL, OWN, B, Fabric, receives
from tests.contract.dataplane_fabric import VM as GUEST
from tests.contract.frames import payload_of, udp_socket
from tests.contract.namespaces import wait_for
from tests.contract.planes import (
    ABSENT,
    BOTH,
    NEAR,
    OTHER,
    REDIRECT,
    TAP,
    VM,
    LinuxHands,
    Plane,
    state,
)
from vmmobility.drivers.dataplane import Drift
from vmmobility.drivers.linux.ownership import KERNEL_TUNNELS, TUN_NAME
from vmmobility.drivers.linux.settings import LinuxSettings
from vmmobility.engine.dataplane import Forwarding, RedirectPolicy, VmDataPlane, port_name

SECOND = port_name(OTHER, 0)


def items(found: list[Drift] | tuple[Drift, ...] | object) -> set[tuple[object, str]]:
    assert isinstance(found, list)
    assert all(drift.repaired for drift in found), found
    return {(drift.vm, drift.item) for drift in found}


@pytest.mark.parametrize(
    "shown",
    [
        state(),
        state(**REDIRECT),
        state(plugged=False, forwarding=Forwarding.REDIRECT, target=NEAR),
        state(forwarding=Forwarding.NONE),
        state(**ABSENT),
    ],
    ids=["local", "tunnel", "host-route", "plugged", "absent"],
)
def test_nothing_is_found_and_nothing_written_where_nothing_was_changed(
    plane: Plane, shown: VmDataPlane
):
    plane.apply(shown, state(OTHER, 6))
    before = plane.hands.writes()
    for vms in (None, [VM], [OTHER], []):
        assert plane.audit(vms) == []
    assert plane.hands.writes() == before


def test_before_the_first_resync_nothing_is_asked_for(plane: Plane):
    plane.apply(state())
    plane.close()
    plane.start()
    assert all(TAP in plane.leads(prefix) for prefix in BOTH)


@pytest.mark.parametrize("prefix", BOTH)
@pytest.mark.parametrize("way", ["remove_route", "misdirect"])
@pytest.mark.parametrize("vms", [None, [VM]])
def test_a_route_is_put_back(plane: Plane, prefix: str, way: str, vms: list[object] | None):
    plane.apply(state(), state(OTHER, 6))
    getattr(plane.hands, way)(prefix)
    found = plane.audit(vms)  # type: ignore[arg-type]
    assert items(found) == {(VM, f"route {prefix}")}
    assert "should lead to" in found[0].found
    assert TAP in plane.leads(prefix)
    assert plane.audit() == []


def test_a_tap_is_made_again_with_its_routes(plane: Plane):
    plane.apply(state(), state(OTHER, 6))
    plane.hands.remove_tap(TAP)
    found = plane.audit([VM])
    assert {(VM, f"tap {TAP}"), *((VM, f"route {prefix}") for prefix in BOTH)} <= items(found)
    assert {drift.vm for drift in found} == {VM}
    assert plane.hands.has_tap(TAP)
    assert all(TAP in plane.leads(prefix) for prefix in BOTH)
    assert plane.audit() == []


def test_strays_are_removed(plane: Plane):
    plane.apply(state())
    plane.hands.add_tap("vmtstray.0")
    plane.hands.add_route("10.98.0.0/16")
    plane.hands.add_route("fd98::/32")
    assert plane.audit([VM]) == [], "not this VM's"
    assert items(plane.audit()) == {
        (None, "tap vmtstray.0"),
        (None, "route 10.98.0.0/16"),
        (None, "route fd98::/32"),
    }
    assert not plane.hands.has_tap("vmtstray.0")
    assert plane.leads("10.98.0.0/16") == plane.leads("fd98::/32") == ""
    assert plane.audit() == []


def test_a_route_of_a_vm_that_should_have_none_is_removed(plane: Plane):
    plane.apply(state(forwarding=Forwarding.NONE))
    plane.hands.add_route(BOTH[0])
    (drift,) = plane.audit()
    assert drift.item == f"route {BOTH[0]}"
    assert plane.leads(BOTH[0]) == ""


def test_what_is_found_beside_is_told_too(plane: Plane):
    """A repair makes all right, so all that was wrong is told."""
    plane.apply(state(), state(OTHER, 6))
    plane.hands.remove_route(BOTH[0])
    plane.hands.remove_route("10.77.0.6/32")
    assert items(plane.audit([VM])) == {(VM, f"route {BOTH[0]}"), (OTHER, "route 10.77.0.6/32")}
    assert plane.audit() == []


def test_what_could_not_be_is_no_drift(plane: Plane):
    plane.apply(state())
    plane.apply(state(**REDIRECT, policy=RedirectPolicy.HOST_ROUTE))
    assert plane.audit() == []
    assert all(TAP in plane.leads(prefix) for prefix in BOTH)


# -- the kernel -----------------------------------------------------------------------------------


CHANGES = [
    ("ip link set TAP down", {f"tap {TAP}"}),
    ("ip link set TAP address 02:00:00:00:00:99", {f"tap {TAP}"}),
    ("ip link set TAP txqueuelen 5", {f"tap {TAP}"}),
    (
        # The kernel takes routes and neighbours of an interface that loses its last address.
        "ip addr del 169.254.1.1/32 dev TAP",
        {
            "address 169.254.1.1",
            "neighbour 10.77.0.5",
            "route 10.77.0.5/32",
            "route 10.77.0.5/32 in table 7700",
        },
    ),
    ("ip addr del fe80::1/64 dev TAP", {"address fe80::1"}),
    ("ip neigh del 10.77.0.5 dev TAP", {"neighbour 10.77.0.5"}),
    ("ip neigh del fd77::5 dev TAP", {"neighbour fd77::5"}),
    ("ip neigh replace 10.77.0.5 lladdr 02:00:00:00:00:99 dev TAP", {"neighbour 10.77.0.5"}),
    ("ip neigh add 10.77.0.9 lladdr 02:00:00:00:00:99 dev TAP", {"neighbour 10.77.0.9"}),
    (
        "ip route change 10.77.0.5/32 via 10.0.1.2 proto 77 metric 7",
        {"route 10.77.0.5/32"},
    ),
    (
        "ip -6 route replace fd77::5/128 via fd00:1::2 proto 77 metric 7",
        {"route fd77::5/128"},
    ),
    ("ip route replace 10.77.0.5/32 dev eth0 proto static metric 7", {"route 10.77.0.5/32"}),
    ("ip route replace blackhole 10.77.0.5/32 proto 77 metric 7", {"route 10.77.0.5/32"}),
    ("ip route append 10.77.0.5/32 dev eth0 proto 77 metric 7", {"route 10.77.0.5/32"}),
    ("ip route prepend 10.77.0.5/32 dev eth0 proto 77 metric 7", {"route 10.77.0.5/32"}),
    ("ip -6 route append fd77::5/128 via fd00:1::2 proto 77 metric 7", {"route fd77::5/128"}),
    (
        "ip route del 10.77.0.5/32 table main proto 77 && "
        "ip route add 10.77.0.5/32 dev TAP proto 77 metric 9",
        {"route 10.77.0.5/32", "route 10.77.0.5/32 metric 9"},
    ),
    (
        "ip route add 10.77.0.5/32 dev TAP table 99 proto 77 metric 7",
        {"route 10.77.0.5/32 in table 99"},
    ),
    ("ip route del 10.77.0.5/32 table 7700", {"route 10.77.0.5/32 in table 7700"}),
    ("ip -6 route del fd77::5/128 table 7700", {"route fd77::5/128 in table 7700"}),
    ("ip route del blackhole default table 7700", {"route 0.0.0.0/0 in table 7700"}),
    ("ip -6 route del blackhole default table 7700 metric 7", {"route ::/0 in table 7700"}),
    ("ip rule del priority 77", {"rule IPv4 of TUNNEL4, table 7700, priority 77"}),
    ("ip -6 rule del priority 77", {"rule IPv6 of TUNNEL6, table 7700, priority 77"}),
    (
        "ip rule add dev eth0 table 7700 priority 5 protocol 77",
        {"rule IPv4 of eth0, table 7700, priority 5"},
    ),
    ("ip link set TUNNEL4 down", {"tunnel TUNNEL4", "route 10.77.0.6/32"}),
    ("ip link set TUNNEL6 down", {"tunnel TUNNEL6", "route fd77::6/128"}),
    ("ip link set TUNNEL4 mtu 1400", {"tunnel TUNNEL4"}),
    ("sysctl -qw net/ipv4/conf/TAP/proxy_arp=0", {f"sysctl net.ipv4.conf.{TAP}.proxy_arp"}),
    ("sysctl -qw net/ipv6/conf/TAP/accept_ra=2", {f"sysctl net.ipv6.conf.{TAP}.accept_ra"}),
    (
        "sysctl -qw net/ipv4/neigh/TAP/proxy_delay=80",
        {f"sysctl net.ipv4.neigh.{TAP}.proxy_delay"},
    ),
    ("sysctl -qw net/ipv4/conf/eth0/rp_filter=1", {"sysctl net.ipv4.conf.eth0.rp_filter"}),
    ("sysctl -qw net/ipv4/conf/TUNNEL4/rp_filter=1", {"sysctl net.ipv4.conf.TUNNEL4.rp_filter"}),
    ("sysctl -qw net/ipv6/conf/TUNNEL6/forwarding=0", {"sysctl net.ipv6.conf.TUNNEL6.forwarding"}),
    ("nft flush chain netdev vmmobility TAP", {f"filter {TAP}"}),
    ("nft delete chain netdev vmmobility TAP", {f"filter {TAP}"}),
    (
        "nft add chain netdev vmmobility TAP { policy accept ; }",
        {f"filter {TAP}"},
    ),
    ("nft insert rule netdev vmmobility TAP accept", {f"filter {TAP}"}),
    ("nft replace rule netdev vmmobility TAP handle HANDLE accept", {f"filter {TAP}"}),
    ("nft flush chain inet vmmobility counting", {"filter tables"}),
    ("nft add rule inet vmmobility counting drop", {"filter tables"}),
    (
        "nft add chain inet vmmobility evil { type filter hook forward priority 0 ; }",
        {"filter inet evil"},
    ),
    (
        "nft add chain netdev vmmobility evil { type filter hook ingress device eth0 "
        "priority 0 ; policy drop ; }",
        {"filter netdev evil"},
    ),
    ("nft add element inet vmmobility to_tap4 { 10.99.0.1 }", {"counter 10.99.0.1/32"}),
    ("nft delete element inet vmmobility onward6 { fd77::5 }", {"counter fd77::5/128"}),
    ("nft delete table netdev vmmobility", {f"filter {TAP}", f"filter {SECOND}", "filter tables"}),
    ("nft flush ruleset", {f"filter {TAP}", "filter tables", "counter 10.77.0.5/32"}),
]


RELAY_CHANGES = [
    (
        "sysctl -qw net/ipv6/conf/vmmob-tun/mtu=1280",
        {"sysctl net.ipv6.conf.vmmob-tun.mtu"},
    ),
    ("ip link set vmmob-tun txqueuelen 5", {"tunnel vmmob-tun"}),
]
OUTER = "encap ip id 0 src 10.0.1.1 dst 10.0.99.2"
KERNEL_CHANGES = [
    ("ip rule del priority 78", {"rule IPv4 of vmmob-ip4, table 0, priority 78"}),
    ("ip -6 rule del priority 78", {"rule IPv6 of vmmob-ip6, table 0, priority 78"}),
    (
        "ip rule del priority 77 && ip rule add iif vmmob-ip4 table 7700 priority 77 protocol 77",
        {"rule IPv4 of vmmob-ip4, table 7700, priority 77"},
    ),
    (
        "ip link del vmmob-ip4",
        {"tunnel vmmob-ip4", "route 10.77.0.6/32", "route 10.77.0.6/32 in table 7700"},
    ),
    (
        "ip link del vmmob-ip6 && ip link add vmmob-ip6 type ip6tnl local fd00:1::1",
        {"tunnel vmmob-ip6", "route fd77::6/128"},
    ),
    (
        f"ip route replace 10.77.0.6/32 {OUTER.replace('99', '98')} dev vmmob-ip4 "
        "proto 77 metric 7",
        {"route 10.77.0.6/32"},
    ),
    (
        f"ip route replace 10.77.0.6/32 {OUTER} ttl 9 dev vmmob-ip4 proto 77 metric 7",
        {"route 10.77.0.6/32"},
    ),
    (
        "ip -6 route replace fd77::6/128 dev vmmob-ip6 proto 77 metric 7 table 7700",
        {"route fd77::6/128 in table 7700"},
    ),
    (
        "nft add element inet vmmobility_tunnels accepted4 { 10.0.98.2 . 0x0a4d0005 }",
        {"guard 10.0.98.2 to 10.77.0.5/32"},
    ),
    (
        "nft delete element inet vmmobility_tunnels accepted6 "
        "{ fd00:1::2 . 0xfd770000000000000000000000000005 }",
        {"guard fd00:1::2 to fd77::5/128"},
    ),
    (
        "nft delete element inet vmmobility_tunnels refused4 { 10.77.0.5 }",
        {"counter 10.77.0.5/32"},
    ),
    ("nft add element inet vmmobility_tunnels refused4 { 10.99.0.1 }", {"counter 10.99.0.1/32"}),
    ("nft flush chain inet vmmobility_tunnels arriving", {"guard"}),
    ("nft add rule inet vmmobility_tunnels arriving meta mark set 0x766d0077", {"guard"}),
    (
        "nft add chain inet vmmobility_tunnels evil { type filter hook input priority 0 ; }",
        {"guard"},
    ),
    ("nft delete table inet vmmobility_tunnels", {"guard"}),
    ("ip tuntap add dev vmmob-tun mode tun", {"tunnel vmmob-tun"}),
]


def of(back_end: str, text: str) -> str:
    """The same in the names of that back end's devices."""
    names = KERNEL_TUNNELS if back_end == "kernel" else dict.fromkeys((4, 6), TUN_NAME)
    for version, name in names.items():
        text = text.replace(f"TUNNEL{version}", name)
    return text


def change(hands: LinuxHands, commands: str) -> None:
    for command in commands.replace("TAP", TAP).split(" && "):
        words = command.split(" ")
        if "HANDLE" in words:
            listed = hands.space.run("nft", "-a", "list", "chain", "netdev", "vmmobility", TAP)
            spoofed = next(line for line in listed.splitlines() if "ether saddr !=" in line)
            words[words.index("HANDLE")] = spoofed.split()[-1]
        hands.space.run(*words)


def each_change() -> Iterator[object]:
    """(back end, commands, expected), so that no test asks for what its back end has not."""
    for back_end, own in (("relay", RELAY_CHANGES), ("kernel", KERNEL_CHANGES)):
        for commands, expected in (*CHANGES, *own):
            yield pytest.param(back_end, commands, expected, id=f"{back_end}-{commands}")


@pytest.mark.netns
@pytest.mark.parametrize(("linux", "commands", "expected"), list(each_change()), indirect=["linux"])
def test_each_change_is_found_by_name_and_repaired(linux: Plane, commands: str, expected: set[str]):
    assert isinstance(linux.hands, LinuxHands)
    change(linux.hands, of(linux.back_end, commands))
    expected = {of(linux.back_end, item) for item in expected}
    found = linux.audit()
    names = {drift.item for drift in found}
    assert expected <= names
    # What hangs on a link goes with it; anything else changed alone.
    if "link" not in commands and "nft flush" not in commands and "delete table" not in commands:
        assert names == expected
    assert all(drift.repaired for drift in found), found
    assert {d.vm for d in found if TAP in d.item or "77.0.5" in d.item} <= {VM, None}
    before = linux.hands.writes()
    assert linux.audit() == []
    assert linux.hands.writes() == before


@pytest.mark.netns
def test_a_dead_relay_is_found_once(linux: Plane):
    lock = linux.folder / "relay.lock"
    pid = int(lock.read_text())
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}/fd/0"), "the relay's end")
    found = linux.audit()
    assert {drift.item for drift in found} == {"relay"}
    assert int(lock.read_text()) != pid
    assert linux.audit() == []


@pytest.mark.netns
def test_a_tunnel_that_is_gone_comes_back_with_its_routes(linux: Plane):
    """A relay loses its device, ends, and is replaced: whoever is first repairs it."""
    assert isinstance(linux.hands, LinuxHands)
    device = of(linux.back_end, "TUNNEL4")
    linux.hands.space.ip("link", "del", device)
    names: set[str] = set()

    def found() -> set[str]:
        names.update(drift.item for drift in linux.audit())
        return names

    wait_for(found, "it is found")
    assert names & {"relay", f"tunnel {device}"}
    assert linux.tunnelled("10.77.0.6/32")
    wait_for(lambda: linux.audit() == [], "nothing is left to find")


@pytest.mark.netns
def test_the_kernel_hears_of_no_change_while_nothing_differs(linux: Plane):
    """The kernel's own word: its monitors are silent."""
    assert isinstance(linux.hands, LinuxHands)
    with linux.hands.monitor() as told:
        for _ in range(3):
            assert linux.audit() == []
        assert told() == ""
        linux.hands.remove_route(BOTH[0])
        assert len(linux.audit()) == 1
        wait_for(lambda: told().count("10.77.0.5") >= 2, "the monitor hears")


@pytest.mark.netns
def test_what_cannot_be_repaired_is_told_each_time(linux: Plane):
    assert isinstance(linux.hands, LinuxHands)
    linux.hands.space.ip("addr", "del", "10.0.1.1/24", "dev", "eth0")
    for _ in range(2):
        found = linux.audit()
        mine = next(drift for drift in found if drift.item == "underlay")
        assert not mine.repaired
        assert "10.0.1.1" in mine.found
        assert "could not be repaired" in str(mine)
    linux.hands.space.ip("addr", "add", "10.0.1.1/24", "dev", "eth0")
    assert "underlay" not in {drift.item for drift in linux.audit()}


@pytest.mark.netns
def test_a_state_under_way_is_not_drift(linux: Plane):
    """Turns and audits at the same time: every turn is done, and none is taken for drift."""
    turned = state(**REDIRECT)

    async def both() -> list[Drift]:
        found: list[Drift] = []
        begins = asyncio.Event()

        async def look() -> None:
            while True:
                begins.set()
                found.extend(await linux.plane.audit())

        async with asyncio.TaskGroup() as group:
            looking = group.create_task(look())
            for number in range(60):
                assert await linux.plane.apply([turned if number % 2 else state()]) == []
                begins.clear()
                await asyncio.wait_for(begins.wait(), 20)  # the next one comes in a look's midst
            looking.cancel()
        return found

    assert linux.await_(both()) == []
    assert linux.tunnelled(BOTH[0])


@pytest.mark.netns
def test_no_packet_of_a_resting_vm_is_lost_by_audits_or_repairs(fabric: Fabric):
    fabric.a.apply(LOCAL)
    guest = fabric.a.plug()
    space, driver = fabric.a.space, fabric.a.driver
    sockets = {v: udp_socket(fabric.host, v, HOST[v]) for v in (4, 6)}
    for version, sender in sockets.items():
        sender.sendto(b"first", (OWN[version], 4000))
        assert receives(guest, b"first")
    seen: list[bytes] = []
    sent = audits = repaired = 0
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        if audits % 5 == 0:
            # Beside the VM's own path: what is repaired is not what its packets use.
            space.ip("route", "add", "10.98.0.0/16", "dev", "eth0", "proto", "77", "metric", "7")
            space.run("nft", "flush", "chain", "inet", "vmmobility", "counting")
        task = asyncio.run_coroutine_threadsafe(driver.audit(), space.loop)
        while not task.done():
            for version, sender in sockets.items():
                sender.sendto(b"%d" % sent, (OWN[version], 4000))
                sent += 1
            seen += [p for f in guest.frames() if (p := payload_of(f)) is not None]
        repaired += len(task.result())
        audits += 1

    def all_arrived() -> bool:
        seen.extend(p for f in guest.frames() if (p := payload_of(f)) is not None)
        return len(set(seen)) >= sent

    wait_for(all_arrived, f"{sent} packets")
    assert audits > 10
    assert repaired >= audits // 5
    for sender in sockets.values():
        sender.close()
    guest.close()


@pytest.mark.netns
def test_an_audit_restores_the_way_of_packets(fabric: Fabric):
    fabric.b.apply(replace(LOCAL, accept_from=()))
    guest = fabric.b.plug()
    fabric.a.apply(replace(LOCAL, plugged=False, forwarding=Forwarding.REDIRECT, target=B))
    space = fabric.a.space
    space.ip("route", "del", "10.77.0.5/32", "proto", "77")
    found = space.await_(fabric.a.driver.audit([GUEST]))
    assert [drift.item for drift in found] == ["route 10.77.0.5/32"]
    assert fabric.a.leads_into_tunnel(4)
    guest.close()


def test_the_gateway_has_one_address_a_family():
    """CHANGES above name them."""
    settings = LinuxSettings(None, None, Path())
    assert (str(settings.gateway4), str(settings.gateway6)) == ("169.254.1.1", "fe80::1")
