"""Warm standbys beside what else goes on: groups, room, records, cordons; and what people undo."""

from __future__ import annotations

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import MANAGER, World
from tests.engine.test_protection import MARGIN_S, VM, at, cut, number, protected, state
from vmmobility.engine.manager_protection_record import ProtectionState, ProtectRefused
from vmmobility.wire.registry import Phase

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
