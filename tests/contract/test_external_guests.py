"""Guests that others run: what is reported of them, for the in-memory twin and for QEMU by hand.

QEMU's two hosts share this machine; the operator has a monitor of each, beside the NVE's.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from tests.contract.hand_run import HandRun
from vmmobility.drivers.hypervisor.external import ExternalHypervisor
from vmmobility.drivers.hypervisor.fake_external import FakeExternalHypervisor, FakeHands
from vmmobility.drivers.hypervisor.interface import (
    GuestEvent,
    GuestReport,
    Hypervisor,
    VmDefinition,
)
from vmmobility.drivers.hypervisor.settings import ExternalSettings
from vmmobility.engine.dataplane import port_name
from vmmobility.errors import HypervisorError
from vmmobility.lab import workdir
from vmmobility.lab.guest.image import guest_image, kernel_arguments
from vmmobility.wire.registry import GuestLife
from vmmobility.wire.values import Interface, VmKey

LIMIT_S = 40.0  # a whole guest boots on a busy machine
QUIET_S = 0.3  # so long nothing must be reported
POLL_S = 0.01
# What a report may take from the operator's own sight of it; this machine may be busy.
PROMPT_S = 2.0
VM = VmKey(0, "by-hand")
INTERFACE = Interface(
    bytes.fromhex("525400000201"), (ip_network("10.1.0.9/32"), ip_network("fd01::9/128"))
)
HASTY = ExternalSettings(absent_s=0.05, retry_s=0.1, answer_s=1.0, patrol_s=1.0)


T = TypeVar("T")


async def until(ask: Callable[[], Awaitable[T]], holds: Callable[[T], bool]) -> None:
    """Ask until it holds; fails with what was last seen."""
    end = time.monotonic() + LIMIT_S
    while not holds(seen := await ask()):
        assert time.monotonic() < end, f"last seen: {seen!r}"
        await asyncio.sleep(POLL_S)


class Hands(Protocol):
    """What people do on one host."""

    async def boot(self) -> None: ...
    async def await_copy(self) -> None: ...
    async def migrate(self, to: Any) -> None: ...
    async def pause(self) -> None: ...
    async def cont(self) -> None: ...
    async def kill(self) -> None: ...
    async def status(self) -> str: ...


class FakeHost:
    """FakeHands as Hands."""

    def __init__(self) -> None:
        self.hands = FakeHands()

    async def boot(self) -> None:
        self.hands.boot(VM)

    async def await_copy(self) -> None:
        self.hands.await_copy_of(VM)

    async def migrate(self, to: FakeHost) -> None:
        self.hands.migrate(VM, to.hands)

    async def pause(self) -> None:
        self.hands.pause(VM)

    async def cont(self) -> None:
        self.hands.cont(VM)

    async def kill(self) -> None:
        self.hands.kill(VM)

    async def status(self) -> str:
        runs = self.hands.guests[VM] in (GuestLife.RUNNING, GuestLife.ARRIVED)
        return "running" if runs else "paused"


class QemuHost(HandRun):
    """HandRun as Hands."""

    async def pause(self) -> None:
        await self.say("stop")

    async def cont(self) -> None:
        await self.say("cont")

    async def kill(self) -> None:
        await self.end()


class Node:
    """One host: its hands, its hypervisor, and the reports that have come."""

    def __init__(self, hands: Any, qmp: Path) -> None:
        self.hands: Hands = hands
        self.definition = VmDefinition(VM, "external", (INTERFACE,), machine={"qmp": str(qmp)})
        self.reports: asyncio.Queue[GuestReport] = asyncio.Queue()
        self.notes: list[dict[str, Any]] = []
        self.hypervisor: Hypervisor = self._open()

    def _open(self) -> Hypervisor:
        if isinstance(self.hands, FakeHost):
            return FakeExternalHypervisor(self.reports.put_nowait, self.hands.hands)
        return ExternalHypervisor(self.reports.put_nowait, self.note, HASTY)

    def note(self, name: str, **detail: Any) -> None:
        self.notes.append({"event": name, **detail})

    async def watch(self) -> None:
        await self.hypervisor.watch(self.definition, [port_name(VM, 0)])

    async def restart(self) -> dict[VmKey, bool]:
        """The daemon dies, and another adopts what it finds."""
        await self.hypervisor.close()
        self.hypervisor = self._open()
        return await self.hypervisor.adopt([self.definition])

    async def next(self, event: GuestEvent) -> dict[str, Any]:
        """The next report, which must be `event`; its detail."""
        async with asyncio.timeout(LIMIT_S):
            report = await self.reports.get()
        assert report.event is event, report
        assert report.vm == VM
        return report.detail

    async def noted(self) -> list[dict[str, Any]]:
        return self.notes

    async def quiet(self) -> None:
        """Nothing is reported."""
        await asyncio.sleep(QUIET_S if isinstance(self.hypervisor, ExternalHypervisor) else 0.01)
        assert self.reports.empty(), self.reports.get_nowait()

    async def life(self) -> GuestLife:
        return await self.hypervisor.query(VM)


class Pair:
    """Two hosts that both watch for the VM."""

    def __init__(self, source: Node, destination: Node) -> None:
        self.source = source
        self.destination = destination

    async def migrated(self) -> None:
        """Booted at the source, moved by hand, and so reported."""
        await self.source.hands.boot()
        await self.source.next(GuestEvent.ARRIVED)
        await self.destination.hands.await_copy()
        await self.source.hands.migrate(self.destination.hands)
        await self.source.next(GuestEvent.DEPARTED)
        await self.destination.next(GuestEvent.ARRIVED)


PairTest = Callable[[Pair], Awaitable[None]]
Run = Callable[[PairTest], None]


def play(make: Callable[[Path], Any], folder: Path, test: PairTest) -> None:
    async def whole() -> None:
        nodes = [Node(make(folder / end), folder / end / "nve.qmp") for end in ("a", "b")]
        try:
            for node in nodes:
                await node.watch()
            await test(Pair(*nodes))
        finally:
            for node in nodes:
                await node.hypervisor.close()
                if isinstance(node.hands, QemuHost):
                    await node.hands.end()

    asyncio.run(asyncio.wait_for(whole(), 60))


@pytest.fixture(params=["fake", pytest.param("qemu", marks=pytest.mark.qemu)])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Runs a coroutine with a Pair, and ends what it has left."""
    make = QemuHost if request.param == "qemu" else lambda folder: FakeHost()
    return lambda test: play(make, tmp_path, test)


