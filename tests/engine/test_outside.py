"""What an NVE lets become of packets from outside the data centres (draft Section 3).

They are left to the fabric only while the manager says that it leads past this node: else they
would come back.  Not here: what a data plane makes of it (contract/test_dataplane_outside.py).
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import World
from tests.engine.test_restarts import settle
from vmmobility.engine.binding_update_list import Entry, entry_from_json, entry_to_json
from vmmobility.engine.dataplane import Forwarding, Outside, RedirectPolicy
from vmmobility.engine.fabric_record import RouterSite
from vmmobility.engine.outputs import Endpoint
from vmmobility.engine.peer import Received
from vmmobility.wire.message import Message
from vmmobility.wire.options import Epoch, Option, PhaseOption, Sight, Ticket, VmId
from vmmobility.wire.registry import Kind, Phase, Purpose
from vmmobility.wire.values import Interface, Nve

VM = vm_key("vm1")
OWN = interfaces_of("vm1", 1, 1)
SITES = (
    RouterSite("ra", border=False, serves=("a",), dc="one"),
    RouterSite("rb", border=False, serves=("b", "c"), dc="one"),
)
FAR = Nve("far", None, None)


def outside(world: World, node: str) -> Outside | None:
    """What its kernel does with them; None where it does not redirect."""
    held = world.nodes[node].kernel.held.get(VM)
    if held is None or held.forwarding is not Forwarding.REDIRECT:
        return None
    return held.outside


def a_world(**settings: Any) -> World:
    world = World(routers=SITES, **settings)
    number = world.start_vm(VM, "a", OWN)
    world.run_until(lambda: number in world.results)
    return world


def moved(world: World, to: str) -> None:
    move = world.manager.moves[world.move(VM, to)]
    settle(world)
    assert move.ok, move.reason


def entry_of(world: World, node: str) -> Entry:
    edge = world.nodes[node].edge
    assert edge is not None
    return edge.entries[VM]


REDIRECTING = Entry(VM, OWN, phase=Phase.REDIRECTING, target=FAR, fabric_direct=True)


@pytest.mark.parametrize(
    ("entry", "becomes"),
    [
        (REDIRECTING, Outside.FABRIC),
        (replace(REDIRECTING, fabric_direct=False), Outside.DROP),
        (replace(REDIRECTING, phase=Phase.SWITCHED, turned=True), Outside.FABRIC),
        (
            replace(REDIRECTING, phase=Phase.SWITCHED, turned=True, fabric_direct=False),
            Outside.DROP,
        ),
        (replace(REDIRECTING, phase=Phase.PREPARED, relaying=True), Outside.QUEUE),
        (
            replace(REDIRECTING, phase=Phase.PREPARED, came_from=Phase.REDIRECTING),
            Outside.DROP,
        ),
        (
            replace(REDIRECTING, phase=Phase.FAILED, relaying=True, move_epoch=7),
            Outside.DROP,
        ),
        (replace(REDIRECTING, phase=Phase.ATTACHING, claiming=True), Outside.DROP),
        (replace(REDIRECTING, phase=Phase.DEPARTED), Outside.DROP),
    ],
)
def test_each_phase_that_redirects(entry: Entry, becomes: Outside) -> None:
    state = entry.data_plane(RedirectPolicy.AUTO)
    assert state.forwarding is Forwarding.REDIRECT
    assert state.outside is becomes
    again = entry_from_json(VM, entry_to_json(entry)).data_plane(RedirectPolicy.AUTO)
    if becomes is Outside.FABRIC:
        assert again.outside is Outside.DROP  # what a restart does not know is no loop
    else:
        assert again.outside is becomes


@pytest.mark.parametrize("phase", Phase)
def test_what_is_delivered_here_or_not_at_all_needs_no_answer(phase: Phase) -> None:
    state = Entry(VM, OWN, phase=phase, fabric_direct=True).data_plane(RedirectPolicy.AUTO)
    assert state.forwarding is Forwarding.REDIRECT or state.outside is Outside.DROP


def test_a_destination_lets_them_wait_and_a_previous_nve_leaves_them_to_the_fabric() -> None:
    world = a_world()
    world.move(VM, "b")
    seen: list[tuple[Outside | None, Outside | None]] = []
    while not seen or seen[-1][1] is not Outside.FABRIC:
        world.step()
        now = (outside(world, "b"), outside(world, "a"))
        if not seen or seen[-1] != now:
            seen.append(now)
    assert seen[0] == (None, None)
    assert (Outside.QUEUE, None) in seen  # b relays, a delivers
    settle(world)
    assert (outside(world, "b"), outside(world, "a")) == (None, Outside.FABRIC)


def test_a_restart_drops_until_the_manager_says_it_again() -> None:
    world = a_world(nve_settings={"check_s": 5.0, "drain_s": 60.0})
    moved(world, "b")
    assert outside(world, "a") is Outside.FABRIC
    world.crash("a")
    world.restart("a")
    world.run(0.5)
    assert outside(world, "a") is Outside.DROP
    world.run_until(lambda: outside(world, "a") is Outside.FABRIC, 20)


def test_a_fabric_that_leads_elsewhere_gets_nothing_back() -> None:
    world = a_world(nve_settings={"check_s": 5.0, "drain_s": 60.0})
    moved(world, "b")
    assert outside(world, "a") is Outside.FABRIC
    assert world.fabric is not None
    world.fabric.bar("ra", "rb")
    world.run_until(lambda: outside(world, "a") is Outside.DROP, 20)
    world.fabric.unbar("ra", "rb")
    world.run_until(lambda: outside(world, "a") is Outside.FABRIC, 20)


def test_an_aborted_preparation_is_told_anew() -> None:
    world = a_world(nve_settings={"check_s": 5.0, "drain_s": 600.0})
    moved(world, "b")
    assert outside(world, "a") is Outside.FABRIC
    move = world.manager.moves[world.move(VM, "a")]
    world.run_until(lambda: outside(world, "a") is Outside.DROP)
    assert entry_of(world, "a").phase is Phase.PREPARED
    world.manager.abort_move(move, world.now)
    world.run_until(lambda: move.ok is not None)
    world.run_until(lambda: outside(world, "a") is Outside.FABRIC, 60)


# ---- the switch ------------------------------------------------------------------------------


def switch(world: World, *sights: Option) -> None:
    """The manager's SWITCH to SWITCHED, again or for the first time, saying this of the fabric."""
    edge, entry = world.nodes["a"].edge, entry_of(world, "a")
    assert edge is not None
    step = (VmId(VM), Epoch(entry.move_epoch), Ticket(entry.ticket), PhaseOption(Phase.SWITCHED))
    options = (*step, *sights)
    message = Message(Kind.REQUEST, Purpose.SWITCH, 4242, options)
    source = edge.manager.endpoints[0]
    assert isinstance(source, Endpoint)
    received = Received(edge.manager, message, 1, source, None)
    world.feed(world.nodes["a"], lambda: edge._request(received, world.now))


