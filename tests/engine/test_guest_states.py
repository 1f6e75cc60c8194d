"""Stopped, suspended, started: a daemon crashes before each of its outputs, and comes back.

Whatever dies when, the VM ends in the state that was ordered, at its one place; it is never booted
twice; and what it is the manager and its NVE agree on.  Not here: the conversations themselves
(scenarios/guest_states*.txt, scenarios/provision.txt).
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import MANAGER, World
from tests.engine.test_restarts import crash_at, settle
from vmmobility.engine.binding_update_list import entry_from_json, entry_to_json
from vmmobility.engine.manager_move import GuestRefused, MoveRefused
from vmmobility.engine.outputs import Order
from vmmobility.wire.registry import GuestState, Phase

VM = vm_key("vm1")
ORDERS = {
    "stop": ("stop", False, GuestState.STOPPED),
    "stop at once": ("stop", True, GuestState.STOPPED),
    "suspend": ("suspend", False, GuestState.SUSPENDED),
    "start": ("start", False, GuestState.RUNNING),
    "resume": ("resume", False, GuestState.RUNNING),
}
BEFORE = {"start": "stop", "resume": "suspend"}
AWAY_S = {"at once": 0.0005, "in a second": 1.0}


def a_world(verb: str) -> World:
    """vm1 runs at a - or has been stopped, or suspended, so that `verb` makes sense."""
    world = World()
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run(1)
    if verb in BEFORE:
        world.order_guest(VM, BEFORE[verb])
        settle(world)
    return world


def agreed(world: World) -> GuestState:
    """What the manager and the NVE both say of the guest."""
    binding, entry = world.manager.cache.bindings[VM], world.edge("a").entries[VM]
    assert binding.order is None
    assert entry.settled
    assert binding.guest is entry.guest
    return binding.guest


@pytest.mark.parametrize("away", AWAY_S)
@pytest.mark.parametrize("name", [MANAGER, "a"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_daemon_may_crash_before_any_output(order: str, name: str, away: str) -> None:
    verb, force, wanted = ORDERS[order]
    for count in range(8):
        world = a_world(verb)
        crash_at(world, name, count, AWAY_S[away])
        world.order_guest(VM, verb, force=force)
        world.run(10)
        settle(world)
        if agreed(world) is not wanted:  # its record was not durable: nobody was promised anything
            assert (name, count) == (MANAGER, 0), (count, agreed(world))
            continue
        safety.check_settled(world)
        assert bool(safety.running(world, VM)) is (wanted is GuestState.RUNNING), count


@pytest.mark.parametrize("name", [MANAGER, "b"])
def test_bringing_a_vm_up_survives_a_crash_before_any_output(name: str) -> None:
    for count in range(10):
        world = World()
        crash_at(world, name, count, 0.5)
        world.provision(VM, "b", interfaces_of("vm1", 2, 1))
        world.run(30)
        settle(world)
        if (name, count) != (MANAGER, 0):
            assert safety.running(world, VM) == ["b"], count
            assert world.manager.cache.bindings[VM].kept, count
            safety.check_settled(world)
        assert not world.manager.provisions, count


def test_a_ticket_that_was_taken_back_registers_nothing() -> None:
    world = World()
    world.cut.add(frozenset((MANAGER, "b")))
    world.provision(VM, "b", interfaces_of("vm1", 2, 1))
    world.run(0.1)
    overheard = world.manager.provisions[VM]
    world.cut.clear()
    world.run(0.2)
    world.manager.cancel_provision(VM)
    world.feed(world.nodes[MANAGER], lambda: None)
    world.cut.clear()
    world.run(5)
    settle(world)
    assert overheard.vm not in world.manager.provisions
    places = safety.running(world, VM)
    assert places == ([] if VM not in world.manager.cache.bindings else ["b"])


def test_a_vm_that_does_not_run_is_not_moved_hot_and_says_what_to_do() -> None:
    world = a_world("start")
    with pytest.raises(MoveRefused, match="is stopped") as refused:
        world.move(VM, "b", mode="hot")
    assert "--mode cold" in refused.value.remedy


def test_an_order_waits_for_no_move_and_no_move_for_an_order() -> None:
    world = a_world("stop")
    world.move(VM, "b")
    with pytest.raises(GuestRefused, match="is being moved to b"):
        world.order_guest(VM, "stop")
    settle(world)
    world.cut.add(frozenset((MANAGER, "b")))
    world.order_guest(VM, "stop")
    with pytest.raises(MoveRefused, match="not done yet"):
        world.move(VM, "a")


@pytest.mark.parametrize("fails", [False, True])
def test_a_move_waits_until_the_guest_is_booted(fails: bool) -> None:
    """Registered comes before booted: one that does not come to be is not copied, nor served on."""
    world = World()
    hypervisor = world.nodes["a"].hypervisor
    assert hypervisor is not None
    at_once = hypervisor.order

    def order(asked: Any) -> None:
        world.later(1.0 if asked.order is Order.START else 0.0, lambda: at_once(asked))

    hypervisor.order = order  # type: ignore[assignment, method-assign]
    if fails:
        hypervisor.fail_next[Order.START] = ["disk full"]
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: VM in world.manager.cache.bindings)
    world.run_until(lambda: world.edge("a").entries[VM].booting)
    number = world.move(VM, "b")
    world.run(0.5)
    assert world.edge("a").entries[VM].phase is Phase.SERVING
    world.run(10)
    settle(world)
    safety.check_settled(world)
    move = world.manager.moves[number]
    assert move.ok is not fails
    assert safety.running(world, VM) == ([] if fails else ["b"])
    assert (VM in world.manager.cache.bindings) is not fails


def test_a_fenced_host_that_comes_back_boots_nothing() -> None:
    """It was told to start the VM and died; an operator had it started elsewhere."""
    world = a_world("start")
    world.order_guest(VM, "start")
    world.run_until(lambda: world.edge("a").entries[VM].wanted is GuestState.RUNNING)
    world.run(0.0015)  # durable
    world.power_cut("a")
    world.run(200)
    world.manager.release(VM, world.now, "a")
    world.start_vm(VM, "b", interfaces_of("vm1", 1, 1))
    world.run(10)
    assert safety.running(world, VM) == ["b"]
    world.restart("a")
    world.run(30)
    settle(world)
    assert safety.running(world, VM) == ["b"]
    assert world.edge("a").entries[VM].phase is Phase.REDIRECTING


def test_hands_that_let_a_suspended_guest_go_on_are_found_out() -> None:
    world = a_world("suspend")
    world.order_guest(VM, "suspend")
    settle(world)
    world.nodes["a"].hypervisor.resume_by_hand(VM)  # type: ignore[union-attr]
    number = world.check("a")
    world.run(1)
    assert [row["what"] for row in world.results[number].result["drift"]] == ["guest"]
    settle(world)
    safety.check_settled(world)


def test_a_record_of_before_guest_states_is_of_a_vm_that_runs() -> None:
    entry = a_world("stop").edge("a").entries[VM]
    old = entry_to_json(entry)
    for name in ("guest", "wanted", "settled", "guest_epoch", "grace_s", "kept"):
        del old[name]
    loaded = entry_from_json(VM, old)
    assert (loaded.guest, loaded.wanted, loaded.settled) == (
        GuestState.RUNNING,
        GuestState.RUNNING,
        True,
    )
