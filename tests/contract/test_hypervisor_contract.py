"""The Hypervisor contract, for the in-memory twin and for QEMU, between two nodes.

QEMU's two nodes share this machine: their taps have different names, memory travels over loopback.
The guest needs no network here; tests/lab/test_guest_image.py talks to it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from vmmobility.drivers.hypervisor import process
from vmmobility.drivers.hypervisor.fake import FakeHypervisor, FakeWorld
from vmmobility.drivers.hypervisor.interface import (
    GuestEvent,
    GuestReport,
    Hypervisor,
    VmDefinition,
)
from vmmobility.drivers.hypervisor.process import GuestFolder
from vmmobility.drivers.hypervisor.qemu import QemuHypervisor
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.errors import EnvironmentProblem, HypervisorError
from vmmobility.lab import workdir
from vmmobility.lab.guest.image import guest_image, kernel_arguments
from vmmobility.wire.registry import GuestLife
from vmmobility.wire.values import Interface, VmKey

BUILD = workdir.cache()
LIMIT_S = 30.0
POLL_S = 0.02
LOOPBACK = "127.0.0.1"
VM = VmKey(0, "contract")
INTERFACE = Interface(
    bytes.fromhex("525400000101"), (ip_network("10.1.0.1/32"), ip_network("fd01::1/128"))
)


class Node:
    """One hypervisor, its tap, and the reports that have come from it."""

    def __init__(self, port: str) -> None:
        self.port = port
        self.reports: asyncio.Queue[GuestReport] = asyncio.Queue()
        self.on_report: Callable[[GuestReport], None] = lambda report: None
        self.hypervisor: Hypervisor
        self.reopen: Callable[[], Hypervisor]
        self.kill: Callable[[], None]
        self.hang: Callable[[], None]  # the guest answers nobody
        self.unhang: Callable[[], None]
        self.has_booted: Callable[[], bool] = lambda: True

    def hear(self, report: GuestReport) -> None:
        """The hypervisor's listener."""
        self.on_report(report)
        self.reports.put_nowait(report)

    async def next(self, event: GuestEvent) -> GuestReport:
        """The next report, which must be `event`."""
        async with asyncio.timeout(LIMIT_S):
            report = await self.reports.get()
        assert report.event is event, report
        assert report.vm == VM
        return report


class Pair:
    """A source node, a destination node and a VM that both can run."""

    def __init__(self, definition: VmDefinition, source: Node, destination: Node) -> None:
        self.definition = definition
        self.source = source
        self.destination = destination

    async def start(self) -> None:
        await self.source.hypervisor.start(self.definition, [self.source.port])
        await self.source.next(GuestEvent.STARTED)

    async def prepare(self) -> tuple[str, int]:
        node = self.destination
        return await node.hypervisor.prepare_incoming(self.definition, [node.port], LOOPBACK)

    async def hold(self, *, booted: bool = True) -> None:
        """A started guest with a converged, held copy.

        booted: wait until it is up; in its first seconds it may have nothing left to copy, and is
        then stopped when all is sent
        """
        await self.start()
        if booted:
            async with asyncio.timeout(LIMIT_S):
                while True:
                    if self.source.has_booted():
                        break
                    await asyncio.sleep(POLL_S)
        await self.source.hypervisor.copy_out(VM, *await self.prepare())
        converged = await self.source.next(GuestEvent.CONVERGED)
        assert {"remaining_bytes", "rounds"} <= converged.detail.keys()

    async def state_at(self, node: Node) -> str:
        assert isinstance(node.hypervisor, FakeHypervisor | QemuHypervisor)
        return await node.hypervisor.state(VM)

    async def runs_at(self, node: Node) -> bool:
        return (await node.hypervisor.adopt([self.definition])).get(VM, False)


def fake_nodes() -> tuple[Node, Node]:
    world = FakeWorld()
    nodes = Node("tapA"), Node("tapB")
    for node in nodes:
        fake = FakeHypervisor(node.reports.put_nowait, world)
        node.hypervisor = fake
        node.reopen = lambda fake=fake: fake  # type: ignore[misc]
        node.kill = lambda fake=fake: fake.kill(VM)  # type: ignore[misc]
        node.hang = lambda fake=fake: fake.fail_next.update(adopt="hangs", cancel="hangs")  # type: ignore[misc]
        node.unhang = fake.fail_next.clear
    return nodes


TCG = QemuSettings(accelerator="tcg", start_limit_s=5.0)


