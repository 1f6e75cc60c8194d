"""Warm standbys: who runs a protected VM, whatever is cut off, dies or starts again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.fake_hypervisor import Life, Pace
from tests.engine.network import MANAGER, Weather, World
from vmmobility.engine.manager_move import CommandRefused, MoveRefused
from vmmobility.engine.manager_protection_record import ProtectionState
from vmmobility.engine.outputs import Order
from vmmobility.wire.registry import Phase

VM = vm_key("vm1")
MARGIN_S = 2.0


def protected(*, fail_over: bool = True, lease_s: float = 3.0, pace: Pace | None = None) -> World:
    """A VM at a, its standby at b, and a first checkpoint there."""
    world = World(manager_settings={"protect_margin_s": MARGIN_S}, pace=pace)
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: safety.running(world, VM) == ["a"])
    world.protect(VM, "b", fail_over=fail_over, lease_s=lease_s)
    world.run_until(lambda: number(world) >= 2)
    return world


def number(world: World) -> int:
    found = world.manager.protected.get(VM)
    return found.number if found else 0


def at(world: World, name: str) -> Callable[[], bool]:
    """It runs there, and everybody knows."""

    def there() -> bool:
        binding = world.manager.cache.bindings[VM]
        entry = world.edge(name).entries.get(VM)
        serving = entry is not None and entry.phase is Phase.SERVING
        return binding.nve.nve_id == name and serving and safety.running(world, VM) == [name]

    return there


def cut(world: World, one: str, other: str = MANAGER) -> None:
    world.cut.add(frozenset((one, other)))


def state(world: World) -> ProtectionState | None:
    found = world.manager.protected.get(VM)
    return found.state if found else None


def test_checkpoints_are_taken_and_their_age_is_known() -> None:
    world = protected()
    record = world.manager.protected[VM]
    assert record.state is ProtectionState.ACTIVE
    before = record.number
    world.run(5.0)
    assert record.number >= before + 3
    age = record.staleness_s(world.now)
    assert age is not None
    assert age < 2.0
    assert at(world, "a")()


def test_a_dead_primary_is_replaced_by_its_standby() -> None:
    world = protected()
    value = world.nodes["a"].hypervisor.guests[VM].value  # type: ignore[union-attr]
    world.power_cut("a")
    world.run_until(at(world, "b"), 20.0)
    assert world.nodes["b"].hypervisor.guests[VM].value >= value - 1  # type: ignore[union-attr]
    assert VM not in world.manager.protected
    world.restart("a")
    world.run(20.0)
    assert at(world, "b")()
    assert world.edge("a").entries[VM].phase in (Phase.REDIRECTING, Phase.NONE)


def test_a_primary_that_is_cut_off_pauses_its_guest_before_the_standby_runs() -> None:
    world = protected()
    cut(world, "a")
    world.run_until(lambda: safety.running(world, VM) == [], 20.0)
    paused = world.now
    assert world.nodes["a"].hypervisor.guests[VM].life is Life.PAUSED  # type: ignore[union-attr]
    world.run_until(at(world, "b"), 20.0)
    assert world.now - paused >= MARGIN_S
    world.cut.clear()
    world.run(10.0)
    assert at(world, "b")()
    assert VM not in world.edge("a").guarded


def test_a_lease_counts_from_the_sending_of_what_was_accepted() -> None:
    world = protected(lease_s=30.0)
    guarded = world.edge("a").guarded[VM]
    world.weather = Weather(delay_s=(0.4, 0.4))  # there, and back
    world.run(5.0)
    left = []
    for _ in range(400):
        before = guarded.lease_until
        world.run(0.01)
        if guarded.lease_until != before:
            assert guarded.lease_until is not None
            left.append(guarded.lease_until - world.clock(world.nodes["a"]))
    assert left
    assert max(left) <= 30.0 - 0.8


def test_a_primary_whose_daemon_is_dead_is_paused_by_its_guard() -> None:
    world = protected()
    world.crash("a")
    world.run_until(at(world, "b"), 20.0)
    world.restart("a")
    world.run(10.0)
    assert at(world, "b")()


def test_a_short_cut_pauses_nobody_for_long() -> None:
    world = protected()
    cut(world, "a")
    world.run_until(lambda: safety.running(world, VM) == [], 20.0)
    world.cut.clear()
    world.run_until(at(world, "a"), 5.0)
    world.run(10.0)
    assert at(world, "a")()
    assert state(world) is ProtectionState.ACTIVE


def test_a_dead_manager_pauses_protected_guests_and_lets_them_go_on() -> None:
    world = protected()
    world.crash(MANAGER)
    world.run_until(lambda: safety.running(world, VM) == [], 20.0)
    world.run(60.0)
    assert safety.running(world, VM) == []
    world.restart(MANAGER)
    world.run_until(at(world, "a"), 5.0)


def test_a_restarted_manager_waits_a_full_lifetime() -> None:
    world = protected()
    world.power_cut("a")
    world.restart(MANAGER)
    world.run(100.0)
    assert safety.running(world, VM) == []
    world.run_until(at(world, "b"), 40.0)


def test_without_fail_over_nobody_pauses_and_nobody_takes_over() -> None:
    world = protected(fail_over=False)
    cut(world, "a")
    world.run(60.0)
    assert safety.running(world, VM) == ["a"]
    world.cut.clear()
    world.run(5.0)
    assert at(world, "a")()


def test_a_standby_that_cannot_take_over_says_so_and_the_primary_serves_on() -> None:
    world = protected()
    hypervisor = world.nodes["b"].hypervisor
    assert hypervisor is not None
    hypervisor.fail_next[Order.ACTIVATE] = ["out of memory"]
    world.hand_over(VM)
    world.run_until(at(world, "a"), 20.0)
    world.run(10.0)
    assert at(world, "a")()
    assert any(event.name == "protection.lost" for _, _, event in world.events)
    assert state(world) is ProtectionState.ACTIVE


def test_a_standby_that_could_not_take_over_may_be_one_again() -> None:
    world = protected()
    hypervisor = world.nodes["b"].hypervisor
    assert hypervisor is not None
    hypervisor.fail_next[Order.ACTIVATE] = ["out of memory"]
    world.hand_over(VM)
    world.run_until(lambda: any(e.name == "protection.lost" for _, _, e in world.events), 20.0)
    world.run_until(lambda: state(world) is ProtectionState.ACTIVE, 20.0)
    world.unprotect(VM)
    world.run_until(lambda: VM not in world.manager.protected, 10.0)
    world.protect(VM, "b")
    world.run_until(lambda: state(world) is ProtectionState.ACTIVE and number(world) >= 2, 20.0)
    world.crash("a")
    world.run_until(at(world, "b"), 20.0)


@pytest.mark.parametrize("away_s", [0.0005, 1.0])
def test_a_manager_that_restarts_in_a_planned_move_goes_on_with_it(away_s: float) -> None:
    """The last checkpoint is under way, or complete, when it asks again."""
    world = protected()
    world.hand_over(VM)
    world.run_until(lambda: world.edge("a").guarded[VM].handed)
    world.crash(MANAGER)
    world.run(away_s)
    world.restart(MANAGER)
    world.run_until(at(world, "b"), 10.0)
    world.run(2.0)
    (move,) = world.manager.moves.values()
    assert move.ok


def test_a_primary_that_died_as_it_was_handed_over_may_be_the_next_standby() -> None:
    """Back, it is about to deregister the guest that is gone as it hears that another serves it."""
    world = protected(pace=Pace(order_s=0.3))
    world.hand_over(VM)
    world.run_until(lambda: state(world) is ProtectionState.TAKING_OVER, 10.0)
    world.power_cut("a")
    world.run_until(at(world, "b"), 10.0)
    world.restart("a")
    world.run_until(lambda: world.edge("a").entries[VM].phase is Phase.REDIRECTING, 10.0)
    world.run(10.0)
    world.protect(VM, "a")
    world.run_until(lambda: state(world) is ProtectionState.ACTIVE and number(world) >= 2, 20.0)
    world.hand_over(VM)
    world.run_until(at(world, "a"), 10.0)
    before = len(world.events)
    world.run(120.0)
    assert not world.edge("a").entries[VM].ending
    assert not [e for _, _, e in world.events[before:] if e.name == "binding.expired"]


def test_a_standby_that_may_run_all_the_same_is_ended_before_the_primary_serves_on() -> None:
    """QEMU was told to go on, its monitor broke, and it went on; its end was not heard of, too."""
    world = protected()
    hypervisor = world.nodes["b"].hypervisor
    assert hypervisor is not None
    hypervisor.lose_next[Order.ACTIVATE] = "the monitor was lost"
    hypervisor.fail_next[Order.STOP] = ["it does not answer"] * 2
    world.hand_over(VM)
    world.run_until(lambda: safety.running(world, VM) == ["b"], 20.0)
    world.run_until(at(world, "a"), 20.0)
    assert hypervisor.fail_next[Order.STOP] == [], "it had not ended"
    world.run(10.0)
    assert at(world, "a")()
    assert VM not in hypervisor.guests
    assert any(event.name == "protection.lost" for _, _, event in world.events)


def test_a_guest_that_dies_is_taken_over_at_once() -> None:
    world = protected()
    world.nodes["a"].hypervisor.kill(VM)  # type: ignore[union-attr]
    world.run_until(at(world, "b"), 3.0)


def test_every_daemon_restarts_and_the_protection_goes_on() -> None:
    world = protected()
    for name in ("a", "b", MANAGER):
        world.restart(name)
        world.run(5.0)
    assert at(world, "a")()
    assert state(world) is ProtectionState.ACTIVE
    before = number(world)
    world.run(5.0)
    assert number(world) > before


def test_unprotected_it_runs_on_without_a_manager() -> None:
    world = protected()
    world.unprotect(VM)
    world.run_until(lambda: VM not in world.manager.protected, 10.0)
    assert VM not in world.edge("a").guarded
    assert VM not in world.edge("b").standbys
    world.crash(MANAGER)
    world.run(60.0)
    assert safety.running(world, VM) == ["a"]


def test_refusals_say_what_to_do() -> None:
    world = protected()
    with pytest.raises(CommandRefused, match="has a standby") as refused:
        world.protect(VM, "c")
    assert refused.value.remedy
    with pytest.raises(MoveRefused, match="has a standby"):
        world.move(VM, "c")
    stopping = world.stop_vm(VM, "a")
    assert "protected" in world.results[stopping].error
    world.unprotect(VM)
    world.run_until(lambda: VM not in world.manager.protected, 10.0)
    with pytest.raises(CommandRefused, match="runs at a"):
        world.protect(VM, "a")
    with pytest.raises(CommandRefused, match="no NVE x"):
        world.protect(VM, "x")
    with pytest.raises(CommandRefused, match="has no standby at b"):
        world.hand_over(VM)


def test_a_vm_that_is_no_more_has_no_standby() -> None:
    world = protected(fail_over=False)
    world.nodes["a"].hypervisor.kill(VM)  # type: ignore[union-attr]
    world.run_until(lambda: VM not in world.manager.protected, 20.0)
    world.run(5.0)
    assert VM not in world.edge("b").standbys


def test_a_last_checkpoint_that_fails_after_the_lease_lets_nobody_go_on() -> None:
    """The primary was cut off in it, and its standby has taken over."""
    world = protected(pace=Pace(copy_s=8.0))
    world.run_until(lambda: not world.edge("a").guarded[VM].taking, 20.0)
    world.hand_over(VM)
    world.run_until(lambda: world.edge("a").guarded[VM].handed)
    world.run(0.5)
    cut(world, "a")
    cut(world, "a", "b")
    world.run_until(at(world, "b"), 20.0)
    world.run_until(lambda: not world.edge("a").guarded[VM].handed, 20.0)
    world.run(10.0)
    assert at(world, "b")()
    world.cut.clear()
    world.run(10.0)
    assert at(world, "b")()
    assert VM not in world.edge("a").guarded


def failed_after_the_lease() -> World:
    """The standby could not run it, and that was heard long after the primary's lease."""
    world = protected()
    world.run_until(lambda: not world.edge("a").guarded[VM].taking)
    hypervisor = world.nodes["b"].hypervisor
    assert hypervisor is not None
    hypervisor.fail_next[Order.ACTIVATE] = ["out of memory"]
    cut(world, "b")
    world.hand_over(VM)
    world.run_until(lambda: state(world) is ProtectionState.TAKING_OVER)
    world.run(6.0)
    world.cut.clear()
    return world


