"""A standby's door, and strangers at it: they hold up neither its primary nor its activation."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from pathlib import Path

import pytest

from vmmobility.drivers.hypervisor import checkpoint_door
from vmmobility.drivers.hypervisor.checkpoint_door import GUESTS_LIMIT, CheckpointDoor
from vmmobility.drivers.hypervisor.checkpoint_store import CheckpointStore
from vmmobility.drivers.hypervisor.interface import VmDefinition
from vmmobility.drivers.hypervisor.streams import Streams
from vmmobility.wire.values import Interface, VmKey

HERE = "127.0.0.1"
INTERFACE = Interface(b"\x02\0\0\0\0\1", (ip_network("10.1.0.5/32"),))
GRACE_S = 3.0


class Scene:
    def __init__(self, folder: Path) -> None:
        definition = VmDefinition(VmKey(0, "vm1"), "qemu", (INTERFACE,))
        self.store = CheckpointStore(definition, folder, folder)
        self.store.open()
        self.door = CheckpointDoor(self.store, Streams(5.0), lambda number: None)
        self.at = self.door.open(HERE, (43000, 43999))

    def come(self) -> socket.socket:
        return socket.create_connection(self.at, timeout=10)

    def primary(self) -> socket.socket:
        connection = self.come()
        connection.sendall(json.dumps({"token": self.store.record.token}).encode() + b"\n")
        return connection


class Dribbler:
    """Says one octet after another, and never ends its line."""

    def __init__(self, connection: socket.socket) -> None:
        self.let_go = threading.Event()
        self._stop = threading.Event()
        self._connection = connection
        self._thread = threading.Thread(target=self._dribble, daemon=True)
        self._thread.start()

    def _dribble(self) -> None:
        with self._connection, contextlib.suppress(OSError):
            while not self._stop.wait(0.02):
                self._connection.sendall(b" ")
        self.let_go.set()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


def play(folder: Path, part: Callable[[Scene], Awaitable[None]]) -> None:
    async def whole() -> None:
        scene = Scene(folder)
        try:
            await part(scene)
        finally:
            await scene.door.close()

    asyncio.run(asyncio.wait_for(whole(), 30))


def heard(connection: socket.socket) -> bytes:
    """What the door says, until it closes or has said a line."""
    with contextlib.suppress(ConnectionError):
        return connection.makefile("rb").readline()
    return b""


def test_nobody_without_the_token_holds_up_an_activation(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        dribblers = [Dribbler(scene.come()) for _ in range(3)]
        idle = scene.come()
        try:
            primary = scene.primary()
            assert json.loads(await asyncio.to_thread(heard, primary))["last"] == 0
            async with asyncio.timeout(GRACE_S):
                await scene.door.close()
            assert await asyncio.to_thread(heard, idle) == b""
        finally:
            for dribbler in dribblers:
                dribbler.end()

    play(tmp_path, part)


def test_a_first_line_has_a_limit_of_time_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_door, "HELLO_LIMIT_S", 0.2)

    async def part(scene: Scene) -> None:
        dribbler = Dribbler(scene.come())
        assert await asyncio.to_thread(dribbler.let_go.wait, GRACE_S)

    play(tmp_path, part)


def test_so_many_strangers_are_there_at_once_and_the_primary_all_the_same(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        strangers = [scene.come() for _ in range(GUESTS_LIMIT + 1)]
        assert await asyncio.to_thread(heard, strangers[0]) == b"", "one more has come"
        primary = scene.primary()
        assert json.loads(await asyncio.to_thread(heard, primary))["last"] == 0
        strangers[-1].sendall(b'{"token": "' + b"0" * 32 + b'"}\n')
        assert await asyncio.to_thread(heard, strangers[-1]) == b""

    play(tmp_path, part)


@pytest.mark.parametrize(
    "said", [b"{}\n", b"[]\n", b'{"token": "\\ud800"}\n', b"x" * 5000, b"\xff\n"]
)
def test_nonsense_is_let_go_of(tmp_path: Path, said: bytes) -> None:
    async def part(scene: Scene) -> None:
        stranger = scene.come()
        stranger.sendall(said)
        assert await asyncio.to_thread(heard, stranger) == b""

    play(tmp_path, part)
