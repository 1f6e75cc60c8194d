"""Captured control messages sent once more, byte by byte, under their old senders' addresses.

What a stranger in the fabric could do who had listened.  Not here: capturing (control_capture.py),
judging what came of it (state_assertions.py).  Rests on raw sockets inside a namespace.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterable

from vmmobility.lab.control_capture import Captured
from vmmobility.lab.inside import inside
from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.marks import drops_now
from vmmobility.lab.step_types import Replay
from vmmobility.wire.registry import Purpose

_RAW = 255  # IPPROTO_RAW: the caller writes the IP header
_UDP = 17
_HOPS = 64
_EVERY_S = 0.0005


def replay(run: LabRun, step: Replay) -> None:
    """All that was captured before `remember`, to both ends; who must drop how many is noted.

    A challenge is answered whoever sends it again, and changes nothing: it need not be dropped.
    """
    lab = run.lab
    old = [m for m in lab.captured() if m.at_ns < run.marks.remembered_ns]
    owners = {
        str(address.ip): node.name
        for node in lab.daemons.nodes
        for address in lab.fabric.first_end(node.name).addresses
    }
    must_drop = Counter(
        owners.get(m.destination, "") for m in old if m.purpose != Purpose.CHALLENGE
    )
    for node in lab.daemons.nodes:
        before = sum(drops_now(lab.daemons, node.name).values())
        run.marks.replayed[node.name] = (before, must_drop[node.name])
    sent = send_again(lab.spaces.name(step.source), old)
    lab.say(f"{sent} old control messages sent again from {step.source}")


def ip_packet(message: Captured) -> bytes:
    """The message as an IP packet with its old source."""
    source, target = (
        ipaddress.ip_address(text).packed for text in (message.source, message.destination)
    )
    length = 8 + len(message.payload)
    ports = struct.pack("!HH", message.source_port, message.destination_port)
    summed = source + target + struct.pack("!HH", _UDP, length)
    summed += ports + struct.pack("!HH", length, 0) + message.payload
    udp = ports + struct.pack("!HH", length, _checksum(summed) or 0xFFFF) + message.payload
    if len(source) == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, _HOPS, _UDP, 0)
    else:
        head = struct.pack("!IHBB", 6 << 28, length, _UDP, _HOPS)
    return head + source + target + udp


def send_again(namespace: str, messages: Iterable[Captured]) -> int:
    """Send each from inside the namespace; how many were sent."""
    sockets = {
        4: inside(namespace, lambda: _raw(socket.AF_INET)),
        6: inside(namespace, lambda: _raw(socket.AF_INET6)),
    }
    count = 0
    try:
        for message in messages:
            packet = ip_packet(message)
            sockets[packet[0] >> 4].sendto(packet, (message.destination, 0))
            count += 1
            time.sleep(_EVERY_S)  # the receivers' queues are not what is tried here
    finally:
        for sock in sockets.values():
            sock.close()
    return count


def _raw(family: socket.AddressFamily) -> socket.socket:
    return socket.socket(family, socket.SOCK_RAW, _RAW)


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
