"""The room of hosts, and servers of NVEs that stand apart, as people see them (docs/api.md).

Not here: what is known of them (engine/manager_liveness.py).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from vmmobility.engine.capacity import HostCapacity
from vmmobility.engine.manager import ManagerEngine


def capacity_view(host: HostCapacity) -> dict[str, Any]:
    return {
        "vcpus": host.total.vcpus,
        "vcpus_free": host.free.vcpus,
        "memory_mib": host.total.memory_mib,
        "memory_free_mib": host.free.memory_mib,
        "storage_mib": host.total.storage_mib,
        "storage_free_mib": host.free.storage_mib,
    }


def server_rows(engine: ManagerEngine, nve_id: str, now: float) -> list[dict[str, Any]]:
    """An NVE's servers, by its last word."""
    there = [b for b in engine.cache.bindings.values() if b.nve.nve_id == nve_id]
    vms = Counter(binding.server for binding in there)
    return [
        {
            "server": name,
            "liveness": seen.liveness,
            "silent_s": None if seen.silent is None else round(now - seen.silent, 3),
            "vms": vms[name],
            "threads": seen.room.threads,
            "capacity": capacity_view(seen.room.host),
        }
        for name, seen in engine.servers_of(nve_id).items()
    ]
