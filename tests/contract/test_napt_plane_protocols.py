"""What crosses a Linux NAPT box, protocol by protocol: pings, tunnels, errors, fragments, IPv6.

Not here: other hands, detours, its kernel (test_napt_plane_linux.py).
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address

import pytest

from tests.contract.namespaces import wait_for
from tests.contract.napt_planes import (
    BOX2,
    ELSEWHERE,
    POOL,
    PUBLIC,
    SECOND,
    WORLD,
    A,
    B,
    C,
    LinuxBox,
    LinuxPair,
    detour,
    state,
    static,
)

pytestmark = pytest.mark.netns


def checksum(data: bytes) -> int:
    words: tuple[int, ...] = struct.unpack(f"!{len(data) // 2}H", data)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def test_ping_goes_both_ways(box: LinuxBox) -> None:
    box.apply(state(static(A, PUBLIC)))
    inside, outside = box.world.inside, box.world.outside
    for source in (A, C):
        inside.run("ping", "-nqc1", "-W5", "-I", source, WORLD)
    outside.run("ping", "-nqc1", "-W5", "-I", WORLD, PUBLIC)
    told = {(f.protocol, str(f.private[0]), str(f.public[0]), f.outgoing)
            for host in (A, C) for f in box.export(host)}  # fmt: skip
    assert told == {(1, A, PUBLIC, True), (1, A, PUBLIC, False), (1, C, POOL, True)}


def test_a_handed_over_ping_is_answered(linux_pair: LinuxPair) -> None:
    one, two = linux_pair
    one.apply(state())
    two.apply(state(pool=()))
    raw = one.world.inside.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    one.world.stack.callback(raw.close)
    raw.bind((C, 0))
    raw.settimeout(10)

    def ping(number: int) -> None:
        body = struct.pack("!BBHHH", 8, 0, 0, 77, number)
        raw.sendto(body[:2] + struct.pack("!H", checksum(body)) + body[4:], (WORLD, 0))
        while True:
            answer = raw.recv(200)[20:]
            if answer[0] == 0 and struct.unpack("!HH", answer[4:8]) == (77, number):
                return

    ping(1)
    flows = one.export(C)
    assert two.bring_in(flows) == []
    one.world.behind_box2(C)
    one.world.public_to_box2(POOL)
    one.drop(C)
    ping(2)
    assert [(f.private, f.public) for f in two.export(C)] == [(f.private, f.public) for f in flows]


def test_tunnels_cross_a_static_address(box: LinuxBox) -> None:
    """Protocol 4: what NVEs of two data centres carry for a VM."""
    box.apply(state(static(A, PUBLIC)))
    world = box.world
    ends = []
    for space, address in ((world.inside, A), (world.outside, WORLD)):
        made = space.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, 4)
        world.stack.callback(made.close)
        made.bind((address, 0))
        made.settimeout(10)
        ends.append(made)
    ends[0].sendto(b"inner packet", (WORLD, 0))
    packet, peer = ends[1].recvfrom(200)
    assert (packet[20:], peer[0]) == (b"inner packet", PUBLIC)
    ends[1].sendto(b"answer", (PUBLIC, 0))
    packet, peer = ends[0].recvfrom(200)
    assert (packet[20:], peer[0]) == (b"answer", WORLD)
    (flow,) = box.export(A)
    assert (flow.protocol, flow.private[1], flow.public[1]) == (4, 0, 0)


def test_two_inside_hosts_speak_by_their_public_addresses(box: LinuxBox) -> None:
    """RFC 4787, REQ-9: hairpinning, with the "external source IP address and port"."""
    box.apply(state(static(A, PUBLIC), static(B, SECOND)))
    inside = box.world.inside
    left = box.world.socket(inside, socket.SOCK_DGRAM, A, 7000)
    right = box.world.socket(inside, socket.SOCK_DGRAM, B, 7001)
    third = box.world.socket(inside, socket.SOCK_DGRAM, C, 7002)
    left.sendto(b"?", (SECOND, 7001))
    assert right.recvfrom(9) == (b"?", (PUBLIC, 7000))
    right.sendto(b"!", (PUBLIC, 7000))
    assert left.recvfrom(9) == (b"!", (SECOND, 7001))
    third.sendto(b"pool", (PUBLIC, 7000))
    text, peer = left.recvfrom(9)
    assert (text, peer[0]) == (b"pool", POOL)
    left.sendto(b"back", peer)
    assert third.recvfrom(9) == (b"back", (PUBLIC, 7000))
    (flow,) = box.export(C)
    assert (str(flow.remote[0]), flow.remote[1]) == (PUBLIC, 7000)


def refused(mouth: socket.socket, ear: str, number: int) -> bool:
    """Whether an ICMP error for what is sent there comes back to its sender."""
    mouth.connect((ear, number))
    mouth.send(b"?")
    with pytest.raises(ConnectionRefusedError):
        mouth.recv(9)
    return True


@pytest.mark.parametrize("source", [A, C])
def test_icmp_errors_are_translated(box: LinuxBox, source: str) -> None:
    """RFC 5508, REQ-3 to REQ-5, both ways."""
    box.apply(state(static(A, PUBLIC)))
    inside = box.world.socket(box.world.inside, socket.SOCK_DGRAM, source, 7000)
    assert refused(inside, WORLD, 4444)
    outside = box.world.socket(box.world.outside, socket.SOCK_DGRAM, WORLD, 7001)
    assert refused(outside, PUBLIC, 4445)


def test_a_packet_too_big_from_beyond_reaches_its_sender(box: LinuxBox) -> None:
    """Fragmentation needed, sent by a router outside about a translated packet."""
    box.apply(state())
    mouth = box.world.socket(box.world.inside, socket.SOCK_DGRAM, C, 7000)
    mouth.connect((WORLD, 9))
    mouth.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: IP_PMTUDISC_DO
    ear = box.world.socket(box.world.outside, socket.SOCK_DGRAM, WORLD, 9)
    mouth.send(bytes(1400))
    peer = ear.recvfrom(2000)[1]
    inner = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 1428, 1, 0x4000, 63, 17, 0,
                        IPv4Address(peer[0]).packed, IPv4Address(WORLD).packed)  # fmt: skip
    inner = inner[:10] + struct.pack("!H", checksum(inner)) + inner[12:]
    inner += struct.pack("!HHHH", peer[1], 9, 1408, 0)
    body = struct.pack("!BBHHH", 3, 4, 0, 0, 1280) + inner
    body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    router = box.world.outside.call(
        socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP
    )
    box.world.stack.callback(router.close)
    router.bind((ELSEWHERE, 0))
    router.sendto(body, (peer[0], 0))
    wait_for(lambda: mouth.getsockopt(socket.IPPROTO_IP, 14) == 1280, "IP_MTU is 1280")


def test_fragments_pass_both_ways(box: LinuxBox) -> None:
    """RFC 4787, REQ-14."""
    box.apply(state(static(A, PUBLIC)))
    outside = box.world.socket(box.world.outside, socket.SOCK_DGRAM, WORLD, 9)
    for host, public in ((A, PUBLIC), (C, POOL)):
        inside = box.world.socket(box.world.inside, socket.SOCK_DGRAM, host, 7000)
        inside.sendto(bytes(5000), (WORLD, 9))
        text, peer = outside.recvfrom(9000)
        assert (len(text), peer[0]) == (5000, public)
        outside.sendto(bytes(6000), peer)
        assert len(inside.recv(9000)) == 6000


def test_ipv6_is_never_translated(box: LinuxBox) -> None:
    box.apply(state(static(A, PUBLIC), detour(B, BOX2)))
    world = box.world
    world.inside.ip("-6", "route", "add", "default", "via", "fd00:4::1")
    world.outside.ip("-6", "route", "add", "fd00:4::/64", "via", "fd00:1::1")
    inside = world.inside.call(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM)
    outside = world.outside.call(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM)
    world.stack.callback(inside.close)
    world.stack.callback(outside.close)
    inside.bind(("fd00:4::2", 7000))
    outside.bind(("fd00:1::2", 9))
    outside.settimeout(10)
    inside.settimeout(10)
    inside.sendto(b"?", ("fd00:1::2", 9))
    assert outside.recvfrom(9)[1][:2] == ("fd00:4::2", 7000)
    outside.sendto(b"!", ("fd00:4::2", 7000))
    assert inside.recvfrom(9)[1][:2] == ("fd00:1::2", 9)
    assert box.hands.nft("list", "tables").split() == ["table", "ip", "vmmob_napt"]
    assert "78" not in world.box1.ip("-6", "rule", "show")
