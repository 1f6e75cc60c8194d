"""The Linux data plane repaired, restarted, adopted and removed, with the packets to show it."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest

from tests.contract.dataplane_fabric import (
    GATEWAY,
    LOCAL,
    MAC,
    OWN,
    TAP,
    A,
    B,
    Fabric,
    reach,
    send,
)
from tests.contract.frames import (
    arp_reply_mac,
    arp_request,
    payload_of,
)
from tests.contract.namespaces import wait_for
from vmmobility.drivers.linux.driver import LinuxDataPlane
from vmmobility.drivers.linux.netlink import Netlink, Request
from vmmobility.drivers.linux.ownership import KERNEL_TUNNELS, TUN_NAME, TUNNEL_DEVICES
from vmmobility.drivers.linux.relay_client import RelayClient
from vmmobility.engine.dataplane import Forwarding

pytestmark = pytest.mark.netns


def tunnel_of(back_end: str) -> str:
    return KERNEL_TUNNELS[4] if back_end == "kernel" else TUN_NAME


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


@pytest.mark.parametrize("way", ["tap", "tunnel", "tables"])
def test_resync_makes_again_what_was_removed(fabric: Fabric, way: str) -> None:
    redirect = replace(LOCAL, forwarding=Forwarding.REDIRECT, target=B)
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(redirect)
    space = fabric.a.space
    if way == "tables":
        space.run("nft", "flush", "ruleset")
    else:
        device = tunnel_of(fabric.back_end)
        space.ip("link", "del", TAP if way == "tap" else device)
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
    if fabric.back_end == "relay":
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


def test_remove_all_leaves_no_moment_in_which_a_tunnels_packet_goes_on(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Table 7700, its blackholes and its rules stand while any device can bring a packet."""
    fabric.c.apply(replace(LOCAL, accept_from=(A,)))
    space, driver = fabric.c.space, fabric.c.driver
    stop, batch = RelayClient.stop, Netlink.batch
    seen: list[tuple[str, bool]] = []

    def note(what: str) -> None:
        devices = [name for name in TUNNEL_DEVICES if name in space.ip("link")]
        rules = space.ip("rule") + space.ip("-6", "rule")
        led = [f"iif {name} " in rules and "lookup 7700" in rules for name in devices]
        ends = [space.ip(f, "route", "show", "table", "7700", "proto", "77") for f in ("-4", "-6")]
        whole = all("blackhole" in shown and TAP in shown for shown in ends)
        seen.append((what, not devices or (whole and all(led))))

    async def noted_stop(client: RelayClient) -> None:
        note("before the relay ends")
        await stop(client)
        note("after it has ended")

    def noted_batch(netlink: Netlink, requests: list[Request]) -> object:
        outcome = batch(netlink, requests)
        note(f"after requests of type {requests[0].kind}" if requests else "after none")
        return outcome

    monkeypatch.setattr(RelayClient, "stop", noted_stop)
    monkeypatch.setattr(Netlink, "batch", noted_batch)
    space.await_(driver.remove_all())
    monkeypatch.undo()
    assert len(seen) >= 5
    assert [what for what, safe in seen if not safe] == []
    assert "7700" not in space.ip("rule")
    space.await_(driver.start())


@pytest.mark.parametrize("adopted", [False, True])
@pytest.mark.parametrize("end", ["source", "destination"])
def test_packets_wait_for_the_successor_of_a_killed_relay(
    fabric: Fabric, end: str, adopted: bool
) -> None:
    """The daemon holds its descriptors: also one that has adopted the relay."""
    redirect = replace(LOCAL, plugged=False, forwarding=Forwarding.REDIRECT, target=B)
    delivery = replace(LOCAL, accept_from=(A,))
    fabric.b.apply(delivery)
    fabric.a.apply(redirect)
    guest = fabric.b.plug()
    reach(fabric, guest, 4, b"before")
    node, state = (fabric.a, redirect) if end == "source" else (fabric.b, delivery)
    if adopted:
        node.space.await_(node.driver.close())
        node.driver = node.space.call(LinuxDataPlane, node.settings)
        node.space.await_(node.driver.start())
        node.resync(state)
    before = node.relay_pid()
    os.kill(before, signal.SIGKILL)
    words = [f"{version} {number}".encode() for number in range(100) for version in (4, 6)]
    for word in words:
        send(fabric, int(word[:1]), word)
    wait_for(lambda: node.driver._relay.connected and node.relay_pid() != before, "another relay")
    found: list[bytes | None] = []

    def all_arrived() -> bool:
        found.extend(payload_of(frame) for frame in guest.frames())
        return set(words) <= set(found)

    wait_for(all_arrived, "every packet that was sent meanwhile")
    guest.close()
