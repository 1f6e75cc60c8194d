"""Mutants: engines that are wrong in one point, each of which the simulation must kill.

A mutant that survives shows a check that is too weak, or a line of an engine that nothing needs.
KNOWN names for each a schedule that kills it, so that a test replays one; the engines change, and
then `hunt` finds another.  Not here: the mutations themselves (mutations.py,
mutations_fabric.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context
from pathlib import Path

from tests.simulation.draw import draw
from tests.simulation.mutations import MUTANTS as OTHER_MUTANTS
from tests.simulation.mutations_fabric import FABRIC_MUTANTS
from tests.simulation.mutations_groups import GROUP_MUTANTS
from tests.simulation.mutations_guests import GUEST_MUTANTS
from tests.simulation.mutations_protection import PROTECTION_MUTANTS
from tests.simulation.runner import run
from tests.simulation.schedule import Schedule, parse

__all__ = ["KNOWN", "MUTANTS", "applied", "find", "hunt"]

MUTANTS = {
    **OTHER_MUTANTS,
    **FABRIC_MUTANTS,
    **GROUP_MUTANTS,
    **GUEST_MUTANTS,
    **PROTECTION_MUTANTS,
}

# Mutant -> the seed of a schedule that kills it (`make simulate MUTANTS=1` prints them).
KNOWN: dict[str, int] = {
    "skip the epoch check": 286,
    "forget the tombstone": 0,
    "forget the epoch sequence": 0,
    "redirect before persist": 0,
    "go on with a full disk": 90,
    "forget moves at a restart": 78,
    "leave moves at a restart": 9,
    "forget the turn at a restart": 88,
    "relay a relayed packet": 4,
    "switch before it delivers": 4,
    "stop before the redirect": 5,
    "turn back at once": 112,
    "turn back though it runs": 432,
    "give up before it has ended": 421,
    "boot before it is accepted": 1,
    "grant without asking": 1,
    "take silence for death": 1,
    "ask nobody after a loss": 102,
    "take replayed datagrams": 483,
    "serving NVE lets go first": 4356,
    "a chain, not a star": 4,
    "drain alone": 4,
    "drain on silence alone": 41,
    "skip the gate": 5,
    "say it once": 1,
    "never withdraw": 2,
    "drain though a router leads there": 6,
    "two members at one NVE": 1,
    "tell no router of members": 3,
    "lead to members far away": 3,
    "a group is blind to its moves": 46,
    "confirm before it has stopped": 0,
    "boot what was stopped": 0,
    "keep nothing": 0,
    "forget what it is": 0,
    "leave it suspended": 1,
    "take over at once": 43,
    "no guard of the lease": 0,
    "run on after a restart": 0,
    "withdraw it and let it run": 76,
    "hear the primary while its standby starts": 202,
    "answer before the last checkpoint": 202,
    "use what is not complete": 267,
}


def applied(name: str) -> AbstractContextManager[object]:
    """The engines with that mutant; without one if the name is empty."""
    return MUTANTS[name].make() if name else nullcontext()


def written(name: str) -> Schedule | None:
    """A schedule that somebody wrote to kill it: chance would take too long."""
    path = Path(__file__).with_name("killing") / f"{name.replace(' ', '_')}.txt"
    return parse(path.read_text()) if path.exists() else None


def find(name: str, seeds: range) -> tuple[int | None, str]:
    """The first schedule that kills the mutant and that the engines themselves pass: its seed and
    the invariant that it breaks; (None, "") if none of these does."""
    own = written(name)
    for schedule in (own,) if own is not None else map(draw, seeds):
        seed = schedule.seed
        with applied(name):
            violation = run(schedule).violation
        if violation is None or violation.invariant.startswith("raised"):
            continue  # an engine that cannot run shows nothing
        if run(schedule).violation is None:
            return seed, str(violation)
    return None, ""


def hunt(start: int, count: int, processes: int) -> Iterator[tuple[str, int | None, str]]:
    """Each mutant with the schedule that kills it."""
    seeds = range(start, start + count)
    with ProcessPoolExecutor(processes, get_context("fork")) as pool:
        found = {name: pool.submit(find, name, seeds) for name in MUTANTS}
        for name, future in found.items():
            yield (name, *future.result())
