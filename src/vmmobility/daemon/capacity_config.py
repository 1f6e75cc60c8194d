"""[capacity]: what VMs may have of a host, in nve.toml and server.toml.

Not here: how the host is measured (drivers/linux/host_capacity.py).  Rests on toml_table.py.
"""

from __future__ import annotations

from vmmobility.daemon.toml_table import Table
from vmmobility.drivers.linux.host_capacity import CapacityLimits

LIMITS = CapacityLimits()


def capacity_of(table: Table) -> CapacityLimits:
    """Raises ConfigError."""

    def limit(name: str) -> int | None:
        return table.integer(name, 0, 1 << 31) if name in table else None

    made = CapacityLimits(
        limit("vcpus"),
        limit("memory_mib"),
        limit("storage_mib"),
        table.integer("vcpus_per_cpu", 1, 1024, LIMITS.vcpus_per_cpu),
        table.integer("reserve_memory_mib", 0, 1 << 31, LIMITS.reserve_memory_mib),
        table.integer("reserve_storage_mib", 0, 1 << 31, LIMITS.reserve_storage_mib),
    )
    table.finish()
    return made
