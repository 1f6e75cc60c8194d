"""size_errors.py: about which packets a sender is told, and with which octets."""

from __future__ import annotations

import struct

import pytest

from tests.contract.frames import checksum, ipv4, ipv6, udp
from vmmobility.drivers.linux.size_errors import (
    MIN_PMTU4,
    Allowance,
    believed_mtu,
    inner_mtu,
    message,
    must_stay_whole,
    octets,
    tellable,
)

OWN = {4: "10.77.0.5", 6: "fd77::5"}
HOST = {4: "10.0.9.1", 6: "fd00:9::1"}


def fragment4(offset: int) -> bytes:
    made = bytearray(udp(HOST[4], OWN[4], b"fragment"))
    made[6:8] = offset.to_bytes(2, "big")
    return bytes(made)


def extended(kinds: list[int], last: int, body: bytes, offset: int = 0) -> bytes:
    """An IPv6 packet with extension headers of eight octets each."""
    chain = b""
    for following in [*kinds[1:], last]:
        chain += struct.pack("!BBHI", following, 0, offset << 3, 0)
    return ipv6(HOST[6], OWN[6], kinds[0], chain + body)


@pytest.mark.parametrize("version", [4, 6])
def test_an_ordinary_packet_is_told_of(version: int) -> None:
    packet = udp(HOST[version], OWN[version], b"x" * 1400)
    assert tellable(packet, version)
    assert octets(packet[:100], version) == len(packet)


@pytest.mark.parametrize("kind", [0, 8, 13])
def test_icmp_questions_are_told_of(kind: int) -> None:
    assert tellable(ipv4(HOST[4], OWN[4], 1, bytes([kind]) + bytes(7)), 4)


@pytest.mark.parametrize("kind", [128, 129, 135])
def test_icmpv6_questions_are_told_of(kind: int) -> None:
    assert tellable(ipv6(HOST[6], OWN[6], 58, bytes([kind]) + bytes(7)), 6)
    assert tellable(extended([0, 60], 58, bytes([kind]) + bytes(7)), 6)


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
def test_icmp_errors_are_not(kind: int) -> None:
    assert not tellable(ipv4(HOST[4], OWN[4], 1, bytes([kind]) + bytes(7)), 4)


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 127, 137])
def test_icmpv6_errors_and_redirects_are_not(kind: int) -> None:
    error = bytes([kind]) + bytes(7)
    assert not tellable(ipv6(HOST[6], OWN[6], 58, error), 6)
    assert not tellable(extended([0, 43, 60], 58, error), 6)
    assert not tellable(extended([44], 58, error), 6)  # in its first fragment


def test_icmp_cut_short_before_its_type_is_not() -> None:
    assert not tellable(ipv4(HOST[4], OWN[4], 1, b"\x08")[:20], 4)
    assert not tellable(ipv6(HOST[6], OWN[6], 58, bytes(8))[:40], 6)
    assert not tellable(extended([0], 58, bytes(8))[:44], 6)
    assert not tellable(b"", 4)
    assert not tellable(b"", 6)


