"""Octets between two connected sockets, both ways, by two threads.

The kernel moves them (splice): Python never sees them, so that a pipe costs next to nothing.
Not here: what they mean (disk_door.py, disk_copy.py).  Rests on sockets and threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
from collections.abc import Callable

CHUNK = 1024 * 1024  # of a kernel's pipe: the most that one may have without more rights


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
            _splice(source, sink)
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


def _splice(source: socket.socket, sink: socket.socket) -> None:
    """Until the source's end.  Raises OSError."""
    out, into = os.pipe2(os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # many pipes: it stays small
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, CHUNK)
        while taken := os.splice(source.fileno(), into, CHUNK, flags=os.SPLICE_F_MOVE):
            while taken:
                taken -= os.splice(out, sink.fileno(), taken, flags=os.SPLICE_F_MOVE)
    finally:
        os.close(out)
        os.close(into)


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
