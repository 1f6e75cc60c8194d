"""An audit finds what other hands have changed, repairs it, and touches nothing else.

First for every DataPlane, then what only a kernel has: neighbours, settings, filters, a relay.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.dataplane_changes import each_change, of
from tests.contract.dataplane_fabric import HOST, LOCAL, OWN, B, Fabric, receives
from tests.contract.dataplane_fabric import VM as GUEST
from tests.contract.frames import payload_of, udp_sockets
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
from vmmobility.drivers.linux.settings import LinuxSettings
from vmmobility.engine.dataplane import Forwarding, RedirectPolicy, VmDataPlane


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


def change(hands: LinuxHands, commands: str) -> None:
    for command in commands.replace("TAP", TAP).split(" && "):
        words = command.split(" ")
        if "HANDLE" in words:
            listed = hands.space.run("nft", "-a", "list", "chain", "netdev", "vmmobility", TAP)
            spoofed = next(line for line in listed.splitlines() if "ether saddr !=" in line)
            words[words.index("HANDLE")] = spoofed.split()[-1]
        hands.space.run(*words)


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
    seen: list[bytes] = []
    sent = audits = repaired = 0
    with udp_sockets(fabric.host, HOST) as sockets:
        for version, sender in sockets.items():
            sender.sendto(b"first", (OWN[version], 4000))
            assert receives(guest, b"first")
        end = time.monotonic() + 1.5
        while time.monotonic() < end or audits <= 10:
            if audits % 5 == 0:
                # Beside the VM's own path: what is repaired is not what its packets use.
                space.ip(
                    "route", "add", "10.98.0.0/16", "dev", "eth0", "proto", "77", "metric", "7"
                )
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
    assert repaired >= audits // 5
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
    """dataplane_changes.py names them."""
    settings = LinuxSettings(None, None, Path())
    assert (str(settings.gateway4), str(settings.gateway6)) == ("169.254.1.1", "fe80::1")
