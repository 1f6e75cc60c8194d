"""A bulk transfer over TCP in one direction, whose octets are known in advance.

Not here: the namespaces that its ends live in (the tests).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

_PATTERN = bytes(range(251)) * 512
"""Its length is no power of two: what is lost or comes twice does not fit."""
_PATIENCE_S = 20.0
_AT_ONCE = struct.pack("ii", 1, 0)


class Bulk:
    """Sends from one connected socket to the other until it is told to end."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self._source, self._sink = source, sink
        self.sent = self.received = 0
        self.fault = ""
        self._ending = threading.Event()
        for one in (source, sink):
            one.settimeout(_PATIENCE_S)
        self._threads = [threading.Thread(target=t) for t in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        try:
            while not self._ending.is_set():
                place = self.sent % len(_PATTERN)
                self.sent += self._source.send(_PATTERN[place : place + 65536])
            self._source.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.fault = self.fault or f"sending: {error}"

    def _receive(self) -> None:
        try:
            while data := self._sink.recv(1 << 17):
                place = self.received % len(_PATTERN)
                expected = (_PATTERN[place:] + _PATTERN * 2)[: len(data)]
                if data != expected:
                    self.fault = self.fault or f"other octets after {self.received}"
                self.received += len(data)
        except OSError as error:
            self.fault = self.fault or f"receiving: {error}"

    def end(self) -> None:
        """Let all that was sent arrive."""
        self._ending.set()
        for thread in self._threads:
            thread.join(2 * _PATIENCE_S)

    def close(self) -> None:
        """By a reset: the kernel is to repeat nothing to an end that is gone."""
        self._ending.set()
        for one in (self._source, self._sink):
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(2 * _PATIENCE_S)
        for one in (self._source, self._sink):
            one.close()
