"""Octets between two connected sockets, both ways, by two threads.

Not here: what they mean (disk_door.py, disk_copy.py).  Rests on sockets and threads.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

CHUNK = 256 * 1024


class BytePipe:
    """Starts at once.  Each end of a direction is passed on; when both have ended, all is closed.

    on_end(error): called in a thread once both directions have ended; "" or why one broke
    """

    def __init__(
        self, name: str, ends: tuple[socket.socket, socket.socket], on_end: Callable[[str], None]
    ) -> None:
        self._ends = ends
        self._on_end = on_end
        self._error = ""
        self._left = 2
        self._lock = threading.Lock()
        for end in ends:
            end.settimeout(None)
        for source, sink in (ends, ends[::-1]):
            threading.Thread(target=self._run, args=(source, sink), name=name, daemon=True).start()

    def abort(self) -> None:
        """Break both directions off.  Idempotent."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _run(self, source: socket.socket, sink: socket.socket) -> None:
        error = ""
        try:
            buffer = memoryview(bytearray(CHUNK))
            while taken := source.recv_into(buffer):
                sink.sendall(buffer[:taken])
            sink.shutdown(socket.SHUT_WR)
        except OSError as problem:
            error = problem.strerror or str(problem)
            self.abort()
        with self._lock:
            self._error = self._error or error
            self._left -= 1
            last = not self._left
        if last:
            for end in self._ends:
                end.close()
            self._on_end(self._error)


def watch_path(connection: socket.socket, limit_s: float) -> None:
    """Have the kernel break this TCP connection when nothing is acknowledged for `limit_s`."""
    seconds = max(1, round(limit_s))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_USER_TIMEOUT, seconds * 1000),
        (socket.TCP_KEEPIDLE, 1),
        (socket.TCP_KEEPINTVL, 1),
        (socket.TCP_KEEPCNT, seconds),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
