"""Control messages captured, read back, sent again; and what restarts made of them."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace

import pytest

from vmmobility.lab.control_capture import Captured, read, udp_of
from vmmobility.lab.replaying import ip_packet

FOUR = Captured(17, True, "10.0.1.2", 8747, "10.0.9.2", 8747, b"\x01\x02\x02\x00odd")
SIX = replace(FOUR, source="fd00::1", destination="fd00::2", outgoing=False)


def one_complement_sum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("message", [FOUR, SIX])
def test_a_message_sent_again_is_the_same_packet(message: Captured) -> None:
    packet = ip_packet(message)
    ends = (message.source, message.source_port, message.destination, message.destination_port)
    assert udp_of(packet) == (*ends, message.payload)
    family = socket.AF_INET6 if ":" in message.source else socket.AF_INET
    addresses = b"".join(socket.inet_pton(family, a) for a in (message.source, message.destination))
    udp = packet[40 if family == socket.AF_INET6 else 20 :]
    pseudo = addresses + struct.pack("!HH", socket.IPPROTO_UDP, len(udp))
    assert one_complement_sum(pseudo + udp) == 0xFFFF  # the receiver's check (RFC 768)


@pytest.mark.parametrize(
    "packet",
    [b"", b"\x45" + bytes(10), b"\x45" + bytes(30), ip_packet(FOUR)[:25], b"\x60" + bytes(60)],
)
def test_what_is_no_whole_udp_is_left_out(packet: bytes) -> None:
    assert udp_of(packet) is None


def test_a_capture_is_read_back_without_its_unfinished_line(tmp_path) -> None:
    path = tmp_path / "control.txt"
    assert read(path) == []
    payload = FOUR.payload.hex()
    path.write_text(
        f"17,out,10.0.1.2,8747,10.0.9.2,8747,{payload}\n17,in,fd00::1,8747,fd00::2,8747,{payload}\n18,in"
    )
    assert read(path) == [FOUR, SIX]


def test_replies_purposes_and_acceptance_are_seen_in_the_header() -> None:
    assert (FOUR.is_reply, FOUR.purpose, FOUR.accepts) == (True, 2, True)
    refused = replace(FOUR, payload=b"\x01\x02\x02\x87")
    assert (refused.is_reply, refused.accepts) == (True, False)
    request = replace(FOUR, payload=b"\x01\x01\x01\x00")
    assert (request.is_reply, request.purpose, request.accepts) == (False, 1, False)
    assert (replace(FOUR, payload=b"").is_reply, replace(FOUR, payload=b"").purpose) == (False, 0)
