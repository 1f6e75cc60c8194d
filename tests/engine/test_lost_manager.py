"""A manager that has lost its state: the NVEs' attaches give it back what matters."""

from __future__ import annotations

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import MANAGER, World
from tests.engine.test_restarts import settle
from vmmobility.engine.manager_relearning import MAX_LEAP
from vmmobility.wire.registry import Phase

VM = vm_key("vm1")


def a_world(*route: str) -> World:
    """A VM that was started at a and has gone this way."""
    world = World(nve_settings={"lifetime_s": 20.0})
    number = world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: number in world.results)
    for to in route:
        move(world, to)
    return world


def move(world: World, to: str) -> None:
    moved = world.manager.moves[world.move(VM, to)]
    world.run_until(lambda: moved.ok is not None)
    assert moved.ok, moved.reason
    settle(world)
    assert safety.running(world, VM) == [to]


def lose_state(world: World) -> None:
    world.crash(MANAGER)
    world.nodes[MANAGER].disk.clear()
    world.restart(MANAGER)
    assert not world.manager.cache.bindings


def known_again(world: World) -> None:
    world.run_until(lambda: VM in world.manager.cache.bindings)
    settle(world)


def all_delivered(world: World) -> bool:
    return all(walk.end == "delivered" for walk in safety.walks(world, VM))


@pytest.mark.parametrize("route", [("b",), ("b", "c"), ("c", "b", "c")])
def test_the_manager_learns_again_what_it_lost(route: tuple[str, ...]) -> None:
    world = a_world(*route)
    before = world.manager.cache.bindings[VM]
    lose_state(world)
    assert all_delivered(world)
    known_again(world)
    binding = world.manager.cache.bindings[VM]
    assert binding.epoch > before.epoch
    assert list(binding.previous) == list(before.previous)
    assert not binding.unacknowledged
    assert all_delivered(world)
    safety.check_settled(world)


@pytest.mark.parametrize("to", ["b", "a"])
def test_it_moves_the_vm_to_a_former_nve_and_home(to: str) -> None:
    world = a_world("b", "c")
    lose_state(world)
    known_again(world)
    move(world, to)
    assert all_delivered(world)
    move(world, "a" if to == "b" else "b")
    safety.check_settled(world)


def test_a_vm_started_where_it_once_was_is_not_held_for_stale() -> None:
    world = a_world("b", "a")
    world.stop_vm(VM, "a")
    settle(world)
    edge = world.nodes["a"].edge
    assert edge is not None
    assert edge.entries[VM].phase is Phase.NONE
    tombstone = edge.entries[VM].epoch
    lose_state(world)
    number = world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: number in world.results)
    assert world.manager.cache.bindings[VM].epoch > tombstone
    move(world, "b")


def test_a_binding_that_is_there_learns_nothing() -> None:
    world = a_world()
    edge = world.nodes["a"].edge
    assert edge is not None
    edge.entries[VM].accept = (world.nodes["c"].nve,)
    edge.entries[VM].epoch = 50
    edge._attach(edge.entries[VM], world.now)
    settle(world)
    assert world.manager.cache.last_epoch == 1
    assert not world.manager.cache.bindings[VM].previous


@pytest.mark.parametrize(("epoch", "status"), [(MAX_LEAP, ""), (MAX_LEAP + 1, "malformed")])
def test_an_epoch_may_not_leap(epoch: int, status: str) -> None:
    world = World()
    edge = world.nodes["a"].edge
    assert edge is not None
    edge.entries.entry(VM).epoch = epoch
    number = world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: number in world.results)
    assert status in world.results[number].error
    assert bool(world.results[number].error) is bool(status)
    assert world.manager.cache.last_epoch == (0 if status else epoch + 1)


def test_previous_nves_that_nobody_configured_are_not_taken() -> None:
    world = a_world("b", "c")
    world.unconfigured = {"b"}
    lose_state(world)
    world.run_until(lambda: VM in world.manager.cache.bindings)
    assert list(world.manager.cache.bindings[VM].previous) == ["a"]


def test_a_source_whose_move_the_manager_lost_and_which_went_wrong_serves_on() -> None:
    world = a_world()
    world.move(VM, "b")
    hypervisor = world.nodes["a"].hypervisor
    assert hypervisor is not None
    hypervisor.break_next.add("switch")
    edge = world.nodes["a"].edge
    assert edge is not None
    world.run_until(lambda: edge.entries[VM].phase is Phase.SWITCHED)
    lose_state(world)
    world.run(200)
    known_again(world)
    assert safety.running(world, VM) == ["a"]
    assert edge.counts["drift.guest"] == 1
    assert all_delivered(world)


def a_new_domain(**manager: float) -> World:
    """A manager and NVEs that have never heard of each other."""
    return World(strangers=True, manager_settings=manager, nve_settings={"lifetime_s": 20.0})


def start(world: World) -> str:
    """Start the VM at a: the error, if it was refused."""
    number = world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: number in world.results)
    return world.results[number].error


def test_a_new_manager_starts_a_vm_when_every_nve_has_said_that_it_has_none() -> None:
    world = a_new_domain()
    settle(world)
    assert start(world) == ""
    assert safety.running(world, VM) == ["a"]


def test_a_manager_without_records_waits_for_an_nve_that_is_silent() -> None:
    world = a_new_domain(lifetime_s=20.0, check_s=10.0)
    world.crash("c")
    world.run(1.0)
    error = start(world)
    assert "c has not said what it knows of the VM" in error
    assert "that counts for 34 s more" in error
    world.crash(MANAGER)
    world.restart(MANAGER)
    world.run(20.0)
    assert "c has not said" in start(world)
    world.run(20.0)
    assert start(world) == ""
    assert "relearning" not in world.nodes[MANAGER].disk


def test_a_manager_is_told_of_its_loss_also_when_it_has_waited_long_enough() -> None:
    world = a_new_domain(lifetime_s=20.0, check_s=10.0)
    settle(world)
    assert start(world) == ""
    world.cut = {frozenset((MANAGER, node)) for node in "abc"}
    lose_state(world)
    world.run(60.0)
    assert "relearning" not in world.nodes[MANAGER].disk
    world.cut = {frozenset((MANAGER, "a"))}
    world.run(10.0)
    number = world.start_vm(VM, "b", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: number in world.results)
    assert "a has not said what it knows of the VM" in world.results[number].error
    assert safety.running(world, VM) == ["a"]
