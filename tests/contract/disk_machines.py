"""Two machines with folders of their own, and a guest with a disk that both can run.

The guest writes numbered records past all caches and says on its console which are acknowledged.
For test_qemu_disks.py and test_qemu_disk_failures.py.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.contract.hypervisor_nodes import (
    INTERFACE,
    LOOPBACK,
    TCG,
    VM,
    Node,
    Pair,
    guest_machine,
    qemu_node,
)
from tests.contract.waiting import until_true
from vmmobility.drivers.hypervisor.interface import Disk, GuestEvent, VmDefinition
from vmmobility.drivers.hypervisor.process import GuestFolder
from vmmobility.drivers.hypervisor.settings import MIB, QemuSettings
from vmmobility.lab.guest.disk_records import acknowledged, lost

RECORDS = 1000
SIZE_MIB = 64
SLOW = replace(TCG, copy_bytes_per_s=4 * MIB)  # the memory as well
USUAL = TCG


class Machines:
    """Two machines with folders of their own, and one that both see."""

    def __init__(self, folder: Path, taps: list[str]) -> None:
        self.folder = folder
        self.pairs: list[Pair] = []
        self._taps = taps
        self.machine = guest_machine(disk_records=RECORDS, disk_every_ms=5)

    def pair(self, disk: Disk, settings: QemuSettings = USUAL) -> Pair:
        settings = replace(settings, disk_folders=(self.folder,))
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

    async def end_soundly(self, pair: Pair, end: str) -> None:
        """The guest writes on there and is ended; every acknowledged write is on its disk."""
        (disk,) = pair.definition.disks
        last = await self.writes(end)
        await ended(pair)
        assert lost(raw_octets(self.image(end, disk), disk), RECORDS, last) == []

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


async def hold(pair: Pair, moment: str) -> None:
    """A copy that is held, or about to stop."""
    source = pair.source
    await source.hypervisor.copy_out(VM, *await pair.prepare())
    await source.next(GuestEvent.CONVERGED)
    if moment == "about to stop":
        await source.hypervisor.switch_over(VM)
        await source.next(GuestEvent.ABOUT_TO_STOP)


async def gone(node: Node) -> None:
    """What came in was not whole, and its QEMU has ended."""
    await node.next(GuestEvent.FAILED)
    await node.next(GuestEvent.GONE)


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


DiskTest = Callable[[Machines], Awaitable[None]]
Run = Callable[[DiskTest], None]


@contextmanager
def two_machines(folder: Path) -> Iterator[Run]:
    """What runs a coroutine with Machines, and ends all its guests afterwards."""
    taps = [f"vmd{os.getpid() % 100000}{end}" for end in "ab"]
    for tap in taps:
        command("ip", "tuntap", "add", "dev", tap, "mode", "tap")

    async def whole(test: DiskTest) -> None:
        machines = Machines(folder, taps)
        try:
            await test(machines)
        finally:
            for pair in machines.pairs:
                await ended(pair)

    yield lambda test: asyncio.run(whole(test))
    for tap in taps:
        command("ip", "link", "del", tap)
