"""The stream of a move out: QEMU writes into a pair of sockets, a thread here sends it on by TCP.

Why it stands between: QEMU limits its own rate in windows of 100 ms and decides only between them,
so a guest held back by QEMU's bandwidth stops up to 100 ms after it was told to.  Here QEMU knows
no limit; this thread takes the data at the wanted pace and, to hold the copy, takes none.  QEMU's
migration thread then waits in a write while the guest runs on, and goes on within a millisecond
when data is taken again.  A broken path ends here, too, and QEMU's side with it.

Section 6: "Source Hypervisor opens a TCP connection with destination Hypervisor over which VM's
memory state is transferred."  Not here: when to hold (move.py).  Rests on sockets and a thread.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

from vmmobility.drivers.hypervisor.stream_tls import refusal_in
from vmmobility.drivers.hypervisor.streams import Streams, is_broken

CHUNK = 64 * 1024  # octets a turn: no more passes once the copy is held
BUFFER = 64 * 1024  # of the pair: what QEMU has written that was not yet taken
SLACK_S = 0.05  # a pace that fell back further does not catch up
SILENCE_S = 0.2  # QEMU has written everything when it has written nothing for so long
GRACE_S = 1.0  # between the destination's last word and QEMU's end of the stream
# What a QEMU says on the way back when it has all: message 1 of 4 octets, "no error".
_SHUT = bytes((0, 1, 0, 4, 0, 0, 0, 0))


class CopyStream:
    """One move's stream.  connect(), hand `qemu_end` to QEMU, start().

    streams: by which it goes
    two_way: the destination may answer, as in post-copy: see let_back(), say_over()
    on_end(error): called in the thread when all was sent and QEMU has closed its end ("") or the
    path broke (why)
    """

    def __init__(
        self,
        guest: str,
        streams: Streams,
        on_end: Callable[[str], None],
        *,
        two_way: bool = False,
    ) -> None:
        self._guest = guest
        self._streams = streams
        self._on_end = on_end
        self._flow = threading.Event()
        self._flow.set()
        self._pace: float | None = None
        self.sent = 0
        self.qemu_end, self._near = socket.socketpair()
        for end in (self.qemu_end, self._near):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._far: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name=f"copy of {guest}", daemon=True)
        self._back = threading.Event()
        self._two_way = two_way
        self._fetching = self._aborted = False
        self.failed = ""  # in post-copy: why the path was lost

    def connect(self, address: str, port: int) -> None:
        """Open the connection; blocks.  Raises HypervisorError."""
        self._far = self._streams.connect(self._guest, address, port)

    def start(self) -> None:
        """Begin to send.  QEMU has its end by now; ours of it is closed."""
        self.qemu_end.close()
        self._thread.start()
        if self._two_way:
            name = f"way back of {self._guest}"
            threading.Thread(target=self._run_back, name=name, daemon=True).start()

    @property
    def broken(self) -> bool:
        """Whether the path has been given up, or the destination has closed it."""
        assert self._far is not None
        return is_broken(self._far)

    def pace(self, bytes_per_s: float | None) -> None:
        """Take so much a second; None is all there is."""
        self._pace = bytes_per_s

    def hold(self) -> None:
        """Take nothing more: QEMU waits, the guest runs on."""
        self._flow.clear()

    def release(self) -> None:
        """Take all there is, at once."""
        self._pace = None
        self._flow.set()

    def let_back(self) -> None:
        """Post-copy has begun: the destination's requests come to QEMU from now on, and a path that
        is lost leaves QEMU's end as it is (`failed` says why) until abort()."""
        self._fetching = True
        self._back.set()

    def say_over(self) -> None:
        """Say to QEMU, in the destination's place, that all has come, once it writes no more: then
        its migration ends as one without a way back, and on the destination's word nothing rests
        (say_over or let_back, never both).

        QEMU closes its stream upon that word.  Said too early it has not written everything: the
        destination cannot run, and the move fails.
        """
        name = f"last word to {self._guest}"
        threading.Thread(target=self._say_over, name=name, daemon=True).start()

    def _say_over(self) -> None:
        sent = -1
        while self.sent != sent and not self._aborted:
            sent = self.sent
            time.sleep(SILENCE_S)
        with contextlib.suppress(OSError):
            self._near.sendall(_SHUT)

    def abort(self) -> None:
        """Break both ends off.  Idempotent."""
        self._aborted = True
        self._back.set()
        self._flow.set()
        for end in (self._near, self._far, self.qemu_end):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        if not self._thread.is_alive():
            self._close()

    def _run(self) -> None:
        error = ""
        try:
            self._copy()
        except OSError as problem:
            error = problem.strerror or str(problem)
            if self._far is not None:
                error = refusal_in(self._far) or error
        # What the destination has said and nobody has read would, closed over, take with it what
        # it has not read itself.
        far = self._far if self._two_way and not error and not self._aborted else None
        if far is not None:
            self._far = None
        self._close()
        self._on_end(error)
        if far is not None:
            _read_out(far, self._streams.stall_limit_s)

    def _copy(self) -> None:
        assert self._far is not None
        buffer = memoryview(bytearray(CHUNK))
        due = time.monotonic()
        while True:
            self._flow.wait()
            taken = self._near.recv_into(buffer)
            if not taken:
                self._far.shutdown(socket.SHUT_WR)
                return
            if not self._send(buffer[:taken]):
                continue
            self.sent += taken
            pace = self._pace
            if pace is not None:
                due = max(due + taken / pace, time.monotonic() - SLACK_S)
                time.sleep(max(0.0, due - time.monotonic()))

    def _send(self, data: memoryview) -> bool:
        """False if the path was lost in post-copy: then it goes nowhere."""
        assert self._far is not None
        if self.failed:
            return False
        try:
            self._far.sendall(data)
        except OSError as problem:
            if not self._fetching or self._aborted:
                raise
            self.failed = problem.strerror or str(problem)
            return False
        return True

    def _run_back(self) -> None:
        """The destination's words, in post-copy; QEMU reads them from the same socket."""
        self._back.wait()
        if self._aborted:
            return
        far = self._far
        assert far is not None
        try:
            while data := far.recv(CHUNK):
                self._near.sendall(data)
            self._ends_back("the destination has closed it")
        except OSError as problem:
            self._ends_back(problem.strerror or str(problem))

    def _ends_back(self, why: str) -> None:
        """All is over, if QEMU closes its end now; else the path was lost."""
        self._thread.join(GRACE_S)
        if self._thread.is_alive():
            self.failed = self.failed or why

    def _close(self) -> None:
        for end in (self._near, self._far, self.qemu_end):
            if end is not None:
                end.close()


def _read_out(far: socket.socket, limit_s: float) -> None:
    """Read until the destination has closed it, or says nothing for so long."""
    with contextlib.suppress(OSError), far:
        far.settimeout(limit_s)
        while far.recv(CHUNK):
            pass
