"""No VM has a disk that is another's on the same host."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from vmmobility.daemon.disk_owners import refuse_others_disks
from vmmobility.drivers.hypervisor.definition import encode
from vmmobility.drivers.hypervisor.interface import Disk, VmDefinition
from vmmobility.engine.binding_update_list import Entry
from vmmobility.errors import HypervisorError
from vmmobility.wire.registry import Phase
from vmmobility.wire.values import Interface, VmKey

INTERFACE = Interface(b"\x02\0\0\0\0\1", (ip_network("10.1.0.5/32"),))
VM, OTHER = VmKey(0, "web1"), VmKey(0, "web2")


def vm(key: VmKey, *paths: str) -> VmDefinition:
    disks = tuple(Disk(path, "raw", 1) for path in paths)
    return VmDefinition(key, "qemu", (INTERFACE,), machine={"kernel": "/k"}, disks=disks)


def entry(definition: VmDefinition, phase: Phase, server: str = "") -> Entry:
    return Entry(definition.vm, phase=phase, definition=encode(definition), server=server)


@pytest.mark.parametrize("phase", [Phase.SERVING, Phase.STOPPED, Phase.PREPARED, Phase.ATTACHING])
def test_of_a_vm_that_is_here_however(tmp_path: Path, phase: Phase):
    (tmp_path / "link.img").symlink_to(tmp_path / "a.img")
    theirs = [entry(vm(OTHER, "a.img"), phase)]
    for path in ("a.img", str(tmp_path / "a.img"), "link.img"):
        with pytest.raises(HypervisorError, match=r"web1: disk .* is VM web2's") as refused:
            refuse_others_disks(vm(VM, "own.img", path), None, theirs, tmp_path)
        assert refused.value.remedy
    refuse_others_disks(vm(VM, "own.img"), None, theirs, tmp_path)
    refuse_others_disks(vm(VM, "a.img"), "server-1", theirs, tmp_path)  # that is another host
    refuse_others_disks(vm(OTHER, "a.img"), None, theirs, tmp_path)


def test_of_one_at_the_same_server(tmp_path: Path):
    theirs = [entry(vm(OTHER, "a.img"), Phase.SERVING, "server-1")]
    with pytest.raises(HypervisorError, match="is VM web2's"):
        refuse_others_disks(vm(VM, "a.img"), "server-1", theirs, tmp_path)
    refuse_others_disks(vm(VM, "a.img"), None, theirs, tmp_path)


def test_what_has_left_bars_nobody_once_it_has_ended(tmp_path: Path):
    left = entry(vm(OTHER, "a.img"), Phase.REDIRECTING)
    refuse_others_disks(vm(VM, "a.img"), None, [left], tmp_path)
    left.leftover = True
    with pytest.raises(HypervisorError, match="is VM web2's"):
        refuse_others_disks(vm(VM, "a.img"), None, [left], tmp_path)


def test_a_record_that_nobody_understands_bars_nobody(tmp_path: Path):
    strange = Entry(OTHER, phase=Phase.SERVING, definition=b"{")
    refuse_others_disks(vm(VM, "a.img"), None, [strange, Entry(OTHER)], tmp_path)
