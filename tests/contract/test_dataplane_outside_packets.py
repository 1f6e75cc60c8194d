"""Section 3 by capture: no tunnelled packet has a sender, or a receiver, outside the data centres.

The host has two addresses: one inside the data centres, one outside.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from itertools import permutations

import pytest

from tests.contract.dataplane_fabric import (
    HOST,
    INSIDE,
    LOCAL,
    OWN,
    A,
    B,
    C,
    Fabric,
    receives,
)
from tests.contract.frames import Guest, payload_of, udp, udp_socket, udp_sockets
from tests.contract.namespaces import Namespace, wait_for
from vmmobility.drivers.linux.ownership import KERNEL_TUNNELS, TUN_NAME
from vmmobility.engine.dataplane import Forwarding, Outside, VmDataPlane

pytestmark = pytest.mark.netns

VERSIONS = pytest.mark.parametrize("version", [4, 6])
REDIRECT = replace(LOCAL, plugged=False, forwarding=Forwarding.REDIRECT, target=B)
PROTOCOL = {4: 4, 6: 41}


class Capture:
    """The inner (sender, receiver) of every tunnelled packet on an interface."""

    def __init__(self, space: Namespace, interface: str) -> None:
        def listen() -> socket.socket:
            one = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
            one.bind((interface, 3))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            return one

        self.socket = space.call(listen)
        self.socket.setblocking(False)
        self._pairs: list[tuple[str, str]] = []

    def pairs(self) -> list[tuple[str, str]]:
        while True:
            try:
                packet = self.socket.recv(65536)
            except BlockingIOError:
                return self._pairs
            inner = b""
            if packet[0] >> 4 == 4 and packet[9] in (4, 41):
                inner = packet[(packet[0] & 15) * 4 :]
            elif packet[0] >> 4 == 6 and packet[6] in (4, 41):
                inner = packet[40:]
            if inner:
                at, length = (12, 4) if inner[0] >> 4 == 4 else (8, 16)
                ends = (inner[at : at + length], inner[at + length : at + 2 * length])
                self._pairs.append((str(ip_address(ends[0])), str(ip_address(ends[1]))))


@contextmanager
def captured(fabric: Fabric) -> Iterator[list[Capture]]:
    """Captures on the underlays of a and b; at the end none has seen an outside address."""
    captures = [Capture(node.space, "eth0") for node in (fabric.a, fabric.b)]
    try:
        yield captures
        for capture in captures:
            met = {end for pair in capture.pairs() for end in pair}
            assert not met & set(HOST.values()), met
    finally:
        for capture in captures:
            capture.socket.close()


def send(fabric: Fabric, version: int, payload: bytes, sender: dict[int, str]) -> None:
    with udp_socket(fabric.host, version, sender[version]) as one:
        one.sendto(payload, (OWN[version], 4000))


@VERSIONS
def test_drop_is_counted_and_senders_inside_are_tunnelled(dc_fabric: Fabric, version: int) -> None:
    fabric = dc_fabric
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(REDIRECT)
    guest = fabric.b.plug()
    with captured(fabric) as captures:
        for number in range(5):
            send(fabric, version, b"outside%d" % number, HOST)
        for number in range(5):
            send(fabric, version, b"inside%d" % number, INSIDE)
            assert receives(guest, b"inside%d" % number)
        for capture in captures:
            assert capture.pairs() == [(INSIDE[version], OWN[version])] * 5
    assert not receives(guest, b"outside0", 0.02)
    traffic = fabric.a.traffic()
    assert (traffic.outside, traffic.dropped, traffic.redirected) == (5, 5, 5)
    guest.close()


@VERSIONS
def test_queue_keeps_them_until_the_guest_is_there(dc_fabric: Fabric, version: int) -> None:
    fabric = dc_fabric
    # a is the source and serves; the fabric has turned to b, which relays.
    fabric.a.apply(replace(LOCAL, accept_from=(B,)))
    waiting = replace(LOCAL, forwarding=Forwarding.REDIRECT, target=A, outside=Outside.QUEUE)
    fabric.b.apply(waiting)
    source, destination = fabric.a.plug(), fabric.b.plug()
    r1, r2 = fabric.r1, fabric.r2
    via = {4: "10.0.12.2", 6: "fd00:12::2"}[version]
    r1.ip(f"-{version}", "route", "add", OWN[version], "via", via)
    r2.ip(f"-{version}", "route", "add", OWN[version], "via", str(B.locator(version)))
    try:
        with captured(fabric):
            for number in range(5):
                send(fabric, version, b"outside%d" % number, HOST)
                send(fabric, version, b"inside%d" % number, INSIDE)
                assert receives(source, b"inside%d" % number)
            assert fabric.b.traffic().redirected == 5
            fabric.b.apply(replace(LOCAL, accept_from=(A,)))
            send(fabric, version, b"inside at last", INSIDE)
            heard: list[bytes | None] = []

            def all_here() -> bool:
                heard.extend(payload_of(frame) for frame in destination.frames())
                return b"inside at last" in heard

            wait_for(all_here, f"what waited, and the last; heard {heard}")
            # In the order in which they came: they had waited.
            assert [h for h in heard if h] == [
                *(b"outside%d" % number for number in range(5)), b"inside at last",
            ]  # fmt: skip
    finally:
        r1.ip(f"-{version}", "route", "del", OWN[version])
        r2.ip(f"-{version}", "route", "del", OWN[version])
    source.close()
    destination.close()


STATES = [LOCAL] + [
    replace(LOCAL, forwarding=Forwarding.REDIRECT, target=B, outside=outside) for outside in Outside
]


def test_no_packet_from_inside_is_lost_whatever_turns_into_what(dc_fabric: Fabric) -> None:
    fabric = dc_fabric
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(LOCAL)
    guests = [fabric.a.plug(), fabric.b.plug()]
    turns = list(permutations(STATES, 2)) * 8
    with captured(fabric):
        sent, seen = _stream(fabric, INSIDE, guests, [state for turn in turns for state in turn])

        def all_arrived() -> bool:
            seen.extend(_arrivals(guests))
            return len(set(seen)) >= sent

        wait_for(all_arrived, f"{sent} packets at either guest")
        assert len(seen) == sent
    assert fabric.a.traffic().redirected > 50
    for guest in guests:
        guest.close()


def test_no_packet_from_outside_is_lost_between_delivery_and_the_queue(dc_fabric: Fabric) -> None:
    fabric = dc_fabric
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(LOCAL)
    guests = [fabric.a.plug()]
    queue = replace(LOCAL, forwarding=Forwarding.REDIRECT, target=B, outside=Outside.QUEUE)
    with captured(fabric):
        sent, seen = _stream(fabric, HOST, guests, [queue, LOCAL] * 40)

        def all_arrived() -> bool:
            seen.extend(_arrivals(guests))
            return len(set(seen)) >= sent

        wait_for(all_arrived, f"{sent} packets at the guest")
        assert len(seen) == sent
    assert fabric.a.traffic().outside == 0
    guests[0].close()


def _stream(
    fabric: Fabric, sender: dict[int, str], guests: list[Guest], states: list[VmDataPlane]
) -> tuple[int, list[bytes]]:
    """Packets of both families, one a millisecond, while a's state turns: how many; what came."""
    seen: list[bytes] = []
    sent = 0
    with udp_sockets(fabric.host, sender) as sockets:
        for version in (4, 6):
            sockets[version].sendto(b"first", (OWN[version], 4000))
            assert receives(guests[0], b"first")
        begin = time.monotonic()
        for state in states:
            fabric.a.apply(state)
            before = sent
            while sent == before or sent < (time.monotonic() - begin) * 1000:
                version = 4 if sent % 2 else 6
                sockets[version].sendto(b"%d" % sent, (OWN[version], 4000))
                sent += 1
            seen += _arrivals(guests)
    return sent, seen


