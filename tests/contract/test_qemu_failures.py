"""Where a move between two QEMUs can break: never two running guests, one wherever it can be.

All lives in one namespace; the guest's memory crosses its loopback, or a relay that a test governs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.hypervisor_nodes import (
    LIMIT_S,
    TCG,
    VM,
)
from tests.contract.qemu_scene import Run, Scene, scenes
from tests.lab.test_guest_image import control
from vmmobility.drivers.hypervisor.interface import GuestEvent
from vmmobility.errors import HypervisorError

pytestmark = [pytest.mark.qemu, pytest.mark.netns]

# Short limits; the wait for a cut path is all the time that these tests take.
HASTY = replace(TCG, stall_limit_s=1.0, switch_limit_s=1.0)
# These never give up by themselves.
PATIENT = replace(TCG, switch_limit_s=LIMIT_S)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with scenes(tmp_path) as run_it:
        yield run_it


@pytest.mark.parametrize("moment", ["held", "about to stop", "proceed", "stopped"])
def test_a_destination_is_killed(run: Run, moment: str) -> None:
    async def scenario(scene: Scene) -> None:
        source, destination = scene.source, scene.destination
        if moment == "held":
            await source.hypervisor.copy_out(VM, *await scene.pair.prepare())
            await source.next(GuestEvent.CONVERGED)
        else:
            await scene.about_to_stop()
        if moment in ("proceed", "stopped"):
            await source.hypervisor.proceed(VM)
        if moment == "stopped":
            await source.next(GuestEvent.STOPPED)
        destination.kill()
        last = await scene.outcome()
        if last.event is GuestEvent.COMPLETED:  # the kernel had taken the rest by then
            assert moment == "stopped"
            assert await scene.pair.state_at(source) == "moved-out"
            await source.hypervisor.resume(VM)
        else:
            assert last.event is GuestEvent.FAILED
            if not last.detail["running"]:  # QEMU had written all; the stream could not send it
                assert moment in ("proceed", "stopped")
                await source.hypervisor.resume(VM)
        report = await destination.reports.get()
        if report.event is GuestEvent.RESUMED:
            assert moment == "stopped"
        else:
            assert (report.event, report.detail["running"]) == (GuestEvent.FAILED, False)
        await destination.next(GuestEvent.GONE)
        await scene.the_source_runs()

    run(PATIENT, scenario)


def test_without_the_last_octet_the_destination_never_runs(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        relay = await scene.about_to_stop(relay=True)
        await scene.source.hypervisor.proceed(VM)
        assert (await scene.outcome()).event is GuestEvent.COMPLETED
        await relay.eof.wait()
        assert await scene.pair.state_at(scene.destination) == "incoming"
        relay.close()
        failed = await scene.destination.next(GuestEvent.FAILED)
        assert failed.detail["running"] is False
        await scene.destination.next(GuestEvent.GONE)
        await scene.source.hypervisor.resume(VM)
        await scene.the_source_runs()

    run(PATIENT, scenario)


def test_a_rolled_back_guest_has_its_whole_memory(run: Run) -> None:
    """Twice: the source breaks off in the middle of the rest; the destination dies at its end."""

    async def scenario(scene: Scene) -> None:
        source, destination = scene.source, scene.destination
        await asyncio.to_thread(control, scene.space.name, b"status")  # it has booted
        relay = await scene.about_to_stop(relay=True)
        # Before the driver itself can see that QEMU has stopped the guest.
        source.on_report = lambda report: (
            relay.open.clear() if report.event is GuestEvent.STOPPED else None
        )
        await source.hypervisor.proceed(VM)
        await source.next(GuestEvent.STOPPED)
        await source.hypervisor.cancel(VM)
        failed = await source.next(GuestEvent.FAILED)
        assert failed.detail == {"reason": "cancelled", "running": True}
        await destination.hypervisor.cancel(VM)
        await scene.the_source_runs()
        await scene.check_memory()
        await relay.end()

        source.on_report = lambda report: None
        relay = await scene.about_to_stop(relay=True)
        await source.hypervisor.proceed(VM)
        assert (await scene.outcome()).event is GuestEvent.COMPLETED
        await relay.eof.wait()
        destination.kill()
        await destination.next(GuestEvent.FAILED)
        await destination.next(GuestEvent.GONE)
        await source.hypervisor.resume(VM)
        await scene.the_source_runs()
        await scene.check_memory()

    run(PATIENT, scenario)


def test_a_waiting_guest_is_cancelled_as_it_gets_its_last_octet(run: Run) -> None:
    """It is gone and never ran, or it ran first, said so, and runs on."""

    async def scenario(scene: Scene) -> None:
        source, destination = scene.source, scene.destination
        relay = await scene.about_to_stop(relay=True)
        await source.hypervisor.proceed(VM)
        assert (await scene.outcome()).event is GuestEvent.COMPLETED
        await relay.eof.wait()
        relay.release()
        await destination.hypervisor.cancel(VM)
        if destination.reports.empty():
            assert await destination.hypervisor.adopt([scene.pair.definition]) == {}
            await source.hypervisor.resume(VM)
            await scene.the_source_runs()
        else:
            await destination.next(GuestEvent.RESUMED)
            assert await scene.pair.runs_at(destination)

    run(PATIENT, scenario)


def test_a_waiting_guest_cannot_be_told_gone_while_its_monitor_is_mute(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(scene: Scene) -> None:
        destination = scene.destination
        await scene.pair.prepare()

        async def mute(*_: object) -> None:
            raise HypervisorError("contract: no answer")

        with monkeypatch.context() as patched:
            patched.setattr("vmmobility.drivers.hypervisor.guest.QemuGuest.execute", mute)
            with pytest.raises(HypervisorError, match="no answer"):
                await destination.hypervisor.cancel(VM)
        assert await scene.pair.state_at(destination) == "incoming"

    run(PATIENT, scenario)


def test_a_path_that_is_cut_while_held_is_noticed(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.place = await scene.pair.prepare()
        await scene.source.hypervisor.copy_out(VM, *scene.place)
        await scene.source.next(GuestEvent.CONVERGED)
        scene.cut()
        failed = await scene.source.next(GuestEvent.FAILED)
        assert failed.detail["running"] is True
        assert "acknowledged" in failed.detail["reason"]
        await scene.the_source_runs()
        await scene.destination.hypervisor.cancel(VM)
        assert await scene.destination.hypervisor.adopt([scene.pair.definition]) == {}

    run(HASTY, scenario)


def test_a_path_that_is_cut_before_the_switch_brings_the_guest_back(run: Run) -> None:
    """The rest is more than the kernel takes: not everything was sent."""

    async def scenario(scene: Scene) -> None:
        await scene.about_to_stop()
        scene.cut()
        await scene.source.hypervisor.proceed(VM)
        last = await scene.outcome()
        await scene.destination.hypervisor.cancel(VM)
        assert await scene.destination.hypervisor.adopt([scene.pair.definition]) == {}
        assert scene.destination.reports.empty(), "it never ran"
        if last.event is GuestEvent.COMPLETED:  # a machine with a larger send buffer
            await scene.source.hypervisor.resume(VM)
        else:
            assert last.detail["running"] is True
        await scene.the_source_runs()

    run(HASTY, scenario)


def test_a_guest_that_ends_itself_is_told_from_one_that_is_killed(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.source.kill()
        gone = await scene.source.next(GuestEvent.GONE)
        assert "clean" not in gone.detail
        machine = scene.pair.definition.machine
        ends = {**machine, "append": f"{machine['append']} rdinit=/nothing"}  # it resets itself
        definition = replace(scene.pair.definition, machine=ends)
        await scene.destination.hypervisor.start(definition, [scene.destination.port])
        await scene.destination.next(GuestEvent.STARTED)
        gone = await scene.destination.next(GuestEvent.GONE)
        assert gone.detail["clean"] is True

    run(PATIENT, scenario)
