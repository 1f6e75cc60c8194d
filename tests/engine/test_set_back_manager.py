"""A manager whose state was set back to an old backup: no guest is ended, and all is known again.

Not here: one whose state was lost altogether (test_lost_manager.py).
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import MANAGER, World
from tests.engine.test_contests import binding_of, events
from tests.engine.test_restarts import settle
from vmmobility.engine.manager_move import MoveRefused

VM = vm_key("vm1")
CASES = [(r, kept) for r in ("b", "ba", "bc", "bcb", "bcba", "bcbc") for kept in range(len(r))]


def moved(world: World, to: str) -> None:
    move = world.manager.moves[world.move(VM, to)]
    settle(world)
    assert move.ok, move.reason


def set_back(route: str, kept: int, wait_s: float = 0.0) -> World:
    """vm1 was started at a and went this way; the manager knows the first `kept` moves of it."""
    world = World(nve_settings={"lifetime_s": 20.0})
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run(1)
    disk: dict[str, Any] = {}
    for number, to in enumerate(route):
        if number == kept:
            disk = json.loads(json.dumps(world.nodes[MANAGER].disk))
        moved(world, to)
    world.run(wait_s)
    world.crash(MANAGER)
    world.nodes[MANAGER].disk = disk
    world.restart(MANAGER)
    return world


def known_again(world: World, place: str) -> None:
    world.run(100)
    settle(world)
    assert safety.running(world, VM) == [place]
    assert not events(world, "superseded")
    assert (binding_of(world).nve.nve_id, binding_of(world).state) == (place, "serving")
    safety.check_settled(world)
    moved(world, "c" if place != "c" else "b")
    moved(world, "a" if place != "a" else "b")
    safety.check_settled(world)


@pytest.mark.parametrize(("route", "kept"), CASES)
def test_the_nve_that_serves_is_bound_again(route: str, kept: int) -> None:
    known_again(set_back(route, kept), route[-1])


@pytest.mark.parametrize(("route", "kept"), CASES)
def test_a_comparison_before_that_ends_no_guest(route: str, kept: int) -> None:
    world = set_back(route, kept)
    world.check(MANAGER)
    known_again(world, route[-1])


@pytest.mark.parametrize(("route", "kept"), CASES)
def test_a_move_that_is_asked_for_before_that_ends_no_guest(route: str, kept: int) -> None:
    """It would be moved from where it was once; if it is there again, it is."""
    world = set_back(route, kept)
    for _ in range(10):  # epochs that others have used up
        world.manager._new_epoch()
    for to in "abc":
        try:
            world.move(VM, to)
        except MoveRefused:
            continue
        world.run(5)
    [place] = safety.running(world, VM)
    known_again(world, place)


def test_a_removal_that_a_tombstone_is_above_is_asked_for_under_a_higher_epoch() -> None:
    """b serves under the attach on record, but a has heeded an epoch that was forgotten."""
    world = World(nve_settings={"lifetime_s": 20.0})
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run(1)
    moved(world, "b")
    disk = json.loads(json.dumps(world.nodes[MANAGER].disk))
    for _ in range(3):
        hypervisor = world.nodes["b"].hypervisor
        assert hypervisor is not None
        hypervisor.break_next.add("copy")
        assert not world.manager.moves[world.move(VM, "c")].ok
        settle(world)
    world.crash(MANAGER)
    world.nodes[MANAGER].disk = disk
    world.restart(MANAGER)
    stop = world.stop_vm(VM, "b")
    world.run(30)
    assert not world.results[stop].error
    assert VM not in world.manager.cache.bindings


@pytest.mark.parametrize(
    ("route", "kept"), [("b", 0), ("ba", 1), ("bab", 0), ("bab", 2), ("bc", 0)]
)
@pytest.mark.parametrize("at", ["a", "b", "c"])
@pytest.mark.parametrize("wait_s", [0.0, 45.0])
def test_a_vm_that_runs_where_no_record_says_is_not_booted_beside_itself(
    route: str, kept: int, at: str, wait_s: float
) -> None:
    """The NVE on record has nothing of it, and says so, or is asked to boot it itself.

    Where the redirects have drained, tombstones are all that tells."""
    place = route[-1]
    if at == place:
        return
    world = set_back(route, kept, wait_s)
    number = world.start_vm(VM, at, interfaces_of("vm1", 1, 1))
    world.run(10)
    assert "bound-elsewhere" in world.results[number].error or "is redirecting" in (
        world.results[number].error
    )
    known_again(world, place)
