"""What the manager's API takes and gives.

Not here: which route takes or gives it (manager_api.py).  Rests on schema.py.
"""

from __future__ import annotations

from vmmobility.api.common_schemas import INTERFACES, STATUS, check_of
from vmmobility.api.schema import (
    ANYTHING,
    BOOLEAN,
    COUNT,
    NAME,
    NUMBER,
    TEXT,
    VNI,
    Schema,
    body,
    choice,
    listed,
    named,
    nullable,
    record,
    table,
)
from vmmobility.wire.move_terms import MOST
from vmmobility.wire.registry import CopyStorage, OnTimeout

MANAGER_STATUS = named(
    "ManagerStatus",
    record(
        {
            **STATUS,
            "onboarded": COUNT,
            "strict": BOOLEAN,
            "bindings": COUNT,
            "moves": COUNT,
            "api_refused": table(COUNT),
            "events_cut_off": COUNT,
            "protected": COUNT,
            "stale_s": nullable(NUMBER),
        }
    ),
)

# By an NVE's heartbeats; none: it has never sent one.
LIVENESS = choice("alive", "silent", "dead", "none")
_CAPACITY = (
    *("vcpus", "vcpus_free"),
    *("memory_mib", "memory_free_mib"),
    *("storage_mib", "storage_free_mib"),
)
CAPACITY = record(dict.fromkeys(_CAPACITY, COUNT))

_BINDING = {
    "vni": VNI,
    "vm": NAME,
    "nve": NAME,
    "epoch": COUNT,
    "lifetime_s": NUMBER,
    "expires_in_s": nullable(NUMBER),
    "interfaces": INTERFACES,
    "previous": listed(record({"nve": NAME, "acknowledged": BOOLEAN})),
    "state": choice(
        "serving", "expired", "departed", "lost", "frozen", "released", "nve-dead", "unbound"
    ),
    "nve_liveness": LIVENESS,
    "guest": choice("running", "suspended", "stopped", "none"),
    "guest_ordered": nullable(choice("running", "suspended", "stopped", "none")),
    "guest_error": TEXT,
}
_MAPPINGS = {"mappings": listed(record({"box": NAME, "private": TEXT, "public": TEXT}))}
BINDING = named("Binding", record(_BINDING, _MAPPINGS))

_TERMS: dict[str, Schema] = {
    **{key: {"type": "integer", "minimum": 1, "maximum": most} for key, most in MOST.items()},
    "on_timeout": choice(*(policy.name.lower() for policy in OnTimeout)),
    "copy_storage": choice(*(which.name.lower() for which in CopyStorage)),
}
PROGRESS_KEYS = ("disk_bytes", "disk_total_bytes", "memory_bytes", "memory_total_bytes")
_MODES = choice("hot", "warm", "cold")
MOVE = named(
    "Move",
    record(
        {
            "id": NAME,
            "vni": VNI,
            "vm": NAME,
            "from": NAME,
            "to": NAME,
            "mode": _MODES,
            "state": NAME,
            "ok": nullable(BOOLEAN),
            "reason": TEXT,
            "epoch": nullable(COUNT),
            "started_ns": COUNT,
            "phases": listed(record({"name": NAME, "at_ms": NUMBER})),
            "measured": table(ANYTHING),
            "terms": record({}, _TERMS),
            "progress": record({}, dict.fromkeys(PROGRESS_KEYS, COUNT)),
        }
    ),
)
NEW_MOVE = body({"vm": NAME, "to": NAME}, {"vni": VNI, "mode": _MODES, **_TERMS})

