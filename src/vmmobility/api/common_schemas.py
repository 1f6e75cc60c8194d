"""What the answers of several daemons hold: status, alarms, differences, interfaces.

Not here: what is one daemon's own (manager_schemas.py, node_schemas.py).  Rests on schema.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmmobility.api.schema import (
    ANYTHING,
    BOOLEAN,
    COUNT,
    NAME,
    NUMBER,
    TEXT,
    VNI,
    Schema,
    listed,
    named,
    nullable,
    record,
    table,
)

OF_VM: Mapping[str, Schema] = {"vni": VNI, "vm": NAME}
# What a definition must hold besides is said by what reads it (drivers/hypervisor/definition.py).
DEFINITION_FIELDS: Mapping[str, Schema] = {
    "vni": VNI,
    "kind": TEXT,
    "vcpus": COUNT,
    "memory_mib": COUNT,
    "machine": table(ANYTHING),
    "interfaces": listed(ANYTHING),
    "disks": listed(ANYTHING),
    "redirect": TEXT,
    "member": COUNT,
}
INTERFACE = named("Interface", record({"mac": TEXT, "addresses": listed(TEXT)}))
INTERFACES = listed(INTERFACE)

# The part of GET /v1/status that every role has.
STATUS: dict[str, Schema] = {
    "node": NAME,
    "role": NAME,
    "version": TEXT,
    "boot": COUNT,
    "uptime_s": NUMBER,
    "drops": table(COUNT),
    "unsent": COUNT,
    "log_lines_lost": COUNT,
    "counts": table(COUNT),
    "unproven": listed(TEXT),
}

ALARM = named(
    "Alarm",
    record(
        {
            "alarm": NAME,
            "vni": VNI,
            "vm": nullable(TEXT),
            "nve": nullable(TEXT),
            "for_s": nullable(NUMBER),
            "what": TEXT,
            "remedy": TEXT,
        }
    ),
)

DIFFERENCE = named(
    "Difference",
    record(
        {"what": TEXT, "expected": TEXT, "found": TEXT, "repaired": BOOLEAN},
        {"vni": VNI, "vm": nullable(TEXT), "nve": nullable(TEXT)},
    ),
)


def check_of(**more: Schema) -> Schema:
    """The answer of POST /v1/check."""
    return record({"checked": COUNT, "drift": listed(DIFFERENCE), "repaired": COUNT, **more})


CHECK = named("Check", check_of())
NEXT_HOP = record({"interface": TEXT, "gateway": nullable(TEXT)})
RULE = named(
    "Rule",
    record(
        {
            "priority": COUNT,
            "table": nullable(COUNT),
            "prefix": nullable(TEXT),
            "protocol": nullable(COUNT),
            "ours": BOOLEAN,
            "next_hops": listed(NEXT_HOP),
            "leads": BOOLEAN,
        },
        {"metric": nullable(COUNT), "kind": nullable(TEXT), "only": TEXT, "action": ANYTHING},
    ),
)
