"""What the manager's API takes and gives of warm standbys.  Rests on schema.py."""

from __future__ import annotations

from vmmobility.api.common_schemas import OF_VM
from vmmobility.api.schema import (
    BOOLEAN,
    COUNT,
    NAME,
    NUMBER,
    TEXT,
    VNI,
    body,
    choice,
    named,
    nullable,
    record,
)

_STATES = ("preparing", "arming", "active", "handing", "taking-over", "failed", "ending")
PROTECTION = named(
    "Protection",
    record(
        {
            **OF_VM,
            "nve": nullable(NAME),
            "standby": NAME,
            "state": choice(*_STATES),
            "every_s": NUMBER,
            "fail_over": BOOLEAN,
            "lease_s": NUMBER,
            "checkpoint": COUNT,
            "staleness_s": nullable(NUMBER),
            "reason": TEXT,
        }
    ),
)
NEW_PROTECTION = body(
    {"to": NAME},
    {
        "vni": VNI,
        "every_s": {"type": "number", "minimum": 1, "maximum": 604800},
        "fail_over": BOOLEAN,
        "lease_s": {"type": "number", "minimum": 2, "maximum": 3600},
    },
)
