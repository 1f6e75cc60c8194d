"""Which files of this host a VM may have: what its definition names QEMU opens, as root.

A definition comes from whoever may ask for a VM, and names paths.  So a kernel and an initrd have
to lie in the host's folders of images, and disks in its folders of disks, wherever links lead.  A
guest can write into a disk of its own whatever it likes, also the head of a qcow2 image: one that
would have QEMU open further files is refused, but for a backing file in a folder of images.

Every method blocks on files, and raises HypervisorError.  Not here: whether images are there, and
whose they are (disk_images.py).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmmobility.drivers.hypervisor.interface import VmDefinition
from vmmobility.errors import HypervisorError

IMAGES = Path("/var/lib/vmmobility/images")
NAME_LIMIT = 1023  # octets of a backing file's name
# magic, version, place and length of the backing file's name
_HEAD = struct.Struct(">4sIQI")
_FEATURES_AT, _DATA_FILE = 72, 4


@dataclass(frozen=True, slots=True)
class HostFiles:
    """images: folders of kernels, initrds and templates of disks, of which guests write none;
    disks: folders of disks.  Each with all that is below it.
    """

    images: Sequence[Path]
    disks: Sequence[Path]

    def check(self, definition: VmDefinition, disks: Sequence[Path]) -> None:
        """Raises HypervisorError naming the file and the setting.  disks: where the VM's lie."""
        name = str(definition.vm)
        for key in ("kernel", "initrd"):
            file = definition.machine.get(key)
            if file and not _below(Path(file), self.images):
                raise _outside(name, f"{key} {file}", "images", self.images)
        for disk, path in zip(definition.disks, disks, strict=True):
            if not _below(path, self.disks):
                raise _outside(name, f"disk {path}", "disks or disk_folders", self.disks)
            if disk.format == "qcow2":
                self._check_head(name, path)

    def _check_head(self, name: str, path: Path) -> None:
        """An image that is not there yet, or is of another format, is QEMU's to refuse."""
        try:
            backing, data_file = _head(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise HypervisorError(f"{name}: disk {path}: {error.strerror}") from None
        if data_file:
            raise HypervisorError(
                f"{name}: disk {path} keeps its data in another file, which its head names",
                "make it one file: `qemu-img convert -O qcow2`",
            )
        outside = ":" in backing.split("/")[0] or not _below(path.parent / backing, self.images)
        if backing and outside:
            what = f"disk {path}: its backing file {backing!r}"
            raise _outside(name, what, "images", self.images)


def _below(path: Path, folders: Sequence[Path]) -> bool:
    try:
        real = Path(os.path.realpath(path))
    except (OSError, ValueError):
        return False
    return any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)


def _outside(name: str, what: str, setting: str, folders: Sequence[Path]) -> HypervisorError:
    listed = ", ".join(map(str, folders)) or "none"
    return HypervisorError(
        f"{name}: {what} is in none of this host's folders for such files ({listed})",
        f"put it there, or add its folder to {setting} under [hypervisor] in this host's file",
    )


def _head(path: Path) -> tuple[str, bool]:
    """The backing file that a qcow2 image names, or "", and whether its data are elsewhere."""
    with path.open("rb") as file:
        head = file.read(_FEATURES_AT + 8)
        if len(head) < _HEAD.size or head[:4] != b"QFI\xfb":
            return "", False
        _, version, at, length = _HEAD.unpack_from(head)
        features = int.from_bytes(head[_FEATURES_AT:], "big") if version >= 3 else 0
        if not at or not length:
            return "", bool(features & _DATA_FILE)
        file.seek(at)
        return os.fsdecode(file.read(min(length, NAME_LIMIT))), bool(features & _DATA_FILE)
