"""The simulation's command line: `python -m tests.simulation` (make simulate).

--seeds N --start K     a campaign: schedules K to K+N-1
--seed K                one schedule: its trace
--seed K --shrink       the smallest schedule that still fails so, and its trace
--file FILE             the same for a schedule's text
--mutants               hunts each mutant until a schedule kills it
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from pathlib import Path

from tests.simulation import mutants
from tests.simulation.campaign import KEPT_WORDS, Tally, campaign
from tests.simulation.draw import draw
from tests.simulation.replay import replay
from tests.simulation.runner import run
from tests.simulation.schedule import Schedule, parse
from tests.simulation.shrink import shrink

PROGRESS_S = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=2000, help="how many schedules")
    parser.add_argument("--start", type=int, default=0, help="the first one's seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, help="one schedule")
    parser.add_argument("--file", type=Path, help="one schedule's text")
    parser.add_argument("--shrink", action="store_true", help="make it small")
    parser.add_argument("--mutant", default="", help="with this mutant of the engines")
    parser.add_argument("--mutants", action="store_true", help="hunt all mutants")
    given = parser.parse_args()
    if given.mutants:
        return _hunt(given.start, given.seeds, given.processes)
    if given.file is not None:
        return _one(parse(given.file.read_text()), given.shrink, given.mutant)
    if given.seed is not None:
        return _one(draw(given.seed), given.shrink, given.mutant)
    return _campaign(given.start, given.seeds, given.processes)


def _campaign(start: int, count: int, processes: int) -> int:
    began = shown = time.monotonic()

    told: set[int] = set()

    def progress(tally: Tally) -> None:
        nonlocal shown
        for seed in tally.violations.keys() - told:
            told.add(seed)
            print(f"  seed {seed}: {tally.violations[seed]}", file=sys.stderr, flush=True)
        if time.monotonic() - shown >= PROGRESS_S:
            shown = time.monotonic()
            print(f"  {shown - began:.0f} s: {tally.words()}", file=sys.stderr, flush=True)

    tally = campaign(start, count, processes, progress)
    took = time.monotonic() - began
    print("struck, by fault and by the phase of each VM's life:\n")
    print(tally.table())
    print()
    for seed, words in sorted(tally.violations.items())[:KEPT_WORDS]:
        print(f"seed {seed}: {words}")
        print(f"  python -m tests.simulation --seed {seed} --shrink")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_ms = (used.ru_utime + used.ru_stime) / count * 1000
    print(
        f"{took:.0f} s on {processes} processors; a schedule has {tally.events / count:.0f} events "
        f"and {tally.crashes / count:.1f} crashes and takes {cpu_ms:.1f} ms of processor time"
    )
    print(
        f"{tally.routed} of them with routers, where {tally.micro_loops} loops were met while the "
        "fabric was still turning"
    )
    print(tally.words())
    return 1 if tally.violations else 0


def _one(schedule: Schedule, small: bool, mutant: str) -> int:
    with mutants.applied(mutant):
        violation = run(schedule).violation
        if violation is not None and small:

            def fails(smaller: Schedule) -> bool:
                found = run(smaller).violation
                return found is not None and found.invariant == violation.invariant

            schedule = shrink(schedule, fails)
        print(replay(schedule))
    return 1 if violation is not None else 0


def _hunt(start: int, count: int, processes: int) -> int:
    killed = 0
    for name, seed, words in mutants.hunt(start, count, processes):
        killed += seed is not None
        where = f"seed {seed}" if seed is not None else "SURVIVES"
        print(f"{name:<36} {where:<12} {words}", flush=True)
    print(f"mutants killed: {killed} of {len(mutants.MUTANTS)}")
    return 0 if killed == len(mutants.MUTANTS) else 1


if __name__ == "__main__":
    sys.exit(main())
