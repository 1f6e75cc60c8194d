"""What the manager's API takes and gives of warm standbys.  Rests on schema.py."""

from __future__ import annotations

from vmmobility.api.schema import (
    BOOLEAN,
    COUNT,
    NAME,
    NUMBER,
    TEXT,
    VNI,
    Schema,
    body,
    choice,
    named,
    nullable,
    record,
)

_AT: Schema = {"type": "string", "minLength": 5, "maxLength": 5}
_STATES = ("preparing", "arming", "active", "handing", "taking-over", "failed", "ending")
PROTECTION = named(
    "Protection",
    record(
        {
            "vni": VNI,
            "vm": NAME,
            "nve": nullable(NAME),
            "standby": NAME,
            "state": choice(*_STATES),
            "every_s": NUMBER,
            "at": nullable(_AT),
            "next_s": nullable(NUMBER),
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
        "at": _AT,
        "fail_over": BOOLEAN,
        "lease_s": {"type": "number", "minimum": 2, "maximum": 3600},
    },
)