def _arrivals(guests: list[Guest]) -> list[bytes]:
    found = [payload_of(frame) for guest in guests for frame in guest.frames()]
    return [payload for payload in found if payload is not None]


@VERSIONS
def test_the_guard_holds_whatever_routes_say(dc_fabric: Fabric, version: int) -> None:
    fabric = dc_fabric
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(REDIRECT)
    guest = fabric.b.plug()
    # By hand, the worst: everybody's packets are led into the tunnel.
    lead: tuple[str, ...] = ("dev", TUN_NAME)
    if fabric.back_end == "kernel":
        kind = {4: "ip", 6: "ip6"}[version]
        ends = ("dst", str(B.locator(version)), "src", str(A.locator(version)))
        lead = ("encap", kind, "id", "0", *ends, "dev", KERNEL_TUNNELS[version])
    route = (f"-{version}", "route", "add", OWN[version], *lead, "metric", "1")
    fabric.a.space.ip(*route)
    with captured(fabric):
        send(fabric, version, b"outside", HOST)
        send(fabric, version, b"inside", INSIDE)
        assert receives(guest, b"inside")
    assert fabric.a.traffic().outside == 1
    fabric.a.space.ip(f"-{version}", "route", "del", *route[3:])
    guest.close()


def _raw_tunnel(space: Namespace, version: int) -> socket.socket:
    family = {4: socket.AF_INET, 6: socket.AF_INET6}[version]
    return space.call(lambda: socket.socket(family, socket.SOCK_RAW, PROTOCOL[version]))