_RESOURCES = {"vcpus": COUNT, "memory_mib": COUNT, "storage_mib": COUNT, "threads": COUNT}
_PLACEMENT = {"nves": listed(NAME), "dc": TEXT, "anti_affinity": listed(NAME)}
_OFFER = record({"nve": NAME, "resources": record(_RESOURCES), "expires_in_s": NUMBER})
LIFE_STATES = choice(
    *("requested", "offered", "confirmed", "provisioning", "running", "migrating"),
    *("protected", "suspended", "stopped", "deleted", "failed"),
)
_LIFE = {
    "vni": VNI,
    "vm": NAME,
    "state": LIFE_STATES,
    "nve": NAME,
    "reason": TEXT,
    "client_key": NAME,
    "resources": record(_RESOURCES),
    "offer": nullable(_OFFER),
    "placement": record(_PLACEMENT),
}
LIFE = named("Life", record(_LIFE))
NEW_VM = body(
    {"client_key": NAME, "vm_id": NAME},
    {
        "vni": VNI,
        "kind": NAME,
        "vcpus": COUNT,
        "memory_mib": COUNT,
        "machine": table(ANYTHING),
        "redirect": TEXT,
        "interfaces": listed(ANYTHING),
        "disks": listed(ANYTHING),
        "resources": body({}, _RESOURCES),
        "placement": body({}, _PLACEMENT),
    },
)
CONFIRMATION = body({}, {"resources": body({}, _RESOURCES)})

VM = named(
    "Vm",
    record(
        {
            **_BINDING,
            "move": {"type": ["object", "null"]},
            "protection": {"type": ["object", "null"]},
            "lifecycle": nullable(record(_LIFE)),
        },
        _MAPPINGS,
    ),
)

NVE = named(
    "NveRow",
    record(
        {
            "nve": NAME,
            "addresses": listed(TEXT),
            "last_heard_s": nullable(NUMBER),
            "proven": BOOLEAN,
            "vms": COUNT,
            "liveness": LIVENESS,
            "silent_s": nullable(NUMBER),
            "boot": nullable(COUNT),
            "capacity": nullable(CAPACITY),
            "cordoned": BOOLEAN,
        },
        {"via": NAME},
    ),
)

ROUTER = named(
    "RouterRow",
    record(
        {
            "router": NAME,
            "role": choice("default-router", "border-router"),
            "dc": TEXT,
            "serves": listed(NAME),
            "last_heard_s": nullable(NUMBER),
            "proven": BOOLEAN,
            "vms": COUNT,
            "announced": COUNT,
            "unanswered": COUNT,
        }
    ),
)

ROUTE = named(
    "Route",
    record(
        {
            "vni": VNI,
            "vm": NAME,
            "router": NAME,
            "state": choice("none", "watch", "keep", "lead", "announce"),
            "serving": nullable(NAME),
            "epoch": COUNT,
            "acknowledged": BOOLEAN,
            "direct": nullable(BOOLEAN),
        }
    ),
)

ONBOARDED = named(
    "Onboarded", record({"vni": VNI, "vm": NAME, "interfaces": INTERFACES, "nves": listed(NAME)})
)
NEW_ONBOARDED = body(
    {"vm_id": NAME}, {"vni": VNI, "interfaces": listed(ANYTHING), "nves": listed(NAME)}
)

_MEMBER = record(
    {
        "vm": NAME,
        "member": COUNT,
        "state": choice("in service", "out", "absent"),
        "nve": nullable(NAME),
        "epoch": nullable(COUNT),
        "reason": TEXT,
    }
)
GROUP = named(
    "Group", record({"group": NAME, "vni": VNI, "epoch": COUNT, "members": listed(_MEMBER)})
)
NEW_GROUP = body({"members": table(COUNT)}, {"vni": VNI})

CHECK = named("ManagerCheck", check_of(unanswered=listed(NAME)))

STEP = named(
    "TraceStep",
    record(
        {
            "node": NAME,
            "role": TEXT,
            "decision": TEXT,
            "to": nullable(TEXT),
            "detail": TEXT,
            "ok": BOOLEAN,
            "wrong": TEXT,
        }
    ),
)
TRACE = named(
    "Trace",
    record(
        {
            "address": TEXT,
            "vni": VNI,
            "vm": nullable(TEXT),
            "serving": nullable(TEXT),
            "from": nullable(TEXT),
            "arrives": nullable(BOOLEAN),
            "ok": BOOLEAN,
            "silent": listed(NAME),
            "steps": listed(STEP),
        }
    ),
)
