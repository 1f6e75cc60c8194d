"""A VM's disk images on this machine: where they lie, which are here, those made for a move.

Marks beside an image, empty files, outlive any crash:
    IMAGE.incoming   it is being copied here and is not whole: nobody's data, and may be removed
    IMAGE.arrived    it is whole; whether the guest has run with it here is not on record yet
    IMAGE.handed     all of it was sent away: it is old as soon as the guest runs elsewhere
An image without a mark is never removed or written over.  IMAGE.moved is what was handed over, kept
until the next copy comes.

Not here: the copy (disk_copy.py, disk_door.py).  Rests on qemu-img and on QEMU's image locks.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vmmobility.drivers.hypervisor.interface import Disk, VmDefinition
from vmmobility.errors import HypervisorError

MIB = 1024 * 1024
QEMU_IMG = "qemu-img"
INCOMING, ARRIVED, HANDED, MOVED = ".incoming", ".arrived", ".handed", ".moved"
# QEMU locks single octets of an image from 100 (what it does) and from 200 (what others may not).
_LOCKS_AT, _LOCKS_LENGTH = 100, 200
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux


class DiskImages:
    """The images of one VM.  folder: of this NVE, for images whose path is relative."""

    def __init__(self, definition: VmDefinition, folder: Path) -> None:
        self._name = str(definition.vm)
        self._boot = not definition.machine.get("kernel")
        self.disks = definition.disks
        self.paths = [folder / disk.path for disk in definition.disks]

    def arguments(self) -> list[str]:
        """QEMU's words for them: nodes disk0, disk1 … and a virtio device each."""
        words = []
        for index, (disk, path) in enumerate(zip(self.disks, self.paths, strict=True)):
            file = {"driver": "file", "filename": str(path), "discard": "unmap"}
            node = {"driver": disk.format, "node-name": node_name(index), "file": file}
            words += ["-blockdev", json.dumps(node | {"discard": "unmap"})]
            device = f"virtio-blk-pci,drive={node_name(index)},id=vd{index}"
            if self._boot:
                device += f",bootindex={index}"
            words += ["-device", f"{device},addr={0x8 + index:#x}"]
        return words

    def check(self) -> None:
        """Before a start: all are here and whole.  Raises HypervisorError."""
        for path in self.paths:
            if not path.is_file():
                raise HypervisorError(
                    f"{self._name}: disk {path} does not exist",
                    f"make it with `{QEMU_IMG} create`, or correct the VM's [[disk]]",
                )
            for mark, what in ((INCOMING, "was never copied whole"), (HANDED, "was handed over")):
                if _mark(path, mark).exists():
                    raise HypervisorError(
                        f"{self._name}: disk {path} {what}: the VM's data are elsewhere",
                        f"start it there; if that copy is lost, remove {path}{mark}",
                    )

    def make_room(self) -> list[bool]:
        """Before a move in: which of them are to be copied here; for those an image is made.

        One that another QEMU has open is on shared storage, and stays what it is.  Raises
        HypervisorError for one that is here and may be anybody's.
        """
        copied = [not self._shared(path) for path in self.paths]
        for disk, path, copy in zip(self.disks, self.paths, copied, strict=True):
            if copy:
                self._make(disk, path)
        return copied

    def discard(self) -> None:
        """The guest has never run here: remove what was made for it.  Idempotent."""
        for path in self.paths:
            for mark in (INCOMING, ARRIVED):
                if _mark(path, mark).exists():
                    path.unlink(missing_ok=True)
                    _unmark(path, mark)

    def whole(self) -> None:
        """All that was copied here is on the disk."""
        for path in self.paths:
            if _mark(path, INCOMING).exists():
                _sync(path)
                _mark(path, INCOMING).replace(_mark(path, ARRIVED))
                _sync(path.parent)

    def in_use(self) -> None:
        """The guest runs here: they are its images, and nothing else is."""
        for path in self.paths:
            for mark in (ARRIVED, HANDED):
                _unmark(path, mark)

    def handed(self, copied: Sequence[bool]) -> None:
        """These are about to be old: the guest goes on elsewhere with its own."""
        for path, copy in zip(self.paths, copied, strict=True):
            if copy:
                _set_mark(path, HANDED)

    def retire(self) -> None:
        """The guest runs elsewhere with copies: keep what is old under another name."""
        for path in self.paths:
            if _mark(path, HANDED).exists():
                if path.exists():
                    path.replace(_mark(path, MOVED))
                _unmark(path, HANDED)

    def _shared(self, path: Path) -> bool:
        """Whether the source's QEMU, which has it open, sees the same storage."""
        if not path.exists() or _mark(path, INCOMING).exists():
            return False
        if _mark(path, HANDED).exists():
            self.retire()
            return False
        if not is_open_elsewhere(path):
            raise HypervisorError(
                f"{self._name}: disk {path} is here already, and no QEMU has it open: whether it "
                "is the VM's cannot be known",
                "remove it, or put it elsewhere; on shared storage see that locks are shared, too",
            )
        return True

    def _make(self, disk: Disk, path: Path) -> None:
        words = (QEMU_IMG, "create", "-q", "-f", disk.format, str(path), f"{disk.size_mib}M")
        remedy = "see that its folder can be written to and has room"
        try:
            if _mark(path, INCOMING).exists():
                path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            _set_mark(path, INCOMING)
            _mark(path, MOVED).unlink(missing_ok=True)
            done = subprocess.run(words, check=False, capture_output=True, text=True)
            problem = done.stderr.strip() if done.returncode else ""
        except FileNotFoundError:
            problem, remedy = f"{QEMU_IMG} does not exist", "install qemu-utils"
        except OSError as error:
            problem = error.strerror or str(error)
        if problem:
            self.discard()
            raise HypervisorError(f"{self._name}: disk {path} cannot be made: {problem}", remedy)


def node_name(index: int) -> str:
    """QEMU's name of a VM's disk, by its place in the definition."""
    return f"disk{index}"


def is_open_elsewhere(path: Path) -> bool:
    """Whether a QEMU, on this machine or by a shared file system, holds locks on the image."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _LOCKS_AT, _LOCKS_LENGTH, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)


def _mark(path: Path, mark: str) -> Path:
    return path.with_name(path.name + mark)


def _set_mark(path: Path, mark: str) -> None:
    _mark(path, mark).touch()
    _sync(path.parent)


def _unmark(path: Path, mark: str) -> None:
    name = _mark(path, mark)
    if name.exists():
        name.unlink()
        _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
