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

from vmmobility.drivers.hypervisor.byte_pipe import watch_path
from vmmobility.errors import HypervisorError

CHUNK = 64 * 1024  # octets a turn: no more passes once the copy is held
BUFFER = 64 * 1024  # of the pair: what QEMU has written that was not yet taken
CONNECT_LIMIT_S = 3.0
ESTABLISHED = 1  # tcp_info.tcpi_state
SLACK_S = 0.05  # a pace that fell back further does not catch up


class CopyStream:
    """One move's stream.  connect(), hand `qemu_end` to QEMU, start().

    stall_limit_s: the path is broken when nothing was acknowledged for so long
    on_end(error): called in the thread when all was sent and QEMU has closed its end ("") or the
    path broke (why)
    """

    def __init__(self, guest: str, stall_limit_s: float, on_end: Callable[[str], None]) -> None:
        self._guest = guest
        self._stall_limit_s = stall_limit_s
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

    def connect(self, address: str, port: int) -> None:
        """Open the TCP connection; blocks up to CONNECT_LIMIT_S.  Raises HypervisorError."""
        try:
            self._far = socket.create_connection((address, port), timeout=CONNECT_LIMIT_S)
        except OSError as error:
            raise HypervisorError(
                f"{self._guest}: cannot connect to {address} port {port}: {error}",
                "see that the destination waits there and the path is open",
            ) from None
        self._far.settimeout(None)
        watch_path(self._far, self._stall_limit_s)

    def start(self) -> None:
        """Begin to send.  QEMU has its end by now; ours of it is closed."""
        self.qemu_end.close()
        self._thread.start()

    @property
    def broken(self) -> bool:
        """Whether the path has been given up, or the destination has closed it."""
        try:
            assert self._far is not None
            return self._far.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != ESTABLISHED
        except OSError:
            return True

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

    def abort(self) -> None:
        """Break both ends off.  Idempotent."""
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
        self._close()
        self._on_end(error)

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
            self._far.sendall(buffer[:taken])
            self.sent += taken
            pace = self._pace
            if pace is not None:
                due = max(due + taken / pace, time.monotonic() - SLACK_S)
                time.sleep(max(0.0, due - time.monotonic()))

    def _close(self) -> None:
        for end in (self._near, self._far, self.qemu_end):
            if end is not None:
                end.close()
