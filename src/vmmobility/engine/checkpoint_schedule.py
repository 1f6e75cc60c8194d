"""When a protected VM's next checkpoint is due: after an interval, or daily at a time of day.

A time of day is UTC: an NVE's own zone is nothing that travels with a VM, and a day of 23 or 25
hours has a time twice, or not at all.  Times are CLOCK_REALTIME in seconds here, so that a restart
knows when the last one was; between two answers the engine counts by its own clock.

Not here: taking one (nve_guarding.py).
"""

from __future__ import annotations

from vmmobility.wire.options import Protection

DAY_S = 86_400
MINUTE_S = 60
EARLY_S = 30.0  # one that was taken so little before the time counts as that day's
RETRY_S = 60.0  # one that came to nothing is tried again after so long at the latest


def until_next_s(terms: Protection, last_s: float | None, wall_s: float) -> float:
    """Seconds until the next begins; 0: at once, for it is due, or was while nobody could take it.

    last_s: the moment of which the last complete one is; None: there is none
    """
    if last_s is None:
        return 0.0
    if terms.at_min is None:
        interval_s = terms.interval_ms / 1000
        return min(max(0.0, last_s + interval_s - wall_s), interval_s)
    due_s = last_due_s(terms.at_min, wall_s)
    return 0.0 if last_s < due_s - EARLY_S else due_s + DAY_S - wall_s


def last_due_s(at_min: int, wall_s: float) -> float:
    """When it was that time of day last."""
    since_midnight_s = wall_s % DAY_S
    at_s = at_min * MINUTE_S
    today_s = wall_s - since_midnight_s + at_s
    return today_s if at_s <= since_midnight_s else today_s - DAY_S
