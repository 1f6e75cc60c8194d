"""A standby's store of one VM's checkpoints, in files: the last complete one is never damaged.

    FOLDER/standby.json      what is complete: its number, and what is still to be done with it
    FOLDER/memory-N          the guest's memory and devices at checkpoint N
    IMAGE.standby            each disk as of the last complete checkpoint, once that is merged
    IMAGE.standby-next       what a checkpoint has brought of the disk: since the one before, or all

All parts of a checkpoint are on the disk before `standby.json` names it (by a rename): that is the
moment from which it is complete.  Only then is it merged into IMAGE.standby, which may be repeated
any number of times, and is, after a crash.  Whatever is not named is nobody's and removed.

Every method blocks on files, and raises HypervisorError where one refuses.  Not here: who sends
checkpoints (checkpoint_send.py), the door (checkpoint_door.py).  Rests on qemu-img.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from vmmobility.drivers.hypervisor import private_files
from vmmobility.drivers.hypervisor.disk_images import QEMU_IMG
from vmmobility.drivers.hypervisor.interface import VmDefinition
from vmmobility.errors import HypervisorError

RECORD = "standby.json"
BASE, NEXT = STANDBY_MARKS = (".standby", ".standby-next")
CHUNK = 1 << 20
MEMORY = "memory"


@dataclass(slots=True)
class Record:
    """What standby.json holds.

    store:     random; names the bitmaps of the primary, so that those of another store never fit
    token:     whoever brings checkpoints has to show it
    number:    of the last complete checkpoint, 0: there is none
    merge:     its parts of the disks still are to be merged: "increment", "whole", or ""
    activated: the images were put in their places
    ran:       its guest may have run: with these disks its memory is worth nothing any more
    """

    store: str
    token: str
    number: int = 0
    merge: str = ""
    activated: bool = False
    ran: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a checkpoint on its way: "memory", or "disk0", "disk1" …; length in octets."""

    name: str
    length: int


