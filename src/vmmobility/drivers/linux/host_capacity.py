"""How much of this host VMs may have: its CPUs, memory and the file system of their disks.

Read from what the kernel says of the host as this process sees it; operators set limits and
reserves.  Not here: who gets it (the manager), when it is read (daemon/nve.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmmobility.engine.capacity import HostCapacity, Resources

MIB = 1 << 20
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class CapacityLimits:
    """What an operator may set.

    vcpus, memory_mib, storage_mib: what VMs may have in all; None: what the host has, less the
    reserve.  vcpus_per_cpu: so many vCPUs share a CPU.  reserve_*: kept for the host itself.
    """

    vcpus: int | None = None
    memory_mib: int | None = None
    storage_mib: int | None = None
    vcpus_per_cpu: int = 8
    reserve_memory_mib: int = 256
    reserve_storage_mib: int = 1024


def threads() -> int:
    """How many threads this host runs at once."""
    return len(os.sched_getaffinity(0))


def measure(
    limits: CapacityLimits,
    disks: Path,
    used_vcpus: int,
    cpus: Callable[[], int] = threads,
    meminfo: Path = MEMINFO,
) -> HostCapacity:
    """The host now.  disks: the folder of the VMs' disks, or one to be; used_vcpus: of the guests
    that are here.  What cannot be read is not known: 0, which limits nothing."""
    vcpus = cpus() * limits.vcpus_per_cpu if limits.vcpus is None else limits.vcpus
    memory, memory_free = _memory_mib(meminfo)
    storage, storage_free = _storage_mib(disks)
    memory, memory_free = _within(memory, memory_free, limits.memory_mib, limits.reserve_memory_mib)
    storage, storage_free = _within(
        storage, storage_free, limits.storage_mib, limits.reserve_storage_mib
    )
    return HostCapacity(
        Resources(vcpus, memory, storage),
        Resources(max(vcpus - used_vcpus, 0), memory_free, storage_free),
    )


def _within(total: int, free: int, limit: int | None, reserve: int) -> tuple[int, int]:
    if not total:
        return limit or 0, limit or 0
    most = max(total - reserve, 1) if limit is None else limit
    return most, min(max(free - reserve, 0), most)


def _memory_mib(meminfo: Path) -> tuple[int, int]:
    found: dict[str, int] = {}
    try:
        for line in meminfo.read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                found[name] = int(rest.split()[0]) // 1024
    except (OSError, ValueError, IndexError):
        return 0, 0
    return found.get("MemTotal", 0), found.get("MemAvailable", 0)


def _storage_mib(folder: Path) -> tuple[int, int]:
    """Of the file system of the folder, or of the nearest one above that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0, 0
    return found.f_blocks * found.f_frsize // MIB, found.f_bavail * found.f_frsize // MIB
