"""What the APIs of NVEs, routers and NAPT boxes take and give.

Not here: which route takes or gives it (nve_api.py, router_api.py, napt_api.py).
Rests on schema.py.
"""

from __future__ import annotations

from vmmobility.api.common_schemas import DEFINITION_FIELDS, OF_VM, STATUS
from vmmobility.api.schema import (
    ANYTHING,
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
    table,
)
from vmmobility.wire.definition_keys import PLURALS

# --- NVE ---

TUNNELS = record({"back_end": choice("kernel", "relay"), "why": TEXT, "cost": TEXT})
NVE_STATUS = named(
    "NveStatus",
    record(
        {
            **STATUS,
            "accelerator": TEXT,
            "relay_deaths": COUNT,
            "dc_prefixes": listed(TEXT),
            "servers": listed(record({"server": NAME, "connected": BOOLEAN, "reason": TEXT})),
            "tunnels": nullable(TUNNELS),
        }
    ),
)
_LOCAL_VM = {
    **OF_VM,
    "phase": NAME,
    "expected": BOOLEAN,
    "epoch": COUNT,
    "server": nullable(NAME),
    "ports": listed(TEXT),
}
_DATA_PLANE = {
    "forwarding": NAME,
    "target": nullable(NAME),
    "outside": nullable(TEXT),
    "traffic": record(
        dict.fromkeys(
            ("delivered", "consumed", "redirected", "dropped", "outside", "too_big"), COUNT
        )
    ),
}
LOCAL_VM = named("LocalVm", record(_LOCAL_VM, {**_DATA_PLANE, "guest": nullable(NAME)}))
# As in the API, or as in a file.
DEFINITION = body(
    {"vm_id": NAME},
    {**DEFINITION_FIELDS, **dict.fromkeys(PLURALS, listed(ANYTHING))},
)

# --- router ---

ROUTER_STATUS = named("RouterStatus", record({**STATUS, "routes": table(COUNT)}))
LED_VM = named(
    "LedVm",
    record(
        {
            **OF_VM,
            "state": NAME,
            "epoch": COUNT,
            "prefixes": listed(TEXT),
            "serving": nullable(NAME),
            "previous": nullable(NAME),
            "direct": nullable(BOOLEAN),
            "covered": nullable(BOOLEAN),
        }
    ),
)

# --- NAPT box ---

NAPT_STATUS = named(
    "NaptStatus",
    record(
        {
            **STATUS,
            "policy": choice("keep", "hand-over"),
            "pool": listed(TEXT),
            "pool_free": COUNT,
            "vms": COUNT,
            "nves": COUNT,
            "translation": table(ANYTHING),
        }
    ),
)
MAPPING = named(
    "MappingRow",
    record(
        {
            "kind": choice("nve", "vm"),
            "private": TEXT,
            "public": TEXT,
            "owner": NAME,
            "state": NAME,
        },
        {
            "nve": NAME,
            **OF_VM,
            "ours": BOOLEAN,
            "here": BOOLEAN,
            "holder": TEXT,
            "epoch": COUNT,
            "moving": BOOLEAN,
            "stays": TEXT,
            "due_s": NUMBER,
        },
    ),
)
