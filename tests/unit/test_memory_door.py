"""The door for a guest's memory: QEMU gets the first who comes; others only where they may come."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.contract.waiting import until_true
from vmmobility.drivers.hypervisor.memory_door import MemoryDoor
from vmmobility.drivers.hypervisor.streams import Streams

LOOPBACK = "127.0.0.1"
LIMIT_S = 5.0


class Monitor:
    """Takes descriptors and commands, as QEMU does."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.end: socket.socket | None = None

    async def give_descriptor(self, name: str, descriptor: int) -> None:
        del name
        self.end = socket.socket(fileno=socket.dup(descriptor))

    async def execute(self, command: str, arguments: Any = None) -> None:
        del arguments
        self.commands.append(command)


def door_of(monitor: Monitor, folder: Path, lost: asyncio.Event, **how: bool) -> MemoryDoor:
    return MemoryDoor(
        monitor,  # type: ignore[arg-type]
        folder / "memory",
        Streams(LIMIT_S),
        lost.set,
        **how,
    )


def refuses(at: tuple[str, int]) -> bool:
    try:
        socket.create_connection(at).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("again", [False, True])
def test_only_a_door_to_which_a_source_may_come_again_stays_open(tmp_path: Path, again: bool):
    async def scenario() -> None:
        monitor, lost = Monitor(), asyncio.Event()
        door = door_of(monitor, tmp_path, lost, again=again)
        at = door.open(LOOPBACK, (0, 0))
        with socket.create_connection(at) as first:
            await until_true(lambda: monitor.commands)
            assert monitor.commands == ["migrate-incoming"]
            assert monitor.end is not None
            first.sendall(b"memory")
            monitor.end.settimeout(LIMIT_S)
            assert monitor.end.recv(10) == b"memory"
            if again:
                with socket.create_connection(at) as second:
                    second.sendall(b"lost\n")
                    async with asyncio.timeout(LIMIT_S):
                        await lost.wait()
            else:
                await until_true(lambda: refuses(at))
                assert not lost.is_set()
            monitor.end.close()
        await door.close()

    asyncio.run(scenario())


def test_memory_that_is_whole_cannot_be_lost(tmp_path: Path):
    async def scenario() -> None:
        lost = asyncio.Event()
        door = door_of(Monitor(), tmp_path, lost, begun=True)
        door.status = "completed"
        reader, writer = await asyncio.open_connection(*door.open(LOOPBACK, (0, 0)))
        writer.write(b"lost\n")
        assert await reader.read() == b""
        writer.close()
        assert not lost.is_set()
        await door.close()

    asyncio.run(scenario())
