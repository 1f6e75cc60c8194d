"""Redirected packets: tunnels, host routes, and turns that lose none."""

from __future__ import annotations

import socket
import time
from dataclasses import replace

import pytest

from tests.contract.conftest import EMULATED
from tests.contract.dataplane_fabric import (
    HOST,
    LOCAL,
    OWN,
    A,
    B,
    C,
    Fabric,
    reach,
    receives,
)
from tests.contract.frames import (
    Guest,
    payload_of,
    udp_socket,
    udp_sockets,
)
from tests.contract.namespaces import wait_for
from vmmobility.engine.dataplane import Forwarding, RedirectPolicy

pytestmark = pytest.mark.netns


@pytest.mark.parametrize("version", [4, 6])
def test_the_tunnel_carries_packets_from_end_to_end(fabric: Fabric, version: int) -> None:
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(replace(LOCAL, plugged=False, forwarding=Forwarding.REDIRECT, target=B))
    guest = fabric.b.plug()
    for number in range(10):
        reach(fabric, guest, version, b"tunnelled%d" % number)
    assert fabric.a.traffic().redirected == 10
    assert fabric.b.traffic().delivered == 10
    guest.close()


@pytest.mark.parametrize("version", [4, 6])
def test_too_big_for_the_tunnel_is_told_to_the_sender(fabric: Fabric, version: int) -> None:
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(replace(LOCAL, plugged=False, forwarding=Forwarding.REDIRECT, target=B))
    guest = fabric.b.plug()
    outer = {4: 20, 6: 40}[version]
    payload = b"x" * (1500 - outer - outer - 8)
    reach(fabric, guest, version, payload)
    level, option = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}[version]
    with udp_socket(fabric.host, version, HOST[version]) as sender:
        sender.setsockopt(level, option, 2)  # PMTUDISC_DO: never fragment

        def refused() -> bool:
            try:
                sender.sendto(payload + b"y", (OWN[version], 4000))
            except OSError as error:
                return error.errno == 90  # EMSGSIZE: the Packet Too Big was heard
            return False

        wait_for(refused, "Packet Too Big")
    guest.close()
    space = fabric.host
    space.ip("route", "flush", "cache")
    space.ip("-6", "route", "flush", "cache")


@pytest.mark.parametrize("version", [4, 6])
def test_an_adjacent_target_gets_a_counted_host_route(fabric: Fabric, version: int) -> None:
    fabric.c.apply(LOCAL)
    fabric.a.apply(
        replace(
            LOCAL,
            plugged=False,
            forwarding=Forwarding.REDIRECT,
            target=C,
            policy=RedirectPolicy.HOST_ROUTE,
        )
    )
    guest = fabric.c.plug()
    for number in range(4):
        reach(fabric, guest, version, b"host route%d" % number)
    assert fabric.a.traffic().redirected == 4
    assert not fabric.a.leads_into_tunnel(version)
    guest.close()


def test_no_packet_is_lost_over_a_hundred_flips(fabric: Fabric) -> None:
    redirect = replace(LOCAL, forwarding=Forwarding.REDIRECT, target=B)
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(LOCAL)
    guests = [fabric.a.plug(), fabric.b.plug()]
    seen: list[bytes] = []
    sent = flips = 0
    slowest = 0.0
    pace = 100 if EMULATED else 1000  # packets a second; a flip to ten of them
    with udp_sockets(fabric.host, HOST) as sockets:
        for version in (4, 6):
            reach_once(fabric, sockets[version], guests[0], version)
        begin = time.monotonic()
        while flips < 100:
            while sent < (time.monotonic() - begin) * pace:
                version = 4 if sent % 2 else 6
                sockets[version].sendto(b"%d" % sent, (OWN[version], 4000))
                sent += 1
            if (time.monotonic() - begin) * pace > flips * 10:
                flips += 1
                started = time.perf_counter()
                fabric.a.apply(redirect if flips % 2 else LOCAL)
                slowest = max(slowest, time.perf_counter() - started)
            seen += arrivals(guests)

    def all_arrived() -> bool:
        seen.extend(arrivals(guests))
        return len(set(seen)) >= sent

    wait_for(all_arrived, f"{sent} packets at either guest")
    assert len(seen) == sent
    assert fabric.a.traffic().redirected > 200
    assert slowest < 0.25 or EMULATED, f"the slowest flip took {slowest * 1000:.1f} ms"
    for guest in guests:
        guest.close()


def reach_once(fabric: Fabric, sender: socket.socket, guest: Guest, version: int) -> None:
    sender.sendto(b"first", (OWN[version], 4000))
    assert receives(guest, b"first")


def arrivals(guests: list[Guest]) -> list[bytes]:
    found = [payload_of(frame) for guest in guests for frame in guest.frames()]
    return [payload for payload in found if payload is not None]