def qemu_node(port: str, state_dir: Path, settings: QemuSettings = TCG) -> Node:
    node = Node(port)

    def open_it() -> Hypervisor:
        return QemuHypervisor(state_dir, node.hear, settings)

    def send(number: signal.Signals) -> None:
        pid = process.find(GuestFolder.of(state_dir, VM))
        assert pid is not None
        os.kill(pid, number)

    node.hypervisor, node.reopen = open_it(), open_it

    def has_booted() -> bool:
        console = GuestFolder.of(state_dir, VM).console
        return console.exists() and b"init: up" in console.read_bytes()

    node.has_booted = has_booted
    node.kill = lambda: send(signal.SIGKILL)
    node.hang, node.unhang = lambda: send(signal.SIGSTOP), lambda: send(signal.SIGCONT)
    return node


PairTest = Callable[[Pair], Awaitable[None]]


@pytest.fixture(params=["fake", pytest.param("qemu", marks=[pytest.mark.qemu, pytest.mark.netns])])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[PairTest], None]]:
    """Runs a coroutine with a Pair, and ends all its guests afterwards."""
    taps = [f"vmc{os.getpid() % 100000}{end}" for end in "ab"]
    if request.param == "qemu":
        for tap in taps:
            subprocess.run(["ip", "tuntap", "add", "dev", tap, "mode", "tap"], check=True)

    async def with_pair(test: PairTest) -> None:
        if request.param == "fake":
            source, destination = fake_nodes()
            machine = {"kernel": "/vmlinuz"}
        else:
            source = qemu_node(taps[0], tmp_path / "a")
            destination = qemu_node(taps[1], tmp_path / "b")
            image = guest_image(BUILD)
            machine = {
                "kernel": str(image.kernel),
                "initrd": str(image.initrd),
                "append": kernel_arguments([INTERFACE]),
            }
        pair = Pair(VmDefinition(VM, "qemu", (INTERFACE,), machine=machine), source, destination)
        try:
            await test(pair)
        finally:
            for node in (source, destination):
                await node.hypervisor.stop(VM)
                await node.hypervisor.close()

    yield lambda test: asyncio.run(with_pair(test))
    if request.param == "qemu":
        for tap in taps:
            subprocess.run(["ip", "link", "del", tap], check=True)


def test_a_hot_move_reports_each_phase_in_order(run: Callable[[PairTest], None]) -> None:
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


def test_a_moved_out_guest_can_be_brought_back(run: Callable[[PairTest], None]) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.hold()
        await pair.source.hypervisor.switch_over(VM)
        await pair.source.next(GuestEvent.ABOUT_TO_STOP)
        await pair.source.hypervisor.proceed(VM)
        await pair.source.next(GuestEvent.STOPPED)
        await pair.source.next(GuestEvent.COMPLETED)
        await pair.destination.hypervisor.stop(VM)
        await pair.source.hypervisor.resume(VM)
        assert await pair.runs_at(pair.source)

    run(scenario)


def test_cancel_and_resume_leave_a_running_guest_alone(run: Callable[[PairTest], None]) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        await pair.hold()
        await source.hypervisor.resume(VM)
        await source.hypervisor.switch_over(VM)
        await source.next(GuestEvent.ABOUT_TO_STOP)
        await source.hypervisor.proceed(VM)
        await source.next(GuestEvent.STOPPED)
        await source.next(GuestEvent.COMPLETED)
        await destination.next(GuestEvent.RESUMED)
        await destination.hypervisor.cancel(VM)
        await destination.hypervisor.resume(VM)
        await source.hypervisor.cancel(VM)
        assert await pair.runs_at(destination)
        assert await pair.state_at(source) == "moved-out"
        assert source.reports.empty()
        assert destination.reports.empty()

    run(scenario)


def test_a_held_move_is_cancelled_and_can_be_repeated(run: Callable[[PairTest], None]) -> None:
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


def test_a_move_is_cancelled_at_the_last_moment(run: Callable[[PairTest], None]) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.hold()
        await pair.source.hypervisor.switch_over(VM)
        await pair.source.next(GuestEvent.ABOUT_TO_STOP)
        await pair.source.hypervisor.cancel(VM)
        failed = await pair.source.next(GuestEvent.FAILED)
        assert failed.detail["running"] is True
        assert await pair.runs_at(pair.source)

    run(scenario)


def test_a_destination_that_dies_leaves_the_guest_here(run: Callable[[PairTest], None]) -> None:
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


def test_nobody_listens(run: Callable[[PairTest], None]) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.start()
        with pytest.raises(HypervisorError, match=r"[Rr]efused"):
            await pair.source.hypervisor.copy_out(VM, LOOPBACK, 1)
        assert await pair.state_at(pair.source) == "running"

    run(scenario)


