"""Guests with disks whose moves fail or are given up: guest and writes stay, nothing else does."""

from __future__ import annotations

import asyncio
import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.disk_machines import (
    SIZE_MIB,
    SLOW,
    USUAL,
    Machines,
    Run,
    command,
    ended,
    gone,
    hold,
    make_image,
    move,
    names,
)
from tests.contract.hypervisor_nodes import INTERFACE, LOOPBACK, VM
from tests.contract.waiting import until_true
from vmmobility.drivers.hypervisor import disk_images, process
from vmmobility.drivers.hypervisor.disk_images import DiskImages
from vmmobility.drivers.hypervisor.interface import Disk, GuestEvent, VmDefinition
from vmmobility.drivers.hypervisor.process import GuestFolder
from vmmobility.drivers.hypervisor.qemu import QemuHypervisor
from vmmobility.drivers.hypervisor.settings import MIB
from vmmobility.errors import HypervisorError

pytestmark = [pytest.mark.qemu, pytest.mark.netns]


@pytest.mark.parametrize(
    "moment",
    [
        "copying",
        pytest.param("held", marks=pytest.mark.slow),
        pytest.param("about to stop", marks=pytest.mark.slow),
    ],
)
def test_a_move_that_is_given_up_leaves_no_image(disk_run: Run, moment: str) -> None:
    disk = Disk("vm.img", "qcow2", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk, SLOW if moment == "copying" else USUAL)
        source, destination = pair.source, pair.destination
        make_image(machines.image("a", disk), disk.format, filled_mib=8)
        await pair.start()
        await machines.writes("a")
        if moment == "copying":
            await source.hypervisor.copy_out(VM, *await pair.prepare())
            await until_true(lambda: source.progress)
            assert source.progress[0].detail["disk_bytes"] < 8 * MIB
        else:
            await hold(pair, moment)
        await source.hypervisor.cancel(VM)
        failed = await source.next(GuestEvent.FAILED)
        assert failed.detail == {"reason": "cancelled", "running": True}
        await destination.hypervisor.cancel(VM)
        assert names(machines.folder / "b/disks") == set()
        assert names(machines.folder / "a/disks") == {"vm.img"}
        await machines.end_soundly(pair, "a")

    disk_run(scenario)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["copying", "held", "about to stop"])
def test_a_destination_that_dies_leaves_the_guest_and_its_disk_here(
    disk_run: Run, moment: str
) -> None:
    """And a new move begins afresh."""
    disk = Disk("vm.img", "qcow2", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk, SLOW if moment == "copying" else USUAL)
        source, destination = pair.source, pair.destination
        make_image(machines.image("a", disk), disk.format, filled_mib=8)
        await pair.start()
        if moment == "copying":
            await source.hypervisor.copy_out(VM, *await pair.prepare())
            await until_true(lambda: source.progress)
        else:
            await hold(pair, moment)
        destination.kill()
        failed = await source.next(GuestEvent.FAILED)
        assert failed.detail["running"] is True
        assert failed.detail["reason"]
        await machines.writes("a")
        await gone(destination)
        await move(source, destination, pair)
        await machines.end_soundly(pair, "b")

    disk_run(scenario)


@pytest.mark.parametrize("moment", ["copying", "held", "about to stop"])
def test_a_destination_that_hangs_holds_the_guests_writes_no_longer_than_it_may(
    disk_run: Run, moment: str
) -> None:
    """Its kernel acknowledges all that comes, so nothing is broken but its answers."""
    disk = Disk("vm.img", "qcow2", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        settings = replace(SLOW if moment == "copying" else USUAL, disk_hang_limit_s=1.0)
        pair = machines.pair(disk, settings)
        source, destination = pair.source, pair.destination
        make_image(machines.image("a", disk), disk.format, filled_mib=8)
        await pair.start()
        await machines.writes("a")
        if moment == "copying":
            await source.hypervisor.copy_out(VM, *await pair.prepare())
            await until_true(lambda: source.progress)
        else:
            await hold(pair, moment)
        destination.hang()
        try:
            async with asyncio.timeout(8.0):  # far below a minute, or a step's 15 s
                failed = await source.next(GuestEvent.FAILED)
            assert "no octet of the disks was taken for 1 s" in failed.detail["reason"]
            assert failed.detail["running"] is True
            await machines.writes("a")
        finally:
            destination.unhang()
        await destination.hypervisor.cancel(VM)
        await machines.end_soundly(pair, "a")

    disk_run(scenario)


def test_a_guest_that_writes_nothing_is_held_for_as_long_as_it_takes(disk_run: Run) -> None:
    """Nothing is waited for: that is no hanging storage."""
    disk = Disk("vm.img", "raw", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk, replace(USUAL, disk_hang_limit_s=0.1))
        pair.definition = replace(pair.definition, machine={}, memory_mib=64)
        make_image(machines.image("a", disk), disk.format, filled_mib=8)
        await pair.start()
        await hold(pair, "about to stop")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3.0):
                await pair.source.reports.get()
        await pair.source.hypervisor.cancel(VM)
        await pair.source.next(GuestEvent.FAILED)
        await ended(pair)

    disk_run(scenario)


