"""Whose a disk's image is among the VMs of one host: no VM has another's, also if that is stopped.

QEMU's locks keep two running guests from one image.  A definition, though, may name any path in the
host's folders of disks, and so the image of a VM that is stopped, suspended or awaited.
Not here: which folders (drivers/hypervisor/host_files.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from vmmobility.drivers.hypervisor import definition as definitions
from vmmobility.drivers.hypervisor.interface import VmDefinition
from vmmobility.engine.binding_update_list import Entry
from vmmobility.errors import DecodeError, HypervisorError
from vmmobility.wire.registry import Phase

LEFT = (Phase.NONE, Phase.REDIRECTING)  # what is left of their images has another name


def refuse_others_disks(
    wanted: VmDefinition, place: str | None, entries: Iterable[Entry], folder: Path
) -> None:
    """Raises HypervisorError naming the VM whose image it is.

    place: the server where it is wanted, if not on the NVE's own host; folder: of relative paths
    """
    mine = {_real(folder, disk.path): disk.path for disk in wanted.disks}
    for entry in entries if mine else ():
        here = entry.leftover or entry.phase not in LEFT
        if entry.vm == wanted.vm or not here or (entry.server or None) != place:
            continue
        with suppress(DecodeError):
            for disk in definitions.decode(entry.definition).disks:
                path = mine.get(_real(folder, disk.path))
                if path is not None:
                    raise HypervisorError(
                        f"{wanted.vm}: disk {path} is VM {entry.vm}'s",
                        "give it a path of its own, or delete that VM first",
                    )


def _real(folder: Path, path: str) -> str:
    return os.path.realpath(folder / path)
