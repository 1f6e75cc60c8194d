"""The probe: a process that echoes off virtual machines every few ms and keeps TCP talking.

Runs inside its correspondent's namespace, standard library only, one tight loop (send_grid.py), no
garbage collection.  It records; it does not count (counting.py).  For each target NAME and family
it writes lines to DIR/NAME-FAMILY.udp (`s,SEQ,NS` sent, `r,SEQ,NS` received, kernel's time stamp)
and DIR/NAME-FAMILY.tcp (`o,0,NS` opened, `r,COUNT,NS` echo, `x,COUNT,NS` broken).

    python -m vmmobility.lab.probe DIR EVERY_MS NAME=ADDRESS,ADDRESS ...

ends on SIGTERM, 2 s later.  TCP says something every fourth time.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TextIO

from vmmobility.lab.send_grid import Stream, run, stopping_by_signal

ECHO_PORT = 7
_FLUSH_NS = 200_000_000
_RETRY_NS = 200_000_000
_SO_TIMESTAMPNS = 35
_HEAD = struct.Struct("!8sIQ")
_STAMP = struct.Struct("@qq")
_MAGIC = b"vmmobPRB"
_TCP_SIZE = 16


class UdpProbe:
    """One UDP echo stream to one address."""

    def __init__(self, address: str, out: TextIO, due_ns: int, every_ns: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.sock: socket.socket | None = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.due_ns, self.every_ns = due_ns, every_ns
        self._target = (address, ECHO_PORT)
        self._out = out
        self._nonce = int.from_bytes(os.urandom(4), "big")
        self._seq = 0

    def send(self, now_ns: int) -> None:
        """Send the next echo; whatever the kernel says, it counts as sent."""
        assert self.sock is not None
        self._seq += 1
        sent_ns = time.time_ns()
        with contextlib.suppress(OSError):  # no route, no room: a packet that gets no echo
            self.sock.sendto(_HEAD.pack(_MAGIC, self._nonce, self._seq), self._target)
        self._out.write(f"s,{self._seq},{sent_ns}\n")

    def receive(self, now_ns: int) -> None:
        """Record every echo that has come."""
        assert self.sock is not None
        while True:
            try:
                data, extra, _, _ = self.sock.recvmsg(64, 64)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error; the packet it is about gets no echo
            if len(data) != _HEAD.size:
                continue
            magic, nonce, seq = _HEAD.unpack(data)
            if magic != _MAGIC or nonce != self._nonce:
                continue
            stamp = time.time_ns()
            for level, kind, content in extra:
                if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                    seconds, nanoseconds = _STAMP.unpack(content[: _STAMP.size])
                    stamp = seconds * 1_000_000_000 + nanoseconds
            self._out.write(f"r,{seq},{stamp}\n")


class TcpProbe:
    """One TCP session that must never break; when it does, the next one is opened."""

    def __init__(self, address: str, out: TextIO, due_ns: int, every_ns: int) -> None:
        self.sock: socket.socket | None = None
        self.due_ns, self.every_ns = due_ns, 4 * every_ns
        self._target = (address, ECHO_PORT)
        self._out = out
        self._connected = False
        self._sent = 0
        self._unsent = b""
        self._echoed = 0
        self._partial = b""

    def send(self, now_ns: int) -> None:
        """Send the next small message, or open the session."""
        if self.sock is None:
            self._open()
        if not self._connected:
            self._check_open(now_ns)
        if self._connected and self.sock is not None:
            self._unsent += struct.pack("!QQ", self._sent, ~self._sent & (2**64 - 1))
            self._sent += 1
            try:
                written = self.sock.send(self._unsent)
                self._unsent = self._unsent[written:]
            except BlockingIOError:
                pass
            except OSError:
                self._broken(now_ns)

    def receive(self, now_ns: int) -> None:
        """Record the echoes; check that they are what was sent, in order."""
        if self.sock is None or not self._connected:
            return
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._broken(now_ns)
            return
        self._partial += data
        while len(self._partial) >= _TCP_SIZE:
            number, check = struct.unpack("!QQ", self._partial[:_TCP_SIZE])
            self._partial = self._partial[_TCP_SIZE:]
            if number != self._echoed or check != ~number & (2**64 - 1):
                self._broken(now_ns)
                return
            self._echoed += 1
        self._out.write(f"r,{self._echoed},{time.time_ns()}\n")

    def _open(self) -> None:
        family = socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connected, self._sent, self._echoed = False, 0, 0
        self._unsent = self._partial = b""
        self.sock.connect_ex(self._target)

    def _check_open(self, now_ns: int) -> None:
        assert self.sock is not None
        problem = self.sock.connect_ex(self._target)
        if problem in (0, errno.EISCONN):
            self._connected = True
            self._out.write(f"o,0,{time.time_ns()}\n")
        elif problem not in (errno.EINPROGRESS, errno.EALREADY, errno.EWOULDBLOCK):
            self.sock.close()
            self.sock = None
            self.due_ns = now_ns + _RETRY_NS

    def _broken(self, now_ns: int) -> None:
        self._out.write(f"x,{self._echoed},{time.time_ns()}\n")
        if self.sock is not None:
            self.sock.close()
        self.sock = None
        self._connected = False
        self.due_ns = now_ns + _RETRY_NS


def main(arguments: list[str]) -> None:
    """Open a UDP and a TCP stream a family to every target and run them."""
    folder, every_ns = Path(arguments[0]), int(arguments[1]) * 1_000_000
    streams: list[Stream] = []
    outs: list[TextIO] = []
    start_ns = time.monotonic_ns()
    for number, target in enumerate(arguments[2:]):
        name, _, addresses = target.partition("=")
        for address in addresses.split(","):
            family = "ipv6" if ":" in address else "ipv4"
            for kind in ("udp", "tcp"):
                out = (folder / f"{name}-{family}.{kind}").open("w", buffering=1 << 16)
                outs.append(out)
                # Both families in one turn, TCP in another: half as many turns for the machine.
                due_ns = start_ns + number * 1_100_000 + (kind == "tcp") * every_ns // 2
                make = UdpProbe if kind == "udp" else TcpProbe
                streams.append(make(address, out, due_ns, every_ns))
    stopping = stopping_by_signal()
    with contextlib.suppress(OSError):  # without it only a little less punctual
        os.nice(-15)
    gc.disable()
    (folder / "ready").touch()
    run(streams, outs, stopping, _FLUSH_NS)


if __name__ == "__main__":
    main(sys.argv[1:])
