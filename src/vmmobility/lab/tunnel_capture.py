"""Every tunnelled packet at an NVE's underlay: between whom the packet inside it goes.

A process inside the node's namespace, standard library only; it reads packets, it never speaks.
IP protocols 4 and 41, over IPv4 and IPv6.  Lines: `NS,in|out,SENDER,RECEIVER` with the kernel's
time stamp (realtime) and the inner packet's ends (`-` of a further fragment, which shows none);
`ready` first; `lost,N` when the kernel had no room for N packets.  Not here: what is to be seen
(tunnelled.py).

    python -m vmmobility.lab.tunnel_capture FILE INTERFACE...          ends on SIGTERM
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TUNNELLED = (4, 41)  # IPv4 and IPv6 as payload
_ALL_PROTOCOLS = 0x0003
_OUTGOING = 4
_SO_TIMESTAMPNS, _SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 35, 26, 33
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_STAMP = struct.Struct("@qq")
_BUFFER = 32 << 20
_SNAP = 128  # octets of a packet that are read: two headers
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Inner:
    """One tunnelled packet as it passed; "-": not to be seen in a further fragment."""

    at_ns: int
    outgoing: bool
    sender: str
    receiver: str


@dataclass(slots=True)
class Capture:
    """What one process has written so far."""

    packets: list[Inner] = field(default_factory=list)
    lost: int = 0
    ready: bool = False


def read(path: Path) -> Capture:
    """What a capture has written so far; an unfinished last line is left out."""
    found = Capture()
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        words = line.strip().split(",")
        if not line.endswith("\n"):
            break
        if words == ["ready"]:
            found.ready = True
        elif words[0] == "lost":
            found.lost += int(words[1])
        else:
            at, way, sender, receiver = words
            found.packets.append(Inner(int(at), way == "out", sender, receiver))
    return found


def inner_ends(packet: bytes) -> tuple[str, str] | None:
    """(sender, receiver) of the IP packet inside this one; None if there is none inside."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        protocol, begin = packet[9], (packet[0] & 15) * 4
        further = int.from_bytes(packet[6:8], "big") & 0x1FFF != 0
    elif version == 6 and len(packet) >= 40:
        protocol, begin, further = packet[6], 40, False
        if protocol == 44 and len(packet) >= 48:  # a fragment header comes first
            further = int.from_bytes(packet[42:44], "big") >> 3 != 0
            protocol, begin = packet[40], 48
    else:
        return None
    if protocol not in TUNNELLED:
        return None
    inside = packet[begin:]
    if further or not inside:
        return "-", "-"
    at, length = (12, 4) if inside[0] >> 4 == 4 else (8, 16)
    ends = inside[at : at + 2 * length]
    if inside[0] >> 4 not in (4, 6) or len(ends) < 2 * length:
        return "-", "-"
    sender, receiver = ends[:length], ends[length:]
    return str(ipaddress.ip_address(sender)), str(ipaddress.ip_address(receiver))


def _only_tunnelled(sock: socket.socket) -> None:
    """Have the kernel hand up nothing but protocols 4 and 41, and IPv6 fragments.

    Classic BPF over the packet from its IP header on: version, then the protocol's octet.
    """
    load, mask, jump, answer = 0x30, 0x54, 0x15, 0x06
    program = [
        (load, 0, 0, 0), (mask, 0, 0, 0xF0), (jump, 0, 2, 0x40),
        (load, 0, 0, 9), (jump, 4, 2, 4),
        (jump, 0, 5, 0x60), (load, 0, 0, 6), (jump, 2, 0, 44),
        (jump, 1, 0, 41), (jump, 0, 1, 4),
        (answer, 0, 0, _SNAP), (answer, 0, 0, 0),
    ]  # fmt: skip
    code = b"".join(struct.pack("=HBBI", *one) for one in program)
    block = ctypes.create_string_buffer(code, len(code))
    sock.setsockopt(
        socket.SOL_SOCKET,
        _SO_ATTACH_FILTER,
        struct.pack("@HP", len(program), ctypes.addressof(block)),
    )


def _lines(interfaces: list[str]) -> Iterator[str]:
    parent = os.getppid()
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL_PROTOCOLS))
    _only_tunnelled(sock)
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    sock.settimeout(_LOOK_S)
    yield "ready"
    looked = time.monotonic()
    while os.getppid() == parent:
        if time.monotonic() - looked >= _LOOK_S:
            looked = time.monotonic()
            statistics = sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
            if lost := struct.unpack("@II", statistics)[1]:
                yield f"lost,{lost}"
        try:
            data, extra, _, address = sock.recvmsg(_SNAP, 64)
        except TimeoutError:
            continue
        ends = inner_ends(data)
        if ends is None or address[0] not in interfaces:
            continue
        at_ns = time.time_ns()
        for level, kind, content in extra:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                seconds, nanoseconds = _STAMP.unpack(content[: _STAMP.size])
                at_ns = seconds * 1_000_000_000 + nanoseconds
        yield f"{at_ns},{'out' if address[2] == _OUTGOING else 'in'},{ends[0]},{ends[1]}"


def main(arguments: list[str]) -> None:
    """Write down what passes until told to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(10)
    with Path(arguments[0]).open("a", buffering=1) as out:
        for line in _lines(arguments[1:]):
            out.write(line + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
