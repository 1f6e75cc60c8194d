"""A thin session with one QEMU monitor: connect, execute, events.

Every failure becomes a HypervisorError that names the VM.  Not here: what to say to QEMU
(guest.py, move.py).  Rests on the library qemu.qmp.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError, Runstate

from vmmobility.errors import HypervisorError

EXECUTE_LIMIT_S = 10.0
GREETING_LIMIT_S = 2.0
RETRY_S = 0.02

Event = Mapping[str, Any]

# The library logs every lost connection as an error; here a guest's end is an ordinary event.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class QmpSession:
    """One connection to a guest's monitor socket.  QEMU serves one client a socket."""

    def __init__(self, guest: str, path: Path) -> None:
        self._guest = guest
        self._path = path
        self._client = QMPClient(guest)

    @property
    def connected(self) -> bool:
        """Whether the monitor can be spoken to."""
        return self._client.runstate is Runstate.RUNNING

    async def connect(self, limit_s: float, alive: Callable[[], bool]) -> None:
        """Connect within `limit_s`, retrying as long as `alive()` says that QEMU runs."""
        deadline = asyncio.get_running_loop().time() + limit_s
        last: Exception | None = None
        while alive():
            client = QMPClient(self._guest)
            client.logger.setLevel(logging.CRITICAL)
            try:
                async with asyncio.timeout(min(GREETING_LIMIT_S, limit_s)):
                    await client.connect(str(self._path))
            except (QMPError, OSError, TimeoutError) as error:
                last = error
            else:
                self._client = client
                return
            if asyncio.get_running_loop().time() >= deadline:
                raise HypervisorError(
                    f"{self._guest}: QEMU's monitor {self._path} does not answer ({last})",
                    "see whether another program holds the monitor, or whether QEMU hangs",
                )
            await asyncio.sleep(RETRY_S)
        raise HypervisorError(f"{self._guest}: QEMU has ended before its monitor answered")

    async def open(
        self, connection: socket.socket, limit_s: float, events: Collection[str]
    ) -> None:
        """Speak over this connection, which becomes the session's own.  Raises HypervisorError.

        events: the names of those to hear of; the library keeps for ever what it hears
        """
        client = QMPClient(self._guest)
        client.events.names.update(events)
        client.logger.setLevel(logging.CRITICAL)
        try:
            async with asyncio.timeout(limit_s):
                await client.connect(connection)
        except asyncio.CancelledError:
            connection.close()
            raise
        except (QMPError, EOFError, OSError, TimeoutError) as error:
            connection.close()
            raise HypervisorError(
                f"{self._guest}: its monitor {self._path} does not answer",
                "see whether another program holds this monitor, or whether QEMU hangs",
            ) from error
        self._client = client

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        limit_s: float = EXECUTE_LIMIT_S,
        *,
        out_of_band: bool = False,
    ) -> Any:
        """Run a monitor command; its return value.  Raises HypervisorError.

        out_of_band: even while QEMU's main loop is blocked (for the few commands that may)
        """
        try:
            async with asyncio.timeout(limit_s):
                return await self._client.execute(command, arguments, out_of_band)
        except ExecuteError as error:
            raise HypervisorError(f"{self._guest}: QEMU refused {command}: {error}") from None
        except TimeoutError:
            raise HypervisorError(
                f"{self._guest}: QEMU has not answered {command} within {limit_s:.0f} s",
                "its process hangs or is starved of CPU",
            ) from None
        except (QMPError, EOFError, OSError) as error:
            raise HypervisorError(
                f"{self._guest}: QEMU's monitor was lost during {command}: {error}"
            ) from None

    async def give_descriptor(self, name: str, descriptor: int) -> None:
        """Hand a file descriptor to QEMU under a name.  Raises HypervisorError."""
        try:
            self._client.send_fd_scm(descriptor)
        except (QMPError, OSError) as error:
            raise HypervisorError(f"{self._guest}: QEMU took no descriptor: {error}") from None
        await self.execute("getfd", {"fdname": name})

    async def watch(self, on_event: Callable[[Event], None]) -> None:
        """Call `on_event` with QEMU's events, in order, until the connection is lost or closed."""
        client = self._client
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(_read_events(client, on_event))
            while client.runstate is Runstate.RUNNING:
                await client.runstate_changed()
            reader.cancel()
        while not client.events.empty():  # what came just before the end counts too
            on_event(await client.events.get())

    def pending(self) -> list[Event]:
        """The events that came and were not passed on yet; they count as passed on."""
        return list(self._client.events.clear())

    async def catch_up(self) -> None:
        """Return once watch() has passed on all events that came before the last answer."""
        while self.connected and not self._client.events.empty():  # noqa: ASYNC110 (no signal)
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Let go of the monitor; QEMU and its guest live on."""
        with suppress(QMPError, EOFError, OSError):  # the other end may be first
            await self._client.disconnect()


async def _read_events(client: QMPClient, on_event: Callable[[Event], None]) -> None:
    while True:
        on_event(await client.events.get())


def event_time_ns(event: Event) -> int:
    """When QEMU saw the event: CLOCK_REALTIME in nanoseconds (of microsecond resolution)."""
    stamp = event.get("timestamp", {})
    return int(stamp.get("seconds", 0)) * 1_000_000_000 + int(stamp.get("microseconds", 0)) * 1000