def test_a_primary_that_is_told_to_serve_on_needs_a_lease() -> None:
    world = failed_after_the_lease()
    world.run_until(lambda: not world.edge("a").guarded[VM].handed, 30.0)
    assert world.edge("a").entries[VM].fenced
    world.run_until(at(world, "a"), 5.0)
    assert world.edge("a").guarded[VM].lease_until is not None
    assert world.nodes["a"].hypervisor.armed[VM] > world.now  # type: ignore[union-attr]


def test_nobody_takes_over_by_a_lease_of_before_a_failure() -> None:
    world = failed_after_the_lease()
    world.run_until(lambda: state(world) is ProtectionState.FAILED, 30.0)
    world.run_until(lambda: state(world) is not ProtectionState.FAILED, 30.0)
    assert not world.manager.protected[VM].fencing
    cut(world, "a")
    world.run(1.0)
    assert state(world) is not ProtectionState.TAKING_OVER
    world.run(20.0)
    world.cut.clear()
    world.run_until(at(world, "a"), 20.0)


def test_an_order_to_go_on_that_fails_after_the_next_fence_is_not_given_again() -> None:
    world = protected()
    hypervisor, edge = world.nodes["a"].hypervisor, world.edge("a")
    assert hypervisor is not None
    cut(world, "a")
    world.run_until(lambda: edge.entries[VM].fenced, 20.0)
    world.run(0.1)
    hypervisor.fail_next[Order.RESUME] = ["the monitor timed out"]
    hypervisor._pace = Pace(order_s=4.0)
    world.cut.clear()
    world.run_until(lambda: not edge.entries[VM].fenced, 5.0)
    cut(world, "a")
    world.run_until(lambda: edge.entries[VM].fenced, 5.0)
    hypervisor._pace = Pace()
    world.run_until(lambda: not hypervisor.fail_next[Order.RESUME], 5.0)
    world.run(1.5)
    assert safety.running(world, VM) in ([], ["b"])
    world.run_until(at(world, "b"), 20.0)


