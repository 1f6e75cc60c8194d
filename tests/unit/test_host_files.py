"""Which files of a host VMs may have: by their real place, and by what an image's head names."""

from __future__ import annotations

import struct
import subprocess
from ipaddress import ip_network
from pathlib import Path

import pytest

from vmmobility.drivers.hypervisor.disk_images import DiskImages
from vmmobility.drivers.hypervisor.host_files import HostFiles
from vmmobility.drivers.hypervisor.interface import Disk, VmDefinition
from vmmobility.errors import HypervisorError
from vmmobility.wire.values import Interface, VmKey

INTERFACE = Interface(b"\x02\0\0\0\0\1", (ip_network("10.1.0.5/32"),))


class Place:
    """A host with a folder of images, one of disks, and what is neither."""

    def __init__(self, folder: Path) -> None:
        self.images, self.disks, self.rest = (folder / name for name in ("images", "disks", "etc"))
        for each in (self.images, self.disks, self.rest):
            each.mkdir()
        self.secret = self.rest / "shadow"
        self.secret.write_text("root:")
        self.template = self.images / "template.raw"
        self.template.write_bytes(bytes(1 << 20))
        self.files = HostFiles((self.images,), (self.disks,))

    def check(self, *disks: Disk, **machine: object) -> None:
        told = {key: str(value) for key, value in machine.items()}
        vm = VmDefinition(VmKey(0, "web1"), "qemu", (INTERFACE,), machine=told, disks=disks)
        self.files.check(vm, DiskImages(vm, self.disks).paths)

    def image(self, *words: str) -> Disk:
        path = self.disks / "d.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *words, path, "1M"], check=True)
        return Disk("d.qcow2", "qcow2", 1)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_lies_in_the_hosts_folders_is_had(place: Place):
    (place.images / "vmlinuz").symlink_to(place.template)
    place.check(kernel=place.images / "vmlinuz", initrd=place.images / "deep" / "initrd.gz")
    place.check(Disk("a.img", "raw", 1), Disk(str(place.disks / "b" / "c.img"), "raw", 1))
    place.check(Disk("not-there-yet.qcow2", "qcow2", 1))


@pytest.mark.parametrize("key", ["kernel", "initrd"])
def test_a_file_of_the_host_is_no_boot_file(place: Place, key: str):
    (place.images / "link").symlink_to(place.secret)
    beside = place.images.with_name("images-too") / "k"
    around = place.images / ".." / "etc" / "shadow"
    for file in (place.secret, place.images / "link", beside, around, "shadow", "a\0b"):
        with pytest.raises(HypervisorError, match=f"web1: {key} .*none of this host") as refused:
            place.check(**{"kernel": place.template, key: file})
        assert "add its folder to images under [hypervisor]" in refused.value.remedy


def test_a_file_of_the_host_is_no_disk(place: Place):
    (place.disks / "link.img").symlink_to(place.secret)
    for path in (place.secret, "link.img", place.template):
        with pytest.raises(HypervisorError, match="none of this host's folders") as refused:
            place.check(Disk(str(path), "raw", 1))
        assert "disk_folders under [hypervisor]" in refused.value.remedy


def test_a_guests_disk_leads_qemu_to_no_file_of_the_host(place: Place):
    place.check(place.image("-b", str(place.template), "-F", "raw"))
    for backing in (place.secret, "../etc/shadow", place.disks / "a.img", "nbd:unix:/s", "json:{}"):
        disk = place.image("-u", "-b", str(backing), "-F", "raw")
        with pytest.raises(HypervisorError, match=r"its backing file .* is in none of this host"):
            place.check(disk)


def test_a_guests_disk_is_one_file(place: Place):
    disk = place.image("-o", f"data_file={place.disks / 'data'}")
    with pytest.raises(HypervisorError, match="keeps its data in another file"):
        place.check(disk)


@pytest.mark.parametrize(
    "head", [b"", b"QFI\xfb", struct.pack(">4sIQI", b"QFI\xfb", 3, 1 << 40, 9)]
)
def test_half_a_head_names_nothing(place: Place, head: bytes):
    (place.disks / "d.qcow2").write_bytes(head)
    place.check(Disk("d.qcow2", "qcow2", 1))
