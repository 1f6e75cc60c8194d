"""How long the fabric took to follow a move, from the kernels' route notifications.

An agent's change is a route of ours (protocol 77) that comes into, or leaves, a router's main
table; what follows are the changes of all routers' main tables for the same address.  Pure.
Not here: recording (route_recorder.py).  The fields' meaning is in docs/lab.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vmmobility.lab.report_fabric import RouteTimes
from vmmobility.lab.route_recorder import RouteChange

OURS = "77"
QUIET_NS = 3_000_000_000  # what comes after so long without a change has another cause


@dataclass(slots=True)
class _Follow:
    """One agent's change, and when the last router followed it: anywhere, in its own DC."""

    change: RouteChange
    adds: bool
    last_ns: int = 0
    inside_ns: int = 0

    def ms(self, inside: bool) -> float | None:
        end_ns = self.inside_ns if inside else self.last_ns
        return round((end_ns - self.change.at_ns) / 1e6, 3) if end_ns else None


def route_times(
    run: int, move: int, vm: str, changes: Iterable[RouteChange], begin_ns: int, end_ns: int,
    dc_of: Mapping[str, str],
) -> RouteTimes | None:  # fmt: skip
    """Of one move's window; None if no agent changed a route in it.  dc_of: of every router."""
    mine = sorted(
        (c for c in changes if begin_ns <= c.at_ns < end_ns and c.node in dc_of),
        key=lambda c: c.at_ns,
    )
    follows: list[_Follow] = []
    routers: set[str] = set()
    converged: list[float] = []
    for address in dict.fromkeys(c.address for c in mine):
        found, last_ns, who = _of_address([c for c in mine if c.address == address], dc_of)
        follows += found
        routers |= who
        if found and last_ns:
            converged.append(round((last_ns - found[0].change.at_ns) / 1e6, 3))
    if not follows:
        return None

    def longest(adds: bool, inside: bool) -> float | None:
        times = [f.ms(inside) for f in follows if f.adds is adds]
        return max((ms for ms in times if ms is not None), default=None)

    return RouteTimes(
        run, move, vm, longest(True, False), longest(True, True), longest(False, False),
        longest(False, True), max(converged, default=None), len(routers),
    )  # fmt: skip


def _of_address(
    changes: Sequence[RouteChange], dc_of: Mapping[str, str]
) -> tuple[list[_Follow], int, set[str]]:
    """(agents' changes with who followed, the last change at all, the routers that followed)."""
    has: dict[str, bool] = {}
    follows: list[_Follow] = []
    last_ns, quiet_from_ns = 0, 0
    routers: set[str] = set()
    for change in changes:
        comes, had = change.via != "none", has.get(change.node, True)
        if change.protocol == OURS:
            follows.append(_Follow(change, comes))
            quiet_from_ns = change.at_ns
            continue
        has[change.node] = comes
        if not follows or change.at_ns - quiet_from_ns > QUIET_NS:
            continue
        quiet_from_ns = last_ns = change.at_ns
        routers.add(change.node)
        for follow in follows:
            # What comes follows an announcement; what goes, or is replaced, a withdrawal.
            if comes if follow.adds else (had or not comes):
                follow.last_ns = change.at_ns
                if dc_of[change.node] == dc_of[follow.change.node]:
                    follow.inside_ns = change.at_ns
    return follows, last_ns, routers