def authenticated(octets: int, last: int, body: bytes, before: int | None = None) -> bytes:
    """Behind an Authentication Header of so many octets, and perhaps a header of eight before."""
    header = struct.pack("!BB", last, octets // 4 - 2).ljust(octets, b"\0")
    if before is None:
        return ipv6(HOST[6], OWN[6], 51, header + body)
    return ipv6(HOST[6], OWN[6], before, struct.pack("!BBHI", 51, 0, 0, 0) + header + body)


@pytest.mark.parametrize("octets", [8, 24, 28, 1028])
@pytest.mark.parametrize("before", [None, 0, 60])
def test_an_authentication_header_hides_no_error(octets: int, before: int | None) -> None:
    """RFC 4302 section 2.2: its length is in words of four octets, less two."""
    for kind, may in ((1, False), (2, False), (137, False), (128, True)):
        packet = authenticated(octets, 58, bytes([kind]) + bytes(7), before)
        assert tellable(packet, 6) is may
        assert not tellable(packet[: len(packet) - 8], 6)
    assert tellable(authenticated(octets, 17, bytes(8), before), 6)


def test_an_endless_chain_of_headers_is_not() -> None:
    assert not tellable(extended([60] * 20, 17, bytes(8)), 6)


def test_fragments_but_the_first_are_not() -> None:
    assert tellable(fragment4(0x2000), 4)
    assert not tellable(fragment4(0x2001), 4)
    assert not tellable(fragment4(0x0172), 4)
    assert tellable(extended([44], 17, bytes(8), offset=0), 6)
    assert not tellable(extended([44], 17, bytes(8), offset=181), 6)


@pytest.mark.parametrize(
    "source", ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.5", "240.0.0.1", "255.255.255.255",
               "::", "::1", "ff02::1", "fe80::5"]
)  # fmt: skip
def test_a_source_that_is_no_single_host_is_not(source: str) -> None:
    version = 6 if ":" in source else 4
    assert not tellable(udp(source, OWN[version], b"x"), version)


def test_nor_is_a_packet_to_a_group() -> None:
    assert not tellable(udp(HOST[4], "224.0.0.9", b"x"), 4)


@pytest.mark.parametrize("length", [100, 1400])
def test_fragmentation_needed(length: int) -> None:
    packet = udp(HOST[4], OWN[4], b"x" * length)
    made = message(packet, 4, 1380)
    assert made[:2] == b"\3\4"
    assert made[4:8] == struct.pack("!HH", 0, 1380)
    assert checksum(made) == 0
    assert packet.startswith(made[8:])
    assert 20 + len(made) == min(576, 20 + 8 + len(packet))


@pytest.mark.parametrize("length", [100, 1400])
def test_packet_too_big(length: int) -> None:
    packet = udp(HOST[6], OWN[6], b"x" * length)
    made = message(packet, 6, 1360)
    assert made[:8] == struct.pack("!BBHI", 2, 0, 0, 1360)
    assert packet.startswith(made[8:])
    assert 40 + len(made) == min(1280, 40 + 8 + len(packet))


@pytest.mark.parametrize(
    ("version", "path", "inner"),
    [(4, 1500, 1480), (6, 1500, 1460), (6, 1320, 1280), (6, 1319, 1280), (6, 0, 1280), (4, 0, 68)],
)
def test_what_is_left_inside(version: int, path: int, inner: int) -> None:
    assert inner_mtu(path, version) == inner


@pytest.mark.parametrize(
    ("version", "told", "inner"),
    [(4, 0, 532), (4, 68, 532), (4, 551, 532), (4, 553, 533), (4, 1400, 1380),
     (6, 0, 1280), (6, 68, 1280), (6, 1319, 1280), (6, 1400, 1360)],
)  # fmt: skip
def test_no_less_is_told_than_the_kernel_believes(version: int, told: int, inner: int) -> None:
    assert inner_mtu(believed_mtu(told, version, MIN_PMTU4), version) == inner


def test_an_operator_may_let_the_kernel_believe_less() -> None:
    assert believed_mtu(300, 4, 256) == 300
    assert believed_mtu(200, 4, 256) == 256


def test_what_may_be_fragmented() -> None:
    assert must_stay_whole(udp(HOST[6], OWN[6], b"x"), 6)
    assert not must_stay_whole(udp(HOST[4], OWN[4], b"x"), 4)
    assert must_stay_whole(fragment4(0x4000), 4)


def test_errors_have_a_limit() -> None:
    allowance = Allowance(per_s=8, burst=3)
    assert [allowance.take(100.0) for _ in range(5)] == [True, True, True, False, False]
    assert [allowance.take(100.125) for _ in range(2)] == [True, False]
    assert [allowance.take(900.0) for _ in range(4)] == [True, True, True, False]
