"""When checkpoints are due: at intervals, daily, after a restart, a failure, a set clock."""

from __future__ import annotations

import pytest

from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import MANAGER, WALL_S, World
from vmmobility.engine.checkpoint_schedule import DAY_S, last_due_s, until_next_s
from vmmobility.engine.manager_protection_record import (
    ProtectedVm,
    ProtectionState,
    protected_from_json,
    protected_to_json,
)
from vmmobility.wire.options import Protection
from vmmobility.wire.values import Nve

VM = vm_key("vm1")
HOUR_S = 3600.0
DAILY = Protection(False, 86_400_000, 10_000, "", 180)  # 03:00
HOURLY = Protection(False, 3_600_000, 10_000)
MIDNIGHT_S = 1_800_000_000.0 - 8 * HOUR_S  # a day that begins, UTC


@pytest.mark.parametrize(
    ("last_h", "now_h", "until_h"),
    [
        (None, 5, 0),  # there is none: at once
        (-21, 1, 2),  # yesterday's was taken: at three
        (3, 5, 22),  # today's was
        (2.999, 3, 24),  # a moment early is today's
        (-21, 3, 0),  # it is three
        (-21, 5, 0),  # nobody could take it at three: at once
        (1, 5, 0),  # one that came between does not count as it
        (30, 5, 22),  # the clock was set back: no storm of them
    ],
)
def test_daily(last_h, now_h, until_h):
    last_s = None if last_h is None else MIDNIGHT_S + last_h * HOUR_S
    assert until_next_s(DAILY, last_s, MIDNIGHT_S + now_h * HOUR_S) == until_h * HOUR_S


@pytest.mark.parametrize(("last_h", "until_h"), [(None, 0), (4.5, 0.5), (3, 0), (9, 1)])
def test_at_intervals(last_h, until_h):
    last_s = None if last_h is None else MIDNIGHT_S + last_h * HOUR_S
    assert until_next_s(HOURLY, last_s, MIDNIGHT_S + 5 * HOUR_S) == until_h * HOUR_S


def test_midnight_is_a_time_of_day():
    assert last_due_s(0, MIDNIGHT_S) == MIDNIGHT_S
    assert last_due_s(0, MIDNIGHT_S + 5) == MIDNIGHT_S
    assert last_due_s(1439, MIDNIGHT_S) == MIDNIGHT_S - 60


def protected(*, at_min: int | None = None, interval_s: float = HOUR_S) -> World:
    """A VM at a, its standby at b without fail-over, the first checkpoint taken.  It is 08:00."""
    world = World()
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: VM in world.manager.cache.bindings)
    world.run(1.0)
    world.manager.protect(VM, "b", interval_s, world.now, fail_over=False, at_min=at_min)
    world.feed(world.nodes[MANAGER], lambda: None)
    world.run_until(lambda: number(world) == 1, 10.0)
    return world


def number(world: World) -> int:
    return world.manager.protected[VM].number


def until(world: World) -> float:
    return world.edge("a").guarded[VM].due_at - world.clock(world.nodes["a"])


def test_one_a_day_at_its_time() -> None:
    world = protected(at_min=9 * 60)  # 09:00: in an hour
    assert world.edge("a").guarded[VM].terms.interval_ms == 86_400_000
    world.run(HOUR_S - world.now - 5)
    assert number(world) == 1
    world.run(10.0)
    assert number(world) == 2
    assert until(world) == pytest.approx(DAY_S - 5, abs=2.0)


def test_the_schedule_outlives_restarts_of_everybody() -> None:
    world = protected(at_min=9 * 60)
    for name in ("a", "b", MANAGER):
        world.restart(name)
        world.run(20.0)
    assert number(world) == 1
    assert world.manager.protected[VM].at_min == 9 * 60
    assert until(world) == pytest.approx(HOUR_S - world.now, abs=1.0)
    world.run(60.0)  # a refresh tells the manager again how old the checkpoint is
    age = world.manager.protected[VM].staleness_s(world.now)
    assert age is not None
    assert age > 115.0


def test_one_that_was_missed_is_made_up_for() -> None:
    world = protected(at_min=9 * 60)
    world.crash("a")
    world.run(2 * HOUR_S)
    world.restart("a")
    world.run(5.0)
    assert number(world) == 2
    assert until(world) == pytest.approx(DAY_S - HOUR_S, abs=30.0)


def test_at_long_intervals_a_restart_takes_none_before_its_time() -> None:
    world = protected()
    world.run(HOUR_S / 2)
    world.restart("a")
    world.run(10.0)
    assert number(world) == 1
    assert until(world) == pytest.approx(HOUR_S - world.now, abs=10.0)
    world.run(HOUR_S / 2)
    assert number(world) == 2


def test_a_clock_that_is_set_moves_the_next_one() -> None:
    world = protected(at_min=9 * 60)
    world.edge("a").tell_time(int((WALL_S + 3000.0) * 1e9), world.clock(world.nodes["a"]))
    assert until(world) == pytest.approx(600.0, abs=1.0)
    world.edge("a").tell_time(int((WALL_S + 3700.0) * 1e9), world.clock(world.nodes["a"]))
    world.run(5.0)
    assert number(world) == 2


def test_one_that_comes_to_nothing_is_tried_again_soon() -> None:
    world = protected(at_min=9 * 60)
    hypervisor = world.nodes["b"].hypervisor
    assert hypervisor is not None
    hypervisor.close_doors()
    world.run(HOUR_S)
    assert world.edge("a").guarded[VM].trouble
    assert until(world) <= 60.0
    world.restart("b")
    world.run(65.0)
    assert (number(world), world.edge("a").guarded[VM].trouble) == (2, "")


def test_what_is_shown_of_the_next_one() -> None:
    found = ProtectedVm(VM, Nve("b"), DAY_S, False, 10.0, at_min=180)
    assert found.next_s(100.0, MIDNIGHT_S) is None  # it is not active
    found.state, found.taken_at = ProtectionState.ACTIVE, 100.0 - HOUR_S
    assert found.next_s(100.0, MIDNIGHT_S) == 3 * HOUR_S
    assert protected_from_json(VM, protected_to_json(found)).at_min == 180
    often = ProtectedVm(VM, Nve("b"), 5.0, True, 10.0, ProtectionState.ACTIVE, taken_at=98.0)
    assert often.next_s(100.0, MIDNIGHT_S) == 3.0