def test_guests_outlive_the_daemon(run: Callable[[PairTest], None]) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        await pair.start()
        await pair.prepare()
        for node in (source, destination):
            await node.hypervisor.close()
            node.hypervisor = node.reopen()
        assert await source.hypervisor.adopt([pair.definition]) == {VM: True}
        assert await destination.hypervisor.adopt([pair.definition]) == {VM: False}
        assert await pair.state_at(destination) == "incoming"
        # What was prepared before the restart is still good.
        await source.hypervisor.copy_out(VM, *await pair.prepare())
        await source.next(GuestEvent.CONVERGED)

    run(scenario)


def test_a_guest_that_hangs_is_neither_gone_nor_given_up(run: Callable[[PairTest], None]) -> None:
    async def scenario(pair: Pair) -> None:
        node = pair.destination
        await pair.prepare()
        await node.hypervisor.close()
        node.hypervisor = node.reopen()
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


def test_a_copy_that_a_dead_daemon_has_held_is_over(run: Callable[[PairTest], None]) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.hold()
        await pair.source.hypervisor.close()
        pair.source.hypervisor = pair.source.reopen()
        assert await pair.runs_at(pair.source)
        await pair.source.hypervisor.cancel(VM)
        assert await pair.runs_at(pair.source)
        # Nothing of it stands in the way of the next move.
        await pair.destination.hypervisor.cancel(VM)
        await pair.prepare()

    run(scenario)


def test_pause_and_resume(run: Callable[[PairTest], None]) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.start()
        for order, running in (("pause", False), ("pause", False), ("resume", True)):
            await getattr(pair.source.hypervisor, order)(VM)
            assert await pair.runs_at(pair.source) is running
        assert pair.source.reports.empty()

    run(scenario)


def test_orders_can_be_repeated(run: Callable[[PairTest], None]) -> None:
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


def test_a_guest_that_lives_but_does_not_run_is_not_started(
    run: Callable[[PairTest], None],
) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        await pair.hold()
        with pytest.raises(HypervisorError, match="contract"):
            await destination.hypervisor.start(pair.definition, [destination.port])
        await source.hypervisor.switch_over(VM)
        await source.next(GuestEvent.ABOUT_TO_STOP)
        await source.hypervisor.proceed(VM)
        await source.next(GuestEvent.STOPPED)
        await source.next(GuestEvent.COMPLETED)
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


def test_a_guest_that_ends_is_reported(run: Callable[[PairTest], None]) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.start()
        pair.source.kill()
        await pair.source.next(GuestEvent.GONE)
        with pytest.raises(HypervisorError, match="contract"):
            await pair.source.hypervisor.pause(VM)

    run(scenario)


@pytest.mark.parametrize("order", ["pause", "resume", "switch_over", "proceed", "announce"])
def test_an_unknown_guest_is_named(run: Callable[[PairTest], None], order: str) -> None:
    async def scenario(pair: Pair) -> None:
        with pytest.raises(HypervisorError, match="contract"):
            await getattr(pair.source.hypervisor, order)(VM)

    run(scenario)


def test_a_guests_life_is_told_at_every_step(run: Callable[[PairTest], None]) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination

        async def lives() -> tuple[GuestLife, GuestLife]:
            return await source.hypervisor.query(VM), await destination.hypervisor.query(VM)

        assert await lives() == (GuestLife.NONE, GuestLife.NONE)
        await pair.hold()
        assert await lives() == (GuestLife.RUNNING, GuestLife.HELD)
        await source.hypervisor.switch_over(VM)
        await source.next(GuestEvent.ABOUT_TO_STOP)
        await source.hypervisor.proceed(VM)
        await source.next(GuestEvent.STOPPED)
        await source.next(GuestEvent.COMPLETED)
        await destination.next(GuestEvent.RESUMED)
        assert await lives() == (GuestLife.DEPARTED, GuestLife.RUNNING)
        await destination.hypervisor.pause(VM)
        await source.hypervisor.stop(VM)
        assert await lives() == (GuestLife.NONE, GuestLife.HELD)

    run(scenario)


def test_orphans_are_found_and_can_be_ended(run: Callable[[PairTest], None]) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        await pair.start()
        await pair.prepare()
        for node in (source, destination):
            await node.hypervisor.close()
            node.hypervisor = node.reopen()
            assert list(await node.hypervisor.orphans([VM])) == []
            assert list(await node.hypervisor.orphans([])) == [VM]
            await node.hypervisor.stop(VM)
            assert list(await node.hypervisor.orphans([])) == []
            assert await node.hypervisor.query(VM) is GuestLife.NONE

    run(scenario)


