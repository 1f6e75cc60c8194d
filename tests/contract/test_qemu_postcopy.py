"""A guest that writes faster than its copy goes: given up, or forced to go on at its destination.

The guest's own checksums say whether its memory is whole.  Without KVM the copy has one round, so
the time is up in it: whatever is dirtied, the round does not end in time at this pace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.hypervisor_nodes import LIMIT_S, LOOPBACK, TCG, VM
from tests.contract.qemu_scene import Run, Scene, scenes
from tests.contract.waiting import until, until_true
from tools.make_stream_certificates import Authority
from vmmobility.drivers.hypervisor.interface import GuestEvent
from vmmobility.drivers.hypervisor.postcopy import LINE_LIMIT, LOST, line
from vmmobility.drivers.hypervisor.qemu import QemuHypervisor
from vmmobility.drivers.hypervisor.settings import MIB
from vmmobility.errors import HypervisorError
from vmmobility.wire.move_terms import MoveTerms
from vmmobility.wire.registry import GuestLife, OnTimeout

pytestmark = [pytest.mark.qemu, pytest.mark.netns]

# The guest rewrites 24 MiB/s of its memory, and 4 MiB/s are sent.
ABORT = MoveTerms(timeout_s=2, bandwidth_mib_s=4)
SECRET = "5ec4e7"
FORCE = replace(ABORT, on_timeout=OnTimeout.FORCE)
USUAL = replace(TCG, stall_limit_s=1.0, recover_limit_s=20.0)
# What the guest does not ask for itself comes slowly.
FETCHES_SLOWLY = replace(USUAL, postcopy_bytes_per_s=6 * MIB)


@pytest.fixture(params=["clear", pytest.param("tls", marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Run]:
    tls = None
    if request.param == "tls":
        tls = Authority(tmp_path / "ca").issue(tmp_path / "tls", [LOOPBACK])
    with scenes(tmp_path, mem_mib=24, dirty_mibps=24) as run_it:
        yield lambda settings, test: run_it(replace(settings, tls=tls), test)


async def copied_until_the_time_is_up(scene: Scene, terms: MoveTerms) -> None:
    await until_true(scene.source.has_booted)
    await scene.check_memory()
    scene.place = await scene.pair.prepare(terms, secret=SECRET)
    await scene.source.hypervisor.copy_out(VM, *scene.place, terms, secret=SECRET)


async def answer_to(scene: Scene, said: bytes) -> bytes:
    """Of the destination's port, to one of another host: where they have TLS it is let in."""
    hypervisor = scene.source.hypervisor
    assert isinstance(hypervisor, QemuHypervisor)

    def speak() -> bytes:
        with hypervisor._streams.connect("somebody", *scene.place) as connection:
            connection.settimeout(LIMIT_S)
            connection.sendall(said)
            return connection.recv(LINE_LIMIT)

    return await asyncio.to_thread(speak)


async def nobody_is_let_in(scene: Scene) -> bool:
    try:
        _, writer = await asyncio.open_connection(*scene.place)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


async def migration(scene: Scene, end: str) -> str:
    """What the QEMU of that end says of its migration."""
    node = scene.source if end == "a" else scene.destination
    assert isinstance(node.hypervisor, QemuHypervisor)
    info = await node.hypervisor._guest(VM).execute("query-migrate")
    return str(info.get("status"))


async def forced(scene: Scene, terms: MoveTerms = FORCE) -> None:
    """The guest runs at the destination, and has not all of its memory there."""
    await copied_until_the_time_is_up(scene, terms)
    converged = await scene.source.next(GuestEvent.CONVERGED)
    assert converged.detail["forced"] is True
    assert converged.detail["remaining_bytes"] > 4 << 20
    await scene.source.hypervisor.switch_over(VM)
    await scene.source.next(GuestEvent.ABOUT_TO_STOP)
    assert await scene.pair.runs_at(scene.source), "it must run until proceed()"
    await scene.source.hypervisor.proceed(VM)
    await scene.source.next(GuestEvent.STOPPED)
    await scene.destination.next(GuestEvent.RESUMED)
    scene.lead_to_the_destination()


