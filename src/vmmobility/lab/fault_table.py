"""The fault matrix as data: modes, their phases, faults, and what each cell must come to.

A cell is a fault that strikes in a phase of a mode.  Every pair is in ROWS exactly once; one that
makes no sense is there as NOT_APPLICABLE with its reason.  Not here: how a phase is held
(fault_holds.py), how a fault strikes (fault_strikes.py), judging (fault_judging.py).  The words
stand in docs/design/faults.md, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from vmmobility.errors import LabError


class Outcome(Enum):
    """How a cell ends.  The first three are ways to end well; see fault_judging.py for the rest."""

    MOVED = "moved"  # one guest runs, at the destination
    STAYED = "stayed"  # one guest runs, at the source
    FAILED = "failed"  # none runs, no complete copy survives, and the manager says so
    NOT_APPLICABLE = "not-applicable"
    NOT_PLAYED = "not-played"  # the matrix has no way to play this mode yet
    MISSED = "missed"  # the phase had passed whenever it was to be struck
    TWICE = "twice"  # two ran at a time
    NOWHERE = "nowhere"  # none runs, and nobody says so
    LOST_WRITES = "lost-writes"
    UNSETTLED = "unsettled"  # it does not come to rest, or something is left over
    BROKEN = "broken"  # the lab itself could not play it


MOVED, STAYED, FAILED = Outcome.MOVED, Outcome.STAYED, Outcome.FAILED


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong.  lasts_s: until it is mended, at the latest; None: until the manager has
    said how the move ends, or the stated time is over."""

    name: str
    words: str
    lasts_s: float | None = None


FAULTS: Mapping[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("source-killed", "the source's host loses power: daemon, QEMU, kernel state"),
        Fault("source-daemon-killed", "the source's NVE daemon alone, by SIGKILL", 1.0),
        Fault("destination-killed", "the destination's host loses power"),
        Fault("destination-daemon-killed", "the destination's NVE daemon alone, by SIGKILL", 1.0),
        Fault("manager-killed", "the manager, by SIGKILL", 1.0),
        Fault("link-cut", "nothing passes between source and destination"),
        Fault("manager-link-cut", "nothing passes between manager and destination"),
        Fault("disk-full", "no room is left where the destination's images lie"),
        Fault("out-of-memory", "the destination's QEMU gets no more memory"),
        Fault("wrong-image", "somebody else's image lies where the VM's would"),
    )
}


@dataclass(frozen=True, slots=True)
class Mode:
    """A way to move, and the phases in which it is struck, in order.  pending: why it is not played
    yet, "" if it is."""

    name: str
    phases: tuple[str, ...]
    pending: str = ""


PREPARING, COPYING_DISK, COPYING_MEMORY = "preparing", "copying-disk", "copying-memory"
CONVERGED, DELIVERING = "converged", "delivering"
BEFORE_STOP, AFTER_STOP = "switching-before-stop", "switching-after-stop"
REDIRECTING, RESTING = "redirecting", "resting"
_BEFORE = (PREPARING, COPYING_DISK, COPYING_MEMORY, CONVERGED, DELIVERING, BEFORE_STOP)
_COPYING = (COPYING_DISK, COPYING_MEMORY, CONVERGED, DELIVERING, BEFORE_STOP)
_AFTER = (REDIRECTING, RESTING)

_COLD = (PREPARING, COPYING_DISK, COPYING_MEMORY, CONVERGED, DELIVERING, "switching")
_PENDING = "the matrix does not play it yet: how its phases are held is not written"

