"""Who is let in at an API's listening sockets: connections are counted from the moment in which
they are accepted, TLS handshakes among them.

Those who have not yet shown who they are are bound apart: they cannot keep out who has a token.  A
newcomer takes the place of the oldest of them, of its own source first, then of the source that has
the most; who is quick to show a token gets in however many are silent.
Not here: who asks (listener.py), how long a request's head may take (patience.py).
Rests on asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

HANDSHAKE_S = 5.0  # TLS may take so long to begin,
SHUTDOWN_S = 2.0  # and so long to end
AGAIN_S = 0.5  # before accepting is tried again where descriptors are short
SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# A peer that has gone without a word is found out in a minute.
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """unknown: connections that have not shown who asks; source: of these, from one source;
    known: of those that have; asker: of these, of one token or user"""

    unknown: int
    source: int
    known: int
    asker: int


@dataclass(eq=False)
class Connection:
    """One that was accepted, until it is closed.  abort: closes it at once."""

    door: Door
    source: str
    asker: str | None = None
    is_open: bool = True
    is_begun: bool = False  # a transport has its socket
    is_made: bool = False  # and a protocol what comes
    abort: Callable[[], object] = field(default=lambda: None)

    def is_let_in(self, asker: str) -> bool:
        """Whether it may have an answer as this asker's."""
        return self.door.lets_in(self, asker)

    def left(self) -> None:
        self.door.left(self)


class Door:
    """The connections of all sockets of a kind.  counts: "surplus" and "descriptors"."""

    def __init__(self, bounds: Bounds, counts: Counter[str]) -> None:
        self._bounds = bounds
        self._counts = counts
        # Oldest first, by source.
        self._unknown: dict[str, dict[Connection, None]] = {}
        self._askers: Counter[str] = Counter()

    def accepted(self, source: str) -> Connection:
        """The newcomer; whose place it takes is closed."""
        mine = self._unknown.get(source, {})
        if len(mine) >= self._bounds.source:
            self._cut(mine)
        elif sum(map(len, self._unknown.values())) >= self._bounds.unknown:
            self._cut(max(self._unknown.values(), key=len))
        newcomer = Connection(self, source)
        self._unknown.setdefault(source, {})[newcomer] = None
        return newcomer

    def lets_in(self, connection: Connection, asker: str) -> bool:
        if connection.asker == asker or not connection.is_open:
            return True
        others = self._askers.total() - (connection.asker is not None)
        if others >= self._bounds.known or self._askers[asker] >= self._bounds.asker:
            self._counts["surplus"] += 1
            return False
        self._forget(connection)
        connection.asker = asker
        self._askers[asker] += 1
        return True

    def left(self, connection: Connection) -> None:
        """It is closed.  Idempotent."""
        connection.is_open = False
        self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        if connection.asker is not None:
            self._askers[connection.asker] -= 1
            if not self._askers[connection.asker]:
                del self._askers[connection.asker]
            connection.asker = None
        elif connection in (mine := self._unknown.get(connection.source, {})):
            del mine[connection]
            if not mine:
                del self._unknown[connection.source]

    def short(self) -> None:
        """No descriptor is left for a newcomer: one who is silent gives its own back."""
        self._counts["descriptors"] += 1
        if self._unknown:
            self._cut(max(self._unknown.values(), key=len))

    def _cut(self, connections: dict[Connection, None]) -> None:
        oldest = next(iter(connections))
        self._counts["surplus"] += 1
        self.left(oldest)
        oldest.abort()


class Acceptor:
    """Accepts at one socket.  made: a connection's protocol, which tells the door when it has
    left; has what uvicorn asks of a server."""

    def __init__(
        self,
        listener: socket.socket,
        door: Door,
        made: Callable[[Connection], asyncio.Protocol],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._listener = listener
        self._door = door
        self._made = made
        self._tls = tls
        self._beginning: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._listener)
        for task in self._beginning:
            task.cancel()

    async def wait_closed(self) -> None:
        if self._beginning:
            await asyncio.wait(self._beginning)

    def _accept(self) -> None:
        while True:
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in SHORT:
                    raise
                self._door.short()
                self._loop.remove_reader(self._listener)
                self._again = self._loop.call_later(AGAIN_S, self._resume)
                return
            self._begin(sock, self._door.accepted(source_of(sock, address)))

    def _resume(self) -> None:
        self._again = None
        self._loop.add_reader(self._listener, self._accept)
        self._accept()

    def _begin(self, sock: socket.socket, connection: Connection) -> None:
        task = self._loop.create_task(self._serve(sock, connection), name="api connection")
        connection.abort = task.cancel
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)
        task.add_done_callback(lambda _: self._begun(sock, connection))

    async def _serve(self, sock: socket.socket, connection: Connection) -> None:
        times: dict[str, float] = {}
        if self._tls is not None:
            times = {"ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": SHUTDOWN_S}

        def made() -> asyncio.Protocol:
            connection.is_begun = True
            return self._made(connection)

        # No handshake (ssl.SSLError is an OSError), too late, or gone: nobody is told.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            if sock.family != socket.AF_UNIX:
                for option in KEEPALIVE:
                    sock.setsockopt(*option)
            transport, _ = await self._loop.connect_accepted_socket(
                made, sock, ssl=self._tls, **times
            )
            connection.abort = transport.abort
            connection.is_made = True

    @staticmethod
    def _begun(sock: socket.socket, connection: Connection) -> None:
        """Now its protocol tells when it has left; if it has none, it has."""
        if not connection.is_made:
            connection.left()
        if not connection.is_begun:
            sock.close()  # which no transport does


def source_of(sock: socket.socket, address: Any) -> str:
    """Whose connections are counted together: an IPv4 address, an IPv6 /64 (a host has all of
    it), a unix socket."""
    if sock.family == socket.AF_INET6:
        with contextlib.suppress(ValueError):
            host = ipaddress.IPv6Address(str(address[0]).partition("%")[0])
            return str(ipaddress.IPv6Network((host, 64), strict=False))
    return str(address[0]) if sock.family == socket.AF_INET else ""
