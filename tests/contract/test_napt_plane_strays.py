"""Packets of flows that a NAPT box does not know, or knows one way of.

While a mapping is handed over, until the public route has turned, what comes in passes the old box,
and what goes out the new one.  Not here: flows that were handed over (test_napt_plane_moves.py).
"""

from __future__ import annotations

import socket
import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from tests.contract.namespaces import wait_for
from tests.contract.napt_planes import (
    BOX1,
    BOX2,
    PUBLIC,
    SECOND,
    WORLD,
    A,
    B,
    LinuxBox,
    LinuxPair,
    World,
    state,
    static,
)
from tests.contract.napt_talks import (
    FAR,
    STATIC,
    Talk,
    talks_with_static,
    tcp_in,
    tcp_out,
    udp_in,
    udp_out,
)

pytestmark = pytest.mark.netns


def handing_over(one: LinuxBox, two: LinuxBox) -> None:
    """Both boxes have the mapping, and the VM is behind the second; its public route still leads
    to the first."""
    assert one.apply(state(*STATIC)) == []
    assert two.apply(state(pool=[FAR])) == []
    assert two.bring_in(one.export(A)) == []
    assert two.apply(state(*STATIC, pool=[FAR])) == []
    one.world.behind_box2(A)


def lost(*boxes: LinuxBox) -> int:
    """Packets that boxes have dropped."""
    found = [box.usage() for box in boxes]
    return sum(u.no_pool + u.exhausted + u.unknown + u.unmapped + u.untranslated for u in found)


def talks_from(world: World, number: int) -> list[Talk]:
    return [
        tcp_in(world, (PUBLIC, number), (A, number)),
        tcp_out(world, (A, number + 1), number + 1),
        udp_in(world, (PUBLIC, number + 2), (A, number + 2)),
        udp_out(world, (A, number + 3), number + 3),
    ]


def test_what_begins_while_the_public_route_leads_to_the_old_box_lives(
    linux_pair: LinuxPair,
) -> None:
    one, two = linux_pair
    world = one.world
    handing_over(one, two)
    talks = talks_from(world, 9001)
    for talk in talks:
        talk.exchange()
    world.public_to_box2(PUBLIC)
    talks += talks_from(world, 9011)
    for talk in talks:
        talk.exchange()
    one.apply(state())
    one.drop(A)
    talks += talks_from(world, 9021)
    for talk in talks:
        talk.exchange()
    assert lost(one, two) == 0


def test_what_begins_at_one_box_ends_in_the_middle_of_a_hand_over(linux_pair: LinuxPair) -> None:
    """The end of a connection is seen by one box each way, too."""
    one, two = linux_pair
    handing_over(one, two)
    for talk in (tcp_in(one.world, (PUBLIC, 9001), (A, 9001)), tcp_out(one.world, (A, 9002), 9002)):
        talk.exchange()
        for mouth, ear in ((talk.inside, talk.outside), (talk.outside, talk.inside)):
            mouth.shutdown(socket.SHUT_WR)
            assert ear.recv(1) == b""
    assert lost(one, two) == 0


def test_what_lived_before_lives_before_and_after_the_route_turns(linux_pair: LinuxPair) -> None:
    one, two = linux_pair
    assert one.apply(state(*STATIC)) == []
    talks = talks_with_static(one.world)
    handing_over(one, two)
    for talk in talks:
        talk.exchange()
    one.world.public_to_box2(PUBLIC)
    for talk in talks:
        talk.exchange()
    assert lost(one, two) == 0


# -- VMs of one pool that speak by public addresses ---------------------------------------------

BOTH = (*STATIC, static(B, SECOND))
NEIGHBOURS = {(A, B): SECOND, (B, A): PUBLIC}
"""Who calls whom, by which address."""


def stays_behind_box1(world: World, private: str) -> None:
    """What comes from this one leaves by box1, wherever the others leave; boxes know each other's
    public addresses."""
    world.inside.ip("rule", "add", "from", private, "lookup", "100")
    world.inside.ip("route", "add", "default", "via", "10.0.4.1", "table", "100")
    world.route(world.box2, "192.0.2.0/24", BOX1)


