"""Where a move between two QEMUs can break: never two running guests, one wherever it can be.

All lives in one namespace; the guest's memory crosses its loopback, or a relay that a test governs.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.contract.hypervisor_nodes import (
    INTERFACE,
    LIMIT_S,
    LOOPBACK,
    VM,
    Pair,
    guest_machine,
    qemu_node,
)
from tests.contract.namespaces import Namespace
from tests.lab.test_guest_image import control, inside
from vmmobility.drivers.hypervisor.interface import GuestEvent, GuestReport, VmDefinition
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.errors import HypervisorError

pytestmark = [pytest.mark.qemu, pytest.mark.netns]

TEST_LIMIT_S = 60.0
SMALL_BUFFER = 64 * 1024
# Short limits; the wait for a cut path is all the time that these tests take.
HASTY = QemuSettings(accelerator="tcg", stall_limit_s=1.0, switch_limit_s=1.0)
# These never give up by themselves.
PATIENT = QemuSettings(accelerator="tcg", switch_limit_s=LIMIT_S)


class Relay:
    """A path between the QEMUs that withholds the last octet it has, and can stop reading."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.eof = asyncio.Event()  # the source has closed its end
        self.open = asyncio.Event()
        self.open.set()
        self._target = target
        self._last = b""
        self._out: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None

    async def listen(self) -> tuple[str, int]:
        server = socket.create_server((LOOPBACK, 0))
        # Little room: a source that nobody reads from is soon blocked.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        self._server = await asyncio.start_server(self._carry, sock=server, limit=SMALL_BUFFER)
        address, port = server.getsockname()
        return str(address), int(port)

    async def _carry(self, source: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        _, self._out = await asyncio.open_connection(*self._target)
        with suppress(OSError):
            while True:
                await self.open.wait()
                data = await source.read(SMALL_BUFFER)
                if not data:
                    break
                self._out.write(self._last + data[:-1])
                self._last = data[-1:]
                await self._out.drain()
        back.close()
        self.eof.set()

    def release(self) -> None:
        """Let the last octet through."""
        assert self._out is not None
        self._out.write(self._last)

    def close(self) -> None:
        """Break the way to the destination."""
        assert self._out is not None
        self._out.close()

    async def end(self) -> None:
        """After the source's end has been closed: let go of all."""
        self.open.set()
        await self.eof.wait()
        self.close()
        assert self._server is not None
        self._server.close()


class Scene:
    """A Pair in a namespace."""

    def __init__(self, pair: Pair, space: Namespace) -> None:
        self.pair = pair
        self.source = pair.source
        self.destination = pair.destination
        self.space = space
        self.place = ("", 0)
        self.relay: Relay | None = None

    async def about_to_stop(self, relay: bool = False) -> Relay:
        """The copy is held and the driver awaits proceed()."""
        self.place = await self.pair.prepare()
        carrier = Relay(self.place)
        self.relay = carrier if relay else None
        where = await carrier.listen() if relay else self.place
        await self.source.hypervisor.copy_out(VM, *where)
        await self.source.next(GuestEvent.CONVERGED)
        await self.source.hypervisor.switch_over(VM)
        await self.source.next(GuestEvent.ABOUT_TO_STOP)
        return carrier

    async def outcome(self) -> GuestReport:
        """The source's last word on the move."""
        async with asyncio.timeout(LIMIT_S):
            report = await self.source.reports.get()
            while report.event is GuestEvent.STOPPED:
                report = await self.source.reports.get()
        return report

    def cut(self) -> None:
        """From now on, nothing passes between the QEMUs."""
        port = self.place[1]
        self.space.run("nft", "add table inet cut")
        self.space.run("nft", "add chain inet cut paths { type filter hook input priority 0; }")
        for end in ("dport", "sport"):
            self.space.run("nft", f"add rule inet cut paths tcp {end} {port} drop")

    async def the_source_runs(self) -> None:
        assert await self.pair.runs_at(self.source)
        assert not await self.pair.runs_at(self.destination)

    async def check_memory(self) -> None:
        checked = await asyncio.to_thread(control, self.space.name, b"check")
        assert checked["bad_pages"] == 0
        assert checked["dirtied_pages"] > 0


SceneTest = Callable[[Scene], Awaitable[None]]
Run = Callable[[QemuSettings, SceneTest], None]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Runs a coroutine with a Scene, and ends all its guests afterwards."""
    space = Namespace("qf")
    machine = guest_machine(mem_mib=16, dirty_mibps=4)
    for tap in ("tapb", "tapa"):  # the route of the last stays
        space.ip("tuntap", "add", "dev", tap, "mode", "tap")
        space.ip("link", "set", tap, "address", "02:00:00:00:00:01", "up")
    space.ip("addr", "add", "169.254.1.1/32", "dev", "tapa")
    space.ip("route", "add", "10.1.0.1/32", "dev", "tapa")
    station = ("lladdr", INTERFACE.mac_text, "dev", "tapa", "nud", "permanent")
    space.ip("neigh", "add", "10.1.0.1", *station)

    async def with_scene(settings: QemuSettings, test: SceneTest) -> None:
        source = qemu_node("tapa", tmp_path / "a", settings)
        destination = qemu_node("tapb", tmp_path / "b", settings)
        definition = VmDefinition(VM, "qemu", (INTERFACE,), machine=machine)
        scene = Scene(Pair(definition, source, destination), space)
        try:
            async with asyncio.timeout(TEST_LIMIT_S):
                await scene.pair.start()
                await test(scene)
        finally:
            for node in (source, destination):
                await node.hypervisor.stop(VM)
                await node.hypervisor.close()
            if scene.relay is not None:
                await scene.relay.end()

    def run_it(settings: QemuSettings, test: SceneTest) -> None:
        with inside(space.name):
            asyncio.run(with_scene(settings, test))

    yield run_it
    space.close()


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