@pytest.mark.parametrize("before", [(False, 3.0), (True, 600.0)])
def test_new_terms_of_a_guarded_guest_begin_with_a_lease(before: tuple[bool, float]) -> None:
    """The manager has forgotten the protection of before, and nobody told the primary."""
    fail_over, lease_s = before
    world = protected(fail_over=fail_over, lease_s=lease_s)
    del world.manager.protected[VM]
    world.protect(VM, "b", lease_s=3.0)
    world.run_until(lambda: state(world) is ProtectionState.ACTIVE, 10.0)
    cut(world, "a")
    world.run_until(at(world, "b"), 20.0)
    world.cut.clear()
    world.run(10.0)
    assert at(world, "b")()


def test_an_empty_store_is_not_told_the_checkpoints_of_the_one_before() -> None:
    world = protected(fail_over=False)
    assert world.edge("a").guarded[VM].number
    del world.manager.protected[VM]
    world.run_until(lambda: not world.edge("a").guarded[VM].taking)
    cut(world, "a", "c")
    world.protect(VM, "c", fail_over=False)
    world.run_until(lambda: state(world) is ProtectionState.ACTIVE, 10.0)
    world.run(5.0)
    assert number(world) == 0
    assert world.manager.protected[VM].taken_at is None
    world.cut.clear()
    world.run_until(lambda: number(world) >= 1, 20.0)
