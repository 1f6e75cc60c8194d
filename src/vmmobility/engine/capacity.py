"""How much of a host VMs may have: counts of vCPUs and MiB, and sums of them.

Not here: how a host is measured (drivers/linux/host_capacity.py), who gets it
(manager_admission.py).  Rests on wire/options.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from vmmobility.wire.options import Capacity, ServerCapacity

MOST = 0xFFFF_FFFF  # what an option's field holds


@dataclass(frozen=True, slots=True)
class Resources:
    """What a VM has, or a host has for VMs."""

    vcpus: int = 0
    memory_mib: int = 0
    storage_mib: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            self.vcpus + other.vcpus,
            self.memory_mib + other.memory_mib,
            self.storage_mib + other.storage_mib,
        )


NOTHING = Resources()


@dataclass(frozen=True, slots=True)
class HostCapacity:
    """What VMs may have of a host in all, and what of it a new one may still get by what the host
    sees of its own use.  A total of 0 is not known: it limits nothing."""

    total: Resources = NOTHING
    free: Resources = NOTHING


UNKNOWN = HostCapacity()


@dataclass(frozen=True, slots=True)
class ServerRoom:
    """One server of an NVE that stands apart from them.

    answers: its agent does; threads: that its host runs at once, 0: not known
    """

    name: str
    answers: bool
    threads: int = 0
    host: HostCapacity = UNKNOWN


@lru_cache(maxsize=16384)
def resources_of(definition: bytes) -> Resources:
    """What a VM's definition asks of its host.

    Light VMs are namespaces, and take nothing; what guests of other hands have is their hands'
    affair, and is seen in what the host has free.  A definition that cannot be read: nothing."""
    try:
        told = json.loads(definition)
        if told.get("kind", "qemu") != "qemu":
            return NOTHING
        disks = sum(_count(disk.get("size_mib")) for disk in told.get("disk", ()))
        return Resources(_count(told.get("vcpus")), _count(told.get("memory_mib")), disks)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return NOTHING


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def all_of(servers: Iterable[ServerRoom]) -> HostCapacity:
    """What those servers that answer have together, for people.  A VM must fit one of them."""
    hosts = [server.host for server in servers if server.answers]
    total = sum((host.total for host in hosts), NOTHING)
    return HostCapacity(total, sum((host.free for host in hosts), NOTHING))


def to_server_option(server: ServerRoom) -> ServerCapacity:
    """What a heartbeat tells of one."""
    total, free = server.host.total, server.host.free
    numbers = (
        server.threads,
        *(total.vcpus, free.vcpus),
        *(total.memory_mib, free.memory_mib),
        *(total.storage_mib, free.storage_mib),
    )
    held = (min(max(number, 0), MOST) for number in numbers)
    return ServerCapacity(server.name, server.answers, *held)


def from_server_option(told: ServerCapacity) -> ServerRoom:
    host = HostCapacity(
        Resources(told.vcpus, told.memory_mib, told.storage_mib),
        Resources(told.vcpus_free, told.memory_free_mib, told.storage_free_mib),
    )
    return ServerRoom(told.name, told.answers, told.threads, host)


def to_option(host: HostCapacity, interval_s: float) -> Capacity:
    """What a heartbeat tells."""
    numbers = (
        round(interval_s * 1000),
        *(host.total.vcpus, host.free.vcpus),
        *(host.total.memory_mib, host.free.memory_mib),
        *(host.total.storage_mib, host.free.storage_mib),
    )
    return Capacity(*(min(max(number, 0), MOST) for number in numbers))


def from_option(told: Capacity) -> HostCapacity:
    return HostCapacity(
        Resources(told.vcpus, told.memory_mib, told.storage_mib),
        Resources(told.vcpus_free, told.memory_free_mib, told.storage_free_mib),
    )
