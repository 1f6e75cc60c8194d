"""What a report says of the fabric: settled paths, times of routes, host routes left.

Values and their lines for people.  The fields' meaning is in docs/lab.md.  Not here: how they are
found (settled.py, route_times.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_SHOWN = (
    ("announced", "announced_ms"), ("inside the DC", "announced_inside_ms"),
    ("withdrawn", "withdrawn_ms"), ("inside the DC", "withdrawn_inside_ms"),
    ("converged", "converged_ms"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SettledPath:
    """The way from a correspondent to a VM after a move (0: none yet) had settled.

    detours: NVEs on it that do not serve the VM; direct: it ends at the VM and has none
    """

    run: int
    move: int
    correspondent: str
    vm: str
    family: str
    hops: tuple[str, ...]
    detours: tuple[str, ...]
    direct: bool


@dataclass(frozen=True, slots=True)
class RouteTimes:
    """How the fabric followed a move: ms from an agent's change to the last router that followed.

    …_inside_ms: to the last router of the agent's own data centre.  None: no such change
    """

    run: int
    move: int
    vm: str
    announced_ms: float | None
    announced_inside_ms: float | None
    withdrawn_ms: float | None
    withdrawn_inside_ms: float | None
    converged_ms: float | None
    routers: int


@dataclass(frozen=True, slots=True)
class HostRoute:
    """A host route of a VM in a router's table at the end of a run."""

    run: int
    router: str
    vm: str
    family: str
    table: str
    protocol: str


@dataclass(frozen=True, slots=True)
class TunnelCount:
    """What passed an NVE's underlay inside tunnels, in and out, by who sent and gets it.

    inside:     both ends in the data centres      from_outside, to_outside: one is not
    unseen:     further fragments, without ends    missed: that the capture had no room for
    strangers:  the ends of what was not inside, the most frequent ones
    """

    run: int
    nve: str
    packets: int
    inside: int
    from_outside: int
    to_outside: int
    unseen: int
    missed: int
    strangers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FabricReport:
    """All of them, over all runs."""

    settled: tuple[SettledPath, ...] = ()
    routes: tuple[RouteTimes, ...] = ()
    left: tuple[HostRoute, ...] = ()
    tunnelled: tuple[TunnelCount, ...] = ()

    def __add__(self, other: FabricReport) -> FabricReport:
        return FabricReport(
            self.settled + other.settled, self.routes + other.routes, self.left + other.left,
            self.tunnelled + other.tunnelled,
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """The report's keys of them."""
        return {
            "settled_path": [asdict(path) for path in self.settled],
            "routes": [asdict(times) for times in self.routes],
            "host_routes_left": [asdict(route) for route in self.left],
            "tunnelled": [asdict(count) for count in self.tunnelled],
        }

    def summary(self) -> dict[str, Any]:
        """Totals, and each time's median and maximum."""
        return {
            "settled_paths": len(self.settled),
            "settled_direct": sum(path.direct for path in self.settled),
            "host_routes_left": len(self.left),
            "tunnelled_inside": sum(count.inside for count in self.tunnelled),
            "tunnelled_outside": sum(c.from_outside + c.to_outside for c in self.tunnelled),
            **{name: _two(getattr(times, name) for times in self.routes) for _, name in _SHOWN},
        }

    def lines(self) -> list[str]:
        """For people."""
        total = self.summary()
        found = []
        if self.routes:
            found.append("fabric follows: " + "; ".join(_range(total, *each) for each in _SHOWN))
        if self.tunnelled:
            each = ", ".join(f"{count.nve} {count.packets}" for count in self.tunnelled)
            unknown = sum(count.unseen + count.missed for count in self.tunnelled)
            found.append(
                f"tunnelled packets seen, in and out: {total['tunnelled_inside']} between hosts "
                f"inside the data centres, {total['tunnelled_outside']} of hosts outside, "
                f"{unknown} not known ({each})"
            )
            found += [f"  {c.nve}: {', '.join(c.strangers)}" for c in self.tunnelled if c.strangers]
        if self.settled:
            indirect = [path for path in self.settled if not path.direct]
            found.append(f"settled paths: {total['settled_direct']} of {total['settled_paths']} "
                         f"direct; host routes left: {len(self.left)}")  # fmt: skip
            found += [f"not direct: {' > '.join(path.hops)} ({path.family})" for path in indirect]
        return found

    def last_paths(self) -> Sequence[SettledPath]:
        """Each correspondent's last way to each VM."""
        last = {(p.run, p.correspondent, p.vm, p.family): p for p in self.settled}
        return list(last.values())


def _range(total: dict[str, Any], word: str, key: str) -> str:
    return f"{word} p50 {_ms(total[key]['median'])}, max {_ms(total[key]['max'])}"


def _two(values: Iterable[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if not known:
        return {"median": None, "max": None}
    return {"median": round(statistics.median(known), 3), "max": max(known)}


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