def test_a_mark_for_which_there_is_no_room_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = VmDefinition(VM, "qemu", (INTERFACE,), disks=(Disk("vm.img", "raw", SIZE_MIB),))

    def refuse(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk_images, "_sync", refuse)
    with pytest.raises(HypervisorError, match="No space left on device"):
        DiskImages(described, tmp_path).make_room()
    assert names(tmp_path) == set()


def test_a_full_disk_at_the_destination_ends_the_move(disk_run: Run) -> None:
    disk = Disk("vm.img", "raw", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk)
        small = machines.image("b", disk).parent
        make_image(machines.image("a", disk), disk.format, filled_mib=24)
        small.mkdir(parents=True)
        command("mount", "-t", "tmpfs", "-o", "size=8m", "small", str(small))
        try:
            await pair.start()
            await pair.source.hypervisor.copy_out(VM, *await pair.prepare())
            failed = await pair.source.next(GuestEvent.FAILED)
            assert failed.detail["running"] is True
            assert "No space left on device" in failed.detail["reason"]
            await pair.destination.hypervisor.cancel(VM)
            assert names(small) == set()
            await machines.end_soundly(pair, "a")
        finally:
            command("umount", str(small))

    disk_run(scenario)


def test_a_destination_that_dies_in_the_switch_leaves_the_disk_to_its_guest(
    disk_run: Run,
) -> None:
    """All was handed over; QEMU starts the guest again by itself, and stop() keeps its image."""
    disk = Disk("vm.img", "qcow2", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk)
        source, destination = pair.source, pair.destination
        make_image(machines.image("a", disk), disk.format)
        await pair.start()
        await machines.writes("a")
        await hold(pair, "about to stop")
        destination.hang()  # its server cannot be ended, so the disk is not said to be whole
        await source.hypervisor.proceed(VM)
        await source.next(GuestEvent.STOPPED)
        failed = await source.next(GuestEvent.FAILED)
        assert failed.detail["running"] is True
        await source.hypervisor.resume(VM)
        await machines.writes("a")
        destination.unhang()
        await destination.hypervisor.cancel(VM)
        await machines.end_soundly(pair, "a")
        assert names(machines.folder / "a/disks") == {"vm.img"}
        await pair.start()

    disk_run(scenario)


def test_a_host_that_died_with_a_waiting_guest_is_clear_once_that_is_cancelled(
    disk_run: Run,
) -> None:
    """Daemon and QEMU have ended at once: nobody remembers what was prepared."""
    disk = Disk("vm.img", "qcow2", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk)
        destination = pair.destination
        await pair.prepare()
        assert names(machines.folder / "b/disks") == {"vm.img", "vm.img.incoming"}
        await destination.hypervisor.close()
        destination.kill()
        folder = GuestFolder.of(machines.folder / "b", VM)
        await until_true(lambda: process.find(folder) is None)
        destination.hypervisor = destination.reopen()
        assert await destination.hypervisor.adopt([pair.definition]) == {}
        await destination.hypervisor.cancel(VM)
        assert names(machines.folder / "b/disks") == set()
        assert names(machines.folder / "b") == {"disks"}

    disk_run(scenario)


