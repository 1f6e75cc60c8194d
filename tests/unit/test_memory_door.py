"""The door for a guest's memory, and who knocks there: QEMU gets the first who comes, others are
let in only where they may come, and a word needs the secret to be heeded.

Real sockets; QEMU is a session that notes what it is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.contract.waiting import until_true
from vmmobility.drivers.hypervisor import postcopy
from vmmobility.drivers.hypervisor.memory_door import LINE_LIMIT_S, MemoryDoor
from vmmobility.drivers.hypervisor.postcopy import Far, Fetch, FetchedMark
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.drivers.hypervisor.stall import Broken
from vmmobility.drivers.hypervisor.streams import Streams
from vmmobility.errors import HypervisorError

HERE = "127.0.0.1"
SECRET = "5ec4e7"
AGAIN, LOST = b"again 5ec4e7\n", b"lost 5ec4e7\n"


class Qemu:
    """What QmpSession is for a door and for a source: `says` is the answer of query-migrate."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.end: socket.socket | None = None  # what it was given last
        self.says: str | HypervisorError = "postcopy-active"
        self.asked = asyncio.Event()

    async def give_descriptor(self, name: str, descriptor: int) -> None:
        self.told.append("getfd")
        self.end = socket.socket(fileno=socket.dup(descriptor))

    async def execute(self, command: str, *more: Any, out_of_band: bool = False) -> Any:
        self.told.append(command)
        self.asked.set()
        if isinstance(self.says, HypervisorError):
            raise self.says
        return {"status": self.says}


class Scene:
    """A door whose copy has begun, if not told otherwise."""

    def __init__(self, folder: Path, *, begun: bool = True, again: bool = True) -> None:
        self.qemu = Qemu()
        self.lost = 0
        self.door = MemoryDoor(
            self.qemu,  # type: ignore[arg-type]
            folder / "memory",
            Streams(5.0),
            self._note,
            SECRET,
            begun=begun,
            again=again,
        )
        _, self.port = self.door.open(HERE, (42000, 42999))

    def _note(self) -> None:
        self.lost += 1

    async def say(self, line: bytes) -> bytes:
        """The door's answer; it has done what it does by then."""
        reader, writer = await asyncio.open_connection(HERE, self.port)
        writer.write(line)
        with contextlib.suppress(ConnectionError):
            return await reader.read()
        return b""


def play(folder: Path, part: Callable[[Scene], Awaitable[None]], **how: bool) -> None:
    async def whole() -> None:
        scene = Scene(folder, **how)
        try:
            async with asyncio.timeout(20):
                await part(scene)
        finally:
            await scene.door.close()

    asyncio.run(whole())


def refuses(port: int) -> bool:
    try:
        socket.create_connection((HERE, port)).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("again", [False, True])
def test_only_a_door_to_which_a_source_may_come_again_stays_open(
    tmp_path: Path, again: bool
) -> None:
    async def part(scene: Scene) -> None:
        with socket.create_connection((HERE, scene.port)) as first:
            await until_true(lambda: "migrate-incoming" in scene.qemu.told)
            assert scene.qemu.told == ["getfd", "migrate-incoming"]
            assert scene.qemu.end is not None
            first.sendall(b"memory")
            with scene.qemu.end as end:
                end.settimeout(5.0)
                assert end.recv(10) == b"memory"
            scene.door.heed("postcopy-paused")
            if again:
                await scene.say(LOST)
                assert scene.lost == 1
            else:
                await until_true(lambda: refuses(scene.port))
                assert scene.lost == 0

    play(tmp_path, part, begun=False, again=again)


ALL = ["active", "device", "postcopy-active", "postcopy-paused", "postcopy-recover", "completed"]


@pytest.mark.parametrize("status", ALL)
@pytest.mark.parametrize("line", [b"lost\n", b"lost \n", b"lost 5ec4e8\n", b"lost 5ec4e7 \n"])
def test_a_stranger_ends_no_guest(tmp_path: Path, status: str, line: bytes) -> None:
    async def part(scene: Scene) -> None:
        scene.door.heed(status)
        assert await scene.say(line) == b""
        scene.door.heed("postcopy-paused")
        assert scene.lost == 0

    play(tmp_path, part)


@pytest.mark.parametrize("status", ["", "active", "device", "completed"])
def test_nobody_ends_a_guest_that_lacks_nothing(tmp_path: Path, status: str) -> None:
    async def part(scene: Scene) -> None:
        scene.door.heed(status)
        await scene.say(LOST)
        assert scene.lost == 0

    play(tmp_path, part)


