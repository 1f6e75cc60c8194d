"""Monitors that are not as they should be: absent, mute, shut, nonsense.  A server plays QEMU.

Nothing is guessed, nothing spins, nobody is told twice, and when it is mended the guest is found.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.contract.waiting import until_true
from vmmobility.drivers.hypervisor import external_guest
from vmmobility.drivers.hypervisor.external import ExternalHypervisor
from vmmobility.drivers.hypervisor.interface import GuestEvent, GuestReport, VmDefinition
from vmmobility.drivers.hypervisor.monitor_door import Process
from vmmobility.drivers.hypervisor.settings import ExternalSettings
from vmmobility.errors import HypervisorError
from vmmobility.wire.registry import GuestLife
from vmmobility.wire.values import Interface, VmKey

VM, OTHER = VmKey(0, "by-hand"), VmKey(0, "other")
INTERFACE = Interface(bytes.fromhex("525400000301"), (ip_network("10.1.0.9/32"),))
HASTY = ExternalSettings(
    absent_s=0.02, retry_s=0.05, retry_most_s=0.4, answer_s=0.2, patrol_s=0.1, settle_s=0.1
)
RETRIES = 6  # the last after 0.75 s
GREETING: dict[str, Any] = {"QMP": {"version": {}, "capabilities": []}}


class Monitor:
    """A QMP server at a path.  `answers`: command -> return value; a None is no answer at all.

    greeting: what is said first; b"" says nothing.  hang_up: close each connection at once
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.greeting = json.dumps(GREETING).encode() + b"\n"
        self.hang_up = False
        self.status = "running"
        self.answers: dict[str, Any] = {"query-migrate": {}}
        self.connected_at: list[float] = []  # monotonic seconds
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))

    async def close(self) -> None:
        """As a process that ends."""
        if self._server is not None:
            self._server.close()
            self.path.unlink(missing_ok=True)
            for writer in self._writers:
                writer.close()
            self._writers.clear()
            self._server = None

    def tell(self, name: str, **data: Any) -> None:
        """An event, to whoever listens."""
        event = {"event": name, "data": data, "timestamp": {"seconds": 5, "microseconds": 7}}
        for writer in self._writers:
            writer.write(json.dumps(event).encode() + b"\n")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected_at.append(time.monotonic())
        self._writers.append(writer)
        writer.write(self.greeting)
        if self.hang_up:
            writer.close()
            return
        with suppress(OSError):
            while words := await reader.read(4096):  # one request at a time, with no line's end
                request = json.loads(words)
                command = request["execute"]
                answer = self.answers.get(command, {})
                if command == "query-status" and command not in self.answers:
                    answer = {"status": self.status, "running": self.status == "running"}
                if answer is not None:
                    number = {"id": request["id"]} if "id" in request else {}
                    writer.write(json.dumps({"return": answer, **number}).encode() + b"\n")


class Scene:
    """A watched VM, its monitor, and what was told of it."""

    def __init__(self, folder: Path) -> None:
        self.monitor = Monitor(folder / "nve.qmp")
        self.reports: list[GuestReport] = []
        self.notes: list[dict[str, Any]] = []
        self.hypervisor = ExternalHypervisor(self.reports.append, self._note, HASTY)

    def definition(self, vm: VmKey = VM) -> VmDefinition:
        machine = {"qmp": str(self.monitor.path)}
        return VmDefinition(vm, "external", (INTERFACE,), machine=machine)

    def _note(self, name: str, **detail: Any) -> None:
        self.notes.append({"event": name, **detail})

    async def watch(self) -> None:
        await self.hypervisor.watch(self.definition(), ["vmt.0"])

    async def until(self, holds: Callable[[], object]) -> None:
        await until_true(holds)

    async def unclear(self, words: str) -> dict[str, Any]:
        """What people are told of the monitor; it holds these words."""
        await self.until(lambda: self.notes)
        [note] = self.notes
        assert (note["event"], note["vm"]) == ("guest.unclear", VM.vm_id)
        assert words in note["reason"]
        assert note["remedy"]
        return note

    async def mended(self) -> None:
        """A sound QEMU at the monitor is found, and said so."""
        await self.until(lambda: self.events == ["arrived"] and len(self.notes) == 2)
        assert self.notes[-1]["event"] == "guest.clear"

    @property
    def events(self) -> list[str]:
        return [report.event.value for report in self.reports]


