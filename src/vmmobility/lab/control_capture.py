"""Every control message that a node sends or gets, written down as it passes its interfaces.

A process inside the node's namespace, standard library only; it reads packets, it never speaks.
Lines: `NS,DIRECTION,SOURCE,PORT,DESTINATION,PORT,HEX` with the kernel's time stamp (realtime),
direction `in` or `out`, and the UDP payload.  Not here: sending them again (replaying.py).

    python -m vmmobility.lab.control_capture FILE PORT          ends on SIGTERM
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ALL_PROTOCOLS = 0x0003
_OUTGOING = 4
_UDP = 17
_SO_TIMESTAMPNS = 35
_STAMP = struct.Struct("@qq")
_HEADER4, _HEADER6 = 20, 40
KIND_REPLY = 2  # the message header's second octet (docs/protocol.md)
REJECTS_FROM = 128  # its fourth


@dataclass(frozen=True, slots=True)
class Captured:
    """One control message on the wire."""

    at_ns: int
    outgoing: bool
    source: str
    source_port: int
    destination: str
    destination_port: int
    payload: bytes

    @property
    def purpose(self) -> int:
        """The header's third octet."""
        return self.payload[2] if len(self.payload) > 2 else 0

    @property
    def accepts(self) -> bool:
        """A reply whose status says yes."""
        return self.is_reply and len(self.payload) > 3 and self.payload[3] < REJECTS_FROM

    @property
    def is_reply(self) -> bool:
        """Whether it answers a request."""
        return len(self.payload) > 1 and self.payload[1] == KIND_REPLY


def read(path: Path) -> list[Captured]:
    """What a capture has written so far; an unfinished last line is left out."""
    found = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        words = line.split(",")
        if line.endswith("\n") and len(words) == 7:
            at, way, source, sport, destination, dport, payload = words
            found.append(Captured(int(at), way == "out", source, int(sport), destination,
                                  int(dport), bytes.fromhex(payload)))  # fmt: skip
    return found


def udp_of(packet: bytes) -> tuple[str, int, str, int, bytes] | None:
    """(source, port, destination, port, payload) of an IP packet, if it is UDP and whole."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= _HEADER4 and packet[9] == _UDP:
        begin = (packet[0] & 15) * 4
        source, destination = packet[12:16], packet[16:20]
    elif version == 6 and len(packet) >= _HEADER6 and packet[6] == _UDP:
        begin, source, destination = _HEADER6, packet[8:24], packet[24:40]
    else:
        return None
    if len(packet) < begin + 8:
        return None
    sport, dport, length = struct.unpack("!HHH", packet[begin : begin + 6])
    payload = packet[begin + 8 : begin + length]
    return (str(ipaddress.ip_address(source)), sport, str(ipaddress.ip_address(destination)),
            dport, payload)  # fmt: skip


def _packets() -> Iterator[tuple[int, bool, bytes]]:
    """(time, outgoing, IP packet) of everything that passes, until the parent is gone."""
    parent = os.getppid()
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL_PROTOCOLS))
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    sock.settimeout(1.0)
    while os.getppid() == parent:
        try:
            data, extra, _, address = sock.recvmsg(2048, 64)
        except TimeoutError:
            continue
        at_ns = time.time_ns()
        for level, kind, content in extra:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                seconds, nanoseconds = _STAMP.unpack(content[: _STAMP.size])
                at_ns = seconds * 1_000_000_000 + nanoseconds
        yield at_ns, address[2] == _OUTGOING, data


def main(arguments: list[str]) -> None:
    """Write down what passes until told to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(10)
    port = int(arguments[1])
    with Path(arguments[0]).open("a", buffering=1) as out:
        for at_ns, outgoing, packet in _packets():
            found = udp_of(packet)
            if found is None or port not in (found[1], found[3]):
                continue
            source, sport, destination, dport, payload = found
            way = "out" if outgoing else "in"
            out.write(f"{at_ns},{way},{source},{sport},{destination},{dport},{payload.hex()}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
