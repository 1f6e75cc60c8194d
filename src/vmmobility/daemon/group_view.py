"""A load-shared group as people see it (docs/architecture.md, API).

Not here: who is in service (engine/manager_groups.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmmobility.engine.binding_cache import Binding
from vmmobility.engine.group_record import Group
from vmmobility.wire.values import VmKey


def group_view(group: Group, bindings: Mapping[VmKey, Binding]) -> dict[str, Any]:
    """state: `in service`, `out` (`reason` says why), or `absent`: no NVE serves it."""
    rows = []
    for vm in group.ordered:
        binding = bindings.get(vm)
        state = "in service" if vm in group.present else "out" if vm in group.out else "absent"
        rows.append(
            {
                "vm": vm.vm_id,
                "member": group.members[vm],
                "state": state,
                "nve": binding.nve.nve_id if binding else None,
                "epoch": binding.epoch if binding else None,
                "reason": group.out.get(vm, ""),
            }
        )
    return {"group": group.name, "vni": group.vni, "epoch": group.epoch, "members": rows}
