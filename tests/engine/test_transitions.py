"""The state tables: total, every action there, and their pictures in the docs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import MANAGER, World
from vmmobility.daemon.manager_service import move_view
from vmmobility.engine import lifecycle_transitions, manager_transitions, nve_transitions
from vmmobility.engine.binding_update_list import DATA_PLANE
from vmmobility.engine.manager_moves import BEFORE_THE_SWITCH, PASSED_OVER, PHASE_NAMES
from vmmobility.engine.manager_transitions import FINAL, Happening, MoveState
from vmmobility.engine.nve import GUEST_TRIGGERS, REQUEST_TRIGGERS, NveEngine
from vmmobility.engine.nve_transitions import OTHERWISE, RULES, TABLE, Trigger
from vmmobility.wire.registry import Phase

DESIGN = Path(__file__).parents[2] / "docs" / "design"


def test_every_pair_of_phase_and_trigger_has_one_answer() -> None:
    for phase in Phase:
        for trigger in Trigger:
            assert (phase, trigger) in TABLE or trigger in OTHERWISE
    assert len(TABLE) == sum(len(rule.phases) for rule in RULES), "two rules for one pair"


def test_every_trigger_and_every_phase_is_used() -> None:
    assert {rule.trigger for rule in RULES} == set(Trigger)
    reached = {rule.becomes for rule in RULES if rule.becomes is not None} | {Phase.NONE}
    assert reached | {Phase.STANDBY} == set(Phase) == set(DATA_PLANE)  # nve_standby.py has those


@pytest.mark.parametrize("action", sorted({rule.action for rule in RULES}))
def test_every_action_is_a_method(action: str) -> None:
    assert callable(getattr(NveEngine, f"_{action}"))


def test_every_request_of_the_manager_has_a_trigger_that_refuses_elsewhere() -> None:
    asked = {*REQUEST_TRIGGERS.values(), *GUEST_TRIGGERS.values(), Trigger.CLEAR}
    refusing = {t for t, o in OTHERWISE.items() if o is nve_transitions.Otherwise.REFUSE}
    assert asked | {Trigger.START, Trigger.STOP} == refusing


# What a move deliberately ignores, and why.
IGNORED = {
    "its moment is over": {Happening.CONVERGED, Happening.ROUTED},
    "what no gate waits for is told again by itself": {Happening.UNROUTED},
    "the registration decides": {Happening.ACCEPTED, Happening.REFUSED, Happening.ACKNOWLEDGED},
    "the turn back is on its way": {Happening.SOURCE_FAILED, Happening.DESTINATION_FAILED},
    "nothing may be guessed: it is asked again": {Happening.TIMEOUT},
    "it is refused before it gets here": {Happening.ATTACHED, Happening.VOIDED},
    "too late to give up": {Happening.ABORT},
    "it is no move between servers": {Happening.RELOCATED},
    "no gate is awaited": {Happening.ROUTED, Happening.UNROUTED},
}


def test_every_happening_of_a_move_is_handled_or_ignored_for_a_reason() -> None:
    ignored = set().union(*IGNORED.values())
    for state in MoveState:
        for happening in Happening:
            handled = (state, happening) in manager_transitions.TABLE
            assert handled or happening in ignored, (state, happening)
            assert not (handled and state in FINAL), "an ended move stays as it is"


def test_every_state_of_a_move_is_reached_and_has_a_name() -> None:
    reached = {step.becomes for step in manager_transitions.TABLE.values()}
    first = {MoveState.PREPARING, MoveState.SUSPENDING, MoveState.RELOCATING}
    assert reached | first == set(MoveState) == set(PHASE_NAMES)


def test_before_the_switch_a_silent_node_never_holds_a_move_up() -> None:
    for state in (MoveState.PREPARING, *BEFORE_THE_SWITCH):
        assert (state, Happening.TIMEOUT) in manager_transitions.TABLE
        assert (state, Happening.ABORT) in manager_transitions.TABLE


@pytest.mark.parametrize(
    ("state", "becomes"),
    [
        (MoveState.ANNOUNCING, MoveState.WITHDRAWING),
        (MoveState.WITHDRAWING, MoveState.DELIVERING),
    ],
)
def test_a_gate_opens_for_the_fabric_alone_and_a_refusal_closes_it(
    state: MoveState, becomes: MoveState
) -> None:
    assert state in PASSED_OVER
    table = manager_transitions.TABLE
    assert table[state, Happening.ROUTED].becomes is becomes
    for happening in (Happening.UNROUTED, Happening.TIMEOUT):
        assert table[state, happening].becomes is MoveState.TURNING_BACK
    forward = {s for (s, _), step in table.items() if step.becomes is becomes}
    assert forward == {state}


def test_no_gate_stands_where_no_router_takes_part() -> None:
    world = World()
    vm = vm_key("vm1")
    number = world.start_vm(vm, "a", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: number in world.results)
    move = world.manager.moves[world.move(vm, "b")]
    seen = {move.state}
    while move.ok is None:
        world.step()
        seen.add(move.state)
    assert move.ok
    assert not seen & set(PASSED_OVER)


def test_the_source_never_serves_again_before_the_waiting_guest_has_ended() -> None:
    """From the switch on, only the destination's answer leads to TURNING_BACK: a report that it has
    failed may be of before it was prepared anew."""
    into = {
        (state, happening)
        for (state, happening), step in manager_transitions.TABLE.items()
        if step.becomes is MoveState.TURNING_BACK
        and state in (MoveState.SWITCHING, MoveState.ENDING_GUEST)
    }
    assert into == {(MoveState.ENDING_GUEST, Happening.ACCEPTED)}


@pytest.mark.parametrize(
    ("page", "picture"),
    [
        ("nve.md", nve_transitions.picture()),
        ("manager.md", manager_transitions.picture()),
        ("lifecycle.md", lifecycle_transitions.picture()),
    ],
)
def test_the_page_holds_the_table(page: str, picture: str) -> None:
    path = DESIGN / page
    before, mark, rest = path.read_text().partition("<!-- table: generated -->\n")
    table, end, after = rest.partition("<!-- end of table -->")
    if os.environ.get("REWRITE_TRACES"):
        path.write_text(before + mark + picture + end + after)
    else:
        assert table == picture, "REWRITE_TRACES=1 writes it anew"


def test_a_move_that_did_not_wait_for_a_previous_nve_is_done_and_says_so() -> None:
    world = World()
    vm = vm_key("vm1")
    number = world.start_vm(vm, "a", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: number in world.results)
    manager = world.nodes[MANAGER].manager
    assert manager is not None
    move = manager.moves[world.move(vm, "b")]
    world.run_until(lambda: move.state is MoveState.SWITCHING)
    world.run_until(lambda: ("b", "resumed") in world.reports)
    world.cut.add(frozenset(("a", MANAGER)))
    world.run_until(lambda: move.ok is not None)
    view = move_view(move)
    assert (view["state"], view["ok"]) == ("done", True)
    assert "has not yet answered" in view["reason"]
    world.cut.clear()
    world.run(20.0)
    assert not manager.cache.bindings[vm].unacknowledged
    assert move_view(move)["reason"] == view["reason"]
