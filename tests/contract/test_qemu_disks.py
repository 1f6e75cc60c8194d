"""Guests with disks: copied whole while they write, mirrored, and never two of one.

Each guest writes numbered records past all caches and says on its console which are acknowledged.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.hypervisor_nodes import (
    INTERFACE,
    LOOPBACK,
    VM,
    Node,
    Pair,
    guest_machine,
    qemu_node,
)
from tests.contract.waiting import until_true
from vmmobility.drivers.hypervisor.disk_images import DiskImages
from vmmobility.drivers.hypervisor.interface import Disk, GuestEvent, VmDefinition
from vmmobility.drivers.hypervisor.process import GuestFolder
from vmmobility.drivers.hypervisor.settings import MIB, QemuSettings
from vmmobility.errors import HypervisorError
from vmmobility.lab.guest.disk_records import acknowledged, lost

pytestmark = [pytest.mark.qemu, pytest.mark.netns]

SLOW_TEST = pytest.mark.slow
MOMENTS = [
    "copying",
    pytest.param("held", marks=SLOW_TEST),
    pytest.param("about to stop", marks=SLOW_TEST),
]
RECORDS = 1000
SIZE_MIB = 64
SLOW = QemuSettings(accelerator="tcg", copy_bytes_per_s=4 * MIB)  # the memory as well
USUAL = QemuSettings(accelerator="tcg")


class Machines:
    """Two machines with folders of their own, and one that both see."""

    def __init__(self, folder: Path, taps: list[str]) -> None:
        self.folder = folder
        self.pairs: list[Pair] = []
        self._taps = taps
        self.machine = guest_machine(disk_records=RECORDS, disk_every_ms=5)

    def pair(self, disk: Disk, settings: QemuSettings = USUAL) -> Pair:
        nodes = [
            qemu_node(tap, self.folder / name, settings)
            for tap, name in zip(self._taps, "ab", strict=True)
        ]
        described = VmDefinition(VM, "qemu", (INTERFACE,), machine=self.machine, disks=(disk,))
        self.pairs.append(Pair(described, *nodes))
        return self.pairs[-1]

    def image(self, end: str, disk: Disk) -> Path:
        return self.folder / end / "disks" / disk.path

    def console(self, end: str) -> bytes:
        return GuestFolder.of(self.folder / end, VM).console.read_bytes()

    async def writes(self, end: str, at_least: int = 20) -> int:
        """Wait until the guest has so many records acknowledged since it is there; the last."""
        first = acknowledged(self.console(end))
        await until_true(lambda: acknowledged(self.console(end)) >= first + at_least)
        return acknowledged(self.console(end))


def make_image(path: Path, image_format: str, filled_mib: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = ["qemu-img", "create", "-q", "-f", image_format, str(path), f"{SIZE_MIB}M"]
    subprocess.run(made, check=True)
    if filled_mib:
        write = f"write -P 7 8M {filled_mib}M"
        subprocess.run(["qemu-io", "-f", image_format, "-c", write, str(path)], check=True,
                       capture_output=True)  # fmt: skip


def raw_octets(path: Path, disk: Disk) -> bytes:
    raw = path.with_name("raw.img")
    convert = ["qemu-img", "convert", "-f", disk.format, "-O", "raw", str(path), str(raw)]
    subprocess.run(convert, check=True)
    octets = raw.read_bytes()
    raw.unlink()
    return octets


def command(*words: str) -> None:
    subprocess.run(words, check=True)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


DiskTest = Callable[[Machines], Awaitable[None]]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[DiskTest], None]]:
    taps = [f"vmd{os.getpid() % 100000}{end}" for end in "ab"]
    for tap in taps:
        subprocess.run(["ip", "tuntap", "add", "dev", tap, "mode", "tap"], check=True)

    async def whole(test: DiskTest) -> None:
        machines = Machines(tmp_path, taps)
        try:
            await test(machines)
        finally:
            for pair in machines.pairs:
                await ended(pair)

    yield lambda test: asyncio.run(whole(test))
    for tap in taps:
        subprocess.run(["ip", "link", "del", tap], check=True)


@contextmanager
def holding_open(image: Path) -> Iterator[None]:
    """Another QEMU tool writes to it."""
    tool = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert tool.stdin is not None
    assert tool.stdout is not None
    tool.stdin.write(b"write 0 4k\n")
    tool.stdin.flush()
    tool.stdout.readline()
    yield
    tool.communicate(b"quit\n")


async def ended(pair: Pair) -> None:
    for node in (pair.source, pair.destination):
        await node.hypervisor.stop(VM)
        await node.hypervisor.close()


async def move(source: Node, destination: Node, pair: Pair) -> None:
    """A whole hot move."""
    at = await destination.hypervisor.prepare_incoming(
        pair.definition, [destination.port], LOOPBACK
    )
    await source.hypervisor.copy_out(VM, *at)
    await source.next(GuestEvent.CONVERGED)
    await source.hypervisor.switch_over(VM)
    await source.next(GuestEvent.ABOUT_TO_STOP)
    await source.hypervisor.proceed(VM)
    await source.next(GuestEvent.STOPPED)
    await source.next(GuestEvent.COMPLETED)
    await destination.next(GuestEvent.RESUMED)
    await source.hypervisor.stop(VM)


@pytest.mark.parametrize("image_format", ["qcow2", pytest.param("raw", marks=SLOW_TEST)])
def test_a_disk_moves_with_its_guest_and_back(
    run: Callable[[DiskTest], None], image_format: str
) -> None:
    disk = Disk("vm.img", image_format, SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk)
        make_image(machines.image("a", disk), image_format, filled_mib=24)
        await pair.start()
        await machines.writes("a")
        await move(pair.source, pair.destination, pair)
        told = pair.source.progress[-1].detail
        assert told["disk_bytes"] == told["disk_total_bytes"] > 0
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

    run(scenario)


def test_shared_storage_is_recognised_and_not_copied(
    run: Callable[[DiskTest], None], tmp_path: Path
) -> None:
    disk = Disk(str(tmp_path / "storage/vm.img"), "qcow2", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk)
        make_image(Path(disk.path), disk.format, filled_mib=8)
        await pair.start()
        await machines.writes("a")
        await move(pair.source, pair.destination, pair)
        last = await machines.writes("b")
        await until_true(lambda: names(tmp_path / "storage") == {"vm.img"})
        assert [report.detail["disk_total_bytes"] for report in pair.source.progress] == [0]
        await ended(pair)
        assert lost(raw_octets(Path(disk.path), disk), RECORDS, last) == []

    run(scenario)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_move_that_is_given_up_leaves_no_image(
    run: Callable[[DiskTest], None], moment: str
) -> None:
    disk = Disk("vm.img", "qcow2", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk, SLOW if moment == "copying" else USUAL)
        source, destination = pair.source, pair.destination
        make_image(machines.image("a", disk), disk.format, filled_mib=8)
        await pair.start()
        await machines.writes("a")
        await source.hypervisor.copy_out(VM, *await pair.prepare())
        if moment == "copying":
            await until_true(lambda: source.progress)
            assert source.progress[0].detail["disk_bytes"] < 8 * MIB
        else:
            await source.next(GuestEvent.CONVERGED)
        if moment == "about to stop":
            await source.hypervisor.switch_over(VM)
            await source.next(GuestEvent.ABOUT_TO_STOP)
        await source.hypervisor.cancel(VM)
        failed = await source.next(GuestEvent.FAILED)
        assert failed.detail == {"reason": "cancelled", "running": True}
        await destination.hypervisor.cancel(VM)
        assert names(machines.folder / "b/disks") == set()
        assert names(machines.folder / "a/disks") == {"vm.img"}
        last = await machines.writes("a")
        await ended(pair)
        assert lost(raw_octets(machines.image("a", disk), disk), RECORDS, last) == []

    run(scenario)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["copying", "held", "about to stop"])
def test_a_destination_that_dies_leaves_the_guest_and_its_disk_here(
    run: Callable[[DiskTest], None], moment: str
) -> None:
    """And a new move begins afresh."""
    disk = Disk("vm.img", "qcow2", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk, SLOW if moment == "copying" else USUAL)
        source, destination = pair.source, pair.destination
        make_image(machines.image("a", disk), disk.format, filled_mib=8)
        await pair.start()
        await source.hypervisor.copy_out(VM, *await pair.prepare())
        await until_true(lambda: source.progress)
        if moment != "copying":
            await source.next(GuestEvent.CONVERGED)
        if moment == "about to stop":
            await source.hypervisor.switch_over(VM)
            await source.next(GuestEvent.ABOUT_TO_STOP)
        destination.kill()
        failed = await source.next(GuestEvent.FAILED)
        assert failed.detail["running"] is True
        assert failed.detail["reason"]
        await machines.writes("a")
        await destination.next(GuestEvent.FAILED)
        await destination.next(GuestEvent.GONE)
        await move(source, destination, pair)
        last = await machines.writes("b")
        await ended(pair)
        assert lost(raw_octets(machines.image("b", disk), disk), RECORDS, last) == []

    run(scenario)


def test_an_image_of_nobody_is_not_written_over(run: Callable[[DiskTest], None]) -> None:
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

    run(scenario)


def test_a_disk_of_another_size_is_named(run: Callable[[DiskTest], None]) -> None:
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

    run(scenario)


def test_a_full_disk_at_the_destination_ends_the_move(run: Callable[[DiskTest], None]) -> None:
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
            last = await machines.writes("a")
            await ended(pair)
        finally:
            command("umount", str(small))
        assert lost(raw_octets(machines.image("a", disk), disk), RECORDS, last) == []

    run(scenario)


def test_a_guest_does_not_start_without_its_disk_or_with_an_old_one(
    run: Callable[[DiskTest], None],
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

    run(scenario)


def test_a_destination_that_dies_in_the_switch_leaves_the_disk_to_its_guest(
    run: Callable[[DiskTest], None],
) -> None:
    """All was handed over; QEMU starts the guest again by itself, and stop() keeps its image."""
    disk = Disk("vm.img", "qcow2", SIZE_MIB)

    async def scenario(machines: Machines) -> None:
        pair = machines.pair(disk)
        source, destination = pair.source, pair.destination
        make_image(machines.image("a", disk), disk.format)
        await pair.start()
        await machines.writes("a")
        await source.hypervisor.copy_out(VM, *await pair.prepare())
        await source.next(GuestEvent.CONVERGED)
        await source.hypervisor.switch_over(VM)
        await source.next(GuestEvent.ABOUT_TO_STOP)
        destination.hang()  # its server cannot be ended, so the disk is not said to be whole
        await source.hypervisor.proceed(VM)
        await source.next(GuestEvent.STOPPED)
        failed = await source.next(GuestEvent.FAILED)
        assert failed.detail["running"] is True
        await source.hypervisor.resume(VM)
        last = await machines.writes("a")
        destination.unhang()
        await destination.hypervisor.cancel(VM)
        await ended(pair)
        assert names(machines.folder / "a/disks") == {"vm.img"}
        assert lost(raw_octets(machines.image("a", disk), disk), RECORDS, last) == []
        await pair.start()

    run(scenario)


@pytest.mark.slow
def test_a_guest_moves_after_its_daemon_died_in_a_copy(run: Callable[[DiskTest], None]) -> None:
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
        last = await machines.writes("b")
        await ended(pair)
        assert lost(raw_octets(machines.image("b", disk), disk), RECORDS, last) == []

    run(scenario)


def test_another_vms_open_image_is_not_taken_for_shared_storage(
    run: Callable[[DiskTest], None],
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

    run(scenario)


def test_a_disk_of_which_nothing_came_is_not_whole(run: Callable[[DiskTest], None]) -> None:
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

    run(scenario)


def test_a_mark_that_cannot_be_made_turns_the_move_back(
    run: Callable[[DiskTest], None], monkeypatch: pytest.MonkeyPatch
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

            await source.hypervisor.copy_out(VM, *await pair.prepare())
            patched.setattr(DiskImages, "_set_mark", lambda self, path, mark: refuse(path, mark))
            await source.next(GuestEvent.CONVERGED)
            await source.hypervisor.switch_over(VM)
            await source.next(GuestEvent.ABOUT_TO_STOP)
            await source.hypervisor.proceed(VM)
            await source.next(GuestEvent.STOPPED)
            failed = await source.next(GuestEvent.FAILED)
        assert failed.detail["running"] is True
        assert "Read-only file system" in failed.detail["reason"]
        await destination.next(GuestEvent.FAILED)
        await destination.next(GuestEvent.GONE)
        await destination.hypervisor.cancel(VM)
        assert names(machines.folder / "b/disks") == set()
        await machines.writes("a")
        await move(source, destination, pair)
        last = await machines.writes("b")
        await ended(pair)
        assert lost(raw_octets(machines.image("b", disk), disk), RECORDS, last) == []

    run(scenario)
