"""HTTP connections that do not wait for ever: a request's head, and a body that nobody reads any
more, have a limit of time.

Not here: a body's limits (http.py), how many connections there may be (door.py).
Rests on uvicorn's protocol for h11.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections import Counter
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vmmobility.api.door import Connection

HEAD_S = 10.0  # from the first octet, or the connection, to the end of a request's head
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class PatientProtocol(H11Protocol):
    """Closes a connection whose request's head is not whole in time.

    A request's `state` has "connection" (door.Connection), "uid", of a unix socket's peer, and
    "abort", which cuts the connection
    """

    counts: Counter[str] | None = None
    connection: Connection | None = None
    head_s = HEAD_S
    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {
            **self.app_state,
            "connection": self.connection,
            "uid": _uid_of(transport),
            "abort": transport.abort,
        }
        self._due = self.loop.call_later(self.head_s, self._too_slow)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch(bool(self.conn.trailing_data[0]))

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch(bool(self.conn.trailing_data[0]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        if self.connection is not None:
            self.connection.left()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered like all that is wrong, where it still can be."""
        problem = {"error": msg, "remedy": "send HTTP/1.1; see docs/api.md"}
        body = json.dumps(problem).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        events = (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self, begun: bool) -> None:
        """A timer runs while a request's head has begun and is not whole, and while the rest of a
        body still comes that was answered already (what comes is thrown away)."""
        head = self.conn.their_state is h11.IDLE and begun
        cycle: Any = self.cycle  # None before the first request
        answered = cycle is not None and cycle.response_complete
        rest = self.conn.their_state is h11.SEND_BODY and answered
        if not head and not rest:
            self._stop()
        elif self._due is None:
            self._due = self.loop.call_later(self.head_s, self._too_slow)

    def _stop(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _too_slow(self) -> None:
        self._due = None
        if self.counts is not None:
            self.counts["slow"] += 1
        self.transport.abort()


def protocol_for(counts: Counter[str]) -> type[PatientProtocol]:
    """The class that a server's connections are made of."""
    return type("CountingProtocol", (PatientProtocol,), {"counts": counts})


def _uid_of(transport: asyncio.BaseTransport) -> int | None:
    """Who is at the other end of a unix socket."""
    sock: Any = transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(data)[1]
    return uid
