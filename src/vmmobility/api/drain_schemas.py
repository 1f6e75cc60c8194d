"""What the manager's API takes and gives of drains and cordons.  Rests on schema.py."""

from __future__ import annotations

from vmmobility.api.common_schemas import OF_VM
from vmmobility.api.schema import (
    BOOLEAN,
    COUNT,
    NAME,
    NUMBER,
    TEXT,
    body,
    choice,
    listed,
    named,
    nullable,
    record,
)

_STAGES = ("waiting", "moving", "moved", "left", "failed")
_DRAIN = {
    "id": NAME,
    "nve": NAME,
    "to": listed(NAME),
    "parallel": COUNT,
    "mode": choice("auto"),
    "uncordon": BOOLEAN,
    "state": choice("running", "aborting", "done", "incomplete", "aborted"),
    "ok": nullable(BOOLEAN),
    "started_ns": COUNT,
    "elapsed_s": NUMBER,
    "rest_s": nullable(NUMBER),
    "all": COUNT,
    "settled": COUNT,
    **dict.fromkeys(_STAGES, COUNT),
    "bytes": nullable(record({"copied": COUNT, "total": COUNT})),
    "reasons": listed(record({**OF_VM, "reason": TEXT})),
}
DRAIN = named("Drain", record(_DRAIN))
DRAINED_VM = named(
    "DrainedVm",
    record(
        {
            **OF_VM,
            "stage": choice(*_STAGES),
            "to": nullable(NAME),
            "move": nullable(NAME),
            "attempts": COUNT,
            "reason": TEXT,
        }
    ),
)
DRAIN_WITH_VMS = named("DrainWithVms", record({**_DRAIN, "vms": listed(DRAINED_VM)}))
NEW_DRAIN = body(
    {"nve": NAME},
    {
        "to": {"type": "array", "items": NAME, "maxItems": 1000},
        "parallel": {"type": "integer", "minimum": 1, "maximum": 64},
        "mode": choice("auto"),
        "uncordon": BOOLEAN,
    },
)
CORDON = named("Cordon", record({"nve": NAME, "cordoned": BOOLEAN, "since_ns": nullable(COUNT)}))
