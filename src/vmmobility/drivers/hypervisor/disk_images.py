"""A VM's disk images on this machine: where they lie, which are here, those made for a move.

Marks beside an image outlive any crash; each says which VM it is about:
    IMAGE.incoming   it is being copied here and is not whole: nobody's data, and may be removed
    IMAGE.arrived    it is whole; whether the guest has run with it here is not on record yet
    IMAGE.handed     all of it was sent away: it is old as soon as the guest runs elsewhere
An image without a mark is never removed or written over.  IMAGE.moved is what was handed over, kept
until the next copy comes; IMAGE.seen-… shows the source that it sees the same storage.

Every method blocks on files, and raises HypervisorError where one refuses.  Not here: the copy
(disk_copy.py, disk_door.py).  Rests on qemu-img and on QEMU's image locks.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vmmobility.drivers.hypervisor import private_files
from vmmobility.drivers.hypervisor.interface import Disk, VmDefinition
from vmmobility.errors import HypervisorError
from vmmobility.wire.registry import CopyStorage

QEMU_IMG = "qemu-img"
INCOMING, ARRIVED, HANDED, MOVED = MARKS = (".incoming", ".arrived", ".handed", ".moved")
SEEN = ".seen-"
_NOT_TO_START = {
    INCOMING: "was never copied whole",
    ARRIVED: "came with a move, and whether the VM has run with it here is not on record",
    HANDED: "was handed over",
}
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
        self._tokens: list[Path] = []

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
        """Before a start: all are here, and the newest there are as far as is known."""
        for path in self.paths:
            with self._naming(path):
                present = path.is_file()
                marks = [mark for mark in _NOT_TO_START if _mark(path, mark).exists()]
            for mark in marks:
                raise HypervisorError(
                    f"{self._name}: disk {path} {_NOT_TO_START[mark]}: the VM's data may be "
                    "elsewhere",
                    f"start it there; if this is the newest copy that is left, remove {path}{mark}",
                )
            if not present:
                raise HypervisorError(
                    f"{self._name}: disk {path} does not exist",
                    f"make it with `{QEMU_IMG} create`, or correct the VM's [[disk]]",
                )

    def make_room(self, wanted: CopyStorage = CopyStorage.AUTO) -> list[str]:
        """Before a move in: for each disk "" if an image was made to be copied into, else the name
        of a file that whoever sees the same storage finds beside the image.

        One that a QEMU has open is left as it is; one that may be anybody's is refused, and one
        that is not shared, or is, where that is not `wanted`, before anything is made.
        """
        for path in self.paths:
            with self._naming(path):
                self._check_wanted(path, wanted)
        tokens = []
        for disk, path in zip(self.disks, self.paths, strict=True):
            with self._naming(path):
                tokens.append(self._room_for(disk, path))
        return tokens

    def sees(self, tokens: Sequence[str]) -> None:
        """At the source: the images that the destination has found open are these."""
        for path, token in zip(self.paths, tokens, strict=True):
            if token and not path.with_name(Path(token).name).exists():
                raise HypervisorError(
                    f"{self._name}: the destination has an image {path} that a QEMU has open, and "
                    "it is not this one",
                    "give the VM a path of its own there",
                )

    def discard(self, *, whole_too: bool) -> None:
        """Remove what was made for a move in that has come to nothing.  Idempotent.

        whole_too: it is certain that the guest has never run here
        """
        for path in self.paths:
            with self._naming(path):
                for mark in (INCOMING, ARRIVED) if whole_too else (INCOMING,):
                    if self._is_ours(path, mark):
                        path.unlink(missing_ok=True)
                        _unmark(path, mark)
        self.forget_tokens()

    def sync(self) -> None:
        """What has come of the images until now is on the disk."""
        for path in self.paths:
            if _mark(path, INCOMING).exists():
                with self._naming(path):
                    _sync(path)

    def whole(self) -> None:
        """All that was copied here has come, and is on the disk."""
        for path in self.paths:
            if _mark(path, INCOMING).exists():
                with self._naming(path):
                    _sync(path)
                    _mark(path, INCOMING).replace(_mark(path, ARRIVED))
                    _sync(path.parent)

    def in_use(self) -> None:
        """The guest runs here: they are its images, and nothing else is."""
        for path in self.paths:
            with self._naming(path):
                for mark in (ARRIVED, HANDED):
                    _unmark(path, mark)
        self.forget_tokens()

    def handed(self, tokens: Sequence[str]) -> None:
        """Those that were copied are about to be old: the guest goes on elsewhere with its own."""
        for path, token in zip(self.paths, tokens, strict=True):
            if not token:
                with self._naming(path):
                    self._set_mark(path, HANDED)

    def retire(self) -> None:
        """The guest runs elsewhere with other images: what was sent there, or has come here and
        was not taken, is old and gets another name."""
        for path in self.paths:
            with self._naming(path):
                for mark in (HANDED, ARRIVED):
                    if self._is_ours(path, mark):
                        if path.exists():
                            path.replace(_mark(path, MOVED))
                        _unmark(path, mark)

    def forget_tokens(self) -> None:
        """No source looks for them any more."""
        for token in self._tokens:
            with suppress(OSError):
                token.unlink(missing_ok=True)
        self._tokens.clear()

    def _check_wanted(self, path: Path, wanted: CopyStorage) -> None:
        shared = path.exists() and is_open_elsewhere(path)
        if wanted is CopyStorage.NONE and not shared:
            raise HypervisorError(
                f"{self._name}: disk {path} is not on storage that the two NVEs share, and none is "
                "to be copied",
                "move it with --copy-storage auto, or put the image on shared storage",
            )
        if wanted is CopyStorage.ALL and shared:
            raise HypervisorError(
                f"{self._name}: disk {path} is open here already: the two NVEs share its storage, "
                "and all are to be copied",
                "move it with --copy-storage auto, which copies those that are not shared",
            )

    def _room_for(self, disk: Disk, path: Path) -> str:
        here = path.exists()
        is_open = here and is_open_elsewhere(path)
        if is_open and not any(_mark(path, mark).exists() for mark in (INCOMING, ARRIVED, HANDED)):
            token = path.with_name(f"{path.name}{SEEN}{secrets.token_hex(8)}")
            token.touch(mode=private_files.FILE)
            self._tokens.append(token)
            return token.name
        if here and not is_open and self._is_ours(path, HANDED):
            path.replace(_mark(path, MOVED))
            _unmark(path, HANDED)
            here = False
        if here and (is_open or not self._is_ours(path, INCOMING)):
            held = "and a QEMU has it open" if is_open else "and no QEMU has it open"
            raise HypervisorError(
                f"{self._name}: disk {path} is here already, {held}: whether it is the VM's cannot "
                "be known",
                "remove it, or put it elsewhere, with its marks; on shared storage see that locks "
                "are shared, too",
            )
        self._make(disk, path)
        return ""

    def _make(self, disk: Disk, path: Path) -> None:
        private_files.make_folder(path.parent)
        path.unlink(missing_ok=True)
        self._set_mark(path, INCOMING)
        _mark(path, MOVED).unlink(missing_ok=True)
        words = (QEMU_IMG, "create", "-q", "-f", disk.format, str(path), f"{disk.size_mib}M")
        remedy = "see that its folder can be written to and has room"
        try:
            done = subprocess.run(
                words, check=False, capture_output=True, text=True, umask=private_files.UMASK
            )
            problem = done.stderr.strip() if done.returncode else ""
        except FileNotFoundError:
            problem, remedy = f"{QEMU_IMG} does not exist", "install qemu-utils"
        if problem:
            self.discard(whole_too=False)
            raise HypervisorError(f"{self._name}: disk {path} cannot be made: {problem}", remedy)

    def _set_mark(self, path: Path, mark: str) -> None:
        try:
            private_files.write(_mark(path, mark), self._name)
            _sync(_mark(path, mark))
            _sync(path.parent)
        except OSError:
            _mark(path, mark).unlink(missing_ok=True)  # half a mark is about nobody's image
            raise

    def _is_ours(self, path: Path, mark: str) -> bool:
        """Whether the mark is there and about this VM."""
        try:
            return _mark(path, mark).read_text(errors="replace") == self._name
        except FileNotFoundError:
            return False

    @contextmanager
    def _naming(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HypervisorError(
                f"{self._name}: disk {error.filename or path}: {error.strerror}",
                "see that its folder can be written to and has room",
            ) from None


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


def _unmark(path: Path, mark: str) -> None:
    name = _mark(path, mark)
    if name.exists():
        name.unlink(missing_ok=True)
        _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
