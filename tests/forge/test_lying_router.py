"""A router that lies about what it sees: what docs/protocol.md, Section 14, says that it can do,
and no more.  Its words are authentic, under the newest epoch, so test_forge.py cannot call them
wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.safety import running
from tests.forge.insiders import told_to_others
from tests.forge.routers import RoutedWorld, RouterNode
from vmmobility.engine.fabric_routes import Sight, VmRoutes
from vmmobility.engine.manager_move import Move
from vmmobility.engine.manager_transitions import MoveState

VM = vm_key("vm1")


class Liars(RoutedWorld):
    """says: what the border router tells instead of the truth."""

    says: Callable[[Sight], Sight] = staticmethod(lambda truth: truth)

    def sight(self, node: RouterNode, routes: VmRoutes) -> Sight:
        truth = super().sight(node, routes)
        return self.says(truth) if node.node_id == "edge" else truth


def world_with(says: Callable[[Sight], Sight]) -> Liars:
    world = Liars(nve_settings={"lifetime_s": 40.0, "drain_s": 5.0})
    number = world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: number in world.results)
    world.says = says
    return world


def moved(world: Liars, to: str) -> Move:
    move = world.manager.moves[world.move(VM, to)]
    world.run_until(lambda: move.ok is not None)
    return move


def test_it_holds_a_move_up_until_its_time_is_over():
    world = world_with(lambda _: Sight(False, False))
    move = moved(world, "c")
    assert move.state is MoveState.ABORTED
    assert "edge" in move.reason
    world.run(5.0)
    assert running(world, VM) == ["a"]
    assert world.leads(world.routers[0], VM) == "a"
    assert not any(router.routes[VM].serving for router in world.routers)


def test_where_others_are_asked_it_opens_no_gate():
    world = world_with(lambda _: Sight(True, True))
    move = world.manager.moves[world.move(VM, "c")]
    r1, others_see = world.nodes["r1"], False
    assert isinstance(r1, RouterNode)
    while move.ok is None:
        world.step()
        others_see = others_see or world.leads(r1, VM) == "c"
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
        world.says = lambda _, word=word: word  # type: ignore[misc]
        world._look()
        world.run(3.0)
        binding = world.manager.cache.bindings[VM]
        assert dataclasses.replace(binding, **of_redirects) == before
        assert told_to_others(world.manager, "edge") == others
        assert set(binding.previous) <= {"a"}, "the home alone may be asked to redirect again"
        assert running(world, VM) == ["c"]
