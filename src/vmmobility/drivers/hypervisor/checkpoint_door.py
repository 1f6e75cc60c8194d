"""The standby's door for the checkpoints of one VM: a TCP port, a thread a connection.

A conversation, each line JSON; several checkpoints may follow each other:

    -> {"token": T}                         <- {"store": S, "last": N}      N: the last complete one
    -> {"checkpoint": N, "base": M|null, "parts": [["memory", LENGTH], ["disk0", LENGTH] …]}
       then the octets of all parts, then
    -> {"sum": CRC-32 of them}              <- {"complete": N}  or  {"error": WHY, "remedy": …}

One connection at a time: whoever comes with the token takes the place of the one before, whose
checkpoint is given up.  Not here: the files (checkpoint_store.py), the other end
(checkpoint_send.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

from vmmobility.drivers.hypervisor.checkpoint_store import CHUNK, CheckpointStore, Part, Summed
from vmmobility.drivers.hypervisor.streams import Doorway, Streams
from vmmobility.errors import HypervisorError

LINE_LIMIT = 64 * 1024
LINE_LIMIT_S = 5.0


class CheckpointDoor:
    """open(), then close().  on_complete(number): called in the event loop for each checkpoint."""

    def __init__(
        self, store: CheckpointStore, streams: Streams, on_complete: Callable[[int], None]
    ) -> None:
        self._store = store
        self._on_complete = on_complete
        self._loop = asyncio.get_running_loop()
        self._doorway = Doorway(streams, self._enter)
        self._current: socket.socket | None = None
        self._turn = threading.Lock()  # who writes to the store
        self._closed = False
        self._threads: list[threading.Thread] = []
        self.at = ("", 0)

    def open(self, address: str, ports: tuple[int, int]) -> tuple[str, int]:
        """Listen on the first free port of the range; where.  Raises HypervisorError."""
        self.at = self._doorway.open(address, ports)
        return self.at

    async def close(self) -> None:
        """Let nobody in, and break off what is under way; on return the store is at rest."""
        self._closed = True
        await self._doorway.close()
        if self._current is not None:
            with contextlib.suppress(OSError):
                self._current.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            await asyncio.to_thread(thread.join)

    async def _enter(self, connection: socket.socket) -> None:
        """One connection: from here on a thread's, with a descriptor of its own."""
        ends = (connection.dup(),)
        thread = threading.Thread(target=self._serve, args=ends, name="checkpoints", daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()]
        self._threads.append(thread)
        thread.start()

    # -- in threads ------------------------------------------------------------------------------

    def _serve(self, connection: socket.socket) -> None:
        """One connection.  Strangers are let go of; the store tells the others what went wrong."""
        with connection, connection.makefile("rb") as stream:
            try:
                connection.settimeout(LINE_LIMIT_S)
                if _line(stream).get("token") != self._store.record.token:
                    return
                before, self._current = self._current, connection
                if before is not None:
                    with contextlib.suppress(OSError):
                        before.shutdown(socket.SHUT_RDWR)
                connection.settimeout(None)
                with self._turn:
                    record = self._store.record
                    _say(connection, {"store": record.store, "last": record.number})
                    while not self._closed:
                        _say(connection, self._take(_line(stream), stream))
            except (OSError, ValueError, KeyError, TypeError):
                return  # it has gone, or talks nonsense

    def _take(self, head: dict[str, Any], stream: BinaryIO) -> dict[str, Any]:
        """One checkpoint; the answer.  Raises what ends the conversation."""
        number, base = int(head["checkpoint"]), head["base"]
        parts = [Part(str(name), int(length)) for name, length in head["parts"]]
        left = sum(part.length for part in parts)

        def take(most: int) -> bytes:
            nonlocal left
            octets: bytes = stream.read1(min(most, CHUNK))  # type: ignore[attr-defined]
            left -= len(octets)
            return octets

        summed = Summed(take)

        def verify() -> None:
            if _line(stream).get("sum") != summed.sum:
                raise HypervisorError(f"checkpoint {number} has come damaged")

        try:
            self._store.receive(number, base, parts, summed, verify)
        except HypervisorError as error:
            if left:  # the sender hears the reason only when it has sent all
                while left and take(min(left, CHUNK)):
                    pass
                _line(stream)
            return {"error": error.message, "remedy": error.remedy}
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._on_complete, number)
        return {"complete": number}


def _line(stream: BinaryIO) -> dict[str, Any]:
    """The next line.  Raises ValueError, OSError."""
    line = stream.readline(LINE_LIMIT)
    if not line.endswith(b"\n"):
        raise ValueError("no line")
    said = json.loads(line)
    if not isinstance(said, dict):
        raise ValueError(f"it says {said!r}")
    return said


def _say(connection: socket.socket, words: dict[str, Any]) -> None:
    connection.sendall(json.dumps(words).encode() + b"\n")
