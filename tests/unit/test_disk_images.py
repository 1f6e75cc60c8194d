"""What is put aside of a VM that is served elsewhere: what is marked as its own, and as old."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmmobility.drivers.hypervisor.disk_images import DiskImages
from vmmobility.drivers.hypervisor.interface import Disk, VmDefinition
from vmmobility.wire.values import VmKey

OURS = VmDefinition(VmKey(0, "vm1"), "qemu", (), disks=(Disk("vm.img", "raw", 1),))


@pytest.mark.parametrize(
    ("mark", "text", "left"),
    [
        (".handed", "0/vm1", {"vm.img.moved"}),
        (".arrived", "0/vm1", {"vm.img.moved"}),
        (".incoming", "0/vm1", {"vm.img", "vm.img.incoming"}),
        (".handed", "0/other", {"vm.img", "vm.img.handed"}),
        ("", "", {"vm.img"}),
    ],
)
def test_what_is_old_gets_another_name(tmp_path: Path, mark: str, text: str, left: set[str]):
    (tmp_path / "vm.img").write_bytes(b"data")
    if mark:
        (tmp_path / f"vm.img{mark}").write_text(text.replace("0/vm1", str(OURS.vm)))
    images = DiskImages(OURS, tmp_path)
    images.retire()
    images.retire()
    assert {path.name for path in tmp_path.iterdir()} == left
