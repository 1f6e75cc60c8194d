"""What a move out does outside QEMU: its stream's thread ends when it ends, whoever still asks."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

from vmmobility.drivers.hypervisor.copy_goal import CopyGoal
from vmmobility.drivers.hypervisor.move import OutgoingMove
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.wire.move_terms import NO_TERMS

LOOPBACK = "127.0.0.1"
GUEST = "a guest of its own name"


class Monitor:
    """Answers all with nothing, and keeps the stream's end open as QEMU does."""

    def __init__(self) -> None:
        self.qemu_end: socket.socket | None = None

    async def execute(self, command: str, arguments: Any = None) -> dict[str, Any]:
        del command, arguments
        return {}

    async def give_descriptor(self, name: str, descriptor: int) -> None:
        del name
        self.qemu_end = socket.socket(fileno=socket.dup(descriptor))


def test_a_stream_that_ends_after_its_daemon_is_no_error() -> None:
    """Its thread has nobody to tell; pytest fails the test where a thread raises."""
    monitor = Monitor()

    async def begin(port: int) -> None:
        move = OutgoingMove(
            GUEST,
            monitor,  # type: ignore[arg-type]
            (LOOPBACK, port),
            lambda event, detail, time_ns=None: None,
            QemuSettings(),
            1,
            CopyGoal(QemuSettings(), NO_TERMS),
        )
        await move.begin()

    with socket.create_server((LOOPBACK, 0)) as server:
        asyncio.run(begin(server.getsockname()[1]))
        (thread,) = (one for one in threading.enumerate() if GUEST in one.name)
        assert monitor.qemu_end is not None
        monitor.qemu_end.close()
        thread.join(5.0)
    assert not thread.is_alive()
