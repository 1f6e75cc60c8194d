"""The disks of the lab's guests: where they lie and what is on them at first.

A guest writes numbered records past all caches and says on its console which are acknowledged
(guest/diskd.c).  Not here: what must be on them after a move (disk_assertions.py), how a disk is
moved (drivers/hypervisor).
"""

from __future__ import annotations

from pathlib import Path

from vmmobility.drivers.hypervisor.interface import Disk
from vmmobility.drivers.hypervisor.settings import MIB
from vmmobility.lab.fabric_values import Vm

RECORDS = 4096
PATTERN = bytes(range(256)) * 4096


def disk_of(vm: Vm) -> Disk:
    """Its one disk, in each NVE's own folder of disks; raw: it can be read while it is written."""
    return Disk(f"{vm.name}.img", "raw", vm.disk_mib)


def image_at(state_dir: Path, vm: Vm) -> Path:
    """Where the image is at an NVE that has the VM."""
    return state_dir / "guests" / "disks" / disk_of(vm).path


def make_disk(state_dir: Path, vm: Vm) -> None:
    """A disk whose first half holds data, so that there is something to copy."""
    path = image_at(state_dir, vm)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as image:
        for _ in range(vm.disk_mib // 2):
            image.write(PATTERN)
        image.truncate(vm.disk_mib * MIB)
