"""Planned warm moves: the record that people follow, its phases, its figure, and its ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.engine.network import MANAGER, World
from tests.engine.test_protection import VM, at, cut, number, protected, state
from vmmobility.engine.manager_move import Move, MoveRefused
from vmmobility.engine.manager_protection_record import ProtectionState
from vmmobility.engine.manager_transitions import MoveState
from vmmobility.engine.outputs import Order
from vmmobility.wire.move_terms import MoveTerms
from vmmobility.wire.registry import Phase

PHASES = ["requested", "handing", "taking-over", "registered", "redirected", "done"]


def the_move(world: World) -> Move:
    (move,) = world.manager.moves.values()
    return move


def phases(move: Move) -> list[str]:
    return [name for name, _ in move.phases]


def test_a_planned_move_loses_nothing_and_says_for_how_long_the_vm_stood() -> None:
    world = protected()
    identity = world.hand_over(VM)
    world.run_until(at(world, "b"), 20.0)
    world.run(10.0)
    assert at(world, "b")()
    assert VM not in world.manager.protected
    move = world.manager.moves[identity]
    assert (move.mode, move.state, move.ok, move.reason) == ("warm", MoveState.DONE, True, "")
    assert (move.source.nve_id, move.destination.nve_id) == ("a", "b")
    assert move.epoch == world.manager.cache.bindings[VM].epoch
    assert phases(move) == PHASES
    times = dict(move.phases)
    assert 0 < move.measured["stopped_ms"] <= times["registered"] - times["requested"]
    told = [event.name for _, _, event in world.events if event.name.startswith("move.")]
    assert told == [f"move.{name}" for name in PHASES]


def test_a_last_checkpoint_that_fails_leaves_it_where_it_was() -> None:
    world = protected()
    hypervisor = world.nodes["b"].hypervisor
    assert hypervisor is not None
    world.run_until(lambda: not world.edge("a").guarded[VM].taking)
    hypervisor.close_doors()
    world.hand_over(VM)
    world.run_until(lambda: state(world) is not ProtectionState.HANDING, 10.0)
    world.run_until(at(world, "a"), 10.0)
    move = the_move(world)
    assert (move.state, move.ok) == (MoveState.ABORTED, False)
    assert "hypervisor-failure" in move.reason
    assert "stopped_ms" not in move.measured


def test_a_standby_that_cannot_run_it_aborts_the_move() -> None:
    world = protected()
    hypervisor = world.nodes["b"].hypervisor
    assert hypervisor is not None
    hypervisor.fail_next[Order.ACTIVATE] = ["out of memory"]
    world.hand_over(VM)
    world.run_until(lambda: the_move(world).ok is not None, 20.0)
    world.run_until(at(world, "a"), 20.0)
    move = the_move(world)
    assert (move.state, move.ok) == (MoveState.ABORTED, False)
    assert "out of memory" in move.reason


def test_a_source_that_dies_in_its_last_checkpoint_makes_it_a_failed_move() -> None:
    world = protected()
    world.run_until(lambda: not world.edge("a").guarded[VM].taking)
    identity = world.hand_over(VM)
    world.power_cut("a")
    world.run_until(at(world, "b"), 30.0)
    world.run(30.0)
    move = world.manager.moves[identity]
    assert (move.state, move.ok) == (MoveState.FAILED, False)
    assert "from its last complete checkpoint" in move.reason
    assert "stopped_ms" not in move.measured


STAGES: dict[str, Callable[[World], bool]] = {  # each is heard of at an NVE, so it is durable
    "handing": lambda world: world.edge("a").guarded[VM].handed,
    "taking-over": lambda world: bool(world.edge("b").standbys[VM].ticket),
    "registered": lambda world: (
        VM in world.edge("b").entries and world.edge("b").entries[VM].phase is Phase.SERVING
    ),
}


@pytest.mark.parametrize("stage", list(STAGES))
def test_a_manager_that_restarts_in_it_ends_it(stage: str) -> None:
    world = protected()
    identity = world.hand_over(VM)
    world.run_until(lambda: STAGES[stage](world), 10.0)
    world.restart(MANAGER)
    assert world.manager.moves[identity].mode == "warm"
    world.run_until(lambda: world.manager.moves[identity].ok is not None, 60.0)
    move = world.manager.moves[identity]
    there = "b" if move.ok else "a"
    world.run_until(at(world, there), 60.0)
    world.run(20.0)
    assert at(world, there)()
    assert move.ok or stage == "handing"  # the last checkpoint's answer may have been lost
    assert VM not in world.manager._warm


def test_a_previous_nve_that_does_not_answer_does_not_keep_it_open() -> None:
    world = protected()
    identity = world.hand_over(VM)
    world.run_until(lambda: "taking-over" in phases(world.manager.moves[identity]), 10.0)
    cut(world, "a")
    world.run_until(lambda: world.manager.moves[identity].ok is not None, 60.0)
    move = world.manager.moves[identity]
    assert (move.ok, move.reason) == (True, "a previous NVE has not yet answered")


def test_refusals_say_what_to_do() -> None:
    world = protected()
    with pytest.raises(MoveRefused, match="has no standby at c") as refused:
        world.move(VM, "c", mode="warm")
    assert "protect vm1 --to c" in str(refused.value.remedy)
    with pytest.raises(MoveRefused, match="no terms"):
        world.move(VM, "b", MoveTerms(timeout_s=5), "warm")
    world.manager.cordon("b", world.now)
    with pytest.raises(MoveRefused, match="b is cordoned"):
        world.move(VM, "b", mode="warm")
    world.manager.uncordon("b", world.now)
    identity = world.hand_over(VM)
    with pytest.raises(MoveRefused, match="handing"):
        world.hand_over(VM)
    with pytest.raises(MoveRefused, match="cannot be given up"):
        world.manager.abort_move(world.manager.moves[identity], world.now)
    world.run_until(at(world, "b"), 20.0)
    assert len(world.manager.moves) == 1
    assert number(world) == 0


def test_an_end_of_the_protection_ends_the_move() -> None:
    world = protected()
    identity = world.hand_over(VM)
    world.unprotect(VM)
    world.run(10.0)
    assert world.manager.moves[identity].state is MoveState.ABORTED
    assert at(world, "a")()
