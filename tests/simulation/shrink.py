"""Makes a failing schedule small: what it fails by stays, everything that is not needed goes.

Operations are left out in ever smaller groups (after Zeller's ddmin), then the weather and the
pace are made plain, then moments are rounded.  Not here: running one (runner.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from tests.simulation.schedule import CALM, CALM_FABRIC, Operation, Schedule

Fails = Callable[[Schedule], bool]


def shrink(schedule: Schedule, fails: Fails) -> Schedule:
    """A smaller schedule for which `fails` still holds."""
    before = None
    while before != schedule:
        before = schedule
        schedule = _fewer_operations(schedule, fails)
        schedule = _plainer_settings(schedule, fails)
        schedule = _shorter_words(schedule, fails)
        schedule = _fewer_names(schedule, fails)
    return schedule


def _fewer_operations(schedule: Schedule, fails: Fails) -> Schedule:
    size = max(1, len(schedule.operations) // 2)
    while True:
        start = 0
        while start < len(schedule.operations):
            rest = schedule.operations[:start] + schedule.operations[start + size :]
            smaller = replace(schedule, operations=rest)
            if fails(smaller):
                schedule = smaller
            else:
                start += size
        if size == 1:
            return schedule
        size //= 2


def _plainer_settings(schedule: Schedule, fails: Fails) -> Schedule:
    for name, value in schedule.settings:
        calm = {**CALM, **CALM_FABRIC}[name]
        if value != calm:
            plainer = schedule.with_settings(**{name: calm})
            if fails(plainer):
                schedule = plainer
    return schedule


def _shorter_words(schedule: Schedule, fails: Fails) -> Schedule:
    """Moments and lengths of time with fewer digits."""
    for index, operation in enumerate(schedule.operations):
        for digits in (0, 1, 2):
            rounded = Operation(
                round(operation.at, digits),
                operation.verb,
                tuple(_rounded(word, digits) for word in operation.words),
            )
            changed = list(schedule.operations)
            changed[index] = rounded
            shorter = replace(schedule, operations=tuple(changed))
            in_order = all(a.at <= b.at for a, b in pairwise(changed))
            if rounded == operation or (in_order and fails(shorter)):
                schedule = shorter
                break
    return schedule


def _rounded(word: str, digits: int) -> str:
    if word.count(".") == 1 and word.replace(".", "").isdigit():
        return f"{float(word):.{digits}f}" if digits else f"{float(word):.0f}.0"
    return word


def _fewer_names(schedule: Schedule, fails: Fails) -> Schedule:
    """VMs that nothing befalls, and the last NVEs."""
    for vm, _ in schedule.homes:
        if not any(vm in o.words for o in schedule.operations):
            fewer = replace(schedule, homes=tuple(h for h in schedule.homes if h[0] != vm))
            if fewer.homes and fails(fewer):
                schedule = fewer
    if schedule.routers and fails(replace(schedule, routers=())):
        schedule = replace(schedule, routers=())
    used = {w for o in schedule.operations for w in o.words} | {h for _, h in schedule.homes}
    while len(schedule.nves) > 2 and schedule.nves[-1] not in used:
        fewer = replace(schedule, nves=schedule.nves[:-1])
        if not fails(fewer):
            break
        schedule = fewer
    return schedule
