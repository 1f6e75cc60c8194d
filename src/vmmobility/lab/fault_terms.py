"""The words of the fault matrix: outcomes, faults, modes, rows; no cell.

Not here: what each cell must come to (fault_hot.py, fault_cold.py, fault_warm.py), all of them
together (fault_table.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """How a cell ends.  The first three are ways to end well; see fault_judging.py for the rest."""

    MOVED = "moved"  # one guest runs, at the destination
    STAYED = "stayed"  # one guest runs, at the source
    FAILED = "failed"  # none runs, no complete copy survives, and the manager says so
    NOT_APPLICABLE = "not-applicable"
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


CUTS = ("link-cut", "manager-link-cut", "source-link-cut")

FAULTS: Mapping[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("source-killed", "the source's host loses power: daemon, QEMU, kernel state"),
        Fault("source-daemon-killed", "the source's NVE daemon alone, by SIGKILL", 1.0),
        Fault("guest-killed", "the source's QEMU alone, by SIGKILL"),
        Fault("destination-killed", "the destination's host loses power"),
        Fault("destination-daemon-killed", "the destination's NVE daemon alone, by SIGKILL", 1.0),
        Fault("manager-killed", "the manager, by SIGKILL", 1.0),
        Fault("link-cut", "nothing passes between source and destination"),
        Fault("manager-link-cut", "nothing passes between manager and destination"),
        Fault("source-link-cut", "nothing passes between manager and source"),
        Fault("disk-full", "no room is left where the destination's images lie"),
        Fault("out-of-memory", "the destination's QEMU gets no more memory"),
        Fault("wrong-image", "somebody else's image lies where the VM's would"),
    )
}


@dataclass(frozen=True, slots=True)
class Mode:
    """A way to move, and the phases in which it is struck, in order."""

    name: str
    phases: tuple[str, ...]


PREPARING, COPYING_DISK, COPYING_MEMORY = "preparing", "copying-disk", "copying-memory"
CONVERGED, DELIVERING = "converged", "delivering"
BEFORE_STOP, AFTER_STOP = "switching-before-stop", "switching-after-stop"
SUSPENDING, SWITCHING, WAKING = "suspending", "switching", "waking"
REDIRECTING, RESTING = "redirecting", "resting"
FIRST_COPY, CHECKPOINTING, PROTECTED = "first-copy", "checkpointing", "protected"
FAILING_OVER, LAST_CHECKPOINT, HANDED_OVER = "failing-over", "last-checkpoint", "handed-over"


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
