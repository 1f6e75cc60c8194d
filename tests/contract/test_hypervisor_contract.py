"""The Hypervisor contract, for the in-memory twin and for QEMU, here and at servers apart.

QEMU's two nodes share this machine: their taps have different names, memory travels over loopback.
The guest needs no network here; tests/lab/test_guest_image.py talks to it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.hypervisor_nodes import (
    INTERFACE,
    LOOPBACK,
    TCG,
    VM,
    Pair,
    PairTest,
    Run,
    fake_nodes,
    guest_machine,
    qemu_node,
)
from tests.contract.server_nodes import at_servers
from tools.make_stream_certificates import Authority
from vmmobility.drivers.hypervisor.interface import (
    GuestEvent,
    VmDefinition,
)
from vmmobility.errors import HypervisorError
from vmmobility.wire.move_terms import MoveTerms
from vmmobility.wire.registry import GuestLife, OnTimeout

REAL = [pytest.mark.qemu, pytest.mark.netns]
PARAMS = [
    "fake",
    "fake-apart",
    pytest.param("qemu", marks=REAL),
    pytest.param("qemu-apart", marks=[*REAL, pytest.mark.slow]),
    pytest.param("qemu-tls", marks=[*REAL, pytest.mark.slow]),
]


@pytest.fixture(params=PARAMS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Run]:
    """Runs a coroutine with a Pair, and ends all its guests afterwards."""
    taps = [f"vmc{os.getpid() % 100000}{end}" for end in "ab"]
    kind, _, way = request.param.partition("-")
    settings = TCG
    if way == "tls":
        settings = replace(TCG, tls=Authority(tmp_path / "ca").issue(tmp_path / "tls", [LOOPBACK]))
    if kind == "qemu":
        for tap in taps:
            subprocess.run(["ip", "tuntap", "add", "dev", tap, "mode", "tap"], check=True)

    async def with_pair(test: PairTest) -> None:
        if kind == "fake":
            source, destination = fake_nodes()
            machine = {"kernel": "/vmlinuz"}
        else:
            source = qemu_node(taps[0], tmp_path / "a", settings)
            destination = qemu_node(taps[1], tmp_path / "b", settings)
            machine = guest_machine()
        definition = VmDefinition(VM, "qemu", (INTERFACE,), machine=machine)
        try:
            if way == "apart":
                async with at_servers(definition, source, destination) as pair:
                    await test(pair)
            else:
                await test(Pair(definition, source, destination))
        finally:
            for node in (source, destination):
                await node.hypervisor.stop(VM)
                await node.hypervisor.close()

    yield lambda test: asyncio.run(with_pair(test))
    if kind == "qemu":
        for tap in taps:
            subprocess.run(["ip", "link", "del", tap], check=True)


def test_a_hot_move_reports_each_phase_in_order(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        await pair.hold(booted=True)
        assert await pair.runs_at(source)
        with pytest.raises(HypervisorError, match="contract"):
            await source.hypervisor.proceed(VM)
        await source.hypervisor.switch_over(VM)
        await source.next(GuestEvent.ABOUT_TO_STOP)
        assert await pair.runs_at(source), "it must run until proceed()"
        assert destination.reports.empty()
        await source.hypervisor.proceed(VM)
        stopped = await source.next(GuestEvent.STOPPED)
        resumed = await destination.next(GuestEvent.RESUMED)
        completed = await source.next(GuestEvent.COMPLETED)
        assert stopped.time_ns <= resumed.time_ns
        figures = {"total_ms", "downtime_ms", "setup_ms", "rounds", "transferred_bytes"}
        assert figures <= completed.detail.keys()
        assert await pair.runs_at(destination)
        assert await source.hypervisor.adopt([pair.definition]) == {VM: False}
        assert await pair.state_at(source) == "moved-out"
        assert await pair.state_at(destination) == "running"
        await destination.hypervisor.announce(VM)
        await source.hypervisor.stop(VM)
        assert await source.hypervisor.adopt([pair.definition]) == {}

    run(scenario)


def test_a_moved_out_guest_can_be_brought_back(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.hold()
        await pair.hand_over()
        await pair.destination.hypervisor.stop(VM)
        await pair.source.hypervisor.resume(VM)
        assert await pair.runs_at(pair.source)

    run(scenario)


def test_cancel_and_resume_leave_a_running_guest_alone(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        await pair.hold()
        await source.hypervisor.resume(VM)
        await pair.hand_over()
        await destination.next(GuestEvent.RESUMED)
        await destination.hypervisor.cancel(VM)
        await destination.hypervisor.resume(VM)
        await source.hypervisor.cancel(VM)
        assert await pair.runs_at(destination)
        assert await pair.state_at(source) == "moved-out"
        assert source.reports.empty()
        assert destination.reports.empty()

    run(scenario)


def test_a_held_move_is_cancelled_and_can_be_repeated(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.hold()
        await pair.source.hypervisor.cancel(VM)
        failed = await pair.source.next(GuestEvent.FAILED)
        assert failed.detail == {"reason": "cancelled", "running": True}
        assert await pair.runs_at(pair.source)
        await pair.source.hypervisor.cancel(VM)  # once more changes nothing
        await pair.destination.next(GuestEvent.FAILED)
        await pair.destination.next(GuestEvent.GONE)
        await pair.source.hypervisor.copy_out(VM, *await pair.prepare())
        await pair.source.next(GuestEvent.CONVERGED)

    run(scenario)


def test_a_move_is_cancelled_at_the_last_moment(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.hold()
        await pair.source.hypervisor.switch_over(VM)
        await pair.source.next(GuestEvent.ABOUT_TO_STOP)
        await pair.source.hypervisor.cancel(VM)
        failed = await pair.source.next(GuestEvent.FAILED)
        assert failed.detail["running"] is True
        assert await pair.runs_at(pair.source)

    run(scenario)


def test_a_copy_that_takes_longer_than_was_asked_is_given_up(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.copy_slowly(MoveTerms(timeout_s=1, bandwidth_mib_s=1))
        failed = await pair.source.next(GuestEvent.FAILED)
        reason = "the copy has not converged within the 1 s asked for"
        assert failed.detail == {"reason": reason, "running": True}
        assert await pair.runs_at(pair.source)
        for report in pair.source.progress:
            assert 0 <= report.detail["memory_bytes"] <= report.detail["memory_total_bytes"]
        assert pair.source.progress
        # Nothing of it stands in the way of the next move.
        await pair.destination.next(GuestEvent.FAILED)
        await pair.destination.next(GuestEvent.GONE)
        await pair.prepare()

    run(scenario)


def test_a_copy_that_takes_longer_can_be_forced(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        await pair.copy_slowly(
            MoveTerms(timeout_s=1, on_timeout=OnTimeout.FORCE, bandwidth_mib_s=1)
        )
        converged = await source.next(GuestEvent.CONVERGED)
        assert converged.detail["forced"] is True
        await pair.switch()
        await destination.next(GuestEvent.RESUMED)
        await source.next(GuestEvent.COMPLETED)
        assert await pair.runs_at(destination)
        assert await source.hypervisor.query(VM) is GuestLife.DEPARTED
        await destination.hypervisor.stop(VM)
        with pytest.raises(HypervisorError, match="what is here is old"):
            await source.hypervisor.resume(VM)
        assert not await pair.runs_at(source)

    run(scenario)


def test_a_destination_that_dies_leaves_the_guest_here(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.hold()
        pair.destination.kill()
        await pair.destination.next(GuestEvent.FAILED)
        await pair.destination.next(GuestEvent.GONE)
        failed = await pair.source.next(GuestEvent.FAILED)
        assert failed.detail["running"] is True
        assert failed.detail["reason"]
        assert await pair.runs_at(pair.source)

    run(scenario)


def test_nobody_listens(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.start()
        with pytest.raises(HypervisorError, match=r"[Rr]efused"):
            await pair.source.hypervisor.copy_out(VM, LOOPBACK, 1)
        assert await pair.state_at(pair.source) == "running"

    run(scenario)


def test_guests_outlive_the_daemon(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        await pair.start()
        await pair.prepare()
        for node in (source, destination):
            await node.restart()
        assert await source.hypervisor.adopt([pair.definition]) == {VM: True}
        assert await destination.hypervisor.adopt([pair.definition]) == {VM: False}
        assert await pair.state_at(destination) == "incoming"
        # What was prepared before the restart is still good.
        await source.hypervisor.copy_out(VM, *await pair.prepare())
        await source.next(GuestEvent.CONVERGED)

    run(scenario)


def test_a_guest_that_hangs_is_neither_gone_nor_given_up(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        node = pair.destination
        await pair.prepare()
        await node.restart()
        node.hang()
        with pytest.raises(HypervisorError):
            await node.hypervisor.adopt([pair.definition])
        with pytest.raises(HypervisorError):
            await node.hypervisor.cancel(VM)
        node.unhang()
        assert await node.hypervisor.adopt([pair.definition]) == {VM: False}
        await node.hypervisor.cancel(VM)
        assert await node.hypervisor.adopt([pair.definition]) == {}
        assert node.reports.empty()

    run(scenario)


def test_a_copy_that_a_dead_daemon_has_held_is_over(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.hold()
        await pair.source.restart()
        assert await pair.runs_at(pair.source)
        await pair.source.hypervisor.cancel(VM)
        assert await pair.runs_at(pair.source)
        # Nothing of it stands in the way of the next move.
        await pair.destination.hypervisor.cancel(VM)
        await pair.prepare()

    run(scenario)


def test_pause_and_resume(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.start()
        for order, running in (("pause", False), ("pause", False), ("resume", True)):
            await getattr(pair.source.hypervisor, order)(VM)
            assert await pair.runs_at(pair.source) is running
        assert pair.source.reports.empty()

    run(scenario)


def test_orders_can_be_repeated(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.start()
        await pair.source.hypervisor.start(pair.definition, [pair.source.port])
        assert await pair.prepare() == await pair.prepare()
        await pair.destination.hypervisor.cancel(VM)
        await pair.destination.hypervisor.cancel(VM)
        assert await pair.destination.hypervisor.adopt([pair.definition]) == {}
        await pair.source.hypervisor.stop(VM)
        await pair.source.hypervisor.stop(VM)
        assert pair.source.reports.empty()
        assert pair.destination.reports.empty()

    run(scenario)


def test_a_guest_that_lives_but_does_not_run_is_not_started(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        await pair.hold()
        with pytest.raises(HypervisorError, match="contract"):
            await destination.hypervisor.start(pair.definition, [destination.port])
        await pair.hand_over()
        await destination.next(GuestEvent.RESUMED)
        with pytest.raises(HypervisorError, match="moved-out"):
            await source.hypervisor.start(pair.definition, [source.port])
        await destination.hypervisor.pause(VM)
        with pytest.raises(HypervisorError, match="paused"):
            await destination.hypervisor.start(pair.definition, [destination.port])
        assert await pair.state_at(destination) == "paused"
        assert source.reports.empty()
        assert destination.reports.empty()

    run(scenario)


def test_a_guest_that_ends_is_reported(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.start()
        pair.source.kill()
        gone = await pair.source.next(GuestEvent.GONE)
        assert "clean" not in gone.detail  # it has not shut itself down
        with pytest.raises(HypervisorError, match="contract"):
            await pair.source.hypervisor.pause(VM)

    run(scenario)


@pytest.mark.parametrize("order", ["pause", "resume", "switch_over", "proceed", "announce"])
def test_an_unknown_guest_is_named(run: Run, order: str) -> None:
    async def scenario(pair: Pair) -> None:
        with pytest.raises(HypervisorError, match="contract"):
            await getattr(pair.source.hypervisor, order)(VM)

    run(scenario)


def test_a_guests_life_is_told_at_every_step(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination

        async def lives() -> tuple[GuestLife, GuestLife]:
            return await source.hypervisor.query(VM), await destination.hypervisor.query(VM)

        assert await lives() == (GuestLife.NONE, GuestLife.NONE)
        await pair.hold()
        assert await lives() == (GuestLife.RUNNING, GuestLife.HELD)
        await pair.hand_over()
        await destination.next(GuestEvent.RESUMED)
        assert await lives() == (GuestLife.DEPARTED, GuestLife.RUNNING)
        await destination.hypervisor.pause(VM)
        await source.hypervisor.stop(VM)
        assert await lives() == (GuestLife.NONE, GuestLife.HELD)

    run(scenario)


def test_orphans_are_found_and_can_be_ended(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        await pair.start()
        await pair.prepare()
        for node in (source, destination):
            await node.restart()
            assert list(await node.hypervisor.orphans([VM])) == []
            assert list(await node.hypervisor.orphans([])) == [VM]
            await node.hypervisor.stop(VM)
            assert list(await node.hypervisor.orphans([])) == []
            assert await node.hypervisor.query(VM) is GuestLife.NONE

    run(scenario)


def test_guests_of_its_own_are_not_watched(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        node = pair.source
        with pytest.raises(HypervisorError, match=r"contract.*not by others"):
            await node.hypervisor.watch(pair.definition, [node.port])
        with pytest.raises(HypervisorError, match=r"contract.*not by others"):
            await node.hypervisor.unwatch(VM)

    run(scenario)


def test_a_suspended_guest_is_held_and_goes_on(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.start()
        hypervisor = pair.source.hypervisor
        await hypervisor.pause(VM)
        await hypervisor.pause(VM)  # once more changes nothing
        assert await hypervisor.query(VM) is GuestLife.HELD
        assert await hypervisor.adopt([pair.definition]) == {VM: False}
        await hypervisor.resume(VM)
        assert await pair.runs_at(pair.source)
        await hypervisor.pause(VM)
        await hypervisor.stop(VM)
        assert await hypervisor.query(VM) is GuestLife.NONE

    run(scenario)


def test_a_guest_is_asked_to_shut_itself_down(run: Run) -> None:
    """Whether it does is its own affair; whoever asked may end it, and start it again."""

    async def scenario(pair: Pair) -> None:
        await pair.start()
        hypervisor = pair.source.hypervisor
        await hypervisor.shut_down(VM)
        await hypervisor.stop(VM)
        assert await hypervisor.query(VM) is GuestLife.NONE
        with pytest.raises(HypervisorError, match="contract"):
            await hypervisor.shut_down(VM)
        await hypervisor.start(pair.definition, [pair.source.port])
        assert await pair.runs_at(pair.source)

    run(scenario)


def test_a_guest_that_does_not_run_is_moved_and_stays_so(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        await pair.start()
        await source.hypervisor.pause(VM)
        await pair.hold_what_is_held()
        await pair.hand_over()
        arrived = await destination.next(GuestEvent.RESUMED)
        assert arrived.detail["held"] is True
        assert not await pair.runs_at(destination)
        await destination.hypervisor.keep(pair.definition)
        await destination.hypervisor.keep(pair.definition)
        assert await destination.hypervisor.query(VM) is GuestLife.HELD
        await source.hypervisor.stop(VM)
        await destination.hypervisor.cancel(VM)  # what is kept is no move's any more
        await destination.hypervisor.resume(VM)
        assert await pair.runs_at(destination)

    run(scenario)


def test_a_held_copy_that_came_is_ended_and_the_one_that_was_sent_is_kept(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        await pair.start()
        await source.hypervisor.pause(VM)
        await pair.hold_what_is_held()
        await pair.hand_over()
        await destination.next(GuestEvent.RESUMED)
        await destination.hypervisor.cancel(VM)
        assert await destination.hypervisor.query(VM) is GuestLife.NONE
        await source.hypervisor.keep(pair.definition)
        assert await source.hypervisor.query(VM) is GuestLife.HELD
        assert not await pair.runs_at(source)
        await source.hypervisor.resume(VM)
        assert await pair.runs_at(source)

    run(scenario)


def test_a_guest_that_never_ran_lends_its_copying(run: Run) -> None:
    """Of a VM that is stopped: nothing of it runs at either end."""

    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        hypervisor = source.hypervisor
        await hypervisor.start(pair.definition, [source.port], held=True)
        await hypervisor.start(pair.definition, [source.port], held=True)
        assert await hypervisor.query(VM) is GuestLife.HELD
        await pair.hold_what_is_held()
        await hypervisor.cancel(VM)
        failed = await source.next(GuestEvent.FAILED)
        assert failed.detail["running"] is False
        await destination.next(GuestEvent.FAILED)
        await destination.next(GuestEvent.GONE)
        await hypervisor.keep(pair.definition)
        await hypervisor.stop(VM)  # QEMU copies nobody twice that has not run in between
        await hypervisor.start(pair.definition, [source.port], held=True)
        await pair.hold_what_is_held()
        await pair.hand_over()
        await destination.next(GuestEvent.RESUMED)
        await destination.hypervisor.keep(pair.definition)
        await destination.hypervisor.stop(VM)
        await hypervisor.stop(VM)
        await destination.hypervisor.start(pair.definition, [destination.port])
        assert await pair.runs_at(destination)

    run(scenario)


def test_a_daemon_that_was_away_hears_of_a_held_copy_that_came(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        await pair.start()
        await source.hypervisor.pause(VM)
        await pair.hold_what_is_held()
        await pair.hand_over()
        await destination.next(GuestEvent.RESUMED)
        await destination.restart()
        assert await destination.hypervisor.adopt([pair.definition]) == {VM: False}
        assert (await destination.next(GuestEvent.RESUMED)).detail["held"] is True
        await destination.hypervisor.keep(pair.definition)
        assert await destination.hypervisor.query(VM) is GuestLife.HELD

    run(scenario)


def test_a_guest_that_lives_is_never_put_aside(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.destination.hypervisor.retire(pair.definition)  # of which nothing is here
        await pair.start()
        await pair.source.hypervisor.retire(pair.definition)
        assert await pair.runs_at(pair.source)

    run(scenario)
