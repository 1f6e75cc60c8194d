"""What each cell of a cold move must come to, and why.

Of a VM that runs, which is suspended for it and wakes at its end, and of one that is stopped: that
one is started once all is at rest, and where it runs then is where its disk is.

Not here: the other modes (fault_hot.py, fault_warm.py), judging (fault_judging.py).
"""

from __future__ import annotations

from vmmobility.lab.fault_terms import (
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
    SUSPENDING,
    SWITCHING,
    WAKING,
    Mode,
    Outcome,
    Row,
)

_NOT = (Outcome.NOT_APPLICABLE,)
_THERE = "the VM is at the destination already"
_HERE = "whatever was copied, the VM is at the source until the destination registers it"
_LOOKED = (
    "the image is looked for when room is made for the copy; from then on the one there is the "
    "NVE's own, marked, and locked by its QEMU"
)
_LAST = "whether the last octets had left decides: it is where the copy is whole, and nowhere else"
_WAITS = "the ends finish by themselves; the manager, who may guess nothing, waits and says so"

# -- a VM that runs: suspended, moved with its memory, woken ------------------------------------

_EARLY = (SUSPENDING, PREPARING)
_COPYING = (COPYING_DISK, COPYING_MEMORY, CONVERGED, DELIVERING)
_LATE = (REDIRECTING, WAKING, RESTING)

SUSPENDED = Mode("cold-suspended", (*_EARLY, *_COPYING, SWITCHING, *_LATE))

_SUSPENDED: tuple[Row, ...] = tuple(
    Row(SUSPENDED.name, *words)
    for words in (
        ("source-killed", (PREPARING,), (MOVED,),
         "its memory is gone with the host; its disk is whole: once it is back that is moved, and "
         "boots, for it is to run", True),
        ("source-killed", (SUSPENDING, *_COPYING), (STAYED,),
         "its memory is gone with the host; its disk is whole: it boots there, for it is to run",
         True),
        ("source-killed", (SWITCHING,), (MOVED, STAYED), _LAST, True),
        ("source-killed", _LATE, (MOVED,), _THERE),
        ("source-daemon-killed", _EARLY, (MOVED,),
         "the guest stays suspended; nothing has been copied yet"),
        ("source-daemon-killed", _COPYING, (STAYED,),
         "the copy goes through the daemon and breaks with it; the guest is let go on there"),
        ("source-daemon-killed", (SWITCHING,), (MOVED, STAYED), _LAST),
        ("source-daemon-killed", _LATE, (MOVED,), _THERE),
        ("guest-killed", (SWITCHING,), (MOVED, STAYED), _LAST),
        ("guest-killed", _EARLY, (MOVED,),
         "its memory is gone with it; its disk is whole: that is moved, and boots, for it is to "
         "run"),
        ("guest-killed", _COPYING, (STAYED, FAILED),
         "its memory is gone with it; its disk is whole: it boots there, for it is to run, unless "
         "its NVE was told to let it go on before it had seen its end: then it is stopped, and the "
         "manager says why"),
        ("guest-killed", (REDIRECTING, WAKING), (MOVED,), _THERE),
        ("guest-killed", (RESTING,), _NOT, "no QEMU is left at the source"),
        ("destination-killed", (*_EARLY, *_COPYING), (STAYED,), _HERE),
        ("destination-killed", (SWITCHING,), (STAYED,),
         "until its host is back nobody can say that the guest has not come there", True),
        ("destination-killed", (REDIRECTING,), (FAILED, MOVED),
         "the only copy of its memory is gone; it boots there if nobody knew yet that it had gone "
         "on", True),
        ("destination-killed", (RESTING,), (FAILED,),
         "the only copy of its memory is gone: a guest that ran is not booted by itself"),
        ("destination-killed", (WAKING,), (MOVED,),
         "its memory is gone; its disk is whole: it boots there, for it is to wake", True),
        ("destination-daemon-killed", (SUSPENDING,), (MOVED, STAYED),
         "it is asked until it is back, but no longer than a step's time: then the move is off"),
        ("destination-daemon-killed", (PREPARING, *_COPYING), (STAYED,),
         "the disks come in through the daemon: the copy breaks with it"),
        ("destination-daemon-killed", (SWITCHING,), (MOVED, STAYED), _LAST),
        ("destination-daemon-killed", _LATE, (MOVED,), "guests outlive their daemons"),
        ("manager-killed", SUSPENDED.phases, (MOVED,),
         "the restarted manager enters the durable state of the move again"),
        ("link-cut", (*_EARLY, *_COPYING), (STAYED,), _HERE),
        ("link-cut", (SWITCHING,), (MOVED, STAYED), _LAST),
        ("link-cut", _LATE, (MOVED,), _THERE),
        ("manager-link-cut", (*_EARLY, *_COPYING), (STAYED,),
         "the destination cannot be asked: the move is given up, and the guest let go on"),
        ("manager-link-cut", (SWITCHING, WAKING), (MOVED,), _WAITS, True),
        ("manager-link-cut", (REDIRECTING, RESTING), (MOVED,), _THERE),
        ("source-link-cut", (SUSPENDING,), (STAYED,),
         "the source does not answer in time: the move is given up before it began, and the guest "
         "let go on once it can be told", True),
        ("source-link-cut", (PREPARING, COPYING_DISK, COPYING_MEMORY, CONVERGED), (MOVED,),
         "the copy goes on; the move goes on when the source is heard again", True),
        ("source-link-cut", (DELIVERING,), (STAYED,),
         "the source does not answer in the switch: the destination's guest is ended, and the "
         "source told to serve on", True),
        ("source-link-cut", (SWITCHING, *_LATE), (MOVED,), "the ends finish by themselves"),
        ("disk-full", (*_EARLY, COPYING_DISK), (STAYED,), "the copy finds no room"),
        ("disk-full", (COPYING_MEMORY, CONVERGED, DELIVERING, SWITCHING, *_LATE), (MOVED,),
         "all of the disk has come; the guest is stopped at its next write that needs room, and "
         "goes on when there is room", True),
        ("out-of-memory", (SWITCHING,), (MOVED, STAYED), _LAST),
        ("out-of-memory", (*_EARLY, *_COPYING), (STAYED,),
         "its QEMU does not start, or the kernel kills it; the source has the guest"),
        ("out-of-memory", (REDIRECTING,), (FAILED, MOVED),
         "the kernel kills the only copy; it boots there if nobody knew yet that it had gone on"),
        ("out-of-memory", (RESTING,), (FAILED,), "the kernel kills the only copy"),
        ("out-of-memory", (WAKING,), (MOVED,),
         "its memory is gone; its disk is whole: it boots there, for it is to wake"),
        ("wrong-image", _EARLY, (STAYED,),
         "what lies there unmarked is nobody's to write over: the move is refused"),
        ("wrong-image", (*_COPYING, SWITCHING, *_LATE), _NOT, _LOOKED),
    )
)  # fmt: skip