def test_what_is_lost_counts_once_qemu_has_paused_for_it(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        scene.door.heed("postcopy-active")
        await scene.say(LOST)
        assert scene.lost == 0, "its last octets may be on their way"
        scene.door.heed("postcopy-paused")
        assert scene.lost == 1

    async def paused_before(scene: Scene) -> None:
        scene.door.heed("postcopy-paused")
        await scene.say(LOST)
        assert scene.lost == 1

    play(tmp_path, part)
    play(tmp_path, paused_before)


def test_who_asks_whether_all_is_there_needs_the_secret(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        scene.door.heed("completed")
        assert await scene.say(b"again\n") == b""
        assert await scene.say(AGAIN) == b"whole\n"
        scene.door.heed("postcopy-paused")
        await scene.say(b"again 0\n")
        assert scene.qemu.told == []

    play(tmp_path, part)


def test_who_says_nothing_does_not_hold_up_the_source(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        scene.door.heed("completed")
        with contextlib.ExitStack() as strangers:
            for _ in range(3):
                strangers.enter_context(socket.create_connection((HERE, scene.port)))
            async with asyncio.timeout(LINE_LIMIT_S / 2):
                assert await scene.say(AGAIN) == b"whole\n"

    play(tmp_path, part)


# -- the source -----------------------------------------------------------------------------------

HASTY = replace(QemuSettings(), recover_limit_s=0.5)
SILENT = HypervisorError("vm1: QEMU's monitor was lost")


class Source:
    """A source whose guest is fetched from it, and the door that it knows."""

    def __init__(self, settings: QemuSettings = HASTY) -> None:
        self.settings = settings
        self.qemu = Qemu()
        self.alive = True
        self.outcome = ""
        self.over = asyncio.Event()
        self.heard: list[bytes] = []

    async def fetch(self, meanwhile: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.heard.append(await reader.readline())
            writer.close()

        server = await asyncio.start_server(answer, HERE, 0)
        at = (HERE, server.sockets[0].getsockname()[1])
        far = Far(SECRET, lambda: self.alive)
        fetch = Fetch("vm1", self.qemu, at, far, self.settings, self.over,  # type: ignore[arg-type]
                      lambda: self.outcome, None)  # fmt: skip
        fetch._lost_at = None
        try:
            async with asyncio.timeout(20), asyncio.TaskGroup() as group:
                group.create_task(meanwhile())
                await fetch.run()
        finally:
            server.close()

    async def is_asked(self, times: int = 2) -> None:
        before = len(self.qemu.told)
        await until_true(lambda: len(self.qemu.told) >= before + times)

    def end(self, outcome: str) -> None:
        self.outcome = outcome
        self.over.set()


def test_a_monitor_that_is_lost_for_a_moment_ends_no_guest() -> None:
    async def part() -> None:
        source = Source(replace(HASTY, recover_limit_s=20.0))

        async def meanwhile() -> None:
            source.qemu.says = SILENT
            await source.is_asked()
            source.qemu.says = "postcopy-active"
            await source.is_asked()
            source.end("completed")

        await source.fetch(meanwhile)
        assert source.heard == []

    asyncio.run(part())


def test_a_qemu_that_does_not_answer_and_lives_is_not_called_lost() -> None:
    async def part() -> None:
        source = Source()
        source.qemu.says = SILENT
        with pytest.raises(ExceptionGroup) as caught:
            await source.fetch(source.is_asked)
        (broken,) = caught.value.exceptions
        assert isinstance(broken, Broken)
        assert "lives, but has not answered for" in str(broken)
        assert source.heard == []

    asyncio.run(part())


@pytest.mark.parametrize("how", ["process", "migration"])
def test_what_will_never_come_is_said_to_be_lost(how: str) -> None:
    async def part() -> None:
        source = Source()

        async def meanwhile() -> None:
            await source.is_asked()
            if how == "process":
                source.alive, source.qemu.says = False, SILENT
            else:
                source.end("failed")

        with pytest.raises(ExceptionGroup) as caught:
            await source.fetch(meanwhile)
        assert isinstance(caught.value.exceptions[0], Broken | HypervisorError)
        assert source.heard == [LOST]

    asyncio.run(part())


def test_the_mark_keeps_the_secret_from_others(tmp_path: Path) -> None:
    mark = FetchedMark(tmp_path)
    assert (mark.at, mark.secret) == (None, "")
    mark.set((HERE, 7), SECRET)
    assert (mark.at, mark.secret) == ((HERE, 7), SECRET)
    assert (tmp_path / "fetched").stat().st_mode & 0o777 == 0o600
    (tmp_path / "fetched").write_text("[")
    assert (mark.at, mark.secret) == (("", 0), "")


def test_a_line_is_short_enough_for_the_door() -> None:
    assert len(postcopy.line(postcopy.AGAIN, "0" * 32)) < postcopy.LINE_LIMIT
