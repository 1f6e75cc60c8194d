"""Many schedules on several processors: what they covered and what they broke.

Not here: one schedule (runner.py), the command line (__main__.py).
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from tests.simulation.coverage import Coverage
from tests.simulation.draw import draw
from tests.simulation.runner import LEAST_EVENTS, run

CHUNK = 50  # schedules that a process runs between two reports
KEPT_WORDS = 20  # violations that are told in words


@dataclass
class Tally:
    """What came of some schedules.  violations: seed -> what, in words."""

    schedules: int = 0
    events: int = 0
    crashes: int = 0
    violations: dict[int, str] = field(default_factory=dict)
    struck: Counter[tuple[str, str]] = field(default_factory=Counter)
    routed: int = 0
    micro_loops: int = 0

    def add(self, other: Tally) -> None:
        self.schedules += other.schedules
        self.events += other.events
        self.crashes += other.crashes
        self.violations |= other.violations
        self.struck.update(other.struck)
        self.routed += other.routed
        self.micro_loops += other.micro_loops

    def table(self) -> str:
        coverage = Coverage()
        coverage.add(self.struck)
        return coverage.table()

    def words(self) -> str:
        """The last line of a campaign."""
        return (
            f"{self.schedules} schedules, {self.events} events, {len(self.violations)} violations"
        )


def run_chunk(seeds: range) -> Tally:
    """These schedules, one after the other."""
    tally = Tally()
    gc.disable()  # a World is one great circle: it is collected with its like, seldom
    for seed in seeds:
        if seed % 10 == 0:
            gc.collect()
        schedule = draw(seed)
        outcome = run(schedule)
        tally.routed += bool(schedule.routers)
        tally.micro_loops += outcome.micro_loops
        tally.schedules += 1
        tally.events += outcome.events
        tally.crashes += outcome.crashes
        tally.struck.update(outcome.struck)
        if outcome.violation is not None:
            tally.violations[seed] = str(outcome.violation)
        else:
            assert outcome.events >= LEAST_EVENTS, f"seed {seed}: {outcome.events} events"
            assert outcome.crashes >= 1, f"seed {seed}: no crash"
    return tally


def chunks(start: int, count: int) -> Iterator[range]:
    for first in range(start, start + count, CHUNK):
        yield range(first, min(first + CHUNK, start + count))


def campaign(start: int, count: int, processes: int, progress: Callable[[Tally], None]) -> Tally:
    """`count` schedules from seed `start` on."""
    whole = Tally()
    with ProcessPoolExecutor(processes, get_context("fork")) as pool:
        for tally in pool.map(run_chunk, chunks(start, count)):
            whole.add(tally)
            progress(whole)
    return whole
