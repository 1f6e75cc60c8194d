"""What the Linux data plane does to packets, in namespaces:

host -- r1 -- r2 -- b
         |
         a -- c        (a and c are neighbours; a, b and c are NVEs)
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.contract.frames import (
    Guest,
    advertised_mac,
    arp_reply_mac,
    arp_request,
    ipv4,
    ipv6,
    payload_of,
    solicitation,
    udp,
    udp_socket,
)
from tests.contract.namespaces import Namespace, join, wait_for
from vmmobility.drivers.dataplane import Traffic
from vmmobility.drivers.linux.driver import LinuxDataPlane
from vmmobility.drivers.linux.ownership import DEFAULT_GATEWAY_MAC as GATEWAY
from vmmobility.drivers.linux.settings import LinuxSettings
from vmmobility.engine.dataplane import Forwarding, RedirectPolicy, VmDataPlane, port_name
from vmmobility.wire.values import Interface, Nve, VmKey

pytestmark = pytest.mark.netns

VM = VmKey(0, "vm-1")
TAP = port_name(VM, 0)
MAC = bytes.fromhex("020000000005")
OWN = {4: "10.77.0.5", 6: "fd77::5"}
HOST = {4: "10.0.9.1", 6: "fd00:9::1"}
LOCAL = VmDataPlane(
    VM,
    (Interface(MAC, (ip_network("10.77.0.5/32"), ip_network("fd77::5/128"))),),
    plugged=True,
    forwarding=Forwarding.LOCAL,
)
ABSENT = replace(LOCAL, plugged=False, forwarding=Forwarding.NONE)


def nve(name: str, number: int, host: int) -> Nve:
    return Nve(name, IPv4Address(f"10.0.{number}.{host}"), IPv6Address(f"fd00:{number}::{host}"))


A, B, C = nve("a", 1, 2), nve("b", 2, 2), nve("c", 3, 2)


@dataclass
class Node:
    """An NVE: its namespace and its driver."""

    space: Namespace
    driver: LinuxDataPlane
    settings: LinuxSettings

    def apply(self, *states: VmDataPlane) -> None:
        assert self.space.await_(self.driver.apply(states)) == []

    def resync(self, *states: VmDataPlane) -> None:
        assert self.space.await_(self.driver.resync({s.vm: s for s in states})) == []

    def traffic(self) -> Traffic:
        return self.space.await_(self.driver.traffic())[VM]

    def relay(self) -> dict[str, Any]:
        return self.space.await_(self.driver._relay.order({"op": "counters"}))

    def relay_pid(self) -> int:
        return int((self.settings.state_dir / "relay.lock").read_text())

    def plug(self, tap: str = TAP, mac: bytes = MAC) -> Guest:
        return Guest(self.space, tap, mac, GATEWAY)


@dataclass
class Fabric:
    host: Namespace
    a: Node
    b: Node
    c: Node


def _node(space: Namespace, locators: Nve, folder: Path) -> Node:
    settings = LinuxSettings(locators.ipv4, locators.ipv6, folder / locators.nve_id)
    driver = space.call(LinuxDataPlane, settings)
    space.await_(driver.start())
    return Node(space, driver, settings)


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    spaces = {name: Namespace(name) for name in ("h", "r1", "r2", "a", "b", "c")}
    h, r1, r2, a, b, c = spaces.values()
    try:
        join(r1, "toa", a, "eth0", 1)
        join(r2, "tob", b, "eth0", 2)
        join(a, "toc", c, "eth0", 3)
        join(h, "eth0", r1, "toh", 9)
        join(r1, "tor2", r2, "tor1", 12)
        for space, via in ((h, "9::2"), (a, "1::1"), (b, "2::1"), (c, "3::1"), (r2, "12::1")):
            number, host = via.split("::")
            space.ip("route", "add", "default", "via", f"10.0.{number}.{host}")
            space.ip("-6", "route", "add", "default", "via", f"fd00:{via}")
        for space in (r1, r2):
            space.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        r1.ip("route", "add", "10.0.2.0/24", "via", "10.0.12.2")
        r1.ip("-6", "route", "add", "fd00:2::/64", "via", "fd00:12::2")
        # Home: the covering prefix leads to a.
        r1.ip("route", "add", "10.77.0.0/24", "via", "10.0.1.2")
        r1.ip("-6", "route", "add", "fd77::/64", "via", "fd00:1::2")
        folder = tmp_path_factory.mktemp("relays")
        made = Fabric(h, _node(a, A, folder), _node(b, B, folder), _node(c, C, folder))
        yield made
        for node in (made.a, made.b, made.c):
            node.space.await_(node.driver.remove_all())
    finally:
        for space in spaces.values():
            space.close()


@pytest.fixture(autouse=True)
def clean(fabric: Fabric) -> None:
    for node in (fabric.a, fabric.b, fabric.c):
        node.resync()


def send(fabric: Fabric, version: int, payload: bytes) -> None:
    with udp_socket(fabric.host, version, HOST[version]) as sender:
        sender.sendto(payload, (OWN[version], 4000))


def receives(guest: Guest, payload: bytes, deadline_s: float = 3.0) -> bool:
    found = guest.find(lambda f: payload if payload_of(f) == payload else None, deadline_s)
    return found is not None


def reach(fabric: Fabric, guest: Guest, version: int, payload: bytes) -> None:
    send(fabric, version, payload)
    assert receives(guest, payload), f"IPv{version} {payload!r} did not arrive"


# -- routed attach --------------------------------------------------------------------------------


def test_the_tap_answers_for_the_gateways_and_for_what_is_elsewhere(fabric: Fabric) -> None:
    fabric.a.apply(LOCAL)
    guest = fabric.a.plug()
    for target in ("169.254.1.1", "10.77.0.200", HOST[4]):
        guest.send(arp_request(MAC, OWN[4], target))
        assert guest.find(lambda f, t=target: arp_reply_mac(f, t)) == GATEWAY  # type: ignore[misc]
    for target, source in (("fe80::1", OWN[6]), ("fd77::200", OWN[6]), (HOST[6], "fe80::5")):
        guest.send(solicitation(MAC, source, target))
        assert guest.find(lambda f, t=target: advertised_mac(f, t)) == GATEWAY  # type: ignore[misc]
    guest.close()


def test_own_addresses_and_duplicate_detection_stay_unanswered(fabric: Fabric) -> None:
    # Also while the addresses lead away, when proxies would be tempted most.
    fabric.a.apply(replace(LOCAL, forwarding=Forwarding.REDIRECT, target=B))
    guest = fabric.a.plug()
    guest.send(arp_request(MAC, "0.0.0.0", OWN[4]))
    guest.send(arp_request(MAC, OWN[4], OWN[4]))
    guest.send(solicitation(MAC, "::", OWN[6]))
    guest.send(solicitation(MAC, "::", "fd77::200"))
    guest.send(solicitation(MAC, "fe80::5", OWN[6]))
    # What is asked last is answered first: the others had their time.
    guest.send(arp_request(MAC, OWN[4], "169.254.1.1"))
    guest.send(solicitation(MAC, OWN[6], "fd77::201"))
    seen = []

    def wanted(frame: bytes) -> bytes | None:
        seen.append(frame)
        return advertised_mac(frame, "fd77::201")

    assert guest.find(wanted) == GATEWAY
    assert not any(arp_reply_mac(frame, OWN[4]) for frame in seen)
    assert not any(advertised_mac(frame, t) for frame in seen for t in (OWN[6], "fd77::200"))
    guest.close()


@pytest.mark.parametrize("version", [4, 6])
def test_both_directions_are_routed_and_counted(fabric: Fabric, version: int) -> None:
    fabric.a.apply(LOCAL)
    guest = fabric.a.plug()
    before = fabric.a.traffic()
    for number in range(5):
        reach(fabric, guest, version, b"in%d" % number)
    with udp_socket(fabric.host, version, HOST[version]) as listener:
        guest.send_packet(udp(OWN[version], HOST[version], b"out"))
        assert listener.recv(100) == b"out"
    after = fabric.a.traffic()
    assert after.delivered - before.delivered == 5
    assert after.consumed - before.consumed >= 5
    assert (after.redirected, after.dropped) == (0, before.dropped)
    guest.close()


@pytest.mark.parametrize("version", [4, 6])
def test_spoofed_sources_are_dropped_and_counted(fabric: Fabric, version: int) -> None:
    fabric.a.apply(LOCAL)
    guest = fabric.a.plug()
    before = fabric.a.traffic().dropped
    wrong = {4: "10.77.0.6", 6: "fd77::6"}[version]
    with udp_socket(fabric.host, version, HOST[version]) as listener:
        guest.send_packet(udp(wrong, HOST[version], b"spoofed address"))
        guest.send_packet(udp(OWN[version], HOST[version], b"spoofed MAC"), source=b"\2" * 6)
        if version == 4:
            guest.send(arp_request(MAC, wrong, "169.254.1.1"))
            guest.send(arp_request(b"\2" * 6, OWN[4], "169.254.1.1", source=MAC))
        else:
            guest.send(solicitation(MAC, wrong, "fe80::1"))
            guest.send_packet(udp("fe80::5", HOST[6], b"link-local is for neighbours only"))
        guest.send_packet(udp(OWN[version], HOST[version], b"honest"))
        assert listener.recv(100) == b"honest"
    assert fabric.a.traffic().dropped - before == 4
    guest.close()


def test_two_guests_of_one_node_talk_by_routing(fabric: Fabric) -> None:
    other = VmKey(0, "vm-2")
    prefixes = (ip_network("10.77.0.6/32"), ip_network("fd77::6/128"))
    second = replace(LOCAL, vm=other, interfaces=(Interface(b"\2\0\0\0\0\6", prefixes),))
    fabric.a.apply(LOCAL, second)
    guest = fabric.a.plug()
    friend = fabric.a.plug(port_name(other, 0), b"\2\0\0\0\0\6")
    for version, target in ((4, "10.77.0.6"), (6, "fd77::6")):
        guest.send_packet(udp(OWN[version], target, b"hello"))
        assert receives(friend, b"hello")
    guest.close()
    friend.close()


# -- redirect -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_the_tunnel_carries_packets_from_end_to_end(fabric: Fabric, version: int) -> None:
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(replace(LOCAL, plugged=False, forwarding=Forwarding.REDIRECT, target=B))
    guest = fabric.b.plug()
    for number in range(10):
        reach(fabric, guest, version, b"tunnelled%d" % number)
    assert fabric.a.traffic().redirected == 10
    assert fabric.b.traffic().delivered == 10
    guest.close()


@pytest.mark.parametrize("version", [4, 6])
def test_too_big_for_the_tunnel_is_told_to_the_sender(fabric: Fabric, version: int) -> None:
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(replace(LOCAL, plugged=False, forwarding=Forwarding.REDIRECT, target=B))
    guest = fabric.b.plug()
    outer = {4: 20, 6: 40}[version]
    payload = b"x" * (1500 - outer - outer - 8)
    reach(fabric, guest, version, payload)
    level, option = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}[version]
    with udp_socket(fabric.host, version, HOST[version]) as sender:
        sender.setsockopt(level, option, 2)  # PMTUDISC_DO: never fragment

        def refused() -> bool:
            try:
                sender.sendto(payload + b"y", (OWN[version], 4000))
            except OSError as error:
                return error.errno == 90  # EMSGSIZE: the Packet Too Big was heard
            return False

        wait_for(refused, "Packet Too Big")
    guest.close()
    space = fabric.host
    space.ip("route", "flush", "cache")
    space.ip("-6", "route", "flush", "cache")


@pytest.mark.parametrize("version", [4, 6])
def test_an_adjacent_target_gets_a_counted_host_route(fabric: Fabric, version: int) -> None:
    fabric.c.apply(LOCAL)
    fabric.a.apply(
        replace(
            LOCAL,
            plugged=False,
            forwarding=Forwarding.REDIRECT,
            target=C,
            policy=RedirectPolicy.HOST_ROUTE,
        )
    )
    guest = fabric.c.plug()
    for number in range(4):
        reach(fabric, guest, version, b"host route%d" % number)
    assert fabric.a.traffic().redirected == 4
    assert fabric.a.relay()["vms"]["0/vm-1"].get("encapsulated", 0) == 0
    guest.close()


def test_no_packet_is_lost_over_a_hundred_flips(fabric: Fabric) -> None:
    redirect = replace(LOCAL, forwarding=Forwarding.REDIRECT, target=B)
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(LOCAL)
    guests = [fabric.a.plug(), fabric.b.plug()]
    sockets = {v: udp_socket(fabric.host, v, HOST[v]) for v in (4, 6)}
    for version in (4, 6):
        reach_once(fabric, sockets[version], guests[0], version)
    seen: list[bytes] = []
    sent = flips = 0
    slowest = 0.0
    begin = time.monotonic()
    while flips < 100:
        while sent < (time.monotonic() - begin) * 1000:
            version = 4 if sent % 2 else 6
            sockets[version].sendto(b"%d" % sent, (OWN[version], 4000))
            sent += 1
        if (time.monotonic() - begin) * 100 > flips:
            flips += 1
            started = time.perf_counter()
            fabric.a.apply(redirect if flips % 2 else LOCAL)
            slowest = max(slowest, time.perf_counter() - started)
        seen += arrivals(guests)

    def all_arrived() -> bool:
        seen.extend(arrivals(guests))
        return len(set(seen)) >= sent

    wait_for(all_arrived, f"{sent} packets at either guest")
    assert len(seen) == sent
    assert fabric.a.traffic().redirected > 200
    assert slowest < 0.25, f"the slowest flip took {slowest * 1000:.1f} ms"
    for sender in sockets.values():
        sender.close()
    for guest in guests:
        guest.close()


def reach_once(fabric: Fabric, sender: socket.socket, guest: Guest, version: int) -> None:
    sender.sendto(b"first", (OWN[version], 4000))
    assert receives(guest, b"first")


def arrivals(guests: list[Guest]) -> list[bytes]:
    found = [payload_of(frame) for guest in guests for frame in guest.frames()]
    return [payload for payload in found if payload is not None]


# -- guards ---------------------------------------------------------------------------------------


def raw_tunnel(space: Namespace, version: int) -> socket.socket:
    family = {4: socket.AF_INET, 6: socket.AF_INET6}[version]
    return space.call(lambda: socket.socket(family, socket.SOCK_RAW, {4: 4, 6: 41}[version]))


def drops(node: Node, reason: str) -> int:
    return int(node.relay()["vms"]["0/vm-1"].get(f"drop_{reason}", 0))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("reason", "state", "hops"),
    [
        ("not_accepted", replace(LOCAL, accept_from=(C,)), 64),
        ("not_here", replace(LOCAL, forwarding=Forwarding.NONE, accept_from=(A,)), 64),
        (
            "same_peer",
            replace(LOCAL, forwarding=Forwarding.REDIRECT, target=A, accept_from=(A,)),
            64,
        ),
        (
            "hop_limit",
            replace(LOCAL, forwarding=Forwarding.REDIRECT, target=C, accept_from=(A,)),
            1,
        ),
    ],
)
def test_the_relay_drops_and_counts(
    fabric: Fabric, version: int, reason: str, state: VmDataPlane, hops: int
) -> None:
    fabric.b.apply(state)
    guest = fabric.b.plug()
    with raw_tunnel(fabric.a.space, version) as tunnel:
        packet = udp(HOST[version], OWN[version], b"guarded", hops)
        tunnel.sendto(packet, (str(B.locator(version)), 0))
    wait_for(lambda: drops(fabric.b, reason) == 1, f"one drop for {reason}")
    assert fabric.b.traffic().dropped >= 1
    assert not receives(guest, b"guarded", 0.02)
    guest.close()


@pytest.mark.parametrize("version", [4, 6])
def test_a_peers_packet_goes_straight_on_to_another_peer(fabric: Fabric, version: int) -> None:
    # b redirects to a what c tunnels to it: directly, one hop spent.
    fabric.b.apply(
        replace(LOCAL, plugged=False, forwarding=Forwarding.REDIRECT, target=A, accept_from=(C,))
    )
    fabric.a.apply(replace(LOCAL, accept_from=(B,)))
    guest = fabric.a.plug()
    fabric.a.space.ip("route", "replace", "10.0.3.0/24", "dev", "toc")
    with raw_tunnel(fabric.b.space, version) as tunnel:
        # c cannot reach b here: b sends to itself in c's name.
        fabric.b.space.ip("addr", "add", str(C.locator(version)), "dev", "lo", *NODAD[version])
        tunnel.bind((str(C.locator(version)), 0))
        packet = udp(HOST[version], OWN[version], b"onward", 9)
        tunnel.sendto(packet, (str(B.locator(version)), 0))
        hop_place = {4: 14 + 8, 6: 14 + 7}[version]
        found = guest.find(
            lambda f: f[hop_place : hop_place + 1] if payload_of(f) == b"onward" else None
        )
        fabric.b.space.ip("addr", "del", str(C.locator(version)), "dev", "lo")
    assert found == b"\x07"  # one at the relay, one at a's routing from its TUN to the tap
    assert fabric.b.traffic().redirected == 1
    guest.close()


NODAD: dict[int, tuple[str, ...]] = {4: (), 6: ("nodad",)}


@pytest.mark.parametrize("version", [4, 6])
def test_a_tunnelled_packet_never_leaves_by_the_underlay(fabric: Fabric, version: int) -> None:
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    # By hand, the worst: the tap's way out of the tunnelled table is gone.
    fabric.b.space.ip(f"-{version}", "route", "del", OWN[version], "table", "7700")
    body = b"\0" * 8
    packet = (ipv4 if version == 4 else ipv6)(HOST[version], OWN[version], 99, body)
    before = fabric.b.space.run("cat", "/proc/net/dev")
    with raw_tunnel(fabric.a.space, version) as tunnel:
        tunnel.sendto(packet, (str(B.locator(version)), 0))
    wait_for(lambda: fabric.b.relay()["vms"]["0/vm-1"].get("decapsulated"), "decapsulation")
    assert fabric.b.traffic().redirected == 0, before


# -- life -----------------------------------------------------------------------------------------


def test_resync_repairs_what_hands_have_done(fabric: Fabric) -> None:
    fabric.a.apply(LOCAL)
    space = fabric.a.space
    space.ip("route", "del", "10.77.0.5/32", "proto", "77", "metric", "7", "table", "main")
    space.ip("-6", "route", "replace", "fd77::5/128", "dev", "eth0", "proto", "77", "metric", "7")
    space.ip("neigh", "del", "10.77.0.5", "dev", TAP)
    space.ip("neigh", "replace", "fd77::5", "lladdr", "02:00:00:00:00:99", "dev", TAP)
    space.ip("link", "set", TAP, "address", "02:00:00:00:00:01", "txqueuelen", "5")
    space.ip("addr", "del", "169.254.1.1/32", "dev", TAP)
    space.ip("route", "add", "10.99.0.0/16", "dev", "eth0", "proto", "77", "metric", "8")
    space.ip("route", "add", "10.98.0.0/16", "dev", "eth0", "proto", "77", "metric", "7")
    space.ip("tuntap", "add", "dev", "vmtstray.0", "mode", "tap")
    space.ip("rule", "del", "priority", "77")
    space.run("nft", "flush", "chain", "netdev", "vmmobility", TAP)
    space.run("nft", "add", "element", "inet", "vmmobility", "to_tap4", "{ 10.99.0.1 }")
    space.run("sysctl", "-qw", f"net/ipv4/conf/{TAP}/proxy_arp=0")
    fabric.a.resync(LOCAL)
    shown = space.ip("route", "show", "table", "all", "proto", "77")
    assert shown.count(TAP) >= 2
    assert "10.99" not in shown
    assert "10.98" not in shown
    assert TAP in space.ip("-6", "route", "show", "fd77::5", "proto", "77")
    assert "02:00:00:00:00:05" in space.ip("neigh", "show", "fd77::5", "dev", TAP)
    link = space.ip("addr", "show", TAP)
    assert GATEWAY.hex(":") in link
    assert "qlen 10000" in link
    assert "169.254.1.1/32" in link
    assert "vmtstray" not in space.ip("link")
    assert "7700" in space.ip("rule")
    rules = space.run("nft", "list", "ruleset")
    assert "10.99.0.1" not in rules
    assert rules.count("spoofed") == 3
    guest = fabric.a.plug()
    for version in (4, 6):
        reach(fabric, guest, version, b"repaired")
    guest.send(arp_request(MAC, OWN[4], "10.77.0.200"))
    assert guest.find(lambda f: arp_reply_mac(f, "10.77.0.200")) == GATEWAY
    guest.close()


def test_what_is_not_ours_stays(fabric: Fabric) -> None:
    space = fabric.a.space
    space.ip("route", "add", "10.77.0.5/32", "via", "10.0.1.1", "metric", "20")
    space.run("nft", "add", "table", "inet", "foreign")
    fabric.a.apply(LOCAL)
    fabric.a.resync()
    assert "metric 20" in space.ip("route", "show", "10.77.0.5")
    assert "foreign" in space.run("nft", "list", "tables")
    space.ip("route", "del", "10.77.0.5/32", "metric", "20")
    space.run("nft", "delete", "table", "inet", "foreign")


@pytest.mark.parametrize("way", ["tap", "TUN", "tables"])
def test_resync_makes_again_what_was_removed(fabric: Fabric, way: str) -> None:
    redirect = replace(LOCAL, forwarding=Forwarding.REDIRECT, target=B)
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(redirect)
    space = fabric.a.space
    if way == "tables":
        space.run("nft", "flush", "ruleset")
    else:
        space.ip("link", "del", TAP if way == "tap" else "vmmob-tun")
    fabric.a.resync(redirect)
    guest = fabric.b.plug()
    for version in (4, 6):
        reach(fabric, guest, version, b"again")
    assert fabric.a.traffic().redirected >= 2
    fabric.a.apply(LOCAL)
    mine = fabric.a.plug()
    reach(fabric, mine, 4, b"local again")
    guest.close()
    mine.close()


def test_a_killed_relay_comes_back_with_its_table(fabric: Fabric) -> None:
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(replace(LOCAL, plugged=False, forwarding=Forwarding.REDIRECT, target=B))
    guest = fabric.b.plug()
    deaths = fabric.a.driver.relay_deaths
    reach(fabric, guest, 4, b"before")
    before = fabric.a.relay_pid()
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: fabric.a.driver.relay_deaths == deaths + 1, "the death to be noticed")
    wait_for(lambda: fabric.a.driver._relay.connected, "another relay")
    # An apply waits for the recovery, which holds the same lock.
    fabric.a.apply(replace(LOCAL, plugged=False, forwarding=Forwarding.REDIRECT, target=B))
    reach(fabric, guest, 6, b"after")
    assert fabric.a.relay_pid() != before
    assert fabric.a.traffic().redirected == 2
    guest.close()


def test_the_relay_outlives_the_daemon_and_is_adopted(fabric: Fabric) -> None:
    redirect = replace(LOCAL, plugged=False, forwarding=Forwarding.REDIRECT, target=B)
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(redirect)
    guest = fabric.b.plug()
    pid = fabric.a.relay_pid()
    space = fabric.a.space
    space.await_(fabric.a.driver.close())
    reach(fabric, guest, 4, b"nobody is home")
    fabric.a.driver = space.call(LinuxDataPlane, fabric.a.settings)
    space.await_(fabric.a.driver.start())
    reach(fabric, guest, 6, b"adopted")
    fabric.a.resync(redirect)
    assert fabric.a.relay_pid() == pid
    assert fabric.a.relay()["vms"]["0/vm-1"]["encapsulated"] == 2
    assert fabric.a.traffic().redirected == 2
    guest.close()


def test_remove_all_leaves_nothing(fabric: Fabric) -> None:
    fabric.c.apply(LOCAL)
    pid = fabric.c.relay_pid()
    space = fabric.c.space
    space.await_(fabric.c.driver.remove_all())
    assert not os.path.exists(f"/proc/{pid}")
    assert list(fabric.c.settings.state_dir.iterdir()) == []
    assert space.ip("route", "show", "table", "all", "proto", "77") == ""
    assert space.ip("-6", "route", "show", "table", "all", "proto", "77") == ""
    assert "vmm" not in space.ip("link") + space.ip("rule")
    assert TAP not in space.ip("link")
    assert space.run("nft", "list", "ruleset") == ""
    space.await_(fabric.c.driver.start())
