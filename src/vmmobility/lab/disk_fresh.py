"""A disk for the fault matrix: room for records that nothing has taken yet, data, a hole.

Holes, so that each new record takes room of the file system: only then a full one is felt.  Not
here: the lab's other disks (guest_disks.py).  Rests on fallocate(1).
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from vmmobility.drivers.hypervisor.settings import MIB
from vmmobility.errors import LabError
from vmmobility.lab.guest.disk_records import SECTOR
from vmmobility.lab.guest_disks import PATTERN

_DATA_MIB = 32


def fresh_disk(path: Path, size_mib: int, records: int) -> None:
    """An image with _DATA_MIB of data behind the hole for the records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as image:
        image.truncate(size_mib * MIB)
        image.seek(records * SECTOR)
        for _ in range(_DATA_MIB):
            image.write(PATTERN)


def wipe_records(path: Path, records: int) -> None:
    """No record is there any more, and their room is free: numbers begin at 1 again."""
    words = ["fallocate", "--punch-hole", "--offset", "0", "--length", str(records * SECTOR)]
    done = subprocess.run([*words, str(path)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(
            f"fallocate: {done.stderr.strip()}", "the images' file system must know holes"
        )
