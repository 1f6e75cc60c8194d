"""The standby's door for the checkpoints of one VM: a TCP port, a thread a connection.

A conversation, each line JSON; several checkpoints may follow each other:

    -> {"token": T}                         <- {"store": S, "last": N}      N: the last complete one
    -> {"checkpoint": N, "base": M|null, "parts": [["memory", LENGTH], ["disk0", LENGTH] …]}
       then the octets of all parts, then
    -> {"sum": CRC-32 of them}              <- {"complete": N}  or  {"error": WHY, "remedy": …}

One connection at a time: whoever comes with the token takes the place of the one before, whose
checkpoint is given up.  Who has not shown it holds up nobody: there are few of them, not for long,
and close() waits for none.  Not here: the files (checkpoint_store.py), the other end
(checkpoint_send.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from vmmobility.drivers.hypervisor.checkpoint_store import CHUNK, CheckpointStore, Part, Summed
from vmmobility.drivers.hypervisor.streams import Doorway, Streams
from vmmobility.errors import HypervisorError

LINE_LIMIT = 64 * 1024
HELLO_LIMIT = 1024
HELLO_LIMIT_S = 5.0  # for the whole of the first line
GUESTS_LIMIT = 8  # who have not shown the token; the first of them goes when one more comes


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
        self._unknown: list[socket.socket] = []  # in the order in which they came
        self._lock = threading.Lock()  # of these two
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
        with self._lock:
            self._closed = True
            ends = [self._current, *self._unknown]
        await self._doorway.close()
        for end in ends:
            _break_off(end)
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
                if not self._has_token(connection):
                    return
                connection.settimeout(None)
                with self._turn:
                    record = self._store.record
                    _say(connection, {"store": record.store, "last": record.number})
                    while not self._closed:
                        _say(connection, self._take(_line(stream), stream))
            except (OSError, ValueError, KeyError, TypeError):
                return  # it has gone, or talks nonsense

    def _has_token(self, connection: socket.socket) -> bool:
        """Whether its first line shows the token; it is the current one then."""
        with self._lock:
            if self._closed:
                return False
            self._unknown.append(connection)
            first = self._unknown[0] if len(self._unknown) > GUESTS_LIMIT else None
        _break_off(first)
        try:
            token = str(_hello(connection).get("token"))
        finally:
            with self._lock:
                self._unknown.remove(connection)
        if not hmac.compare_digest(token.encode(), self._store.record.token.encode()):
            return False
        with self._lock:
            if self._closed:
                return False
            before, self._current = self._current, connection
        _break_off(before)
        return True

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


def _break_off(connection: socket.socket | None) -> None:
    """Whoever reads from it, or writes to it, is told that it has ended."""
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _hello(connection: socket.socket) -> dict[str, Any]:
    """The first line, within the limit for all of it.  Raises ValueError, OSError."""
    deadline = time.monotonic() + HELLO_LIMIT_S
    line = b""
    while not line.endswith(b"\n") and len(line) < HELLO_LIMIT:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        octet = connection.recv(1)  # not one more: the stream reads on
        if not octet:
            break
        line += octet
    return _object(line)


def _line(stream: BinaryIO) -> dict[str, Any]:
    """The next line.  Raises ValueError, OSError."""
    return _object(stream.readline(LINE_LIMIT))


def _object(line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise ValueError("no line")
    said = json.loads(line)
    if not isinstance(said, dict):
        raise ValueError(f"it says {said!r}")
    return said


def _say(connection: socket.socket, words: dict[str, Any]) -> None:
    connection.sendall(json.dumps(words).encode() + b"\n")
