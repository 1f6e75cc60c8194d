"""The fault matrix as data: modes, their phases, faults, and what each cell must come to.

A cell is a fault that strikes in a phase of a mode.  Every pair is in ROWS exactly once; one that
makes no sense is there as NOT_APPLICABLE with its reason.  Not here: the words and each mode's rows
(fault_terms.py, fault_hot.py, fault_cold.py, fault_warm.py), how a phase is held (fault_holds.py),
how a fault strikes (fault_strikes.py), judging (fault_judging.py).  The words stand in
docs/design/faults.md, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vmmobility.errors import LabError
from vmmobility.lab.fault_cold import COLD_ROWS, STOPPED, SUSPENDED
from vmmobility.lab.fault_hot import HOT, HOT_ROWS
from vmmobility.lab.fault_terms import (
    AFTER_STOP,
    COPYING_MEMORY,
    FAULTS,
    FIRST_COPY,
    PREPARING,
    PROTECTED,
    RESTING,
    SUSPENDING,
    Mode,
    Row,
)
from vmmobility.lab.fault_warm import WARM, WARM_ROWS

MODES: Mapping[str, Mode] = {mode.name: mode for mode in (HOT, SUSPENDED, STOPPED, WARM)}

ROWS: tuple[Row, ...] = (*HOT_ROWS, *COLD_ROWS, *WARM_ROWS)


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of the table."""

    mode: str
    phase: str
    fault: str
    row: Row

    @property
    def name(self) -> str:
        """As people write it."""
        return f"{self.mode} {self.phase} {self.fault}"

    @property
    def expected(self) -> str:
        """In words."""
        words = " or ".join(outcome.value for outcome in self.row.allowed)
        return words + (", once it is mended" if self.row.once_mended else "")


# Of each mode and each fault one, the most instructive of those that take a few seconds.
QUICK: tuple[tuple[str, str, str], ...] = (
    ("hot", PREPARING, "disk-full"),
    ("hot", PREPARING, "out-of-memory"),
    ("hot", COPYING_MEMORY, "source-daemon-killed"),
    ("hot", AFTER_STOP, "manager-killed"),
    ("hot", RESTING, "source-killed"),
    ("cold-suspended", SUSPENDING, "link-cut"),
    ("cold-suspended", SUSPENDING, "source-link-cut"),
    ("cold-stopped", PREPARING, "wrong-image"),
    ("warm", FIRST_COPY, "destination-killed"),
    ("warm", FIRST_COPY, "destination-daemon-killed"),
    ("warm", FIRST_COPY, "manager-link-cut"),
    ("warm", PROTECTED, "guest-killed"),
)


def all_cells() -> Iterator[Cell]:
    """Every cell of the table, mode by mode, phase by phase."""
    rows = {(row.mode, phase, row.fault): row for row in ROWS for phase in row.phases}
    for mode in MODES.values():
        for phase in mode.phases:
            for fault in FAULTS:
                yield Cell(mode.name, phase, fault, rows[mode.name, phase, fault])


def chosen(settings: Mapping[str, str]) -> list[Cell]:
    """The cells that `mode`, `phase`, `fault` (names with commas between) and `quick` choose;
    LabError if one of them names nothing."""
    phases = list(dict.fromkeys(phase for mode in MODES.values() for phase in mode.phases))
    for key, known in (("mode", list(MODES)), ("phase", phases), ("fault", list(FAULTS))):
        for name in _names(settings, key):
            if name not in known:
                raise LabError(f"there is no {key} {name!r}", f"use some of: {', '.join(known)}")
    if settings.get("quick", "false") not in ("true", "false"):
        raise LabError(f"quick cannot be {settings['quick']!r}", "use true or false")
    quick = settings.get("quick") == "true"
    return [
        cell
        for cell in all_cells()
        if all(at in (_names(settings, key) or [at]) for key, at in
               (("mode", cell.mode), ("phase", cell.phase), ("fault", cell.fault)))
        and (not quick or (cell.mode, cell.phase, cell.fault) in QUICK)
    ]  # fmt: skip


def _names(settings: Mapping[str, str], key: str) -> list[str]:
    return [name for name in settings.get(key, "").split(",") if name]


def picture(mode: str) -> str:
    """A mode's rows as a Markdown table: faults down, in the words of the table."""
    lines = ["| Fault | Phases | Comes to | Why |", "|---|---|---|---|"]
    every = MODES[mode].phases
    for row in ROWS:
        if row.mode == mode:
            words = " or ".join(outcome.value for outcome in row.allowed)
            words += ", once it is mended" if row.once_mended else ""
            phases = "all" if row.phases == every else ", ".join(row.phases)
            lines.append(f"| {row.fault} | {phases} | {words} | {row.why} |")
    return "\n".join(lines) + "\n"