def test_a_guest_that_is_started_by_hand_arrives(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        node = pair.source
        assert await node.life() is GuestLife.NONE
        await node.hands.boot()
        assert await node.next(GuestEvent.ARRIVED) == {"migrated": False}
        assert await node.life() is GuestLife.RUNNING
        await node.watch()  # once more: it is told again
        await node.next(GuestEvent.ARRIVED)
        await node.quiet()

    run(scenario)


def test_a_move_by_hand_departs_and_arrives(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        await source.hands.boot()
        await source.next(GuestEvent.ARRIVED)
        await destination.hands.await_copy()
        await destination.quiet()
        assert await destination.life() is GuestLife.HELD
        await source.hands.migrate(destination.hands)
        seen = time.monotonic()
        departed = await source.next(GuestEvent.DEPARTED)
        assert departed["migration"] == "completed"
        assert await destination.next(GuestEvent.ARRIVED) == {"migrated": True}
        assert time.monotonic() - seen < PROMPT_S
        assert await source.life() is GuestLife.DEPARTED
        assert await destination.life() is GuestLife.ARRIVED
        await source.hands.kill()
        assert (await source.next(GuestEvent.GONE))["life"] == "departed"
        assert await source.life() is GuestLife.NONE
        # And back again.
        await source.hands.await_copy()
        assert await source.life() is GuestLife.HELD
        await destination.hands.migrate(source.hands)
        await destination.next(GuestEvent.DEPARTED)
        assert await source.next(GuestEvent.ARRIVED) == {"migrated": True}
        assert source.notes == destination.notes == []

    run(scenario)


def test_a_guest_that_hands_resume_where_it_departed_arrives_again(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.migrated()
        await pair.source.hands.cont()
        assert await pair.source.next(GuestEvent.ARRIVED) == {"migrated": False}
        assert await pair.source.life() is GuestLife.RUNNING
        await pair.destination.quiet()

    run(scenario)


def test_the_end_of_a_process_is_told_at_each_end(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.migrated()
        for node, life in ((pair.destination, "running"), (pair.source, "departed")):
            await node.hands.kill()
            told = await node.next(GuestEvent.GONE)
            assert told["life"] in (life, "arrived")
            with pytest.raises(HypervisorError, match="by-hand"):
                await node.hypervisor.pause(VM)
        await pair.source.hands.boot()
        await pair.source.next(GuestEvent.ARRIVED)

    run(scenario)


def test_what_we_order_is_not_told_as_somebody_elses(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        node = pair.source
        await node.hands.boot()
        await node.next(GuestEvent.ARRIVED)
        for order, runs in (("pause", 0), ("pause", 0), ("resume", 1), ("resume", 1)):
            await getattr(node.hypervisor, order)(VM)
            assert (await node.hands.status() == "running") is bool(runs)
        await node.hypervisor.announce(VM)
        await node.quiet()
        await node.hypervisor.pause(VM)
        await node.hands.cont()
        await node.next(GuestEvent.ARRIVED)
        await node.hands.pause()
        await node.quiet()
        assert await node.life() is GuestLife.HELD

    run(scenario)


def test_a_departed_guest_is_not_resumed_nor_a_waiting_one(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.migrated()
        with pytest.raises(HypervisorError, match="run by others"):
            await pair.source.hypervisor.resume(VM)
        await pair.source.hypervisor.pause(VM)
        assert await pair.source.life() is GuestLife.DEPARTED
        await pair.source.hands.kill()
        await pair.source.next(GuestEvent.GONE)
        await pair.source.hands.await_copy()
        with pytest.raises(HypervisorError, match="run by others"):
            await pair.source.hypervisor.resume(VM)
        await pair.source.hypervisor.pause(VM)  # and it still waits
        await pair.destination.hands.migrate(pair.source.hands)
        await pair.source.next(GuestEvent.ARRIVED)

    run(scenario)


def test_stop_pauses_and_goes_on_watching(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        node = pair.source
        await node.hypervisor.stop(VM)  # nothing is here
        await node.hands.boot()
        await node.next(GuestEvent.ARRIVED)
        await node.hypervisor.stop(VM)
        assert await node.hands.status() == "paused"
        assert await node.life() is GuestLife.HELD
        await node.hypervisor.stop(VM)
        await node.quiet()
        await node.hands.cont()
        await node.next(GuestEvent.ARRIVED)

    run(scenario)


def test_a_guest_that_is_watched_no_more(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        node = pair.source
        await node.hands.boot()
        await node.next(GuestEvent.ARRIVED)
        for _ in range(2):
            await node.hypervisor.unwatch(VM)
        assert await node.hands.status() == "running"
        assert await node.life() is GuestLife.NONE
        await node.hands.kill()
        await node.quiet()

    run(scenario)


def test_a_restart_finds_what_has_happened(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        assert await source.restart() == {}
        await source.hands.boot()
        await source.next(GuestEvent.ARRIVED)
        assert await source.restart() == {VM: True}
        await source.next(GuestEvent.ARRIVED)
        await destination.hands.await_copy()
        assert await destination.restart() == {VM: False}
        await destination.quiet()
        await destination.hypervisor.close()
        await source.hypervisor.close()
        await source.hands.migrate(destination.hands)
        assert await source.restart() == {VM: False}
        await source.next(GuestEvent.DEPARTED)
        assert await destination.restart() == {VM: True}
        await destination.next(GuestEvent.ARRIVED)
        await source.hypervisor.close()
        await source.hands.kill()
        assert await source.restart() == {}
        await source.quiet()

    run(scenario)


@pytest.mark.parametrize("order", ["start", "prepare_incoming", "copy_out", "switch_over"])
def test_what_only_their_owners_do_is_refused(run: Run, order: str) -> None:
    async def scenario(pair: Pair) -> None:
        node = pair.source
        arguments: dict[str, list[Any]] = {
            "start": [node.definition, ["tap"]],
            "prepare_incoming": [node.definition, ["tap"], "127.0.0.1"],
            "copy_out": [VM, "127.0.0.1", 1],
            "switch_over": [VM],
        }
        with pytest.raises(HypervisorError, match="VM by-hand is run by others") as caught:
            await getattr(node.hypervisor, order)(*arguments[order])
        assert "virsh or QEMU" in caught.value.remedy
        assert await node.hypervisor.orphans(()) == ()

    run(scenario)


# -- what only QEMU can show -------------------------------------------------------------------


@pytest.fixture
def qemus(tmp_path: Path) -> Run:
    return lambda test: play(QemuHost, tmp_path, test)


@pytest.mark.qemu
def test_a_source_that_is_ended_at_once_has_departed_first(qemus: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        await source.hands.boot()
        await source.next(GuestEvent.ARRIVED)
        await destination.hands.await_copy()
        await source.hands.migrate(destination.hands)
        await source.hands.kill()  # as virsh does
        await source.next(GuestEvent.DEPARTED)
        assert (await source.next(GuestEvent.GONE))["life"] == "departed"
        await destination.next(GuestEvent.ARRIVED)

    qemus(scenario)


@pytest.mark.qemu
def test_a_failed_move_reports_nothing_but_the_lost_destination(qemus: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        hands = source.hands
        assert isinstance(hands, QemuHost)
        await hands.boot()
        await source.next(GuestEvent.ARRIVED)
        await destination.hands.await_copy()
        await destination.quiet()
        await hands.say("migrate-set-parameters", **{"max-bandwidth": 1 << 10})
        assert isinstance(destination.hands, QemuHost)
        await hands.say("migrate", uri=f"unix:{destination.hands.memory}")
        await destination.hands.kill()
        assert (await destination.next(GuestEvent.GONE))["life"] == "held"
        await until(lambda: hands.say("query-migrate"), lambda found: found["status"] == "failed")
        await source.quiet()
        assert await source.life() is GuestLife.RUNNING

    qemus(scenario)


@pytest.mark.qemu
def test_a_guest_that_is_being_handed_over_is_held(qemus: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        hands = source.hands
        assert isinstance(hands, QemuHost)
        assert isinstance(destination.hands, QemuHost)
        await hands.boot()
        await source.next(GuestEvent.ARRIVED)
        await destination.hands.await_copy()
        state = [{"capability": "pause-before-switchover", "state": True}]
        await hands.say("migrate-set-capabilities", capabilities=state)
        await hands.say("migrate", uri=f"unix:{destination.hands.memory}")
        await until(hands.status, lambda state: state != "running")
        assert await source.life() is GuestLife.HELD
        with pytest.raises(HypervisorError, match="finish-migrate"):
            await source.hypervisor.resume(VM)
        question = asyncio.get_running_loop().create_task(source.life())
        await hands.say("migrate-continue", state="pre-switchover")
        assert await question is GuestLife.DEPARTED, "a question awaits the outcome"
        await source.next(GuestEvent.DEPARTED)
        await destination.next(GuestEvent.ARRIVED)

    qemus(scenario)


@pytest.mark.qemu
def test_a_qemu_that_hangs_is_neither_gone_nor_asked_without_end(qemus: Run) -> None:
    async def scenario(pair: Pair) -> None:
        node = pair.source
        assert isinstance(node.hands, QemuHost)
        await node.hands.boot()
        await node.next(GuestEvent.ARRIVED)
        node.hands.signal(signal.SIGSTOP)
        with pytest.raises(HypervisorError, match="not answer"):
            await node.life()
        with pytest.raises(HypervisorError, match="not answer"):
            await node.hypervisor.stop(VM)
        with pytest.raises(HypervisorError, match="not answer"):
            await node.restart()
        assert node.reports.empty()
        await until(node.noted, bool)
        node.hands.signal(signal.SIGCONT)
        await node.next(GuestEvent.ARRIVED)
        assert await node.life() is GuestLife.RUNNING
        assert {note["event"] for note in node.notes} == {"guest.unclear", "guest.clear"}
        node.hands.signal(signal.SIGSTOP)
        node.hands.signal(signal.SIGKILL)
        await node.next(GuestEvent.GONE)

    qemus(scenario)


@pytest.mark.qemu
def test_a_qemu_whose_monitors_name_was_removed_is_not_gone(qemus: Run) -> None:
    async def scenario(pair: Pair) -> None:
        node = pair.source
        hands = node.hands
        assert isinstance(hands, QemuHost)
        await hands.boot()
        await node.next(GuestEvent.ARRIVED)
        elsewhere = hands.qmp.with_name("moved")
        hands.qmp.rename(elsewhere)
        assert await node.life() is GuestLife.RUNNING  # the connection holds
        assert isinstance(node.hypervisor, ExternalHypervisor)
        await node.hypervisor._guests[VM]._hang_up()
        with pytest.raises(HypervisorError, match=f"QEMU {hands.pid} lives"):
            await node.life()
        elsewhere.rename(hands.qmp)
        assert await node.life() is GuestLife.RUNNING
        await node.quiet()

    qemus(scenario)


@pytest.mark.qemu
@pytest.mark.netns
def test_a_whole_guest_on_its_taps_is_moved_by_hand(tmp_path: Path) -> None:
    """The command line of the operator's guide; on one machine the taps' names must differ."""
    image = guest_image(workdir.cache())
    taps = [port_name(VmKey(0, f"{tmp_path.name}{end}"), 0) for end in "ab"]

    def host(folder: Path) -> QemuHost:
        tap, console = taps[folder.name == "b"], folder / "console.log"
        words = ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-cpu", "max"]
        words += ["-append", kernel_arguments([INTERFACE]), "-serial", f"file:{console}"]
        words += ["-netdev", f"tap,id=net0,ifname={tap},script=no,downscript=no"]
        device = f"virtio-net-pci,netdev=net0,mac={INTERFACE.mac_text},romfile="
        return QemuHost(folder, [*words, "-device", device])

    async def scenario(pair: Pair) -> None:
        await pair.source.hands.boot()
        await pair.source.next(GuestEvent.ARRIVED)
        console = tmp_path / "a" / "console.log"
        await until(lambda: asyncio.to_thread(console.read_bytes), lambda text: b"init: up" in text)
        await pair.destination.hands.await_copy()
        await pair.source.hands.migrate(pair.destination.hands)
        departed = await pair.source.next(GuestEvent.DEPARTED)
        assert {"total_ms", "downtime_ms", "setup_ms"} <= departed.keys()
        assert await pair.destination.next(GuestEvent.ARRIVED) == {"migrated": True}
        await pair.destination.hypervisor.announce(VM)
        await pair.source.hands.cont()
        await pair.source.next(GuestEvent.ARRIVED)
        for node in (pair.source, pair.destination):
            await node.hands.kill()
            await node.next(GuestEvent.GONE)

    for tap in taps:
        subprocess.run(["ip", "tuntap", "add", "dev", tap, "mode", "tap"], check=True)
    try:
        play(host, tmp_path, scenario)
    finally:
        for tap in taps:
            subprocess.run(["ip", "link", "del", tap], check=True)
