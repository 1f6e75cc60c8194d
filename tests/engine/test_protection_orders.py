"""Warm standbys beside what else goes on: groups, room, records, cordons; and what people undo."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine import safety
from tests.engine import test_lifecycle as lifecycle
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import MANAGER, World
from tests.engine.test_protection import MARGIN_S, VM, at, cut, number, protected, state
from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.capacity import Resources
from vmmobility.engine.channel import Received
from vmmobility.engine.manager_move import CommandRefused
from vmmobility.engine.manager_protection_record import ProtectionState, ProtectRefused
from vmmobility.engine.outputs import Event
from vmmobility.wire.registry import Status

MATE = vm_key("vm2")


def with_mate() -> World:
    """Two members of a group, at a and b."""
    world = World(
        manager_settings={"protect_margin_s": MARGIN_S}, nve_settings={"heartbeat_s": 1.0}
    )
    world.declare_group("g", (VM, MATE))
    shared = interfaces_of("vm1", 1, 1)
    world.start_vm(VM, "a", shared)
    world.start_vm(MATE, "b", shared)
    world.run_until(
        lambda: safety.running(world, VM) == ["a"] and safety.running(world, MATE) == ["b"]
    )
    return world


def test_a_member_whose_standby_takes_over_comes_back_with_that() -> None:
    world = with_mate()
    world.protect(VM, "c")
    world.run_until(lambda: number(world) >= 2, 20.0)
    cut(world, "a")
    cut(world, "c")
    world.run_until(lambda: state(world) is ProtectionState.TAKING_OVER, 30.0)
    world.cut.discard(frozenset(("a", MANAGER)))
    world.run(3.0)
    record, binding = world.manager.protected[VM], world.manager.cache.bindings[VM]
    assert world.manager.groups["g"].out[VM] == "its standby is taking over"
    assert binding.epoch < record.epoch
    world.cut.clear()
    world.run_until(at(world, "c"), 20.0)
    world.run(2.0)
    assert world.manager.groups["g"].out == {}


def test_an_order_that_is_stale_at_the_standby_is_renumbered() -> None:
    world = protected()
    entry = world.edge("b").entries.entry(VM)
    entry.move_epoch = 1000
    world.power_cut("a")
    world.run_until(at(world, "b"), 30.0)
    assert world.edge("b").entries[VM].granted > 1000


@pytest.mark.parametrize("planned", [True, False])
def test_a_standby_that_dies_while_it_takes_over_is_fenced_by_an_operator(planned: bool) -> None:
    world = protected()
    if planned:
        world.hand_over(VM)
    else:
        cut(world, "a")
    world.run_until(lambda: state(world) is ProtectionState.TAKING_OVER, 20.0)
    world.power_cut("b")
    world.cut.clear()
    world.run(60.0)
    assert safety.running(world, VM) == []
    with pytest.raises(ProtectRefused, match="--fenced b"):
        world.unprotect(VM)
    order = world.manager.protected[VM].epoch
    world.manager.release(VM, world.now, "b")
    world.feed(world.nodes[MANAGER], lambda: None)
    world.run_until(at(world, "a"), 20.0)
    assert world.manager.cache.bindings[VM].epoch > order
    world.nodes["b"].disk.clear()
    world.restart("b")
    world.run(30.0)
    assert at(world, "a")()


def test_a_standby_that_serves_already_is_let_in_by_a_manager_that_was_set_back() -> None:
    world = protected()
    disk = dict(world.nodes[MANAGER].disk)
    world.power_cut("a")
    world.run_until(at(world, "b"), 20.0)
    world.run(10.0)
    world.crash(MANAGER)
    world.nodes[MANAGER].disk.clear()
    world.nodes[MANAGER].disk.update(disk)
    world.restart(MANAGER)
    world.run(400.0)
    assert at(world, "b")()
    assert VM not in world.manager.protected


def test_an_end_does_not_wait_for_a_standby_whose_host_is_gone() -> None:
    world = protected()
    cut(world, "b")
    world.unprotect(VM)
    world.run_until(lambda: VM not in world.manager.protected, 30.0)
    assert VM not in world.edge("a").guarded
    world.protect(VM, "c")
    world.run_until(lambda: number(world) >= 2, 20.0)
    world.cut.clear()
    world.run_until(lambda: VM not in world.edge("b").standbys, 60.0)


def test_an_end_does_not_wait_for_a_standby_that_is_configured_no_more() -> None:
    world = protected()
    world.crash("b")
    world.unprotect(VM)
    world.run(0.5)
    world.unconfigured.add("b")
    world.restart(MANAGER)
    world.run_until(lambda: VM not in world.manager.protected, 5.0)


def test_a_standby_that_returns_to_an_ended_protection_drops_it() -> None:
    world = protected()
    world.crash("b")
    world.unprotect(VM)
    world.run_until(lambda: VM not in world.manager.protected, 30.0)
    world.restart(MANAGER)
    world.restart("b")
    world.run_until(lambda: VM not in world.edge("b").standbys, 30.0)


def test_no_two_members_of_a_group_are_protected_to_one_nve() -> None:
    world = with_mate()
    with pytest.raises(ProtectRefused, match="b has VM vm2 of the same group"):
        world.protect(VM, "b")
    world.protect(VM, "c")
    with pytest.raises(ProtectRefused, match="c has the standby of VM vm1"):
        world.protect(MATE, "c")
    with pytest.raises(CommandRefused, match="c has the standby of VM vm1"):
        world.move(MATE, "c")


def test_no_group_is_declared_across_a_standby() -> None:
    world = protected()
    world.start_vm(MATE, "b", interfaces_of("vm2", 2, 1))
    world.run_until(lambda: safety.running(world, MATE) == ["b"])
    with pytest.raises(CommandRefused, match="VM vm1 has its standby at b"):
        world.declare_group("g", (VM, MATE))


def strict() -> World:
    """As protected(), in strict mode."""
    world = World(manager_settings={"protect_margin_s": MARGIN_S, "strict": True})
    world.manager.onboard(VM, interfaces_of("vm1", 1, 1), (), world.now)
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: safety.running(world, VM) == ["a"])
    world.protect(VM, "b")
    world.run_until(lambda: number(world) >= 2)
    return world


def test_no_record_is_changed_so_that_a_standby_may_not_take_over() -> None:
    world = strict()
    manager, own = world.manager, interfaces_of("vm1", 1, 1)
    with pytest.raises(CommandRefused, match="VM vm1 may not be at b"):
        manager.onboard(VM, own, ("a", "c"), world.now)
    with pytest.raises(CommandRefused, match="other addresses"):
        manager.onboard(VM, interfaces_of("vm1", 2, 1), (), world.now)
    with pytest.raises(CommandRefused, match="not onboarded"):
        manager.offboard(VM, world.now)
    manager.onboard(VM, own, ("a", "b"), world.now)
    world.power_cut("a")
    world.run_until(lambda: state(world) is ProtectionState.TAKING_OVER, 20.0)
    with pytest.raises(CommandRefused, match="is taking over"):
        manager.onboard(VM, own, (), world.now)
    world.run_until(at(world, "b"), 20.0)


def test_a_dead_or_cordoned_nve_gets_no_standby() -> None:
    world = World(nve_settings={"heartbeat_s": 1.0})
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: safety.running(world, VM) == ["a"])
    world.manager.cordon("b", world.now)
    with pytest.raises(ProtectRefused, match="uncordon b"):
        world.protect(VM, "b")
    world.power_cut("c")
    world.run(10.0)
    with pytest.raises(ProtectRefused, match="c is dead"):
        world.protect(VM, "c")


def test_a_standby_has_room_of_its_host() -> None:
    made = lifecycle.world(a=1000, b=1000, c=500)
    wants = Resources(1, 700, 10)
    lifecycle.up(made, lifecycle.asked(resources=wants, nves=("a",)))
    with pytest.raises(ProtectRefused, match="c has 500 MiB of memory left, 700 are wanted"):
        made.protect(lifecycle.VM, "c")
    made.protect(lifecycle.VM, "b")
    made.run(3.0)
    other = lifecycle.asked(vm_key("web2"), 6, "k2", resources=wants, nves=("b",))
    with pytest.raises(CommandRefused, match="700 MiB of memory wanted, most free 300 at b"):
        lifecycle.request(made, other)
    made.unprotect(lifecycle.VM)
    made.run(3.0)
    assert lifecycle.request(made, other).nve_id == "b"


def test_a_standby_that_has_its_address_in_use_cannot_take_over() -> None:
    world = protected()
    edge = world.edge("b")

    def refuse(entry: Entry, received: Received, now: float) -> None:
        edge._answer(received, entry, Status.ADDRESS_IN_USE, reason="another VM has it")

    edge._take_over = refuse  # type: ignore[method-assign]
    world.hand_over(VM)
    world.run_until(lambda: state(world) is ProtectionState.FAILED, 20.0)
    world.run_until(at(world, "a"), 20.0)


def test_a_manager_that_stood_still_waits_a_whole_lease_again() -> None:
    world = protected()
    node, manager = world.nodes[MANAGER], world.manager
    waiting: list[tuple[Any, ...]] = []
    arrive = world._arrive

    def queue(target: Any, *what: Any) -> None:
        waiting.append((target, *what)) if target is node else arrive(target, *what)

    world._arrive = queue  # type: ignore[method-assign,assignment]
    next_timer = manager.next_timer
    manager.next_timer = lambda: None  # type: ignore[method-assign]
    world.run(9.0)
    manager.next_timer, world._arrive = next_timer, arrive  # type: ignore[method-assign]
    world.feed(node, lambda: manager.timer(world.now))
    assert state(world) is not ProtectionState.TAKING_OVER
    for each in waiting:
        world._arrive(*each)
    world.run_until(at(world, "a"), 10.0)


@pytest.mark.parametrize(("nve", "outcome"), [("a", "drain.incomplete"), ("b", "drain.done")])
def test_a_drain_says_where_standbys_keep_it_from_its_end(nve: str, outcome: str) -> None:
    world = protected()
    told: list[Event] = []
    see = world.observe

    def observe(node: Any, what: str, value: object) -> None:
        if isinstance(value, Event):
            told.append(value)
        see(node, what, value)

    world.observe = observe
    drain = world.manager.drain(nve, (), 4, False, world.now)
    world.feed(world.nodes[MANAGER], lambda: None)
    world.run(40.0)
    end = next(event for event in told if event.name == outcome)
    if nve == "b":
        assert end.detail["standby_of"] == ["vm1"]
    else:
        assert drain.vms[VM].reason.startswith("it has a standby at b: move it there with --mode")


def test_a_manager_that_was_set_back_asks_the_standby_before_it_lets_the_primary_go_on() -> None:
    world = protected()
    disk = dict(world.nodes[MANAGER].disk)
    cut(world, "a")
    world.run_until(at(world, "b"), 20.0)
    world.run(3.0)
    world.crash(MANAGER)
    world.nodes[MANAGER].disk.clear()
    world.nodes[MANAGER].disk.update(disk)
    world.restart(MANAGER)
    world.run(0.3)
    world.cut.clear()
    world.run(400.0)
    assert at(world, "b")()


def test_a_manager_that_starts_beside_a_dead_standby_lets_the_primary_go_on() -> None:
    world = protected()
    world.power_cut("b")
    world.restart(MANAGER)
    world.run(10.0)
    assert at(world, "a")()
