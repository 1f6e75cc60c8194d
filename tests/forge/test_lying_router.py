"""A router that lies about what it sees: what docs/protocol.md, Section 14, says that it can do,
and no more.  Its words are authentic, under the newest epoch, so test_forge.py cannot call them
wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.fake_fabric import FakeFabric
from tests.engine.network import World
from tests.engine.safety import running
from tests.forge.domain import SITES
from tests.forge.insiders import told_to_others
from vmmobility.engine.fabric_routes import Sight, VmRoutes
from vmmobility.engine.manager_move import Move
from vmmobility.engine.manager_transitions import MoveState

VM = vm_key("vm1")


Words = Callable[[Sight], Sight]


def world_with(says: Words) -> World:
    """The border router tells what `says` makes of the truth."""
    world = World(routers=SITES, nve_settings={"lifetime_s": 40.0, "drain_s": 5.0})
    number = world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: number in world.results)
    lie(world, says)
    return world


def lie(world: World, says: Words) -> None:
    fabric = world.fabric
    assert fabric is not None

    def sight(router: str, routes: VmRoutes) -> Sight:
        truth = FakeFabric.sight(fabric, router, routes)
        return says(truth) if router == "edge" else truth

    fabric.sight = sight  # type: ignore[method-assign]
    fabric.changed("edge", VM)


def moved(world: World, to: str) -> Move:
    move = world.manager.moves[world.move(VM, to)]
    world.run_until(lambda: move.ok is not None)
    return move


def test_it_holds_a_move_up_until_its_time_is_over():
    world = world_with(lambda _: Sight(False, False))
    move = moved(world, "c")
    assert move.state is MoveState.ABORTED
    assert "edge" in move.reason
    world.run(12.0)  # what it says holds the turn back up, too, for as long
    assert running(world, VM) == ["a"]
    assert world.fabric is not None
    assert not world.fabric.left_of(VM)


def test_where_others_are_asked_it_opens_no_gate():
    world = world_with(lambda _: Sight(True, True))
    move = world.manager.moves[world.move(VM, "c")]
    fabric, others_see = world.fabric, False
    assert fabric is not None
    while move.ok is None:
        world.step()
        others_see = others_see or fabric.by_main("r1", VM) == "r2"
        assert others_see or move.state is not MoveState.SWITCHING
    assert move.ok


def test_it_changes_no_binding_and_no_other_routers_routes():
    world = world_with(lambda truth: truth)
    assert moved(world, "c").ok
    world.run(30.0)
    binding = world.manager.cache.bindings[VM]
    of_redirects: dict[str, Any] = {
        "previous": {},
        "fabric_direct": False,
        "heard": 0.0,
        "expires_at": 0.0,
    }
    before = dataclasses.replace(binding, **of_redirects)
    others = told_to_others(world.manager, "edge")
    for number in range(20):
        word = Sight(number % 2 == 0, number % 3 == 0)
        lie(world, lambda _, word=word: word)  # type: ignore[misc]
        world.run(3.0)
        binding = world.manager.cache.bindings[VM]
        assert dataclasses.replace(binding, **of_redirects) == before
        assert told_to_others(world.manager, "edge") == others
        assert set(binding.previous) <= {"a"}, "the home alone may be asked to redirect again"
        assert running(world, VM) == ["c"]
