"""What drivers make for guests is nobody else's to read, even if the umask forbids nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from vmmobility.drivers.hypervisor import private_files
from vmmobility.drivers.hypervisor.checkpoint_store import CheckpointStore, Part
from vmmobility.drivers.hypervisor.disk_images import DiskImages
from vmmobility.drivers.hypervisor.interface import Disk, VmDefinition
from vmmobility.wire.values import Interface, VmKey

INTERFACE = Interface(b"\x02\0\0\0\0\1", (ip_network("10.1.0.5/32"),))
DISKS = (Disk("pool/a.qcow2", "qcow2", 1), Disk("b.img", "raw", 1))
VM = VmDefinition(VmKey(0, "web1"), "qemu", (INTERFACE,), disks=DISKS)


@pytest.fixture(autouse=True)
def open_to_all() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    found = [folder, *folder.rglob("*")]
    return {str(p.relative_to(folder.parent)): oct(p.stat().st_mode & 0o777) for p in found}


def assert_private(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, modes(folder)


def test_images_that_are_made_for_a_move_in(tmp_path: Path) -> None:
    images = DiskImages(VM, tmp_path / "state" / "disks")
    assert images.make_room() == ["", ""]
    assert {path.name for path in (tmp_path / "state").rglob("*")} >= {"a.qcow2", "b.img.incoming"}
    assert_private(tmp_path / "state")
    images.whole()
    images.in_use()
    images.handed(["", ""])
    assert_private(tmp_path / "state")


def test_a_standby_s_parts(tmp_path: Path) -> None:
    maker = DiskImages(VM, tmp_path / "made")
    maker.make_room()
    whole = (tmp_path / "made" / "pool" / "a.qcow2").read_bytes()  # as what comes: qcow2, both
    store = CheckpointStore(VM, tmp_path / "state" / "standby", tmp_path / "state" / "disks")
    store.open()
    octets = b"memory" + whole + whole
    parts = [Part("memory", 6), Part("disk0", len(whole)), Part("disk1", len(whole))]

    def take(most: int) -> bytes:
        nonlocal octets
        taken, octets = octets[:most], octets[most:]
        return taken

    store.receive(1, None, parts, take, lambda: assert_private(tmp_path / "state"))
    names = {path.name for path in (tmp_path / "state").rglob("*")}
    assert names >= {"standby.json", "memory-1", "a.qcow2.standby", "b.img.standby"}
    assert_private(tmp_path / "state")
    store.activate()
    assert_private(tmp_path / "state")


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir(mode=0o755)
    private_files.make_folder(there / "a" / "b")
    private_files.make_folder(there / "a" / "b")
    assert modes(there) == {"there": "0o755", "there/a": "0o700", "there/a/b": "0o700"}
