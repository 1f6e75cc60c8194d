"""What each cell of a warm standby must come to, and why.

The VM is protected, with fail-over; its primary is the cell's source, its standby the destination.
In `failing-over` the primary's host has lost its power already, and the fault comes on top of that;
from `last-checkpoint` on people move the VM to its standby.

Not here: the other modes (fault_hot.py, fault_cold.py), judging (fault_judging.py).
"""

from __future__ import annotations

from vmmobility.lab.fault_terms import (
    CHECKPOINTING,
    FAILED,
    FAILING_OVER,
    FIRST_COPY,
    HANDED_OVER,
    LAST_CHECKPOINT,
    MOVED,
    PROTECTED,
    RESTING,
    STAYED,
    Mode,
    Outcome,
    Row,
)

_NOT = (Outcome.NOT_APPLICABLE,)
_SAFE = (CHECKPOINTING, PROTECTED)
_PLANNED = (LAST_CHECKPOINT, HANDED_OVER)

WARM = Mode("warm", (FIRST_COPY, *_SAFE, FAILING_OVER, *_PLANNED, RESTING))

_TAKES_OVER = "the standby takes over from the last complete checkpoint"
_HANDED = "the last checkpoint is complete at the standby, with every write"
_THERE = "the VM is at the standby already, and has none any more"
_DEAD = "the primary has lost its power already"
_GOES_ON = "the guest goes on; a checkpoint that failed is taken again"
_BROKEN = "the last checkpoint fails, so the guest is let go on where it is"

WARM_ROWS: tuple[Row, ...] = tuple(
    Row(WARM.name, *words)
    for words in (
        ("source-killed", (FIRST_COPY,), (FAILED,), "no checkpoint is complete"),
        ("source-killed", (*_SAFE, LAST_CHECKPOINT), (MOVED,), _TAKES_OVER),
        ("source-killed", (HANDED_OVER,), (MOVED,), _HANDED),
        ("source-killed", (FAILING_OVER,), _NOT, _DEAD),
        ("source-killed", (RESTING,), (MOVED,), _THERE),
        ("source-daemon-killed", (FIRST_COPY, *_SAFE), (STAYED,),
         "back within the lease, it finds the guest, which goes on"),
        ("source-daemon-killed", (FAILING_OVER,), _NOT, _DEAD),
        ("source-daemon-killed", (LAST_CHECKPOINT,), (MOVED, STAYED),
         "the last checkpoint goes through the daemon and breaks with it; restarted, it is asked "
         "again, or the guest goes on"),
        ("source-daemon-killed", (HANDED_OVER,), (MOVED,), _HANDED),
        ("source-daemon-killed", (RESTING,), (MOVED,), _THERE),
        ("guest-killed", (FIRST_COPY,), (FAILED,), "no checkpoint is complete"),
        ("guest-killed", (*_SAFE, LAST_CHECKPOINT), (MOVED,), _TAKES_OVER),
        ("guest-killed", (FAILING_OVER,), _NOT, _DEAD),
        ("guest-killed", (HANDED_OVER,), (MOVED,), _HANDED),
        ("guest-killed", (RESTING,), _NOT, "no QEMU is left at the primary"),
        ("destination-killed", (FIRST_COPY, *_SAFE), (STAYED,), _GOES_ON),
        ("destination-killed", (FAILING_OVER, HANDED_OVER), (MOVED,),
         "checkpoints survive their host: it is asked to take over until it answers", True),
        ("destination-killed", (LAST_CHECKPOINT,), (STAYED,), _BROKEN),
        ("destination-killed", (RESTING,), (FAILED,),
         "the only complete copy was in the memory of the host that died"),
        ("destination-daemon-killed", (FIRST_COPY, *_SAFE), (STAYED,), _GOES_ON),
        ("destination-daemon-killed", (FAILING_OVER,), (MOVED,), "restarted, it takes over"),
        ("destination-daemon-killed", (LAST_CHECKPOINT,), (STAYED,), _BROKEN),
        ("destination-daemon-killed", (HANDED_OVER,), (MOVED,), "restarted, it takes over"),
        ("destination-daemon-killed", (RESTING,), (MOVED,), "guests outlive their daemons"),
        ("manager-killed", (FIRST_COPY, *_SAFE), (STAYED,),
         "back within the lease, it finds what it had made durable"),
        ("manager-killed", (FAILING_OVER, *_PLANNED, RESTING), (MOVED,),
         "the restarted manager goes on with what it had made durable"),
        ("link-cut", (FIRST_COPY, *_SAFE), (STAYED,), _GOES_ON),
        ("link-cut", (FAILING_OVER,), _NOT, _DEAD),
        ("link-cut", (LAST_CHECKPOINT,), (STAYED,), _BROKEN),
        ("link-cut", (HANDED_OVER, RESTING), (MOVED,), _HANDED),
        ("manager-link-cut", (FIRST_COPY, *_SAFE), (STAYED,), "the standby is asked nothing"),
        ("manager-link-cut", (FAILING_OVER, *_PLANNED), (MOVED,),
         "the standby takes over once it can be told to; until then the VM is an alarm", True),
        ("manager-link-cut", (RESTING,), (MOVED,), _THERE),
        ("source-link-cut", (FIRST_COPY,), (STAYED, MOVED),
         "the primary pauses its guest; whether the first checkpoint is complete by then decides "
         "who goes on: if not, the primary, once the manager hears it again", True),
        ("source-link-cut", _SAFE, (MOVED,), "the primary pauses its guest; " + _TAKES_OVER),
        ("source-link-cut", (FAILING_OVER,), _NOT, _DEAD),
        ("source-link-cut", (LAST_CHECKPOINT,), (MOVED,), _TAKES_OVER),
        ("source-link-cut", (HANDED_OVER, RESTING), (MOVED,), _HANDED),
        ("disk-full", (FIRST_COPY, *_SAFE), (STAYED,), _GOES_ON),
        ("disk-full", (LAST_CHECKPOINT,), (STAYED,), _BROKEN),
        ("disk-full", (FAILING_OVER, HANDED_OVER, RESTING), (MOVED,),
         "the guest is stopped at its next write that needs room, and goes on when there is room",
         True),
        ("out-of-memory", (FIRST_COPY, *_SAFE, LAST_CHECKPOINT), _NOT,
         "a standby has no QEMU until it takes over"),
        ("out-of-memory", (FAILING_OVER,), (FAILED,),
         "the standby cannot start the guest, and says so; its checkpoint stays"),
        ("out-of-memory", (HANDED_OVER,), (STAYED,),
         "the standby cannot start the guest, and says so: the primary lets it go on"),
        ("out-of-memory", (RESTING,), (FAILED,), "the kernel kills the only copy"),
        ("wrong-image", (FIRST_COPY,), (STAYED,),
         "what lies there is nobody's to write over: the VM does not come to be protected"),
        ("wrong-image", (*_SAFE, FAILING_OVER, *_PLANNED, RESTING), _NOT,
         "the image is looked for when the standby opens its door"),
    )
)  # fmt: skip
