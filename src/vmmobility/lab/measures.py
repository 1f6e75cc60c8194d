"""What a move was like, computed from the daemons' events: phases, downtime, control, queue.

Pure functions.  Every figure's meaning is in docs/lab.md.  Not here: packets (counting.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vmmobility.lab.counting import Window
from vmmobility.lab.logbook import LogEvent

_TOLD = ("move.", "guest.", "entry.", "forwarding", "queue")


@dataclass(frozen=True, slots=True)
class MoveFacts:
    """What is known of a move besides its events: who, where from and to, when."""

    vm: str
    source: str
    target: str
    window: Window


def of_move(events: Sequence[LogEvent], facts: MoveFacts) -> list[LogEvent]:
    """The events of the VM in the move's window, in order of when they happened."""
    mine = [e for e in events if e.vm == facts.vm and facts.window.holds(e.at_ns)]
    return sorted((e for e in mine if e.name.startswith(_TOLD)), key=lambda e: e.at_ns)


def first(
    events: Sequence[LogEvent], name: str, node: str = "",
    where: Callable[[LogEvent], bool] = lambda event: True,
) -> LogEvent | None:  # fmt: skip
    """The first event of that name (at that node, that suits)."""
    for event in events:
        if event.name == name and node in ("", event.node) and where(event):
            return event
    return None


def phases(events: Sequence[LogEvent], begin_ns: int) -> list[dict[str, Any]]:
    """Every event as a phase with the time since the move was asked for."""
    found = []
    for event in events:
        name = event.name
        if name == "forwarding":
            name = f"forwarding {event.fields.get('forwarding', '')}".strip()
        at_ms = round((event.at_ns - begin_ns) / 1e6, 3)
        found.append({"name": name, "node": event.node, "at_ms": at_ms})
    return found


def guest(events: Sequence[LogEvent], facts: MoveFacts) -> dict[str, float | None]:
    """QEMU's downtime and total time, and the time from STOP to RESUME."""
    stopped = first(events, "guest.stopped", facts.source)
    resumed = first(events, "guest.resumed", facts.target)
    completed = first(events, "guest.completed", facts.source)
    return {
        "downtime_ms": completed.number("downtime_ms") if completed else None,
        "stop_to_resume_ms": _between(stopped, resumed),
        "total_ms": completed.number("total_ms") if completed else None,
    }


def control(events: Sequence[LogEvent], facts: MoveFacts) -> dict[str, float | None]:
    """RESUME to registered, registered to redirected, redirect (in the kernel) to STOP."""
    resumed = first(events, "guest.resumed", facts.target)
    registered = first(events, "move.registered")
    redirected = first(events, "move.redirected")
    stopped = first(events, "guest.stopped", facts.source)
    redirect = first(
        events, "forwarding", facts.source, lambda e: e.fields.get("forwarding") == "redirect"
    )
    return {
        "registered_ms": _between(resumed, registered),
        "redirected_ms": _between(registered, redirected),
        "redirect_to_stop_ms": _between(redirect, stopped),
    }


def queue_peak(events: Sequence[LogEvent], facts: MoveFacts) -> int | None:
    """Packets that waited in the destination's tap, from its `queue` event.

    The NVE counts a moment after RESUME, when the next move may have been asked for already: of
    all of the VM's events, the one wanted follows this move's RESUME and no other's.
    """
    resumed_ns = resumed_at(events, facts)
    if resumed_ns is None:
        return None
    there = sorted((e for e in events if (e.vm, e.node) == (facts.vm, facts.target)),
                   key=lambda e: e.at_ns)  # fmt: skip
    for event in there:
        if event.name == "guest.resumed" and event.at_ns > resumed_ns:
            return None
        peak = event.number("queue_peak") if event.name == "queue" else None
        if peak is not None and event.at_ns >= resumed_ns:
            return int(peak)
    return None


def resumed_at(events: Sequence[LogEvent], facts: MoveFacts) -> int | None:
    """When the guest ran at the destination."""
    event = first(of_move(events, facts), "guest.resumed", facts.target)
    return None if event is None else event.at_ns


def relayed(polls: Sequence[tuple[int, Mapping[str, int]]], window: Window) -> int:
    """Packets that all NVEs redirected within the window: the sum of what their counters grew.

    A counter that is below its last value has begun again from nought.
    """
    total = 0
    last: dict[str, int] = {}
    for time_ns, counters in polls:
        for node, value in counters.items():
            before = last.get(node, 0)
            if window.holds(time_ns):
                total += value - before if value >= before else value
        last = dict(counters)
    return total


def _between(one: LogEvent | None, other: LogEvent | None) -> float | None:
    if one is None or other is None:
        return None
    return round((other.at_ns - one.at_ns) / 1e6, 3)
