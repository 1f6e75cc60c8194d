"""A move is given up in each of its states: the VM goes on at its source, and can be moved then.

Too late is where its guest has registered from the destination: that is refused, in words.
Not here: fabrics that turn back (test_turning_back.py), hypervisors (tests/contract).
"""

from __future__ import annotations

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import World
from tests.engine.test_gate import SITES
from tests.engine.test_restarts import settle
from vmmobility.engine.manager_move import Move, MoveRefused
from vmmobility.engine.manager_transitions import MoveState
from vmmobility.wire.move_terms import MoveTerms
from vmmobility.wire.registry import OnTimeout, Phase

VM = vm_key("vm1")
FORCE = MoveTerms(timeout_s=5, on_timeout=OnTimeout.FORCE)
STATES = ("preparing", "copying", "announcing", "withdrawing", "delivering", "switching")


def moving(state: str, terms: MoveTerms) -> tuple[World, Move]:
    """A move that has just come to that state."""
    routed = state in ("announcing", "withdrawing")
    world = World(routers=SITES if routed else (), fabric_delay_s=(0.05, 0.2))
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run(2)
    move = world.manager.moves[world.move(VM, "b", terms)]
    world.run_until(lambda: move.state.value == state)
    return world, move


@pytest.mark.parametrize("terms", [MoveTerms(), FORCE], ids=["plain", "force"])
@pytest.mark.parametrize("state", STATES)
def test_the_vm_goes_on_at_its_source_or_has_gone_over(state: str, terms: MoveTerms) -> None:
    world, move = moving(state, terms)
    world.manager.abort_move(move, world.now)
    settle(world)
    world.run(20)  # the fabric has to turn, and routers to let go
    assert state == "switching" or not move.ok
    if not move.ok:
        assert (move.state.value, move.reason) == ("aborted", "given up")
    serving = "b" if move.ok else "a"
    assert world.manager.cache.bindings[VM].nve.nve_id == serving
    safety.check_settled(world)
    again = world.manager.moves[world.move(VM, "c")]
    settle(world)
    assert again.ok


@pytest.mark.parametrize("state", ["redirecting", "done"])
def test_it_is_too_late_once_the_guest_has_registered(state: str) -> None:
    world, move = moving("switching", MoveTerms())
    world.run_until(lambda: move.state.value == state)
    with pytest.raises(MoveRefused, match=f"is {state} and cannot be given up"):
        world.manager.abort_move(move, world.now)
    settle(world)
    assert move.ok


def test_a_guest_that_other_hands_run_is_not_copied_away() -> None:
    """Its hypervisor would refuse; a drain must hear why, and the guest stays theirs to move."""
    world, vm = World(), vm_key("vm1")
    world.expect_vm(vm, "a", interfaces_of("vm1", 1, 1))
    hypervisor = world.nodes["a"].hypervisor
    assert hypervisor is not None
    hypervisor.start_by_hand(vm)
    world.run_until(lambda: vm in world.manager.cache.bindings)
    world.run(1.0)
    move = world.manager.moves[world.move(vm, "b")]
    world.run_until(lambda: move.ok is not None)
    assert move.state is MoveState.ABORTED
    assert "its guests are run by others here" in move.reason
    assert safety.running(world, vm) == ["a"]
    assert world.edge("a").entries[vm].phase is Phase.SERVING
