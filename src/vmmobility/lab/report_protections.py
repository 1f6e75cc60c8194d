"""What a report says of protected VMs and their fail-overs: values, JSON, lines for people.

Not here: how it is found (protection_findings.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a figure that varies; None where there is none."""

    least: float | None
    median: float | None
    most: float | None

    @classmethod
    def over(cls, values: Iterable[float | None]) -> Spread:
        known = [value for value in values if value is not None]
        if not known:
            return cls(None, None, None)
        return cls(min(known), round(median(known), 3), max(known))

    def __str__(self) -> str:
        if self.median is None:
            return "-"
        return f"{self.least:.1f} / {self.median:.1f} / {self.most:.1f} ms"


@dataclass(frozen=True, slots=True)
class FailOver:
    """What came after the strike; times in ms since it, None: it did not happen, or is not known.

    checkpoint:        from which the standby went on; staleness_ms: how old it was at the strike
    fenced_ms:         the primary has paused its guest by itself
    primary_last_ms, standby_first_ms: when a CPU of theirs has run last, and first
    both_ms:           for how long both ran at a time
    serving_ms:        correspondent and family -> its first echo from the standby
    outage_ms:         the same -> the longest time without an echo
    records:           the guest's numbered writes: acknowledged before the strike, the last in the
                       checkpoint, the first of which the standby's guest tells, how many before
                       that are missing, and whether memory and disk are of one moment
    """

    strike: str
    struck_ns: int
    checkpoint: int
    staleness_ms: float | None
    fenced_ms: float | None
    primary_last_ms: float | None
    standby_first_ms: float | None
    both_ms: float
    serving_ms: Mapping[str, float | None]
    outage_ms: Mapping[str, float]
    records: Mapping[str, int | bool | None] | None


@dataclass(frozen=True, slots=True)
class ProtectionReport:
    """One protection of one run.  bytes: of each checkpoint, memory and disks."""

    run: int
    vm: str
    primary: str
    standby: str
    every_s: float
    lease_s: float
    checkpoints: int
    failed: int
    whole: int
    pause_ms: Spread
    total_ms: Spread
    memory_bytes: Spread
    disk_bytes: Spread
    fail_over: FailOver | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        lines = [
            f"{self.vm} at {self.primary}, standby at {self.standby} every {self.every_s:g} s: "
            f"{self.checkpoints} checkpoints ({self.whole} whole, {self.failed} came to nothing); "
            f"pause min/p50/max {self.pause_ms}, in all {self.total_ms}"
        ]
        if self.fail_over is not None:
            lines += _fail_over_lines(self.fail_over)
        return lines


def _fail_over_lines(over: FailOver) -> Iterable[str]:
    serving = [value for value in over.serving_ms.values() if value is not None]
    yield (
        f"  {over.strike}: from checkpoint {over.checkpoint}, {_ms(over.staleness_ms)} old; "
        f"primary paused itself {_ms(over.fenced_ms)}, ran last {_ms(over.primary_last_ms)}, "
        f"standby ran first {_ms(over.standby_first_ms)}; both at once {over.both_ms:.1f} ms"
    )
    yield (
        f"  serving again for the first {_ms(min(serving, default=None))}, for the last of "
        f"{len(over.serving_ms)} streams {_ms(max(serving, default=None))} after it; longest time "
        f"without an echo {_ms(max(over.outage_ms.values(), default=None))}"
    )
    if over.records is not None:
        known = over.records
        yield (
            f"  records: {known['at_strike']} acknowledged, {known['in_checkpoint']} in the "
            f"checkpoint, none before it missing: {known['missing'] == 0}; went on with "
            f"{known['first_after']}: memory and disk of one moment: {known['of_one_moment']}"
        )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


@dataclass(frozen=True, slots=True)
class ProtectionsReport:
    """All of them, over all runs."""

    protections: tuple[ProtectionReport, ...] = ()

    def __add__(self, other: ProtectionsReport) -> ProtectionsReport:
        return ProtectionsReport(self.protections + other.protections)

    def as_json(self) -> dict[str, Any]:
        """The report's key of them; absent where there are none."""
        found = [one.as_json() for one in self.protections]
        return {"protections": found} if found else {}

    def lines(self) -> list[str]:
        """For people."""
        return [line for one in self.protections for line in one.lines()]
