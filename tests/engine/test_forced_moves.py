"""Moves in post-copy: the source is kept while it is fetched from, and never runs again."""

from __future__ import annotations

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.fake_hypervisor import Hypervisor, Life
from tests.engine.network import MANAGER, World
from tests.engine.test_restarts import settle
from vmmobility.engine.manager_move import Move
from vmmobility.wire.move_terms import MoveTerms
from vmmobility.wire.registry import OnTimeout

VM = vm_key("vm1")
FORCE = MoveTerms(timeout_s=5, on_timeout=OnTimeout.FORCE)


def hypervisor(world: World, name: str) -> Hypervisor:
    found = world.nodes[name].hypervisor
    assert found is not None
    return found


def running_at(world: World) -> list[str]:
    return [
        name
        for name in "abc"
        if VM in hypervisor(world, name).guests
        and hypervisor(world, name).guests[VM].life is Life.RUNNING
    ]


def forced() -> tuple[World, Move]:
    """The VM runs at b, which fetches the rest of its memory from a."""
    world = World()
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run(1)
    move = world.manager.moves[world.move(VM, "b", FORCE)]
    world.run_until(lambda: running_at(world) == ["b"])
    return world, move


def test_the_source_is_ended_only_when_nobody_fetches_from_it_any_more() -> None:
    world, move = forced()
    world.run_until(lambda: move.ok is not None)
    assert move.ok
    world.run(1)
    assert hypervisor(world, "a").guests[VM].life is Life.HANDED, "b still needs it"
    world.run_until(lambda: VM not in hypervisor(world, "a").guests)
    assert running_at(world) == ["b"]
    settle(world)
    safety.check_settled(world)


@pytest.mark.parametrize("name", ["a", "b", MANAGER])
def test_daemons_that_restart_meanwhile_change_nothing(name: str) -> None:
    world, move = forced()
    world.restart(name)
    world.run_until(lambda: VM not in hypervisor(world, "a").guests)
    assert running_at(world) == ["b"]
    settle(world)
    assert world.manager.moves[move.move_id].ok
    safety.check_settled(world)


@pytest.mark.parametrize("dies", ["a", "b"])
def test_an_end_that_dies_meanwhile_takes_the_guest_with_it_and_it_is_told(dies: str) -> None:
    world, _ = forced()
    hypervisor(world, dies).kill(VM)
    for _ in range(100):
        world.run(0.1)
        assert "a" not in running_at(world), "what is there is old"
    settle(world)
    assert running_at(world) == []
    assert VM not in world.manager.cache.bindings, "it is known to be lost"