@pytest.mark.parametrize(
    ("sights", "becomes"),
    [
        ((Sight(True, False),), Outside.FABRIC),
        ((), Outside.DROP),
        ((Sight(False, False),), Outside.DROP),
        ((Sight(False, True),), Outside.DROP),
    ],
)
def test_the_source_hears_in_the_switch_where_the_fabric_leads(
    sights: tuple[Option, ...], becomes: Outside
) -> None:
    world = a_world()
    world.move(VM, "b")
    world.run_until(lambda: entry_of(world, "a").phase is Phase.CONVERGED)
    switch(world, *sights)
    world.run_until(lambda: outside(world, "a") is not None)
    assert entry_of(world, "a").phase is Phase.SWITCHED
    assert outside(world, "a") is becomes


def test_a_repeated_switch_may_say_otherwise() -> None:
    world = a_world()
    world.move(VM, "b")
    world.run_until(lambda: entry_of(world, "a").phase is Phase.CONVERGED)
    switch(world)
    world.run_until(lambda: outside(world, "a") is Outside.DROP)
    switch(world, Sight(True, False))
    assert entry_of(world, "a").phase is Phase.SWITCHED
    world.run_until(lambda: outside(world, "a") is Outside.FABRIC, 1)
    assert entry_of(world, "a").phase is Phase.SWITCHED


def test_a_roll_back_forgets_it() -> None:
    world = a_world()
    world.move(VM, "b")
    world.run_until(lambda: entry_of(world, "a").phase is Phase.CONVERGED)
    switch(world, Sight(True, False))
    entry = entry_of(world, "a")
    assert entry.fabric_direct
    edge = world.nodes["a"].edge
    assert edge is not None
    edge._serve_on(entry, None, world.now)
    assert not entry.fabric_direct


# ---- what is counted and told ------------------------------------------------------------------


def test_what_is_dropped_for_its_sender_keeps_a_redirect() -> None:
    """Section 5: an entry is kept "until all inbound traffic to the virtual machine stops"."""
    world = World(nve_settings={"drain_s": 5.0})
    world.start_vm(VM, "a", (Interface(b"\2\0\0\0\0\1", (ip_network("10.8.0.7/32"),)),))
    world.run(1)
    world.move(VM, "b")
    settle(world)
    for _ in range(20):
        world.run(1)
        world.nodes["a"].kernel.counters[VM].outside += 1
    assert VM in world.nodes["a"].kernel.held
    world.run(20)
    assert VM not in world.nodes["a"].kernel.held


@pytest.mark.parametrize(
    ("prefixes", "lacking"),
    [
        ((), []),
        (("10.0.0.0/8", "fd00::/8"), []),
        (("10.0.0.0/8",), ["fd01:1::1/128"]),
        (("192.0.2.0/24", "fd00::/8"), ["10.1.0.1/32"]),
        (("10.1.0.1/32", "fd01:1::1/128"), []),
    ],
)
def test_a_vm_outside_by_its_own_address_is_told_once(
    prefixes: tuple[str, ...], lacking: list[str]
) -> None:
    dc = tuple(ip_network(prefix) for prefix in prefixes)
    world = World(nve_settings={"dc_prefixes": dc})
    world.start_vm(VM, "a", OWN)
    world.run(200)
    told = [e for _, node, e in world.events if e.name == "dc-prefixes.lack" and node == "a"]
    assert [e.detail["prefixes"] for e in told] == ([lacking] if lacking else [])
    assert VM in world.nodes["a"].kernel.held  # a warning, and nothing else
