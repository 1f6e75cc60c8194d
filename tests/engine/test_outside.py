"""What becomes of packets from outside the data centres in a move (draft Section 3): no NVE may
tunnel them, and none is lost.

Not here: what a data plane makes of it (contract/test_dataplane_outside.py).
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
from vmmobility.wire.registry import Phase
from vmmobility.wire.values import Interface, Nve

VM = vm_key("vm1")
OWN = interfaces_of("vm1", 1, 1)
SITES = (
    RouterSite("ra", border=False, serves=("a",), dc="one"),
    RouterSite("x1", border=True, dc="one"),
    RouterSite("x2", border=True, dc="two"),
    RouterSite("rb", border=False, serves=("b", "c"), dc="two"),
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


REDIRECTING = Entry(VM, OWN, phase=Phase.REDIRECTING, target=FAR)


@pytest.mark.parametrize(
    ("entry", "becomes"),
    [
        (REDIRECTING, Outside.DROP),
        (replace(REDIRECTING, fabric_direct=True), Outside.DROP),
        (replace(REDIRECTING, phase=Phase.SWITCHED, turned=True), Outside.DROP),
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
    assert again.outside is becomes


@pytest.mark.parametrize("phase", Phase)
def test_what_is_delivered_here_or_not_at_all_needs_no_answer(phase: Phase) -> None:
    state = Entry(VM, OWN, phase=phase, fabric_direct=True).data_plane(RedirectPolicy.AUTO)
    assert state.forwarding is Forwarding.REDIRECT or state.outside is Outside.DROP


def test_a_destination_lets_them_wait_and_a_previous_nve_drops_them() -> None:
    world = a_world()
    world.move(VM, "b")
    seen: list[tuple[Outside | None, Outside | None]] = []
    while not seen or seen[-1][1] is None:
        world.step()
        now = (outside(world, "b"), outside(world, "a"))
        if not seen or seen[-1] != now:
            seen.append(now)
    assert seen[0] == (None, None)
    assert (Outside.QUEUE, None) in seen  # b relays, a delivers
    settle(world)
    assert (outside(world, "b"), outside(world, "a")) == (None, Outside.DROP)


@pytest.mark.parametrize("seed", range(20))
def test_in_a_move_none_of_them_is_lost_wherever_the_fabric_has_come_to(seed: int) -> None:
    """The routers hold to the source until all of them lead past it: home, on, and home again."""
    world = World(routers=SITES, seed=seed, fabric_delay_s=(0.02, 1.0))
    number = world.start_vm(VM, "a", OWN)
    world.run_until(lambda: number in world.results)
    world.lossless.add(VM)  # packets from outside by each border router, too
    for to in ("b", "c", "a", "c"):
        move = world.manager.moves[world.move(VM, to)]
        settle(world)
        assert move.ok, move.reason


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
