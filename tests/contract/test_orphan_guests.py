"""Guests that a crash has left, of which no record tells: found by their folders, and ended.

A crash between the last record of a VM and the end of its guest leaves such ones.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.hand_run import HandRun
from tests.contract.hypervisor_nodes import INTERFACE, LOOPBACK, TCG, guest_machine
from vmmobility.daemon.hypervisor_desk import HypervisorDesk
from vmmobility.drivers.hypervisor import definition as definitions
from vmmobility.drivers.hypervisor import process
from vmmobility.drivers.hypervisor.external import ExternalHypervisor
from vmmobility.drivers.hypervisor.interface import VmDefinition
from vmmobility.drivers.hypervisor.process import GuestFolder
from vmmobility.drivers.hypervisor.qemu import QemuHypervisor
from vmmobility.wire.registry import GuestLife
from vmmobility.wire.values import VmKey

pytestmark = [pytest.mark.qemu, pytest.mark.netns]

KNOWN, RUNNING, WAITING = VmKey(0, "known"), VmKey(0, "running"), VmKey(0, "waiting")
TAPS = {vm: f"vmo{vm.vm_id}" for vm in (KNOWN, RUNNING, WAITING)}


@pytest.fixture
def taps() -> Iterator[None]:
    for tap in TAPS.values():
        subprocess.run(["ip", "tuntap", "add", "dev", tap, "mode", "tap"], check=True)
    yield
    for tap in TAPS.values():
        subprocess.run(["ip", "link", "del", tap], check=True)


def definition(vm: VmKey) -> VmDefinition:
    return VmDefinition(vm, "qemu", (INTERFACE,), machine=guest_machine())


def pids(folder: Path) -> dict[VmKey, int | None]:
    return {vm: process.find(GuestFolder.of(folder, vm)) for vm in TAPS}


def is_in_a_sandbox(pid: int | None) -> bool:
    """Whether its system calls are filtered: a guest that breaks into QEMU starts no program."""
    return "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()


async def leave_behind(folder: Path) -> None:
    """What a daemon that was killed has left."""
    before = QemuHypervisor(folder, print, TCG)
    for vm in (KNOWN, RUNNING):
        await before.start(definition(vm), [TAPS[vm]])
    await before.prepare_incoming(definition(WAITING), [TAPS[WAITING]], LOOPBACK)
    await before.close()


@pytest.mark.usefixtures("taps")
def test_guests_that_no_record_knows_are_ended(tmp_path: Path) -> None:
    notes: list[dict[str, Any]] = []
    folder = tmp_path / "g"

    async def scenario() -> None:
        await leave_behind(folder)
        by_hand = HandRun(tmp_path / "hand")
        await by_hand.boot()
        qemu = QemuHypervisor(folder, print, TCG)
        external = ExternalHypervisor(print, lambda name, **detail: None)
        async with asyncio.TaskGroup() as group:
            desk = HypervisorDesk(
                {"qemu": qemu, "external": external},
                group,
                lambda *answer: None,
                lambda name, **detail: notes.append({"event": name, **detail}),
            )
            known = {KNOWN: definitions.encode(definition(KNOWN))}
            assert await desk.adopt(known) == {KNOWN: True}
            await desk.sweep(known, spare=True)
            assert all(pids(folder).values()), "the records may lack them: they are kept"
            assert {(note["vm"], note["ended"]) for note in notes} == {
                ("running", False),
                ("waiting", False),
            }
            notes.clear()
            await desk.sweep(known, spare=False)
            alive = {vm for vm, pid in pids(folder).items() if pid is not None}
            assert alive == {KNOWN}
            assert {(note["event"], note["vm"], note["ended"]) for note in notes} == {
                ("guest.orphan", "running", True),
                ("guest.orphan", "waiting", True),
            }
            await desk.sweep(known, spare=False)
            assert len(notes) == 2
        assert await qemu.query(KNOWN) is GuestLife.RUNNING
        assert is_in_a_sandbox(pids(folder)[KNOWN])
        assert await qemu.query(RUNNING) is GuestLife.NONE
        assert await by_hand.status() == "running", "one of other hands is left alone"
        await qemu.stop(KNOWN)
        await qemu.close()
        await external.close()
        await by_hand.end()

    try:
        asyncio.run(asyncio.wait_for(scenario(), 60))
    finally:
        for vm, pid in pids(folder).items():
            if pid is not None:
                asyncio.run(process.kill(GuestFolder.of(folder, vm), vm, pid))
