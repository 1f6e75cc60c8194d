"""Checkpoints of guests with disks: memory and disks of one moment, and what goes wrong on the way.

The guest counts in its memory what it has written to its disk, so a standby that has an older disk,
or an older memory, is found out: the first record that it tells of there follows the last on the
disk.  Not here: what holds for every driver (test_checkpoints.py).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.contract.checkpoint_talk import Protected
from tests.contract.disk_machines import (
    RECORDS,
    SIZE_MIB,
    Machines,
    Run,
    command,
    ended,
    make_image,
    names,
    raw_octets,
)
from tests.contract.hypervisor_nodes import LOOPBACK, VM
from tests.contract.waiting import until_true
from vmmobility.drivers.hypervisor.checkpoint_store import BASE
from vmmobility.drivers.hypervisor.interface import Disk, GuestEvent
from vmmobility.drivers.hypervisor.qemu import QemuHypervisor
from vmmobility.errors import HypervisorError
from vmmobility.lab.guest.disk_records import acknowledged, lost, records_in

pytestmark = [pytest.mark.qemu, pytest.mark.netns]
DISK = Disk("vm.img", "qcow2", SIZE_MIB)


async def protected(machines: Machines, disk: Disk = DISK) -> Protected:
    """A guest that writes, and a standby with its first, full checkpoint."""
    guarded = Protected(machines.pair(disk))
    make_image(machines.image("a", disk), disk.format, filled_mib=8)
    await guarded.pair.start()
    await guarded.receive()
    await machines.writes("a")
    assert (await guarded.checkpoint())["full"]
    await machines.writes("a")
    return guarded


def standby_image(machines: Machines, disk: Disk = DISK) -> Path:
    image = machines.image("b", disk)
    return image.with_name(image.name + BASE)


async def served_soundly(machines: Machines, guarded: Protected, disk: Disk = DISK) -> None:
    """The standby goes on with the number after the last on its disk, and loses nothing."""
    there = records_in(raw_octets(standby_image(machines, disk), disk), RECORDS)
    await guarded.activate()
    await machines.writes("b")
    told = re.findall(rb"diskd: (\d+) acknowledged", machines.console("b"))
    assert int(told[0]) - max(there) in (0, 1), "memory and disk are of one moment"
    await machines.end_soundly(guarded.pair, "b")
    assert names(machines.folder / "b/disks") == {"vm.img"}
    assert not list((machines.folder / "b/standby").iterdir())


@pytest.mark.parametrize("image_format", ["qcow2", pytest.param("raw", marks=pytest.mark.slow)])
def test_after_a_crash_the_standby_has_memory_and_disk_of_one_moment(
    disk_run: Run, image_format: str
) -> None:
    disk = Disk("vm.img", image_format, SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        guarded = await protected(machines, disk)
        before = acknowledged(machines.console("a"))
        told = await guarded.checkpoint()
        assert not told["full"]
        assert told["disk_bytes"] < 8 << 20, "of the disk only what has changed"
        assert told["pause_ms"] > 0
        await machines.writes("a", 5)
        guarded.source.kill()
        await guarded.source.next(GuestEvent.GONE)
        octets = raw_octets(standby_image(machines, disk), disk)
        assert lost(octets, RECORDS, before) == []
        assert octets[8 << 20 : 16 << 20] == bytes([7]) * (8 << 20)
        await served_soundly(machines, guarded, disk)
        assert len(machines.pairs) == 1

    disk_run(scenario)


def test_a_standby_that_could_not_start_the_guest_is_as_it_was(
    disk_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_memory(*of: object) -> None:
        raise HypervisorError("out of memory")

    async def scenario(machines: Machines) -> None:
        guarded = await protected(machines)
        with monkeypatch.context() as patched:
            patched.setattr(QemuHypervisor, "_load", no_memory)
            with pytest.raises(HypervisorError, match="out of memory"):
                await guarded.activate()
        assert names(machines.folder / "b/disks") == {f"vm.img{BASE}"}
        assert await guarded.receive() == 1
        assert not (await guarded.checkpoint())["full"]
        guarded.source.kill()
        await guarded.source.next(GuestEvent.GONE)
        await served_soundly(machines, guarded)

    disk_run(scenario)


@pytest.mark.slow
def test_a_standby_that_dies_in_mid_checkpoint_keeps_the_one_before(disk_run: Run) -> None:
    async def scenario(machines: Machines) -> None:
        guarded = await protected(machines)
        await guarded.begin()
        await guarded.standby.restart()
        told = await guarded.outcome()
        if not told["ok"]:
            assert await guarded.pair.runs_at(guarded.source)
            await machines.writes("a")
        assert await guarded.receive() >= 1
        assert not (await guarded.checkpoint())["full"], "what has changed is still known"
        guarded.source.kill()
        await guarded.source.next(GuestEvent.GONE)
        await guarded.standby.restart()
        await served_soundly(machines, guarded)

    disk_run(scenario)


@pytest.mark.slow
def test_a_primary_whose_daemon_restarts_goes_on_with_what_has_changed(disk_run: Run) -> None:
    async def scenario(machines: Machines) -> None:
        guarded = await protected(machines)
        await guarded.begin()
        await guarded.source.restart()  # in mid checkpoint
        await guarded.source.hypervisor.adopt([guarded.pair.definition])
        await guarded.source.hypervisor.resume(VM)  # as its NVE does with one that was stopped
        await machines.writes("a")
        assert not (await guarded.checkpoint())["full"]
        guarded.source.kill()
        await guarded.source.next(GuestEvent.GONE)
        await served_soundly(machines, guarded)

    disk_run(scenario)


@pytest.mark.slow
def test_a_full_standby_costs_the_guest_nothing_and_keeps_what_it_has(disk_run: Run) -> None:
    async def scenario(machines: Machines) -> None:
        folder = machines.folder / "b"
        folder.mkdir()
        command("mount", "-t", "tmpfs", "-o", "size=400m", "none", str(folder))
        try:
            guarded = await protected(machines)
            filler = folder / "filler"
            filler.write_bytes(bytes(shutil.disk_usage(folder).free - (4 << 20)))
            assert "No space left" in await guarded.fails()
            assert await guarded.pair.runs_at(guarded.source)
            await machines.writes("a")
            assert await guarded.receive() == 1
            filler.unlink()
            told = await guarded.checkpoint()
            assert (told["number"], told["full"]) == (2, False)
            guarded.source.kill()
            await guarded.source.next(GuestEvent.GONE)
            await served_soundly(machines, guarded)
        finally:
            await ended(guarded.pair)
            command("umount", str(folder))

    disk_run(scenario)


@pytest.mark.slow
def test_a_pause_in_mid_checkpoint_holds(disk_run: Run) -> None:
    async def scenario(machines: Machines) -> None:
        guarded = await protected(machines)
        await guarded.begin()
        taking = guarded.source.hypervisor._guests[VM].taking  # type: ignore[attr-defined]
        await until_true(lambda: taking.stopped_at)
        await guarded.source.hypervisor.pause(VM)
        assert not await guarded.pair.runs_at(guarded.source)
        assert not (await guarded.outcome())["ok"]
        assert not await guarded.pair.runs_at(guarded.source)
        assert "does not run" in await guarded.fails()
        await guarded.source.hypervisor.resume(VM)
        assert not (await guarded.checkpoint())["full"]

    disk_run(scenario)


@pytest.mark.slow
def test_a_hot_move_ends_the_checkpoint_and_goes_well(disk_run: Run) -> None:
    async def scenario(machines: Machines) -> None:
        guarded = await protected(machines)
        await guarded.begin()
        pair = guarded.pair
        await guarded.standby.hypervisor.drop_checkpoints(pair.definition)
        at = await pair.prepare()
        await pair.source.hypervisor.copy_out(VM, *at)
        assert not (await guarded.outcome())["ok"]
        await pair.source.next(GuestEvent.CONVERGED)
        await pair.switch()
        await pair.source.next(GuestEvent.COMPLETED)
        await pair.destination.next(GuestEvent.RESUMED)
        await machines.end_soundly(pair, "b")

    disk_run(scenario)


@pytest.mark.slow
def test_an_image_that_may_be_the_vms_is_never_in_the_way_of_a_standby(disk_run: Run) -> None:
    async def scenario(machines: Machines) -> None:
        guarded = Protected(machines.pair(DISK))
        make_image(machines.image("a", DISK), DISK.format)
        make_image(machines.image("b", DISK), DISK.format)
        await guarded.pair.start()
        with pytest.raises(HypervisorError, match="is here already"):
            await guarded.standby.hypervisor.receive_checkpoints(guarded.pair.definition, LOOPBACK)

    disk_run(scenario)
