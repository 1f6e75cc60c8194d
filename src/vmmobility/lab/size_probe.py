"""The probe of packet sizes: what passes to virtual machines, who says what does not, bulk TCP.

Runs inside its correspondent's namespace, standard library only, in the loop of send_grid.py.
For each target NAME and family it keeps a belief of the biggest packet that passes, sends that one,
one octet more, and the biggest that its own link takes, and takes the belief from what comes back.
It never asks its own kernel, which remembers old paths: its packets may not be fragmented and
ignore what is remembered.  It records; what it means is sizes.py's.  Lines of DIR/NAME-FAMILY.size:

    s,SEQ,NS,OCTETS             sent, IP header included
    r,SEQ,NS                    its echo
    e,SEQ,NS,MTU,FROM           an ICMP error about its size
    b,OCTETS,NS                 so much has gone to the VM and come back over TCP in all
    x,OCTETS,NS                 that session broke

    python -m vmmobility.lab.size_probe DIR MTU NAME=ADDRESS,ADDRESS ...

It ends on SIGTERM, 2 s later.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
import time
from ipaddress import ip_address
from pathlib import Path
from typing import TextIO

from vmmobility.lab.send_grid import Stream, run, stopping_by_signal

ECHO_PORT, SIZE_PORT = 7, 9
EVERY_NS = 10_000_000
BULK_EVERY_NS = 10_000_000
BULK_OCTETS = 16_384
"""In flight at once; what a small echo service always has room for."""
HEADERS = {4: 28, 6: 48}
_LEVEL = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
_MTU_DISCOVER, _PMTUDISC_PROBE = {4: 10, 6: 23}, 3
_RECVERR = {4: 11, 6: 25}
_MSG_ERRQUEUE = 0x2000
_TOO_BIG = {4: (2, 3, 4), 6: (3, 2, 0)}
_OFFENDER = {4: slice(20, 24), 6: slice(24, 40)}
_EXTENDED = struct.Struct("@IBBBBII")
_HEAD = struct.Struct("!8sIQ")
_MAGIC = b"vmmobSIZ"
_FLUSH_NS = 50_000_000
_PATTERN = bytes(range(251)) * (2 * BULK_OCTETS // 251 + 2)


class SizeProbe:
    """One UDP stream of packets of chosen sizes; only their beginnings come back."""

    every_ns = EVERY_NS

    def __init__(self, address: str, mtu: int, out: TextIO, due_ns: int) -> None:
        self.version = version = 6 if ":" in address else 4
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        self.sock: socket.socket | None = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.sock.setsockopt(_LEVEL[version], _MTU_DISCOVER[version], _PMTUDISC_PROBE)
        self.sock.setsockopt(_LEVEL[version], _RECVERR[version], 1)
        self.sock.connect((address, SIZE_PORT))
        self.due_ns = due_ns
        self._out = out
        self._mtu = self._fits = mtu
        self._sizes: dict[int, int] = {}
        self._nonce = int.from_bytes(os.urandom(4), "big")
        self._seq = 0

    def send(self, now_ns: int) -> None:
        """What should pass, what should not quite, and what the link takes."""
        for octets in sorted({self._fits, min(self._fits + 1, self._mtu), self._mtu}):
            self._send(octets)

    def _send(self, octets: int) -> None:
        assert self.sock is not None
        for _ in range(3):
            # Anew each time: an error that is taken may have sent another one in between.
            head = _HEAD.pack(_MAGIC, self._nonce, self._seq + 1)
            payload = head.ljust(octets - HEADERS[self.version], b"s")
            sent_ns = time.time_ns()
            try:
                self.sock.send(payload)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                    return
                self._take_errors()  # an earlier packet's: it was this one's turn to hear of it
                continue
            self._seq += 1
            self._sizes[self._seq] = octets
            self._out.write(f"s,{self._seq},{sent_ns},{octets}\n")
            return

    def receive(self, now_ns: int) -> None:
        """Record every echo and every error that has come."""
        assert self.sock is not None
        self._take_errors()
        while True:
            try:
                data = self.sock.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                self._take_errors()
                continue
            seq = self._seq_of(data)
            if seq is None:
                continue
            self._out.write(f"r,{seq},{time.time_ns()}\n")
            if self._sizes.get(seq, 0) > self._fits:
                # The path has grown: see at once by how much.
                self._fits = self._sizes[seq]
                self._send(self._mtu)

    def _take_errors(self) -> None:
        assert self.sock is not None
        while True:
            try:
                quote, control, _, _ = self.sock.recvmsg(2048, 512, _MSG_ERRQUEUE)
            except OSError:
                return
            seq = self._seq_of(quote)
            for level, kind, content in control:
                if seq is None or (level, kind) != (_LEVEL[self.version], _RECVERR[self.version]):
                    continue
                _, origin, one, code, _, mtu, _ = _EXTENDED.unpack_from(content)
                if (origin, one, code) != _TOO_BIG[self.version]:
                    continue
                offender = ip_address(content[_OFFENDER[self.version]])
                self._out.write(f"e,{seq},{time.time_ns()},{mtu},{offender}\n")
                if HEADERS[self.version] + _HEAD.size <= mtu < self._fits:
                    self._fits = mtu
                    self._send(mtu)  # does what was told pass?

    def _seq_of(self, data: bytes) -> int | None:
        if len(data) < _HEAD.size:
            return None
        magic, nonce, seq = _HEAD.unpack_from(data)
        return int(seq) if (magic, nonce) == (_MAGIC, self._nonce) else None


class BulkProbe:
    """One TCP session that sends blocks of many segments and checks each echo before the next."""

    every_ns = BULK_EVERY_NS

    def __init__(self, address: str, out: TextIO, due_ns: int) -> None:
        self.sock: socket.socket | None = None
        self.due_ns = due_ns
        self._target = (address, ECHO_PORT)
        self._out = out
        self._unsent = b""
        self._sent = self._echoed = 0

    def send(self, now_ns: int) -> None:
        """The next block, once the last one is back."""
        if self.sock is None:
            self._open()
            return
        if self._echoed == self._sent + len(self._unsent):
            self._unsent = block(self._echoed, BULK_OCTETS)
        self._write()

    def _open(self) -> None:
        family = socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        self._sent = self._echoed = 0
        self._unsent = block(0, BULK_OCTETS)
        self.sock.connect_ex(self._target)

    def _write(self) -> None:
        assert self.sock is not None
        try:
            while self._unsent:
                written = self.sock.send(self._unsent)
                self._sent += written
                self._unsent = self._unsent[written:]
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                self._broken()

    def receive(self, now_ns: int) -> None:
        """Check what comes back."""
        if self.sock is None:
            return
        try:
            data = self.sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or data != block(self._echoed, len(data)):
            self._broken()
            return
        self._echoed += len(data)
        if self._echoed == self._sent and not self._unsent:
            self._out.write(f"b,{self._echoed},{time.time_ns()}\n")
        else:
            self._write()

    def _broken(self) -> None:
        assert self.sock is not None
        self._out.write(f"x,{self._echoed},{time.time_ns()}\n")
        self.sock.close()
        self.sock = None


def block(place: int, octets: int) -> bytes:
    """What the session's octets from that place on are."""
    start = place % 251
    return (_PATTERN * (octets // len(_PATTERN) + 1))[start : start + octets]


def main(arguments: list[str]) -> None:
    """A stream of sizes and one of bulk a family to every target."""
    folder, mtu = Path(arguments[0]), int(arguments[1])
    streams: list[Stream] = []
    outs: list[TextIO] = []
    due_ns = time.monotonic_ns()
    for target in arguments[2:]:
        name, _, addresses = target.partition("=")
        for address in addresses.split(","):
            family = "ipv6" if ":" in address else "ipv4"
            out = (folder / f"{name}-{family}.size").open("w", buffering=1 << 16)
            outs.append(out)
            streams.append(SizeProbe(address, mtu, out, due_ns))
            streams.append(BulkProbe(address, out, due_ns + EVERY_NS // 2))
            due_ns += 1_700_000
    stopping = stopping_by_signal()
    with contextlib.suppress(OSError):  # without it only a little less punctual
        os.nice(-10)
    run(streams, outs, stopping, _FLUSH_NS)


if __name__ == "__main__":
    main(sys.argv[1:])
