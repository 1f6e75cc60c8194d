"""What a report says of the flows to a load-shared group: values, JSON, lines for people.

Not here: how it is found (flows.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FlowReport:
    """The flows of one correspondent and family in one phase of a run.

    before, after:  how many flows each VM had answered last before it, and in it
    changes:        how often a flow was answered by another VM than the time before
    turned:         flows that another VM than before answered, and when the last of them first was
    longest_gap_ms: the longest time for which any flow had no answer
    """

    run: int
    phase: str
    correspondent: str
    family: str
    flows: int
    before: Mapping[str, int]
    after: Mapping[str, int]
    changes: int
    turned: int
    last_turned_ms: float | None
    longest_gap_ms: float

    def line(self) -> str:
        """For people."""
        spread = ", ".join(f"{vm} {count}" for vm, count in self.after.items())
        late = "" if self.last_turned_ms is None else f", the last at {self.last_turned_ms:.0f} ms"
        return (
            f"flows, {self.phase}, {self.correspondent} {self.family}: {spread} of {self.flows}; "
            f"{self.turned} turned{late}; {self.changes} changes, longest gap "
            f"{self.longest_gap_ms:.0f} ms"
        )


@dataclass(frozen=True, slots=True)
class FlowsReport:
    """All of them, over all runs."""

    flows: tuple[FlowReport, ...] = ()

    def __add__(self, other: FlowsReport) -> FlowsReport:
        return FlowsReport(self.flows + other.flows)

    def as_json(self) -> dict[str, Any]:
        """The report's key of them; absent where there are none."""
        return {"flows": [asdict(one) for one in self.flows]} if self.flows else {}

    def lines(self) -> list[str]:
        """For people: one line a phase, correspondent and family."""
        return [one.line() for one in self.flows]