@VERSIONS
@pytest.mark.parametrize(
    "state",
    [
        replace(LOCAL, accept_from=(A,)),
        replace(LOCAL, forwarding=Forwarding.REDIRECT, target=C, accept_from=(A,)),
    ],
    ids=["delivers", "sends on"],
)
def test_what_a_peer_tunnelled_from_outside_ends_here(
    dc_fabric: Fabric, version: int, state: VmDataPlane
) -> None:
    fabric = dc_fabric
    fabric.b.apply(state)
    guest = fabric.b.plug()
    leaving = Capture(fabric.b.space, "eth0")
    with _raw_tunnel(fabric.a.space, version) as tunnel:
        for _ in range(3):
            packet = udp(HOST[version], OWN[version], b"outside")
            tunnel.sendto(packet, (str(B.locator(version)), 0))
    wait_for(lambda: fabric.b.traffic().outside == 3, "three drops")
    assert not receives(guest, b"outside", 0.02)
    assert len(leaving.pairs()) == 3  # as they came in; none left
    traffic = fabric.b.traffic()
    assert (traffic.outside, traffic.dropped, traffic.redirected) == (3, 3, 0)
    leaving.socket.close()
    guest.close()


@VERSIONS
def test_the_guard_holds_at_a_tunnels_far_end_too(dc_fabric: Fabric, version: int) -> None:
    fabric = dc_fabric
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    guest = fabric.b.plug()
    if fabric.back_end == "relay":
        # One that knows of no outside: whoever takes the outer header off, the kernel forwards.
        whole = {**fabric.b.driver._orders._whole_table(), "inside": []}
        fabric.b.space.await_(fabric.b.driver._relay.order(whole))
    with _raw_tunnel(fabric.a.space, version) as tunnel:
        for sender, payload in ((HOST, b"outside"), (INSIDE, b"inside")):
            packet = udp(sender[version], OWN[version], payload)
            tunnel.sendto(packet, (str(B.locator(version)), 0))
    heard: list[bytes | None] = []

    def here() -> bool:
        heard.extend(payload_of(frame) for frame in guest.frames())
        return b"inside" in heard

    wait_for(here, "the one from inside")
    assert b"outside" not in heard
    assert fabric.b.traffic().outside == 1
    guest.close()


@VERSIONS
def test_flushed_nftables_open_no_tunnel_to_the_outside(dc_fabric: Fabric, version: int) -> None:
    fabric = dc_fabric
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(REDIRECT)
    guest = fabric.b.plug()
    fabric.a.space.run("nft", "flush", "ruleset")
    with captured(fabric) as captures:
        send(fabric, version, b"outside", HOST)
        send(fabric, version, b"inside", INSIDE)
        assert receives(guest, b"inside")
        assert [c.pairs() for c in captures] == [[(INSIDE[version], OWN[version])]] * 2
    if fabric.back_end == "relay":  # the kernel's device counts among its own errors
        traffic = fabric.a.traffic()
        assert (traffic.outside, traffic.dropped) == (1, 1)
    assert fabric.a.space.await_(fabric.a.driver.audit())
    guest.close()


@VERSIONS
def test_what_a_vm_sends_outside_is_never_tunnelled(dc_fabric: Fabric, version: int) -> None:
    fabric = dc_fabric
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(REDIRECT)
    guest = fabric.b.plug()
    with (
        captured(fabric) as captures,
        udp_socket(fabric.host, version, HOST[version]) as outside,
        udp_socket(fabric.host, version, INSIDE[version]) as inside,
    ):
        for listener, address in ((outside, HOST[version]), (inside, INSIDE[version])):
            guest.send_packet(udp(OWN[version], address, b"from the VM"))
            assert listener.recv(100) == b"from the VM"
        assert [capture.pairs() for capture in captures] == [[], []]
    guest.close()
