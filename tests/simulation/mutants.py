"""Mutants: engines that are wrong in one point, each of which the simulation must kill.

A mutant that survives shows a check that is too weak, or a line of an engine that nothing needs.
KNOWN names for each a schedule that kills it, so that a test replays one; the engines change, and
then `hunt` finds another.  Not here: the mutations themselves (mutations.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context

from tests.simulation.draw import draw
from tests.simulation.mutations import MUTANTS
from tests.simulation.runner import run

__all__ = ["KNOWN", "MUTANTS", "applied", "find", "hunt"]

# Mutant -> the seed of a schedule that kills it (`make simulate MUTANTS=1` prints them).
KNOWN: dict[str, int] = {}


def applied(name: str) -> AbstractContextManager[object]:
    """The engines with that mutant; without one if the name is empty."""
    return MUTANTS[name].make() if name else nullcontext()


def find(name: str, seeds: range) -> tuple[int | None, str]:
    """The first schedule that kills the mutant and that the engines themselves pass: its seed and
    the invariant that it breaks; (None, "") if none of these does."""
    for seed in seeds:
        schedule = draw(seed)
        with applied(name):
            violation = run(schedule).violation
        if violation is not None and run(schedule).violation is None:
            return seed, str(violation)
    return None, ""


def hunt(start: int, count: int, processes: int) -> Iterator[tuple[str, int | None, str]]:
    """Each mutant with the schedule that kills it."""
    seeds = range(start, start + count)
    with ProcessPoolExecutor(processes, get_context("fork")) as pool:
        found = {name: pool.submit(find, name, seeds) for name in MUTANTS}
        for name, future in found.items():
            yield (name, *future.result())
