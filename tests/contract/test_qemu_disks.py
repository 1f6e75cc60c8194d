"""Guests with disks: copied whole while they write, mirrored, and never two of one.

Not here: what fails in the middle (test_qemu_disk_failures.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.disk_machines import (
    RECORDS,
    SIZE_MIB,
    Machines,
    Run,
    ended,
    holding_open,
    make_image,
    move,
    names,
    raw_octets,
)
from tests.contract.hypervisor_nodes import VM
from tests.contract.waiting import until_true
from vmmobility.drivers.hypervisor.interface import Disk
from vmmobility.drivers.hypervisor.settings import MIB
from vmmobility.errors import HypervisorError
from vmmobility.lab.guest.disk_records import lost
from vmmobility.wire.move_terms import MoveTerms
from vmmobility.wire.registry import CopyStorage

pytestmark = [pytest.mark.qemu, pytest.mark.netns]


@pytest.mark.parametrize("image_format", ["qcow2", pytest.param("raw", marks=pytest.mark.slow)])
def test_a_disk_moves_with_its_guest_and_back(disk_run: Run, image_format: str) -> None:
    disk = Disk("vm.img", image_format, SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk)
        make_image(machines.image("a", disk), image_format, filled_mib=24)
        await pair.start()
        await machines.writes("a")
        await move(pair.source, pair.destination, pair)
        told = pair.source.progress[-1].detail
        # All that was filled is there; a write that is on its way is in the total already.
        assert told["disk_total_bytes"] >= told["disk_bytes"] >= 24 * MIB
        assert names(machines.folder / "a/disks") == {"vm.img.moved"}
        await until_true(lambda: names(machines.folder / "b/disks") == {"vm.img"})
        await machines.writes("b")
        await move(pair.destination, pair.source, pair)
        last = await machines.writes("a")
        await ended(pair)
        octets = raw_octets(machines.image("a", disk), disk)
        assert lost(octets, RECORDS, last) == []
        assert octets[8 * MIB : 32 * MIB] == bytes([7]) * 24 * MIB
        assert names(machines.folder / "a/disks") == {"vm.img"}

    disk_run(scenario)


def test_shared_storage_is_recognised_and_not_copied(disk_run: Run, tmp_path: Path) -> None:
    disk = Disk(str(tmp_path / "storage/vm.img"), "qcow2", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk)
        make_image(Path(disk.path), disk.format, filled_mib=8)
        await pair.start()
        await machines.writes("a")
        await move(pair.source, pair.destination, pair)
        await until_true(lambda: names(tmp_path / "storage") == {"vm.img"})
        assert {report.detail["disk_total_bytes"] for report in pair.source.progress} == {0}
        await machines.end_soundly(pair, "b")

    disk_run(scenario)


def test_disks_are_copied_only_as_was_asked(disk_run: Run, tmp_path: Path) -> None:
    own, shared = Disk("vm.img", "qcow2", SIZE_MIB), Disk(str(tmp_path / "vm.img"), "raw", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(own)
        make_image(machines.image("a", own), own.format)
        await pair.start()
        with pytest.raises(HypervisorError, match="is not on storage that the two NVEs share"):
            await pair.prepare(MoveTerms(copy_storage=CopyStorage.NONE))
        assert not (machines.folder / "b/disks").exists()
        await ended(pair)
        pair = machines.pair(shared)
        make_image(Path(shared.path), shared.format)
        await pair.start()
        with pytest.raises(HypervisorError, match="the two NVEs share its storage"):
            await pair.prepare(MoveTerms(copy_storage=CopyStorage.ALL))
        await pair.prepare(MoveTerms(copy_storage=CopyStorage.NONE))
        await pair.destination.hypervisor.cancel(VM)
        await ended(pair)

    disk_run(scenario)


def test_an_image_of_nobody_is_not_written_over(disk_run: Run) -> None:
    disk = Disk("vm.img", "qcow2", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk)
        make_image(machines.image("a", disk), disk.format)
        make_image(machines.image("b", disk), disk.format, filled_mib=1)
        before = machines.image("b", disk).read_bytes()
        await pair.start()
        with pytest.raises(HypervisorError, match="is here already, and no QEMU has it open"):
            await pair.prepare()
        assert machines.image("b", disk).read_bytes() == before
        await ended(pair)
        assert machines.image("b", disk).read_bytes() == before

    disk_run(scenario)


def test_a_disk_of_another_size_is_named(disk_run: Run) -> None:
    made = Disk("vm.img", "qcow2", SIZE_MIB)
    told = Disk("vm.img", "qcow2", SIZE_MIB // 2)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(told)
        make_image(machines.image("a", made), made.format)
        await pair.start()
        where = await pair.prepare()
        with pytest.raises(HypervisorError, match=r"has 67108864 octets, but .* says 32 MiB"):
            await pair.source.hypervisor.copy_out(VM, *where)
        await pair.destination.hypervisor.cancel(VM)
        assert names(machines.folder / "b/disks") == set()
        await machines.writes("a")
        await ended(pair)

    disk_run(scenario)


def test_a_guest_does_not_start_without_its_disk_or_with_an_old_one(
    disk_run: Run,
) -> None:
    disk = Disk("vm.img", "qcow2", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk)
        with pytest.raises(HypervisorError, match=r"vm\.img does not exist"):
            await pair.start()
        make_image(machines.image("a", disk), disk.format)
        for mark, what in (
            (".incoming", "never copied whole"),
            (".arrived", "is not on record"),
            (".handed", "handed over"),
        ):
            marked = machines.image("a", disk).with_name(f"vm.img{mark}")
            marked.touch()
            with pytest.raises(HypervisorError, match=what):
                await pair.start()
            marked.unlink()
        await pair.start()
        await ended(pair)

    disk_run(scenario)


def test_another_vms_open_image_is_not_taken_for_shared_storage(
    disk_run: Run,
) -> None:
    disk = Disk("vm.img", "qcow2", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk)
        make_image(machines.image("a", disk), disk.format)
        make_image(machines.image("b", disk), disk.format)
        await pair.start()
        with holding_open(machines.image("b", disk)):
            where = await pair.prepare()
            with pytest.raises(HypervisorError, match="a QEMU has open, and it is not this one"):
                await pair.source.hypervisor.copy_out(VM, *where)
        await pair.destination.hypervisor.cancel(VM)
        assert names(machines.folder / "b/disks") == {"vm.img"}
        await machines.writes("a")
        await ended(pair)

    disk_run(scenario)