def test_it_is_given_up_and_runs_on(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        await copied_until_the_time_is_up(scene, ABORT)
        failed = await scene.source.next(GuestEvent.FAILED)
        reason = "the copy has not converged within the 2 s asked for"
        assert failed.detail == {"reason": reason, "running": True}
        await scene.check_memory()

    run(USUAL, scenario)


def test_it_is_forced_and_its_memory_is_whole(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        await forced(scene)
        assert not await scene.pair.runs_at(scene.source)
        assert await answer_to(scene, b"lost\n") == b""
        await scene.source.next(GuestEvent.COMPLETED)
        assert await scene.pair.runs_at(scene.destination)
        await scene.check_memory()
        # Its memory is whole: even the source, late, ends nothing by saying that it is lost.
        assert await answer_to(scene, line(LOST, SECRET)) == b""
        assert await scene.pair.runs_at(scene.destination)
        await scene.check_memory()
        # What the source has is old: the guest has gone on elsewhere.
        with pytest.raises(HypervisorError, match="went on elsewhere in post-copy"):
            await scene.source.hypervisor.resume(VM)
        assert await scene.source.hypervisor.query(VM) is GuestLife.DEPARTED
        await scene.source.hypervisor.stop(VM)
        await scene.check_memory()

    run(USUAL, scenario)


@pytest.mark.slow
def test_one_that_converges_in_time_is_moved_as_any_other(run: Run) -> None:
    """With a way back in both QEMUs, on which nothing may rest: the source's end is its own."""
    in_time = replace(FORCE, timeout_s=60, bandwidth_mib_s=200)

    async def scenario(scene: Scene) -> None:
        await copied_until_the_time_is_up(scene, in_time)
        converged = await scene.source.next(GuestEvent.CONVERGED)
        assert "forced" not in converged.detail
        await scene.source.hypervisor.switch_over(VM)
        await scene.source.next(GuestEvent.ABOUT_TO_STOP)
        await scene.source.hypervisor.proceed(VM)
        await scene.source.next(GuestEvent.STOPPED)
        await scene.source.next(GuestEvent.COMPLETED)
        await scene.destination.next(GuestEvent.RESUMED)
        scene.lead_to_the_destination()
        await scene.check_memory()
        await until(lambda: nobody_is_let_in(scene), lambda closed: closed)
        # It never ran in post-copy: the roll-back of an ordinary move is still possible.
        await scene.destination.hypervisor.stop(VM)
        await scene.source.hypervisor.resume(VM)
        assert await scene.pair.runs_at(scene.source)

    run(USUAL, scenario)


@pytest.mark.slow
@pytest.mark.parametrize("daemons", ["live", "source's restarts", "source's monitor is lost"])
def test_a_path_that_is_cut_while_it_fetches_is_mended(run: Run, daemons: str) -> None:
    async def scenario(scene: Scene) -> None:
        source = scene.source
        await forced(scene)
        scene.cut()
        await until(lambda: migration(scene, "a"), lambda status: status == "postcopy-paused")
        assert await source.hypervisor.query(VM) is GuestLife.DEPARTED
        assert not await scene.pair.runs_at(source)
        with pytest.raises(HypervisorError, match="went on elsewhere in post-copy"):
            await source.hypervisor.resume(VM)
        with pytest.raises(HypervisorError, match="it goes on at"):
            await source.hypervisor.cancel(VM)
        if daemons == "source's monitor is lost":
            assert isinstance(source.hypervisor, QemuHypervisor)
            await source.hypervisor._guest(VM).session.close()
        if daemons == "source's restarts":
            await source.restart()
            assert await source.hypervisor.adopt([scene.pair.definition]) == {VM: False}
        scene.mend()
        await source.next(GuestEvent.COMPLETED)
        await scene.check_memory()
        assert source.reports.empty()

    run(FETCHES_SLOWLY, scenario)


@pytest.mark.slow
def test_a_source_that_dies_while_it_is_fetched_is_the_end(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        await forced(scene)
        scene.source.kill()
        failed = await scene.source.next(GuestEvent.FAILED)
        assert failed.detail["running"] is False
        await scene.source.next(GuestEvent.GONE)
        failed = await scene.destination.next(GuestEvent.FAILED)
        reason = "its source has ended before all of its memory was here"
        assert failed.detail == {"reason": reason, "running": False}
        await scene.destination.next(GuestEvent.GONE)

    run(FETCHES_SLOWLY, scenario)


@pytest.mark.slow
def test_a_destination_that_dies_while_it_fetches_is_the_end(run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        await forced(scene)
        with pytest.raises(HypervisorError, match="still fetches its memory from here"):
            await scene.source.hypervisor.stop(VM)
        scene.destination.kill()
        await scene.destination.next(GuestEvent.GONE)
        failed = await scene.source.next(GuestEvent.FAILED)
        assert failed.detail["running"] is False
        assert "could not be reached" in failed.detail["reason"]
        with pytest.raises(HypervisorError, match="went on elsewhere in post-copy"):
            await scene.source.hypervisor.resume(VM)
        assert not await scene.pair.runs_at(scene.source)

    run(replace(FETCHES_SLOWLY, recover_limit_s=3.0), scenario)