SceneTest = Callable[[Scene], Awaitable[None]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[[SceneTest], None]:
    async def whole(test: SceneTest) -> None:
        scene = Scene(tmp_path)
        try:
            await test(scene)
        finally:
            await scene.hypervisor.close()
            await scene.monitor.close()

    return lambda test: asyncio.run(asyncio.wait_for(whole(test), 30))


def test_a_file_that_is_no_socket(run: Callable[[SceneTest], None]) -> None:
    async def test(scene: Scene) -> None:
        scene.monitor.path.write_text("")
        await scene.watch()
        await scene.unclear("is not a socket")
        with pytest.raises(HypervisorError, match="is not a socket"):
            await scene.hypervisor.query(VM)
        scene.monitor.path.unlink()
        await scene.monitor.open()
        await scene.mended()

    run(test)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's rights."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_socket_that_may_not_be_opened(run: Callable[[SceneTest], None]) -> None:
    async def test(scene: Scene) -> None:
        await scene.monitor.open()
        scene.monitor.path.parent.chmod(0)
        try:
            with as_nobody():
                await scene.watch()
                await scene.unclear("Permission denied")
        finally:
            scene.monitor.path.parent.chmod(0o700)
        await scene.mended()

    run(test)


def test_a_stale_socket_is_nobodys(run: Callable[[SceneTest], None]) -> None:
    async def test(scene: Scene) -> None:
        await scene.monitor.open()
        name = scene.monitor.path.with_name("kept")
        os.link(scene.monitor.path, name)
        await scene.monitor.close()
        name.rename(scene.monitor.path)  # as after kill -9: a name, and nobody behind it
        await scene.watch()
        assert await scene.hypervisor.query(VM) is GuestLife.NONE
        assert await scene.hypervisor.adopt([scene.definition()]) == {}
        scene.monitor.path.unlink()
        await scene.monitor.open()
        await scene.until(lambda: scene.events == ["arrived"])
        assert scene.notes == []

    run(test)


@pytest.mark.parametrize(
    ("greeting", "hang_up"),
    [(b"", False), (b"", True), (b"HTTP/1.1 400\r\n\r\n", False), (b'{"QMP": 5}\n', False)],
    ids=["mute", "closing", "another-protocol", "nonsense"],
)
def test_one_that_does_not_greet_is_retried_ever_more_rarely(
    run: Callable[[SceneTest], None], greeting: bytes, hang_up: bool
) -> None:
    async def test(scene: Scene) -> None:
        monitor = scene.monitor
        monitor.greeting, monitor.hang_up = greeting, hang_up
        await monitor.open()
        descriptors = len(os.listdir("/proc/self/fd"))
        await scene.watch()
        await scene.unclear("does not answer")
        with pytest.raises(HypervisorError, match="does not answer"):
            await scene.hypervisor.query(VM)
        await scene.until(lambda: len(monitor.connected_at) >= RETRIES)
        took = monitor.connected_at[RETRIES - 1] - monitor.connected_at[0]
        # One of these connections is the query's.
        waits = [HASTY.retry_s * 2**n for n in range(RETRIES - 2)]
        assert took >= 0.9 * sum(waits), "each wait is twice the one before"
        assert len(scene.notes) == 1
        # A few connections may be on their way out; what leaks grows with each attempt.
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 2 * len(monitor.connected_at)
        monitor.greeting, monitor.hang_up = json.dumps(GREETING).encode() + b"\n", False
        await scene.mended()

    run(test)


@pytest.mark.parametrize("answer", [None, [], "x", {"status": 7}])
def test_one_that_greets_and_then_answers_nothing_of_use(
    run: Callable[[SceneTest], None], answer: Any
) -> None:
    async def test(scene: Scene) -> None:
        await scene.monitor.open()
        await scene.watch()
        await scene.until(lambda: scene.events == ["arrived"])
        scene.monitor.answers["query-status"] = answer
        if answer == {"status": 7}:
            # A state that nobody knows: not running.
            assert await scene.hypervisor.query(VM) is GuestLife.HELD
            return
        with pytest.raises(HypervisorError):
            await scene.hypervisor.query(VM)
        await scene.until(lambda: scene.notes)
        with pytest.raises(HypervisorError):
            await scene.hypervisor.adopt([scene.definition()])
        assert scene.events == ["arrived"], "nothing is told of what is not known"
        del scene.monitor.answers["query-status"]
        await scene.until(lambda: scene.notes[-1]["event"] == "guest.clear")
        assert scene.events == ["arrived"]

    run(test)


def test_what_is_missed_is_seen_on_patrol(run: Callable[[SceneTest], None]) -> None:
    async def test(scene: Scene) -> None:
        await scene.monitor.open()
        await scene.watch()
        await scene.until(lambda: scene.events == ["arrived"])
        scene.monitor.status = "postmigrate"  # and no event says so
        scene.monitor.answers["query-migrate"] = {"status": "completed", "downtime": 8}
        await scene.until(lambda: scene.events == ["arrived", "departed"])
        assert scene.reports[-1].detail == {"migration": "completed", "downtime_ms": 8}

    run(test)


def test_post_copy_departs_with_the_switch(run: Callable[[SceneTest], None]) -> None:
    async def test(scene: Scene) -> None:
        await scene.monitor.open()
        await scene.watch()
        await scene.until(lambda: scene.events == ["arrived"])
        scene.monitor.status = "finish-migrate"
        scene.monitor.tell("STOP")
        await scene.until(lambda: not scene.hypervisor._guests[VM]._turn.locked())
        assert await scene.hypervisor.query(VM) is GuestLife.HELD
        scene.monitor.answers["query-migrate"] = {"status": "postcopy-active"}
        await scene.until(lambda: scene.events == ["arrived", "departed"])
        assert await scene.hypervisor.query(VM) is GuestLife.DEPARTED

    run(test)


def test_nonsense_events_harm_nobody(run: Callable[[SceneTest], None]) -> None:
    async def test(scene: Scene) -> None:
        await scene.monitor.open()
        await scene.watch()
        await scene.until(lambda: scene.events == ["arrived"])
        for writer in scene.monitor._writers:
            for data in ("[]", '"x"', "{}", '{"status": []}'):
                words = (
                    f'{{"event": "MIGRATION", "data": {data}, "timestamp": {{"seconds": {{}}}}}}\n'
                )
                writer.write(words.encode())
            writer.write(b'{"event": "RESUME", "timestamp": []}\n')
        scene.monitor.status = "postmigrate"
        scene.monitor.tell("STOP")
        await scene.until(lambda: scene.events == ["arrived", "departed"])
        assert scene.notes == []

    run(test)


@pytest.mark.parametrize("known", [True, False], ids=["pid-seen", "pid-unseen"])
def test_departed_then_gone_though_it_could_not_be_looked_at(
    run: Callable[[SceneTest], None], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """virsh ends the source's QEMU right after the move.  Where the kernel shows no pid (another
    pid namespace), a monitor with nobody behind it says that the process has ended."""
    ended, asked = False, 0

    def lives(_: Process) -> bool | None:
        nonlocal asked
        asked += 1
        return not ended if known else None

    monkeypatch.setattr(Process, "lives", property(lives))
    monkeypatch.setattr(external_guest, "END_NOTICE_S", 5.0)

    async def test(scene: Scene) -> None:
        nonlocal ended
        await scene.monitor.open()
        await scene.watch()
        await scene.until(lambda: scene.events == ["arrived"])
        scene.monitor.answers["query-status"] = None  # it is ending
        scene.monitor.tell("STOP")
        scene.monitor.tell("MIGRATION", status="completed")
        await scene.monitor.close()
        if known:
            asked_before = asked
            await scene.until(lambda: asked > asked_before + 2)
            assert scene.events == ["arrived"], "its process lives"
        ended = True
        await scene.until(lambda: len(scene.events) == 3)
        assert scene.events == ["arrived", "departed", "gone"]
        assert scene.reports[1].time_ns == 5_000_007_000
        assert scene.reports[2].detail["life"] == "departed"

    run(test)


def test_a_guest_that_came_in_is_not_taken_for_departed(
    run: Callable[[SceneTest], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU says MIGRATION completed at the destination, too."""
    monkeypatch.setattr(Process, "lives", property(lambda self: None))

    async def test(scene: Scene) -> None:
        scene.monitor.status = "inmigrate"
        scene.monitor.answers["query-migrate"] = {"socket-address": [{"host": "::", "port": "1"}]}
        await scene.monitor.open()
        await scene.watch()
        await scene.until(lambda: scene.monitor.connected_at)
        assert await scene.hypervisor.query(VM) is GuestLife.HELD
        scene.monitor.tell("MIGRATION", status="completed")
        scene.monitor.status = "paused"  # its owner lets it wait (-S)
        await scene.until(lambda: scene.hypervisor._guests[VM]._state == "paused")
        await scene.monitor.close()
        await scene.until(lambda: scene.events)
        assert scene.events == ["gone"]

    run(test)


def test_two_vms_cannot_have_one_monitor(run: Callable[[SceneTest], None]) -> None:
    async def test(scene: Scene) -> None:
        await scene.watch()
        await scene.watch()
        with pytest.raises(HypervisorError, match="is the monitor of VM by-hand"):
            await scene.hypervisor.watch(scene.definition(OTHER), ["vmt.0"])
        await scene.hypervisor.unwatch(VM)
        await scene.hypervisor.watch(scene.definition(OTHER), ["vmt.0"])
        with pytest.raises(HypervisorError, match="2 taps"):
            await scene.hypervisor.watch(scene.definition(OTHER), ["vmt.0", "vmt.1"])

    run(test)


def test_a_monitor_that_moves_is_followed(run: Callable[[SceneTest], None], tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        await scene.watch()
        scene.monitor.path = tmp_path / "new.qmp"
        await scene.monitor.open()
        await scene.watch()
        await scene.until(lambda: scene.events == ["arrived"])
        assert scene.reports[0].event is GuestEvent.ARRIVED

    run(test)
