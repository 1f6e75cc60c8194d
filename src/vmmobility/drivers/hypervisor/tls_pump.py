"""A TLS connection as a plain one: a thread carries octets between it and a pair of sockets.

So nobody else needs to know of TLS: the pair's other end is handed to QEMU, spliced, half closed,
as a TCP connection would be.  Inside TLS, octets go in frames: a length of 4 octets, then as many;
length 0 is the end of that direction.  A connection that ends without it was broken, and breaks the
pair's end as well: nobody can cut a stream short unseen.

One thread for both directions, for no two may use a TLS connection at once.
Not here: handshakes (stream_tls.py).  Rests on ssl, sockets and a thread.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time

FRAME = 256 * 1024  # octets at most
BUFFER = 1024 * 1024  # of the pair, as far as the kernel allows
LINGER_S = 5.0  # the other end may go on for so long when nobody here listens any more
_HEAD = 4


class _Wants(Exception):
    """A direction waits for this: events of poll() at one of the two sockets."""

    def __init__(self, at: socket.socket, events: int) -> None:
        super().__init__()
        self.at, self.events = at, events


class _Outward:
    """From here to the other host."""

    def __init__(self, near: socket.socket, far: ssl.SSLSocket) -> None:
        self._near, self._far = near, far
        self._frame = memoryview(bytearray(_HEAD + FRAME))
        self._left = self._frame[:0]
        self._read_all = False
        self.done = False

    def step(self) -> None:
        """Carry something.  Raises _Wants, OSError."""
        if self._left:
            try:
                self._left = self._left[self._far.send(self._left) :]
            except ssl.SSLWantReadError:
                raise _Wants(self._far, select.POLLIN) from None
            except ssl.SSLWantWriteError:
                raise _Wants(self._far, select.POLLOUT) from None
            self.done = self._read_all and not self._left
            return
        try:
            taken = self._near.recv_into(self._frame[_HEAD:])
        except BlockingIOError:
            raise _Wants(self._near, select.POLLIN) from None
        except ConnectionResetError:  # it was closed with octets unread: its end all the same
            taken = 0
        self._frame[:_HEAD] = taken.to_bytes(_HEAD, "big")
        self._left = self._frame[: _HEAD + taken]
        self._read_all = not taken


class _Inward:
    """From the other host to here."""

    def __init__(self, near: socket.socket, far: ssl.SSLSocket) -> None:
        self._near, self._far = near, far
        self._buffer = memoryview(bytearray(FRAME))
        self._head = b""
        self._expected = 0  # of the frame that is under way
        self._left = self._buffer[:0]
        self.unheard = False  # nobody here listens any more
        self.done = False

    def step(self) -> None:
        """Carry something.  Raises _Wants, OSError."""
        if self._left:
            self._give()
        elif self._expected:
            self._take()
        else:
            self._head += self._receive(_HEAD - len(self._head))
            if len(self._head) == _HEAD:
                self._expected, self._head = int.from_bytes(self._head, "big"), b""
                if not self._expected:
                    self.done = True
                    with contextlib.suppress(OSError):
                        self._near.shutdown(socket.SHUT_WR)

    def _take(self) -> None:
        """As much of the frame as is there, for TLS gives but 16 KiB at a time."""
        taken = 0
        most = min(self._expected, FRAME)
        try:
            while taken < most:
                taken += self._receive_into(self._buffer[taken:most])
        except _Wants:
            if not taken:
                raise
        self._expected -= taken
        self._left = self._buffer[: 0 if self.unheard else taken]

    def _give(self) -> None:
        try:
            self._left = self._left[self._near.send(self._left) :]
        except BlockingIOError:
            raise _Wants(self._near, select.POLLOUT) from None
        except (BrokenPipeError, ConnectionResetError):
            self.unheard = True
            self._left = self._buffer[:0]

    def _receive(self, most: int) -> bytes:
        octets = bytearray(most)
        return bytes(octets[: self._receive_into(memoryview(octets))])

    def _receive_into(self, buffer: memoryview) -> int:
        try:
            taken = self._far.recv_into(buffer)
        except ssl.SSLWantReadError:
            raise _Wants(self._far, select.POLLIN) from None
        except ssl.SSLWantWriteError:
            raise _Wants(self._far, select.POLLOUT) from None
        if not taken:
            raise ConnectionResetError("it was cut off")
        return taken


def plain_end(far: ssl.SSLSocket, name: str) -> socket.socket:
    """The plain end of this TLS connection, whose handshake is over, and which is the thread's from
    now on.  name: of the thread."""
    near, plain = socket.socketpair()
    for end in (near, plain):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    near.setblocking(False)
    far.setblocking(False)
    threading.Thread(target=_run, args=(near, far), name=name, daemon=True).start()
    return plain


def _run(near: socket.socket, far: ssl.SSLSocket) -> None:
    # Either end may break: both are closed then, and who is at the other sees it.
    with near, far, contextlib.suppress(OSError):
        _carry(near, far)


def _carry(near: socket.socket, far: ssl.SSLSocket) -> None:
    """Until both directions have ended.  Raises OSError."""
    outward, inward = _Outward(near, far), _Inward(near, far)
    gone = False
    deadline: float | None = None
    while not (outward.done and inward.done):
        wanted: dict[socket.socket, int] = {near: 0, far: 0}
        waiting = True
        for direction in (outward, inward):
            if direction.done:
                continue
            try:
                direction.step()
                waiting = False
            except _Wants as wants:
                wanted[wants.at] |= wants.events
        gone = gone or inward.unheard
        if gone and outward.done and deadline is None:
            deadline = time.monotonic() + LINGER_S
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError("nobody here listens any more")
        if waiting:
            # A pair whose other end is closed for good would always be ready.
            if gone and not wanted[near]:
                del wanted[near]
            gone = _wait(near, far, wanted, deadline) or gone


def _wait(
    near: socket.socket,
    far: ssl.SSLSocket,
    watched: dict[socket.socket, int],
    deadline: float | None,
) -> bool:
    """Wait for one of these events; whether the pair's other end is closed for good."""
    poll = select.poll()
    for end, events in watched.items():
        poll.register(end, events)
    limit_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000 + 1
    found = dict(poll.poll(limit_ms))
    over = select.POLLHUP | select.POLLERR
    if found.get(far.fileno(), 0) & over and not watched[far]:
        raise ConnectionResetError("it was cut off")
    return bool(found.get(near.fileno(), 0) & over)
