"""The moments of a move that its timelines show, and what its longest gap was made of.

A moment is taken at the node that makes it: the source redirects, the destination delivers.
Pure.  Not here: how they are drawn (report_text.py, report_svg.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NAMES = {
    "move.requested": "requested", "move.prepared": "prepared", "move.copying": "copying",
    "move.converged": "converged", "move.turned": "turned", "move.registered": "registered",
    "move.redirected": "redirected", "move.done": "done", "move.failed": "failed",
    "move.aborted": "aborted",
}  # fmt: skip
_AT_SOURCE = {"forwarding redirect": "redirect", "guest.stopped": "stop"}
_AT_TARGET = {"forwarding local": "delivering", "guest.resumed": "resume"}


def moments(phases: Sequence[Mapping[str, Any]], source: str, target: str) -> dict[str, float]:
    """Name -> milliseconds since the request, in order of time; each name's first."""
    found: dict[str, float] = {}
    for phase in phases:
        node, event = phase["node"], phase["name"]
        name = _NAMES.get(event)
        if node == source:
            name = _AT_SOURCE.get(event, name)
        if node == target:
            name = _AT_TARGET.get(event, name)
        if name is not None:
            found[name] = min(phase["at_ms"], found.get(name, phase["at_ms"]))
    return dict(sorted(found.items(), key=lambda item: item[1]))


@dataclass(frozen=True, slots=True)
class GapSplit:
    """A gap's parts; together they are the gap.

    held_ms:    the way led to the destination, the guest still ran at the source
    stopped_ms: STOP to RESUME           cold_ms: RESUME to the first echo
    other_ms:   what of it lies elsewhere: before the diversion, after the first echo
    """

    longest_ms: float
    held_ms: float
    stopped_ms: float
    cold_ms: float
    other_ms: float


def split_gap(
    start_ms: float, longest_ms: float, at: Mapping[str, float], cold_ms: float | None
) -> GapSplit | None:
    """The gap [start, start + longest) divided at the move's moments; None if they are unknown.

    The way is diverted as soon as one of the two has happened: the destination delivers (traffic
    from beyond, if it is the home NVE), the source redirects.
    """
    if not {"stop", "resume"} <= set(at):
        return None
    stop, resume = at["stop"], at["resume"]
    diverted = min([at[name] for name in ("delivering", "redirect") if name in at], default=stop)
    end_ms = start_ms + longest_ms

    def part(begin: float, finish: float) -> float:
        return round(max(0.0, min(finish, end_ms) - max(begin, start_ms)), 3)

    held, stopped = part(diverted, stop), part(stop, resume)
    cold = part(resume, resume + (cold_ms or 0.0))
    other = round(max(0.0, longest_ms - held - stopped - cold), 3)
    return GapSplit(longest_ms, held, stopped, cold, other)