@pytest.mark.slow
def test_a_daemon_that_dies_as_it_ends_a_guest_that_left_has_put_its_old_disk_aside(
    disk_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk("vm.img", "qcow2", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk)
        make_image(machines.image("a", disk), disk.format)
        await pair.start()
        with monkeypatch.context() as patched:

            async def die(*of: object, **how: object) -> None:
                raise RuntimeError("the daemon dies")

            await hold(pair, "about to stop")
            await pair.source.hypervisor.proceed(VM)
            await pair.source.next(GuestEvent.STOPPED)
            await pair.source.next(GuestEvent.COMPLETED)
            await pair.destination.next(GuestEvent.RESUMED)
            patched.setattr(QemuHypervisor, "_end", die)
            with pytest.raises(RuntimeError):
                await pair.source.hypervisor.stop(VM)
        assert names(machines.folder / "a/disks") == {"vm.img.moved"}
        await machines.end_soundly(pair, "b")

    disk_run(scenario)


def test_what_a_guest_that_moved_away_has_left_is_put_aside_though_its_host_died(
    disk_run: Run,
) -> None:
    disk = Disk("vm.img", "qcow2", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk)
        make_image(machines.image("a", disk), disk.format)
        await pair.start()
        await hold(pair, "about to stop")
        await pair.source.hypervisor.proceed(VM)
        await pair.source.next(GuestEvent.STOPPED)
        await pair.source.next(GuestEvent.COMPLETED)
        await pair.destination.next(GuestEvent.RESUMED)
        folder = GuestFolder.of(machines.folder / "a", VM)
        pid = process.find(folder)
        assert pid is not None
        await process.kill(folder, VM, pid)
        await pair.source.restart()
        assert names(machines.folder / "a/disks") == {"vm.img", "vm.img.handed"}
        await pair.source.hypervisor.retire(pair.definition)
        await pair.source.hypervisor.retire(pair.definition)
        assert names(machines.folder / "a/disks") == {"vm.img.moved"}
        assert not folder.path.exists()
        await machines.end_soundly(pair, "b")

    disk_run(scenario)


@pytest.mark.slow
def test_a_guest_moves_after_its_daemon_died_in_a_copy(disk_run: Run) -> None:
    disk = Disk("vm.img", "qcow2", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk, SLOW)
        source, destination = pair.source, pair.destination
        make_image(machines.image("a", disk), disk.format, filled_mib=8)
        await pair.start()
        await source.hypervisor.copy_out(VM, *await pair.prepare())
        await until_true(lambda: source.progress)
        await source.restart()
        assert await source.hypervisor.adopt([pair.definition]) == {VM: True}
        await source.hypervisor.cancel(VM)
        await destination.next(GuestEvent.FAILED)
        await destination.hypervisor.cancel(VM)
        while not destination.reports.empty():
            await destination.next(GuestEvent.GONE)
        await machines.writes("a")
        await move(source, destination, pair)
        await machines.end_soundly(pair, "b")

    disk_run(scenario)


def test_a_disk_of_which_nothing_came_is_not_whole(disk_run: Run) -> None:
    """Whoever says `end` at the door without having copied hears of it."""
    disk = Disk("vm.img", "qcow2", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk)
        _, port = await pair.prepare()
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.write(b"disks\nend\n")
        assert json.loads(await reader.readline())["seen"] == [""]
        assert "were not copied" in json.loads(await reader.readline())["error"]
        writer.close()
        assert names(machines.folder / "b/disks") == {"vm.img", "vm.img.incoming"}
        await ended(pair)
        assert names(machines.folder / "b/disks") == set()

    disk_run(scenario)


def test_a_mark_that_cannot_be_made_turns_the_move_back(
    disk_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk("vm.img", "qcow2", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk)
        source, destination = pair.source, pair.destination
        make_image(machines.image("a", disk), disk.format)
        await pair.start()
        with monkeypatch.context() as patched:

            def refuse(path: Path, mark: str) -> None:
                raise OSError(errno.EROFS, "Read-only file system")

            await hold(pair, "about to stop")
            patched.setattr(DiskImages, "_set_mark", lambda self, path, mark: refuse(path, mark))
            await source.hypervisor.proceed(VM)
            await source.next(GuestEvent.STOPPED)
            failed = await source.next(GuestEvent.FAILED)
        assert failed.detail["running"] is True
        assert "Read-only file system" in failed.detail["reason"]
        await gone(destination)
        await destination.hypervisor.cancel(VM)
        assert names(machines.folder / "b/disks") == set()
        await machines.writes("a")
        await move(source, destination, pair)
        await machines.end_soundly(pair, "b")

    disk_run(scenario)
