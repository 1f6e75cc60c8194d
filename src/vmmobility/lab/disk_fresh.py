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


def bring(image: Path, to: Path) -> None:
    """What an operator does: the image itself, holes and all, in another host's folder."""
    for old in to.parent.glob(f"{to.name}*"):
        old.unlink()
    _run("cp", "--sparse=always", str(image), str(to))
    image.unlink()


def wipe_records(path: Path, records: int) -> None:
    """No record is there any more, and their room is free: numbers begin at 1 again."""
    size = str(records * SECTOR)
    _run("fallocate", "--punch-hole", "--offset", "0", "--length", size, str(path))


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        remedy = "the images' file system must have room, and know holes"
        raise LabError(f"{words[0]}: {done.stderr.strip()}", remedy)
