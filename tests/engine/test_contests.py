"""Attaches without a ticket of a VM that is bound elsewhere, and what people decide about them."""

from __future__ import annotations

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import MANAGER, World
from tests.engine.test_restarts import settle
from vmmobility.engine.binding_cache import Binding
from vmmobility.engine.manager_move import Move, ReleaseRefused
from vmmobility.engine.manager_transitions import MoveState
from vmmobility.wire.registry import Phase

VM = vm_key("vm1")
OWN = interfaces_of("vm1", 1, 1)


def binding_of(world: World) -> Binding:
    return world.manager.cache.bindings[VM]


def phase_of(world: World, node: str) -> Phase:
    edge = world.nodes[node].edge
    assert edge is not None
    return edge.entries[VM].phase


def release(world: World, fenced: str = "") -> None:
    world.manager.release(VM, world.now, fenced)
    world.feed(world.nodes[MANAGER], lambda: None)


def by_hand(*nodes: str, lifetime_s: float = 20.0) -> World:
    """vm1, which other hands run, serves at the first node and is expected at all of them."""
    world = World(nve_settings={"lifetime_s": lifetime_s})
    for node in nodes:
        world.expect_vm(VM, node, OWN)
    world.run(0.1)
    hand_of(world, nodes[0]).start_by_hand(VM)
    settle(world)
    assert binding_of(world).nve.nve_id == nodes[0]
    return world


def hand_of(world: World, node: str):
    hypervisor = world.nodes[node].hypervisor
    assert hypervisor is not None
    return hypervisor


def carry(world: World, source: str, destination: str) -> None:
    hand_of(world, source).migrate_by_hand(VM, hand_of(world, destination))


def events(world: World, name: str) -> list[str]:
    return [node for _, node, event in world.events if event.name == name]


# ---- the incumbent is asked --------------------------------------------------------------------


def test_each_move_by_hand_takes_a_fresh_epoch_and_leaves_a_redirect() -> None:
    world = by_hand("a", "b", "c")
    epochs = [binding_of(world).epoch]
    for source, destination in (("a", "b"), ("b", "c"), ("c", "a")):
        carry(world, source, destination)
        settle(world)
        assert safety.running(world, VM) == [destination]
        assert binding_of(world).nve.nve_id == destination
        assert phase_of(world, source) is Phase.REDIRECTING
        epochs.append(binding_of(world).epoch)
        safety.check_settled(world)
    assert epochs == sorted(set(epochs))


def test_a_guest_that_ends_before_it_is_granted_leaves_what_was_there_before() -> None:
    world = by_hand("a", "b")
    carry(world, "a", "b")
    settle(world)
    carry(world, "b", "a")
    world.run_until(lambda: phase_of(world, "a") is Phase.ATTACHING)
    hand_of(world, "a").kill(VM)
    world.run(5)
    settle(world)
    assert safety.running(world, VM) == []
    assert phase_of(world, "b") in (Phase.DEPARTED, Phase.REDIRECTING, Phase.NONE)
    assert phase_of(world, "a") in (Phase.REDIRECTING, Phase.NONE)


@pytest.mark.parametrize("down", ["a", "b", MANAGER])
def test_a_move_by_hand_while_a_daemon_is_down_is_seen_when_it_is_back(down: str) -> None:
    world = by_hand("a", "b")
    world.crash(down)
    carry(world, "a", "b")
    world.run(3)
    world.restart(down)
    world.run(20)
    settle(world)
    assert binding_of(world).nve.nve_id == "b"
    assert safety.running(world, VM) == ["b"]
    safety.check_settled(world)


def test_a_departure_whose_event_was_missed_is_found_by_the_incumbents_own_check() -> None:
    world = by_hand("a", "b")
    report = hand_of(world, "a")._report
    hand_of(world, "a")._report = lambda vm, event, detail: (
        None if event == "departed" else report(vm, event, detail)
    )
    carry(world, "a", "b")
    settle(world)
    assert binding_of(world).nve.nve_id == "b"
    edge = world.nodes["a"].edge
    assert edge is not None
    assert edge.counts["drift.guest"] == 1


def test_a_granted_guest_that_is_not_booted_yet_is_no_prey() -> None:
    """Between its grant and its boot the hypervisor says that nothing is there."""
    world = World(seed=3)
    hand_of(world, "a")._pace = world.pace.__class__(order_s=2.0)
    world.start_vm(VM, "a", OWN)
    world.run_until(lambda: VM in world.manager.cache.bindings)
    other = world.start_vm(VM, "b", OWN)
    world.run(15)
    assert "bound-elsewhere" in world.results[other].error
    assert safety.running(world, VM) == ["a"]


def test_silence_is_no_answer() -> None:
    world = by_hand("a", "b")
    world.cut.add(frozenset(("a", MANAGER)))
    world.run(60)
    assert binding_of(world).state == "expired"
    hand_of(world, "b").start_by_hand(VM)
    world.run(60)
    assert binding_of(world).nve.nve_id == "a"
    assert hand_of(world, "b").life(VM) == "running"  # not refused, and not heard by anybody
    assert {w.path[-1] for w in safety.walks(world, VM) if w.end == "delivered"} == {"a"}