def hairpins(world: World, number: int) -> list[Talk]:
    """TCP and UDP between A and B, begun by each of them."""
    talks = []
    for (caller, called), public in NEIGHBOURS.items():
        number += 1
        for kind, name in ((socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")):
            ear = world.socket(world.inside, kind, called, number)
            mouth = world.socket(world.inside, kind, caller, number)
            if kind == socket.SOCK_STREAM:
                ear.listen()
                mouth.connect((public, number))
                ear, peer = ear.accept()
                world.stack.callback(ear.close)
                ear.settimeout(20)
            else:
                mouth.connect((public, number))
                mouth.send(b"hello")
                peer = ear.recvfrom(100)[1]
                ear.connect(peer)
            assert peer == (NEIGHBOURS[called, caller], number), "as its public address"
            talks.append(Talk(f"{name} from {caller} to {called}", mouth, ear))
    return talks


def test_neighbours_speak_by_public_addresses_while_one_is_handed_over(
    linux_pair: LinuxPair,
) -> None:
    """Both are behind one box; one goes, and the old box has its mapping until the route turns."""
    one, two = linux_pair
    world = one.world
    stays_behind_box1(world, B)
    far = replace(state(pool=[FAR]), publics=(IPv4Network("203.0.113.0/24"),))
    assert one.apply(state(*BOTH)) == []
    assert two.apply(far) == []
    talks = hairpins(world, 9000)
    assert two.bring_in(one.export(A)) == []
    assert two.apply(replace(far, static=STATIC)) == []
    world.behind_box2(A)
    for talk in talks:
        talk.exchange()
    talks += hairpins(world, 9010)
    for talk in talks:
        talk.exchange()
    # Now the public address is routed to the new box, and the old one gives it up.
    world.route(world.box1, f"{PUBLIC}/32", BOX2)
    (pool,) = state().publics
    rest = tuple(pool.address_exclude(IPv4Network(PUBLIC)))
    left = replace(state(static(B, SECOND)), publics=rest)
    assert one.apply(replace(left, departing=(IPv4Address(PUBLIC),))) == []
    one.drop(A)
    assert one.apply(left) == []
    talks += hairpins(world, 9020)
    for talk in talks:
        talk.exchange()
    assert lost(one, two) == 0


# -- what becomes of a packet -------------------------------------------------------------------


def checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    words: tuple[int, ...] = struct.unpack(f"!{len(data) // 2}H", data)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def over_pseudo_header(source: str, destination: str, segment: bytes) -> int:
    """TCP's checksum, of a segment without one; of one with it: 0 where it is right."""
    ends = IPv4Address(source).packed + IPv4Address(destination).packed
    return checksum(ends + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(segment)) + segment)


def answer_to_a_call(source: str, destination: str, size: int) -> bytes:
    """A SYN-ACK that nobody asked for, its checksum complete, so many octets of data."""
    bare = struct.pack("!HHIIBBHHH", 4001, 4002, 1, 1, 0x50, 0x12, 1000, 0, 0) + bytes(size)
    sum_ = over_pseudo_header(source, destination, bare)
    return bare[:16] + struct.pack("!H", sum_) + bare[18:]


def raw(world: World, address: str, protocol: int) -> socket.socket:
    space = world.inside if address == A else world.outside
    made = space.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, protocol)
    world.stack.callback(made.close)
    made.bind((address, 0))
    made.settimeout(10)
    return made


def heard(ear: socket.socket, begins: bytes) -> tuple[bytes, str]:
    """The next packet whose body begins so, and whom it is from."""
    while True:
        packet, peer = ear.recvfrom(1 << 16)
        if packet[20:].startswith(begins):
            return packet[20:], str(peer[0])


@pytest.mark.parametrize("size", [0, 5000])
def test_a_stray_segment_is_translated_with_its_checksum(linux_pair: LinuxPair, size: int) -> None:
    """In fragments, too: they are put together before."""
    box = linux_pair[0]
    box.apply(state(*STATIC))
    inside, outside = (raw(box.world, end, socket.IPPROTO_TCP) for end in (A, WORLD))
    ports = struct.pack("!HH", 4001, 4002)
    outside.sendto(answer_to_a_call(WORLD, PUBLIC, size), (PUBLIC, 0))
    body, peer = heard(inside, ports)
    assert (len(body), peer, over_pseudo_header(WORLD, A, body)) == (20 + size, WORLD, 0)
    inside.sendto(answer_to_a_call(A, WORLD, size), (WORLD, 0))
    body, peer = heard(outside, ports)
    assert (len(body), peer, over_pseudo_header(PUBLIC, WORLD, body)) == (20 + size, PUBLIC, 0)
    assert lost(box) == 0
    assert box.export(A) == (), "nothing of it is remembered"


def test_a_stray_answer_to_a_ping_is_translated(linux_pair: LinuxPair) -> None:
    box = linux_pair[0]
    box.apply(state(*STATIC))
    inside, outside = (raw(box.world, end, socket.IPPROTO_ICMP) for end in (A, WORLD))
    bare = struct.pack("!BBHHH", 0, 0, 0, 77, 1)
    reply = bare[:2] + struct.pack("!H", checksum(bare)) + bare[4:]
    inside.sendto(reply, (WORLD, 0))
    assert heard(outside, reply) == (reply, PUBLIC)
    outside.sendto(reply, (PUBLIC, 0))
    assert heard(inside, reply) == (reply, WORLD)


def test_a_stray_error_is_not_translated_by_half(linux_pair: LinuxPair) -> None:
    """What it quotes would stay as it is: no end knows it, and a private address would leave."""
    box = linux_pair[0]
    box.apply(state(*STATIC))
    quoted = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 1, 0, 63, 17, 0,
                         IPv4Address(WORLD).packed, IPv4Address(A).packed)  # fmt: skip
    bare = struct.pack("!BBHI", 3, 3, 0, 0) + quoted + struct.pack("!HHHH", 9, 9, 8, 0)
    error = bare[:2] + struct.pack("!H", checksum(bare)) + bare[4:]
    raw(box.world, A, socket.IPPROTO_ICMP).sendto(error, (WORLD, 0))
    wait_for(lambda: box.usage().untranslated == 1, "it is dropped and counted")
    raw(box.world, WORLD, socket.IPPROTO_ICMP).sendto(error, (PUBLIC, 0))
    wait_for(lambda: box.usage().unmapped == 1, "it is dropped and counted")