def test_guests_of_its_own_are_not_watched(run: Callable[[PairTest], None]) -> None:
    async def scenario(pair: Pair) -> None:
        node = pair.source
        with pytest.raises(HypervisorError, match=r"contract.*not by others"):
            await node.hypervisor.watch(pair.definition, [node.port])
        with pytest.raises(HypervisorError, match=r"contract.*not by others"):
            await node.hypervisor.unwatch(VM)

    run(scenario)


# -- what only one of the two can show ---------------------------------------------------------


def definition(**machine: str) -> VmDefinition:
    return VmDefinition(VM, "qemu", (INTERFACE,), machine=machine)


def test_a_missing_kernel_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor = QemuHypervisor(tmp_path, print, QemuSettings(accelerator="tcg"))
        with pytest.raises(HypervisorError, match="kernel /no/such/kernel does not exist"):
            await hypervisor.start(definition(kernel="/no/such/kernel"), ["tap"])

    asyncio.run(scenario())


def test_a_missing_qemu_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = QemuSettings(accelerator="tcg", binary="no-such-qemu")
        hypervisor = QemuHypervisor(tmp_path, print, settings)
        with pytest.raises(EnvironmentProblem, match="no-such-qemu"):
            await hypervisor.start(definition(kernel=__file__), ["tap"])

    asyncio.run(scenario())


@pytest.mark.qemu
@pytest.mark.netns
def test_what_qemu_says_of_a_tap_that_is_missing_is_passed_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor = QemuHypervisor(tmp_path, print, QemuSettings(accelerator="tcg"))
        kernel = str(guest_image(BUILD).kernel)
        with pytest.raises(HypervisorError, match=r"contract: QEMU did not start: .*no-such/tap"):
            await hypervisor.start(definition(kernel=kernel), ["no-such/tap"])
        assert await hypervisor.adopt([definition(kernel=kernel)]) == {}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("start", 2), ("prepare_incoming", 3), ("stop", 1), ("pause", 1), ("copy_out", 3)],
)
def test_the_twin_fails_once_when_told_to(method: str, arguments: int) -> None:
    async def scenario() -> None:
        fake = FakeHypervisor(lambda report: None)
        fake.fail_next[method] = "no room"
        first = definition() if method in ("start", "prepare_incoming") else VM
        extra: tuple[object, ...] = (["tap"], LOOPBACK)
        rest = extra[: arguments - 1]
        with pytest.raises(HypervisorError, match="contract: no room"):
            await getattr(fake, method)(first, *rest)
        assert fake.fail_next == {}

    asyncio.run(scenario())


def test_the_twin_s_destination_ends_while_it_loads() -> None:
    async def scenario() -> None:
        source, destination = fake_nodes()
        pair = Pair(definition(), source, destination)
        assert isinstance(source.hypervisor, FakeHypervisor)
        source.hypervisor.break_next["loading"] = "killed"
        await pair.hold()
        await source.hypervisor.switch_over(VM)
        await source.next(GuestEvent.ABOUT_TO_STOP)
        await source.hypervisor.proceed(VM)
        await source.next(GuestEvent.STOPPED)
        await source.next(GuestEvent.COMPLETED)
        failed = await destination.next(GuestEvent.FAILED)
        assert failed.detail["running"] is False
        await destination.next(GuestEvent.GONE)
        await source.hypervisor.resume(VM)
        assert await pair.runs_at(source)
        assert source.hypervisor.announced == [VM]

    asyncio.run(scenario())


@pytest.mark.parametrize("phase", ["copying", "held", "switching"])
def test_the_twin_breaks_a_move_in_each_phase(phase: str) -> None:
    async def scenario() -> None:
        source, destination = fake_nodes()
        pair = Pair(definition(), source, destination)
        await pair.start()
        assert isinstance(source.hypervisor, FakeHypervisor)
        source.hypervisor.break_next[phase] = "path cut"
        await source.hypervisor.copy_out(VM, *await pair.prepare())
        if phase != "copying":
            await source.next(GuestEvent.CONVERGED)
        if phase == "switching":
            await source.hypervisor.switch_over(VM)
            await source.next(GuestEvent.ABOUT_TO_STOP)
            await source.hypervisor.proceed(VM)
            await source.next(GuestEvent.STOPPED)
        failed = await source.next(GuestEvent.FAILED)
        assert failed.detail == {"reason": "path cut", "running": True}
        assert await pair.runs_at(source)
        assert not await pair.runs_at(destination)

    asyncio.run(scenario())
