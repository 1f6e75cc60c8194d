"""What the APIs of NVEs, routers and NAPT boxes take and give.

Not here: which route takes or gives it (nve_api.py, router_api.py, napt_api.py).
Rests on schema.py.
"""

from __future__ import annotations

from vmmobility.api.common_schemas import STATUS
from vmmobility.api.schema import (
    ANYTHING,
    BOOLEAN,
    COUNT,
    NAME,
    NUMBER,
    TEXT,
    VNI,
    body,
    choice,
    listed,
    named,
    nullable,
    record,
    table,
)

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
    "vni": VNI,
    "vm": NAME,
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
# What a definition must hold besides is said by what reads it (drivers/hypervisor/definition.py).
DEFINITION = body(
    {"vm_id": NAME},
    {
        "vni": VNI,
        "kind": TEXT,
        "vcpus": COUNT,
        "memory_mib": COUNT,
        "machine": table(ANYTHING),
        "interface": listed(ANYTHING),
        "interfaces": listed(ANYTHING),
        "redirect": TEXT,
        "disk": listed(ANYTHING),
        "member": COUNT,
    },
)

# --- router ---

ROUTER_STATUS = named("RouterStatus", record({**STATUS, "routes": table(COUNT)}))
LED_VM = named(
    "LedVm",
    record(
        {
            "vni": VNI,
            "vm": NAME,
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
            "vni": VNI,
            "vm": NAME,
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