class CheckpointStore:
    """The checkpoints of one VM.  folder: of all stores; disks: of images with a relative path."""

    def __init__(self, definition: VmDefinition, folder: Path, disks: Path) -> None:
        vm = definition.vm
        self._name = str(vm)
        self._formats = [disk.format for disk in definition.disks]
        self.images = [disks / disk.path for disk in definition.disks]
        digest = hashlib.sha256(f"{vm.vni}/{vm.vm_id}".encode()).hexdigest()[:12]
        self._folder = folder / digest
        self.record = Record("", "")

    @property
    def memory(self) -> Path:
        """Of the last complete checkpoint."""
        return self._folder / f"{MEMORY}-{self.record.number}"

    @property
    def part_names(self) -> list[str]:
        """Those of which every checkpoint of this VM consists, in order."""
        return [MEMORY, *(f"disk{index}" for index in range(len(self.images)))]

    def open(self, *, make: bool = True) -> bool:
        """Read the record, or make a first one; finish what a crash has left undone.

        Whether there is a store.  An image that is at the VM's place already is refused: it may be
        the VM's, and the standby's have to go there one day.
        """
        with self._naming():
            if not self._read():
                if not make:
                    return False
                self._refuse_images()
                self._refuse_others()
                private_files.make_folder(self._folder)
                self.record = Record(secrets.token_hex(4), secrets.token_hex(16))
                self._write_record()
            if not self.record.activated:
                self._merge()
                self._tidy()
        return True

    def peek(self) -> Record | None:
        """The record as it is now; nothing is made or finished.  None: there is no store."""
        with self._naming():
            return self.record if self._read() else None

    def image_of(self, index: int) -> Path:
        """Where the disk is as of the last complete checkpoint, once nothing is to be merged."""
        return _beside(self.images[index], BASE)

    def receive(
        self,
        number: int,
        base: int | None,
        parts: Sequence[Part],
        take: Callable[[int], bytes],
        verify: Callable[[], None],
    ) -> None:
        """Take a checkpoint in; on return it is the last complete one, whatever happens then.

        base: the number since which its disks' parts tell what has changed; None: they are whole
        take: (at most so many octets) -> some, of the parts, one after the other; b"" is the end
        verify: called when all has come; raises if it is not what was sent
        """
        if self.record.activated:
            raise HypervisorError(f"{self._name}: this standby was activated")
        if [part.name for part in parts] != self.part_names:
            raise HypervisorError(f"{self._name}: the checkpoint has other parts than the VM")
        if number <= self.record.number or base not in (None, self.record.number):
            raise HypervisorError(
                f"{self._name}: checkpoint {number} after {base} does not follow "
                f"{self.record.number}"
            )
        self._merge()  # an earlier one for which there was no room, perhaps
        places = [self._folder / f"{MEMORY}-{number}", *(_beside(i, NEXT) for i in self.images)]
        try:
            for part, place in zip(parts, places, strict=True):
                with self._naming():
                    self._take_part(part, place, take)
            verify()
            for place in {place.parent for place in places}:
                _sync(place)
        except BaseException:
            for place in places:
                place.unlink(missing_ok=True)
            raise
        old = self.memory
        self.record.number, self.record.merge = number, "whole" if base is None else "increment"
        with self._naming():
            self._write_record()
            old.unlink(missing_ok=True)
        self._merge()

    def activate(self) -> None:
        """Put the images of the last complete checkpoint in their places.  Idempotent."""
        if not self.record.number:
            raise HypervisorError(
                f"{self._name}: no checkpoint of it is complete here", "its primary alone has it"
            )
        with self._naming():
            self._merge()
            if not self.record.activated:
                self._refuse_images()
                self.record.activated = True
                self._write_record()
            for image in self.images:
                if _beside(image, BASE).exists():
                    _beside(image, BASE).replace(image)
                    _sync(image.parent)

    def withdraw(self) -> None:
        """The guest could not be started: the images go back to where checkpoints are taken in.
        Nothing if it may have run."""
        if self.record.ran or not self.record.activated:
            return
        with self._naming():
            for image in self.images:
                if image.exists():
                    image.replace(_beside(image, BASE))
                    _sync(image.parent)
            self.record.activated = False
            self._write_record()

    def about_to_run(self) -> None:
        """From now on its memory does not fit its disks any more."""
        self.record.ran = True
        with self._naming():
            self._write_record()

    def drop(self) -> None:
        """Remove the store and the standby's images; activated ones stay.  Idempotent."""
        with self._naming():
            if self._read() and not self.record.activated:
                for image in self.images:
                    for mark in STANDBY_MARKS:
                        _beside(image, mark).unlink(missing_ok=True)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self) -> bool:
        """Whether there is a record, which is read then."""
        try:
            self.record = Record(**json.loads((self._folder / RECORD).read_text()))
        except FileNotFoundError:
            return False
        except (ValueError, TypeError) as error:
            raise HypervisorError(
                f"{self._name}: {self._folder / RECORD} cannot be read: {error}",
                "remove its folder: the VM's protection begins anew",
            ) from None
        return True

    # -- inside ----------------------------------------------------------------------------------

    def _refuse_images(self) -> None:
        for image in self.images:
            if image.exists():
                raise HypervisorError(
                    f"{self._name}: disk {image} is here already: on shared storage, or of an "
                    "earlier stay of the VM",
                    "put it elsewhere: the standby's copy has to go there; a VM on shared storage "
                    "needs no warm standby for its disks, and cannot have one",
                )

    def _refuse_others(self) -> None:
        for image in self.images:
            if _beside(image, BASE).exists():
                raise HypervisorError(
                    f"{self._name}: {_beside(image, BASE)} is here already: another VM's standby",
                    "give the VM's disk a path of its own; if no VM is protected to here with that "
                    "path, remove the file",
                )

    def _take_part(self, part: Part, place: Path, take: Callable[[int], bytes]) -> None:
        private_files.make_folder(place.parent)
        left = part.length
        with open(place, "wb", opener=private_files.opener) as file:
            while left:
                octets = take(min(left, CHUNK))
                if not octets:
                    raise HypervisorError(f"{self._name}: the checkpoint broke off in {part.name}")
                file.write(octets)
                left -= len(octets)
            file.flush()
            os.fsync(file.fileno())

    def _merge(self) -> None:
        """Bring the disks to the complete checkpoint.  The parts that it brought go only then."""
        if not self.record.merge:
            return
        with self._naming():
            for image, form in zip(self.images, self._formats, strict=True):
                base, brought = _beside(image, BASE), _beside(image, NEXT)
                if self.record.merge == "increment":
                    self._qemu_img("rebase", "-u", "-f", "qcow2", "-b", base, "-F", form, brought)
                    self._qemu_img("commit", "-q", "-d", "-f", "qcow2", brought)
                    _sync(base)
                elif brought.exists():  # else it was renamed before a crash
                    self._make_whole(brought, form)
                    brought.replace(base)
                _sync(base.parent)
            self.record.merge = ""
            self._write_record()
            self._tidy()

    def _make_whole(self, brought: Path, form: str) -> None:
        """What comes is qcow2; the VM may want another format."""
        if form == "qcow2" or _is_format(brought, form):
            return
        made = brought.with_name(brought.name + ".made")
        self._qemu_img("convert", "-f", "qcow2", "-O", form, brought, made)
        _sync(made)
        made.replace(brought)

    def _tidy(self) -> None:
        """Remove what belongs to no complete checkpoint."""
        for memory in self._folder.glob(f"{MEMORY}-*"):
            if memory != self.memory or not self.record.number:
                memory.unlink(missing_ok=True)
        for image in self.images:
            _beside(image, NEXT).unlink(missing_ok=True)
            _beside(image, NEXT + ".made").unlink(missing_ok=True)

    def _write_record(self) -> None:
        new = self._folder / (RECORD + ".new")
        with open(new, "w", opener=private_files.opener) as file:
            json.dump(asdict(self.record), file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._folder / RECORD)
        _sync(self._folder)

    def _qemu_img(self, *words: str | Path) -> None:
        try:
            done = subprocess.run(
                [QEMU_IMG, *map(str, words)],
                check=False,
                capture_output=True,
                text=True,
                umask=private_files.UMASK,
            )
        except FileNotFoundError:
            raise HypervisorError(
                f"{self._name}: {QEMU_IMG} does not exist", "install qemu-utils"
            ) from None
        if done.returncode:
            raise HypervisorError(
                f"{self._name}: checkpoint {self.record.number} cannot be merged: "
                f"{done.stderr.strip()}",
                "see that the folder of its disks can be written to and has room",
            )

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HypervisorError(
                f"{self._name}: its standby's {error.filename or self._folder}: {error.strerror}",
                "see that its folder can be written to and has room",
            ) from None


class Summed:
    """Reads octets and keeps a sum of them, so that a damaged checkpoint is known."""

    def __init__(self, take: Callable[[int], bytes]) -> None:
        self._take = take
        self.sum = 0

    def __call__(self, most: int) -> bytes:
        octets = self._take(most)
        self.sum = zlib.crc32(octets, self.sum)
        return octets


def _beside(image: Path, mark: str) -> Path:
    return image.with_name(image.name + mark)


def _is_format(image: Path, form: str) -> bool:
    with image.open("rb") as file:
        return (file.read(4) == b"QFI\xfb") is (form == "qcow2")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
