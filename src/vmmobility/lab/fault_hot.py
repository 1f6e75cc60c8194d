"""What each cell of a hot move must come to, and why.

Not here: the other modes (fault_cold.py, fault_warm.py), judging (fault_judging.py).
"""

from __future__ import annotations

from vmmobility.lab.fault_terms import (
    AFTER_STOP,
    BEFORE_STOP,
    CONVERGED,
    COPYING_DISK,
    COPYING_MEMORY,
    DELIVERING,
    FAILED,
    MOVED,
    PREPARING,
    REDIRECTING,
    RESTING,
    STAYED,
    Mode,
    Outcome,
    Row,
)

_BEFORE = (PREPARING, COPYING_DISK, COPYING_MEMORY, CONVERGED, DELIVERING, BEFORE_STOP)
_COPYING = (COPYING_DISK, COPYING_MEMORY, CONVERGED, DELIVERING, BEFORE_STOP)
_AFTER = (REDIRECTING, RESTING)

HOT = Mode("hot", (*_BEFORE, AFTER_STOP, *_AFTER))

_GONE = "the only complete copy was in the memory of the host that died"
_LOOKED = (
    "the image is looked for when room is made for the copy; from then on the one there is the "
    "NVE's own, marked, and locked by its QEMU"
)

HOT_ROWS: tuple[Row, ...] = tuple(
    Row("hot", *words)
    for words in (
        ("source-killed", (*_BEFORE, AFTER_STOP), (FAILED,), _GONE),
        ("source-killed", _AFTER, (MOVED,), "the guest runs at the destination already"),
        ("source-daemon-killed", (PREPARING,), (MOVED,),
         "nothing has begun at the source: it is asked for the copy once it is back"),
        ("source-daemon-killed", (*_COPYING, AFTER_STOP), (STAYED,),
         "the copy goes through the daemon and breaks with it; the guest goes on there"),
        ("source-daemon-killed", _AFTER, (MOVED,), "the guest runs at the destination already"),
        ("guest-killed", (*_BEFORE, AFTER_STOP), (FAILED,), "the only copy was in its memory"),
        ("guest-killed", (REDIRECTING,), (MOVED,), "the guest runs at the destination already"),
        ("guest-killed", (RESTING,), (Outcome.NOT_APPLICABLE,), "no QEMU is left at the source"),
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
        ("source-link-cut", (PREPARING, COPYING_DISK, COPYING_MEMORY, CONVERGED), (MOVED,),
         "the guest runs on, its copy goes on; the move goes on when the source is heard again",
         True),
        ("source-link-cut", (DELIVERING, BEFORE_STOP), (STAYED,),
         "the source does not answer in the switch: the destination's guest is ended, and the "
         "source told to serve on", True),
        ("source-link-cut", (AFTER_STOP, *_AFTER), (MOVED,), "the ends finish by themselves"),
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
