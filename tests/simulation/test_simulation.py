"""The simulation of every day: 1,000 schedules, what once broke something, and the tools' tests.

`make simulate SEEDS=n START=k` runs others; docs/design/safety.md tells what all this is.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine import safety
from tests.engine.fake_hypervisor import Guest, Life
from tests.engine.network import World
from tests.simulation import mutants, schedule
from tests.simulation.campaign import Tally, campaign
from tests.simulation.coverage import ENDING, PHASES
from tests.simulation.draw import draw
from tests.simulation.open_schedules import OPEN
from tests.simulation.replay import replay
from tests.simulation.runner import run
from tests.simulation.schedule import Operation, Schedule
from tests.simulation.shrink import shrink

SCHEDULES = 1000
MORE_SCHEDULES = 6000  # of `make test-all`: others than those of every day
PROCESSES = 2
HUNT = 300  # schedules in which a mutant that its known schedule does not kill must die


@pytest.mark.timeout(600)
def test_no_schedule_breaks_an_invariant() -> None:
    check(0, SCHEDULES)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_other_schedule_breaks_an_invariant() -> None:
    check(SCHEDULES, MORE_SCHEDULES)


def check(start: int, count: int) -> None:
    def progress(_: Tally) -> None:
        return

    tally = campaign(start, count, PROCESSES, progress)
    print(f"\n{tally.table()}\n{tally.words()}")
    hints = [f"{words}\n  python -m tests.simulation --seed {s} --shrink"
             for s, words in tally.violations.items() if s not in OPEN]  # fmt: skip
    assert not hints, "\n".join(hints)
    mended = {s for s in OPEN if start <= s < start + count} - tally.violations.keys()
    assert not mended, f"no violation any more: take them off open_schedules.py: {mended}"
    covered = {phase for (fault, phase), n in tally.struck.items() if fault.startswith("crash")}
    assert covered >= set(PHASES) - {ENDING}, "each phase meets crashes"


@pytest.mark.parametrize("name", schedule.kept())
def test_what_once_broke_something_does_not(name: str) -> None:
    violation = run(schedule.kept()[name]).violation
    assert violation is None, f"{violation}\n{replay(schedule.kept()[name])}"


@pytest.mark.parametrize("name", mutants.MUTANTS)
def test_a_mutant_is_killed(name: str) -> None:
    """By the schedule known for it, which the engines themselves pass, or by another."""
    known = mutants.KNOWN.get(name, 0)
    seed, words = mutants.find(name, range(known, known + 1))
    if seed is None:
        seed, words = mutants.find(name, range(HUNT))
    assert seed is not None, f"survives: {mutants.MUTANTS[name].breaks}"
    print(f"{name}: killed by schedule {seed}: {words}")


# ---- the tools ---------------------------------------------------------------------------------


def test_a_schedule_is_its_text() -> None:
    for seed in range(50):
        drawn = draw(seed)
        assert schedule.parse(str(drawn)) == drawn


@pytest.mark.parametrize("seed", range(5))
def test_a_schedule_repeats_itself_in_any_process(seed: int) -> None:
    """Nothing depends on the order of a set or on a process's state."""
    program = f"from tests.simulation import replay, draw; print(replay.replay(draw.draw({seed})))"
    seen = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=True,
        )
        seen.add(hashlib.sha256(done.stdout).hexdigest())
    seen.add(hashlib.sha256((replay(draw(seed)) + "\n").encode()).hexdigest())
    assert len(seen) == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_quick_look_sees_all_that_the_whole_one_sees(seed: int) -> None:
    """What safety.check looks at is a function of what kernels hold, lost and of guests' lives, VM
    by VM; after each event every VM for which one of these changed was looked at."""

    def state(world: World) -> dict[object, object]:
        found: dict[object, object] = {}
        for name, node in world.nodes.items():
            for vm, held in node.kernel.held.items():
                found.setdefault(vm, []).append((name, held))  # type: ignore[attr-defined]
            for vm in node.kernel.lost:
                found.setdefault(vm, []).append((name, "lost"))  # type: ignore[attr-defined]
            for vm, guest in (node.hypervisor.guests if node.hypervisor else {}).items():
                found.setdefault(vm, []).append((name, guest.life))  # type: ignore[attr-defined]
        return found

    def prepare(world: World) -> None:
        step, before = world.step, state(world)

        def checked_step() -> None:
            nonlocal before
            looked: set[object] = set()
            quick = safety.check_vm

            def noted(world: World, vm: object) -> None:
                looked.add(vm)
                quick(world, vm)  # type: ignore[arg-type]

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(safety, "check_vm", noted)
                step()
            after = state(world)
            changed = {vm for vm in {*before, *after} if before.get(vm) != after.get(vm)}
            assert changed <= looked, changed
            safety.check_all(world)
            before = after

        world.step = checked_step  # type: ignore[method-assign]

    assert run(draw(seed), prepare).violation is None


def test_shrinking_leaves_what_is_needed() -> None:
    noise = tuple(Operation(float(n), "traffic", ("vm1", "a", "on")) for n in range(20))
    needed = (Operation(3.217, "start", ("vm1", "a")), Operation(7.9, "crash", ("a", "1.234")))
    large = Schedule(
        1, ("a", "b", "c", "d"), (("vm1", "a"), ("vm2", "b")), (("loss", 0.3), ("lifetime", 8.0)),
        tuple(sorted((*noise, *needed), key=lambda o: o.at)),
    )  # fmt: skip

    def fails(candidate: Schedule) -> bool:
        return {"start", "crash"} <= {o.verb for o in candidate.operations}

    small = shrink(large, fails)
    assert [str(o) for o in small.operations] == ["> 3.000 start vm1 a", "> 8.000 crash a 1.0"]
    assert small.nves == ("a", "b")
    assert small.homes == (("vm1", "a"),)
    assert small.setting("loss") == 0


def test_a_violation_is_told() -> None:
    """A guest that runs twice is seen in the event in which it does."""
    drawn = draw(1)

    def prepare(world: World) -> None:
        def doubled() -> None:
            vm = next(iter(world.interfaces))
            for node in world.nodes.values():
                if node.hypervisor:
                    node.hypervisor.guests[vm] = Guest(vm, Life.RUNNING, node.hypervisor)

        world.later(5.0, doubled)

    violation = run(drawn, prepare).violation
    assert violation is not None
    assert violation.invariant == "two places"
    assert "5.000" in str(violation)