MODES: Mapping[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("hot", (*_BEFORE, AFTER_STOP, *_AFTER)),
        Mode("cold-suspended", ("suspending", *_COLD, REDIRECTING, "waking", RESTING), _PENDING),
        Mode("cold-stopped", (*_COLD, REDIRECTING, RESTING), _PENDING),
        Mode("warm", ("first-copy", "checkpointing", "protected", "failing-over", "last-checkpoint",
                      RESTING), _PENDING),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """What a fault in these phases must come to, and why.  allowed: more than one only where the
    design leaves both open.  once_mended: it comes to that only when the fault is over."""

    mode: str
    fault: str
    phases: tuple[str, ...]
    allowed: tuple[Outcome, ...]
    why: str
    once_mended: bool = False


_GONE = "the only complete copy was in the memory of the host that died"
_LOOKED = (
    "the image is looked for when room is made for the copy; from then on the one there is the "
    "NVE's own, marked, and locked by its QEMU"
)

HOT: tuple[Row, ...] = tuple(
    Row("hot", *words)
    for words in (
        ("source-killed", (*_BEFORE, AFTER_STOP), (FAILED,), _GONE),
        ("source-killed", _AFTER, (MOVED,), "the guest runs at the destination already"),
        ("source-daemon-killed", (PREPARING,), (MOVED,),
         "nothing has begun at the source: it is asked for the copy once it is back"),
        ("source-daemon-killed", (*_COPYING, AFTER_STOP), (STAYED,),
         "the copy goes through the daemon and breaks with it; the guest goes on there"),
        ("source-daemon-killed", _AFTER, (MOVED,), "the guest runs at the destination already"),
        ("destination-killed", _BEFORE, (STAYED,), "the guest has never stopped at the source"),
        ("destination-killed", (AFTER_STOP,), (STAYED,),
         "the destination has not got the last of it; until its host is back nobody can say so, "
         "and the move is an alarm", True),
        ("destination-killed", _AFTER, (FAILED,), _GONE),
        ("destination-daemon-killed", (PREPARING,), (STAYED,),
         "the door for the disks ends with the daemon: restarted, it reports that what it had "
         "prepared is gone"),
        ("destination-daemon-killed", (*_COPYING, AFTER_STOP), (STAYED,),
         "the disks come in through the daemon: the copy breaks with it"),
        ("destination-daemon-killed", _AFTER, (MOVED,), "guests outlive their daemons"),
        ("manager-killed", (*_BEFORE, AFTER_STOP, *_AFTER), (MOVED,),
         "the restarted manager enters the durable state of the move again; the ends go on"),
        ("link-cut", _BEFORE, (STAYED,), "the copy breaks; the guest has never stopped"),
        ("link-cut", (AFTER_STOP,), (STAYED,),
         "the last of the memory does not leave, so QEMU lets the guest go on at the source"),
        ("link-cut", _AFTER, (MOVED,), "the guest runs at the destination already"),
        ("manager-link-cut", (PREPARING, COPYING_DISK, COPYING_MEMORY, CONVERGED, DELIVERING),
         (STAYED,), "the destination cannot be told to deliver, so the source is told to go on"),
        ("manager-link-cut", (BEFORE_STOP, AFTER_STOP), (MOVED,),
         "the ends finish by themselves; the manager, who may guess nothing, waits and says so",
         True),
        ("manager-link-cut", _AFTER, (MOVED,), "the guest runs at the destination already"),
        ("disk-full", _BEFORE, (STAYED,),
         "a write that does not reach both ends fails the copy, not the guest"),
        ("disk-full", (AFTER_STOP, *_AFTER), (MOVED,),
         "the guest is stopped at its next write that needs room, and goes on when there is room",
         True),
        ("out-of-memory", (*_BEFORE, AFTER_STOP), (STAYED,),
         "its QEMU does not start, or the kernel kills it; the source has the guest"),
        ("out-of-memory", _AFTER, (FAILED,), "the kernel kills the only copy"),
        ("wrong-image", (PREPARING,), (STAYED,),
         "what lies there unmarked is nobody's to write over: the move is refused"),
        ("wrong-image", (*_COPYING, AFTER_STOP, *_AFTER), (Outcome.NOT_APPLICABLE,), _LOOKED),
    )
)  # fmt: skip

ROWS: tuple[Row, ...] = HOT


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of the table."""

    mode: str
    phase: str
    fault: str
    row: Row | None

    @property
    def name(self) -> str:
        """As people write it."""
        return f"{self.mode} {self.phase} {self.fault}"

    @property
    def expected(self) -> str:
        """In words."""
        if self.row is None:
            return Outcome.NOT_PLAYED.value
        words = " or ".join(outcome.value for outcome in self.row.allowed)
        return words + (", once it is mended" if self.row.once_mended else "")


# The most instructive, at the price of a few seconds each.
QUICK: tuple[tuple[str, str, str], ...] = (
    ("hot", COPYING_DISK, "destination-daemon-killed"),
    ("hot", AFTER_STOP, "manager-killed"),
    ("hot", AFTER_STOP, "source-daemon-killed"),
)


def all_cells() -> Iterator[Cell]:
    """Every cell of the table, mode by mode, phase by phase."""
    rows = {(row.mode, phase, row.fault): row for row in ROWS for phase in row.phases}
    for mode in MODES.values():
        for phase in mode.phases:
            for fault in FAULTS:
                yield Cell(mode.name, phase, fault, rows.get((mode.name, phase, fault)))


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
    if MODES[mode].pending:
        return f"Not played: {MODES[mode].pending}.\n"
    lines = ["| Fault | Phases | Comes to | Why |", "|---|---|---|---|"]
    every = MODES[mode].phases
    for row in ROWS:
        if row.mode == mode:
            words = " or ".join(outcome.value for outcome in row.allowed)
            words += ", once it is mended" if row.once_mended else ""
            phases = "all" if row.phases == every else ", ".join(row.phases)
            lines.append(f"| {row.fault} | {phases} | {words} | {row.why} |")
    return "\n".join(lines) + "\n"