def test_memory_that_came_from_a_silent_incumbent_is_let_in_when_its_lease_has_ended() -> None:
    world = by_hand("a", "b")
    world.cut.add(frozenset(("a", MANAGER)))
    carry(world, "a", "b")
    world.run(10)
    assert binding_of(world).nve.nve_id == "a"
    world.run(30)
    assert binding_of(world).nve.nve_id == "b"


def test_a_second_copy_is_told_of_once_and_stopped() -> None:
    world = by_hand("a", "b")
    world.lossless.add(VM)
    hand_of(world, "b").start_by_hand(VM)
    world.run(60)
    assert events(world, "vm.duplicate") == [MANAGER]
    assert binding_of(world).current_duplicates(world.now) == ["b"]
    assert hand_of(world, "b").life(VM) == "held"
    hand_of(world, "b").kill(VM)
    world.run(60)
    assert binding_of(world).current_duplicates(world.now) == []
    assert safety.running(world, VM) == ["a"]


# ---- damping -----------------------------------------------------------------------------------


def to_and_fro(world: World, times: int) -> None:
    for _ in range(times):
        [place] = safety.running(world, VM)
        carry(world, place, "b" if place == "a" else "a")
        settle(world)


def test_the_fifth_change_of_nve_freezes_the_binding_durably() -> None:
    world = by_hand("a", "b")
    to_and_fro(world, 4)
    assert not binding_of(world).frozen
    to_and_fro(world, 1)
    assert binding_of(world).state == "frozen"
    assert events(world, "binding.frozen") == [MANAGER]
    world.restart(MANAGER)
    carry(world, "b", "a")
    world.run(20)
    assert binding_of(world).nve.nve_id == "b"
    assert hand_of(world, "a").life(VM) == "held"
    release(world)
    world.run(10)
    settle(world)
    assert binding_of(world).nve.nve_id == "a"
    assert safety.running(world, VM) == ["a"]
    safety.check_settled(world)


def test_slow_changes_never_freeze() -> None:
    world = by_hand("a", "b")
    for _ in range(8):
        to_and_fro(world, 1)
        world.run(60)
    assert not binding_of(world).frozen


def test_ticketed_moves_never_count() -> None:
    world = World()
    world.start_vm(VM, "a", OWN)
    world.run(1)
    for target in ("b", "a") * 4:
        world.move(VM, target)
        settle(world)
    assert not binding_of(world).frozen
    assert binding_of(world).takeovers == []


def test_what_is_not_frozen_is_not_thawed() -> None:
    world = by_hand("a", "b")
    with pytest.raises(ReleaseRefused, match="is not frozen"):
        release(world)


# ---- an operator's word ------------------------------------------------------------------------


def a_move(world: World, state: MoveState) -> Move:
    world.start_vm(VM, "a", OWN)
    world.run(1)
    move = world.manager.moves[world.move(VM, "b")]
    world.run_until(lambda: move.state is state)
    return move


def test_a_destination_that_dies_in_the_switch_is_fenced_and_the_source_serves_again() -> None:
    world = World()
    move = a_move(world, MoveState.SWITCHING)
    world.power_cut("b")
    world.run(120)
    assert move.state is MoveState.ENDING_GUEST
    with pytest.raises(ReleaseRefused, match="does not wait for a"):
        release(world, "a")
    release(world, "b")
    world.run(30)
    assert move.state.value == "aborted"
    assert safety.running(world, VM) == ["a"]
    world.restart("b")
    settle(world)
    safety.check_settled(world)


def test_a_source_that_dies_turning_back_is_fenced_and_its_vm_is_free() -> None:
    world = World()
    move = a_move(world, MoveState.SWITCHING)
    hand_of(world, "b").break_next.add("load")
    world.power_cut("a")
    world.run_until(lambda: move.state is MoveState.TURNING_BACK, 300)
    release(world, "a")
    assert move.state is MoveState.FAILED
    assert "fenced" in move.reason
    assert binding_of(world).state == "released"
    number = world.start_vm(VM, "c", OWN)
    world.run_until(lambda: number in world.results)
    assert not world.results[number].error
    world.restart("a")
    world.run(10)
    settle(world)
    assert safety.running(world, VM) == ["c"]


def test_a_fenced_previous_nve_is_waited_for_no_more_and_told_when_it_is_back() -> None:
    world = World()
    world.start_vm(VM, "a", OWN)
    world.run(1)
    world.move(VM, "b")
    settle(world)
    world.crash("a")
    stop = world.stop_vm(VM, "b")
    world.run(30)
    assert stop not in world.results
    release(world, "a")
    world.run(1)
    assert not world.results[stop].error
    world.restart("a")
    world.run(70)
    assert phase_of(world, "a") is Phase.NONE


def test_only_the_nve_that_has_the_vm_can_be_fenced() -> None:
    world = by_hand("a", "b")
    with pytest.raises(ReleaseRefused, match="is at a, not at b"):
        release(world, "b")