# -- a VM that is stopped: its disk alone -------------------------------------------------------

_LENT = (COPYING_DISK, CONVERGED, DELIVERING)

STOPPED = Mode("cold-stopped", (PREPARING, *_LENT, SWITCHING, REDIRECTING, RESTING))

_STOPPED: tuple[Row, ...] = tuple(
    Row(STOPPED.name, *words)
    for words in (
        ("source-killed", (PREPARING,), (MOVED,),
         "nothing has begun at the source: it is asked for the copy once its host is back", True),
        ("source-killed", (SWITCHING,), (MOVED, STAYED), _LAST, True),
        ("source-killed", _LENT, (STAYED,),
         "disks survive their host: it can be started there once that is back", True),
        ("source-killed", (REDIRECTING, RESTING), (MOVED,), _THERE),
        ("source-daemon-killed", (PREPARING,), (MOVED,), "nothing has begun at the source"),
        ("source-daemon-killed", (SWITCHING,), (MOVED, STAYED), _LAST),
        ("source-daemon-killed", _LENT, (STAYED,),
         "the copy goes through the daemon and breaks with it"),
        ("source-daemon-killed", (REDIRECTING, RESTING), (MOVED,), _THERE),
        ("guest-killed", (PREPARING,), _NOT, "no QEMU is there yet: the VM is stopped"),
        ("guest-killed", (SWITCHING,), (MOVED, STAYED), _LAST),
        ("guest-killed", _LENT, (STAYED,),
         "the process that was lent for the copy is gone; the disk is not"),
        ("guest-killed", (REDIRECTING,), (MOVED,), _THERE),
        ("guest-killed", (RESTING,), _NOT, "no QEMU is left at the source"),
        ("destination-killed", (PREPARING, *_LENT), (STAYED,), _HERE),
        ("destination-killed", (SWITCHING,), (STAYED,),
         "until its host is back nobody can say that the VM has not come there", True),
        ("destination-killed", (REDIRECTING, RESTING), (MOVED,),
         "disks survive their host: it can be started there once that is back", True),
        ("destination-daemon-killed", (PREPARING, *_LENT), (STAYED,),
         "the disks come in through the daemon: the copy breaks with it"),
        ("destination-daemon-killed", (SWITCHING,), (MOVED, STAYED), _LAST),
        ("destination-daemon-killed", (REDIRECTING, RESTING), (MOVED,), _THERE),
        ("manager-killed", STOPPED.phases, (MOVED,),
         "the restarted manager enters the durable state of the move again"),
        ("link-cut", (SWITCHING,), (MOVED, STAYED), _LAST),
        ("link-cut", (PREPARING, *_LENT), (STAYED,), _HERE),
        ("link-cut", (REDIRECTING, RESTING), (MOVED,), _THERE),
        ("manager-link-cut", (PREPARING, *_LENT), (STAYED,),
         "the destination cannot be asked: the move is given up"),
        ("manager-link-cut", (SWITCHING,), (MOVED,), _WAITS, True),
        ("manager-link-cut", (REDIRECTING, RESTING), (MOVED,), _THERE),
        ("source-link-cut", (PREPARING, COPYING_DISK, CONVERGED), (MOVED,),
         "the copy goes on; the move goes on when the source is heard again", True),
        ("source-link-cut", (DELIVERING,), (STAYED,),
         "the source does not answer in the switch: the copy is ended at the destination", True),
        ("source-link-cut", (SWITCHING, REDIRECTING, RESTING), (MOVED,),
         "the ends finish by themselves"),
        ("disk-full", (PREPARING, COPYING_DISK), (STAYED,), "the copy finds no room"),
        ("disk-full", (CONVERGED, DELIVERING, SWITCHING, REDIRECTING, RESTING), (MOVED,),
         "all of the disk has come, and nobody writes to it"),
        ("out-of-memory", (SWITCHING,), (MOVED, STAYED), _LAST),
        ("out-of-memory", (PREPARING, *_LENT), (STAYED,),
         "the QEMU that is lent there for the copy does not start, or the kernel kills it"),
        ("out-of-memory", (REDIRECTING, RESTING), _NOT, "a VM that is stopped has no QEMU"),
        ("wrong-image", (PREPARING,), (STAYED,),
         "what lies there unmarked is nobody's to write over: the move is refused"),
        ("wrong-image", (*_LENT, SWITCHING, REDIRECTING, RESTING), _NOT, _LOOKED),
    )
)  # fmt: skip

COLD_ROWS = _SUSPENDED + _STOPPED
