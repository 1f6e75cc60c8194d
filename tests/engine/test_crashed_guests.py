"""A protected guest that ends by itself on a living host: crashed, or shut down by its own wish."""

from __future__ import annotations

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of
from tests.engine.network import MANAGER, World
from tests.engine.test_protection import MARGIN_S, VM, at, cut, number, state
from vmmobility.engine.binding_update_list import entry_from_json, entry_to_json
from vmmobility.engine.manager_protection_record import ProtectionState
from vmmobility.engine.outputs import Order
from vmmobility.wire.registry import GuestState, Phase


def protected(*, kept: bool, fail_over: bool = True) -> World:
    """At a, brought up by the manager (kept) or by hand, with a standby at b that has two
    checkpoints."""
    world = World(manager_settings={"protect_margin_s": MARGIN_S})
    if kept:
        world.provision(VM, "a", interfaces_of("vm1", 1, 1))
    else:
        world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: safety.running(world, VM) == ["a"], 20.0)
    world.run(2.0)
    world.protect(VM, "b", fail_over=fail_over)
    world.run_until(lambda: number(world) >= 2)
    assert world.edge("a").entries[VM].kept is kept
    return world


def crash(world: World) -> None:
    hypervisor = world.nodes["a"].hypervisor
    assert hypervisor is not None
    hypervisor.kill(VM)


def power_off(world: World) -> None:
    hypervisor = world.nodes["a"].hypervisor
    assert hypervisor is not None
    hypervisor.power_off(VM)


@pytest.mark.parametrize("kept", [True, False])
def test_one_that_crashes_is_taken_over_at_once(kept: bool) -> None:
    world = protected(kept=kept)
    crash(world)
    world.run_until(at(world, "b"), 3.0)  # the lease alone is as long
    world.run(20.0)
    assert at(world, "b")()
    binding, entry = world.manager.cache.bindings[VM], world.edge("b").entries[VM]
    assert (binding.kept, entry.kept) == (kept, kept)  # it is the VM that it was
    assert binding.guest is GuestState.RUNNING
    assert world.edge("a").entries[VM].phase in (Phase.REDIRECTING, Phase.NONE)
    assert VM not in world.edge("a").guarded


@pytest.mark.parametrize("kept", [True, False])
def test_one_that_shuts_itself_down_stays_down(kept: bool) -> None:
    world = protected(kept=kept)
    power_off(world)
    world.run(30.0)
    assert safety.running(world, VM) == []
    assert not any(event.name == "protection.taking-over" for _, _, event in world.events)
    if kept:
        assert world.manager.cache.bindings[VM].guest is GuestState.STOPPED
        assert state(world) is ProtectionState.ACTIVE
    else:
        assert VM not in world.manager.cache.bindings
        assert VM not in world.manager.protected


def test_one_that_has_shut_down_is_not_brought_back_when_its_host_dies() -> None:
    world = protected(kept=True)
    power_off(world)
    world.run(5.0)
    world.power_cut("a")
    world.run(60.0)
    assert safety.running(world, VM) == []
    assert state(world) is ProtectionState.ACTIVE
    world.restart("a")
    world.run(30.0)
    world.unprotect(VM)
    world.run_until(lambda: VM not in world.manager.protected, 10.0)
    world.order_guest(VM, "start")
    world.run_until(at(world, "a"), 20.0)


def test_a_crash_that_the_manager_hears_of_late_is_heard_of() -> None:
    world = protected(kept=True)
    cut(world, "a")
    crash(world)
    world.run(0.5)
    world.cut.clear()
    world.run_until(at(world, "b"), 10.0)


def test_a_crash_is_remembered_across_restarts() -> None:
    world = protected(kept=True)
    world.crash(MANAGER)
    crash(world)
    world.run(1.0)
    entry = world.edge("a").entries[VM]
    assert (entry.phase, entry.crashed) == (Phase.STOPPED, True)
    assert entry_from_json(VM, entry_to_json(entry)).crashed
    world.restart("a")
    world.run(1.0)
    world.restart(MANAGER)
    world.run_until(at(world, "b"), 20.0)


@pytest.mark.parametrize("kept", [True, False])
def test_one_that_is_gone_after_a_restart_counts_as_crashed(kept: bool) -> None:
    world = protected(kept=kept)
    world.crash("a")
    crash(world)
    world.restart("a")
    world.run_until(at(world, "b"), 10.0)


def test_without_fail_over_it_stays_stopped() -> None:
    world = protected(kept=True, fail_over=False)
    crash(world)
    world.run(30.0)
    assert safety.running(world, VM) == []
    assert world.manager.cache.bindings[VM].guest is GuestState.STOPPED
    assert VM in world.manager.protected


def test_a_standby_that_cannot_take_it_over_says_so_once() -> None:
    world = protected(kept=True)
    hypervisor = world.nodes["b"].hypervisor
    assert hypervisor is not None
    hypervisor.fail_next[Order.ACTIVATE] = ["out of memory"]
    crash(world)
    world.run(30.0)
    assert state(world) is ProtectionState.FAILED
    lost = [event for _, _, event in world.events if event.name == "protection.lost"]
    assert len(lost) == 1
    assert safety.running(world, VM) == []
    assert world.manager.cache.bindings[VM].guest is GuestState.STOPPED
    world.unprotect(VM)
    world.run_until(lambda: VM not in world.manager.protected, 10.0)
    world.order_guest(VM, "start")
    world.run_until(at(world, "a"), 20.0)
    assert not world.edge("a").entries[VM].crashed


def test_a_paused_guest_that_is_killed_is_a_crash() -> None:
    world = protected(kept=True)
    cut(world, "a")
    world.run_until(lambda: safety.running(world, VM) == [], 20.0)
    crash(world)
    world.run(0.2)
    world.cut.clear()
    world.run_until(at(world, "b"), 10.0)
    world.run(10.0)
    assert at(world, "b")()
