"""Congestion marks go into a tunnel and come out of it, whoever carries it."""

from __future__ import annotations

import json
import socket
from dataclasses import replace

import pytest

from tests.contract.dataplane_fabric import HOST, LOCAL, OWN, A, B, Fabric, Node, receives
from tests.contract.frames import checksum, payload_of, udp, udp_socket
from tests.contract.namespaces import wait_for
from tests.contract.test_dataplane_guards import raw_tunnel
from vmmobility.drivers.linux.congestion_marks import marks_of
from vmmobility.drivers.linux.ownership import KERNEL_TUNNELS
from vmmobility.engine.dataplane import Forwarding

pytestmark = pytest.mark.netns

VERSIONS = pytest.mark.parametrize("version", [4, 6])
CLASS = {4: (socket.IPPROTO_IP, socket.IP_TOS), 6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)}


def marked(version: int, payload: bytes, marks: int) -> bytes:
    made = bytearray(udp(HOST[version], OWN[version], payload))
    if version == 6:
        made[1] |= marks << 4
        return bytes(made)
    made[1] |= marks
    made[10:12] = bytes(2)
    made[10:12] = checksum(bytes(made[:20])).to_bytes(2, "big")
    return bytes(made)


def congestion_drops(node: Node, version: int) -> int:
    if node.settings.tunnel == "relay":
        return node.drops("congestion")
    shown = node.space.ip("-j", "-s", "link", "show", KERNEL_TUNNELS[version])
    return int(json.loads(shown)[0]["stats64"]["rx"]["errors"])


@VERSIONS
def test_what_met_congestion_in_the_tunnel_says_so_behind_it(fabric: Fabric, version: int) -> None:
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    guest = fabric.b.plug()
    before = congestion_drops(fabric.b, version)
    with raw_tunnel(fabric.a.space, version) as tunnel:
        for outer in range(4):
            tunnel.setsockopt(*CLASS[version], outer)
            for inner in range(4):
                payload = b"outer %d inner %d" % (outer, inner)
                tunnel.sendto(marked(version, payload, inner), (str(B.locator(version)), 0))
                if (outer, inner) == (3, 0):
                    continue  # its ends would not understand: dropped instead

                def marks(frame: bytes, payload: bytes = payload) -> bytes | None:
                    if payload_of(frame) != payload:
                        return None
                    return bytes([marks_of(frame[14:], version)])

                # RFC 6040 figure 4: congestion is taken over, and so is 1 (01) in place of 2 (10).
                taken = outer == 3 or (outer, inner) == (1, 2)
                assert guest.find(marks) == bytes([outer if taken else inner]), payload
    assert not receives(guest, b"outer 3 inner 0", 0.02)
    wait_for(lambda: congestion_drops(fabric.b, version) == before + 1, "one drop")
    guest.close()


@VERSIONS
def test_what_goes_into_a_tunnel_may_be_marked_there(fabric: Fabric, version: int) -> None:
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(replace(LOCAL, plugged=False, forwarding=Forwarding.REDIRECT, target=B))
    guest = fabric.b.plug()

    def listen() -> socket.socket:
        one = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
        one.bind(("eth0", 3))
        return one

    seen: list[int] = []
    with (
        fabric.b.space.call(listen) as capture,
        udp_socket(fabric.host, version, HOST[version]) as sender,
    ):
        capture.settimeout(3)
        for marks in (0, 1, 2, 3, 0):
            dscp = 46
            sender.setsockopt(*CLASS[version], dscp << 2 | marks)
            sender.sendto(b"marked", (OWN[version], 4000))
            assert receives(guest, b"marked")
            while True:
                packet = capture.recv(65536)
                protocol = packet[9] if packet[0] >> 4 == 4 else packet[6]
                if protocol in (4, 41):
                    break
            outer = packet[1] if version == 4 else (packet[0] & 15) << 4 | packet[1] >> 4
            seen.append(outer)
    # The kernel's own tunnels begin anew where there was congestion before (RFC 3168).
    again = 3 if fabric.back_end == "relay" else 2
    assert seen == [0, 1, 2, again, 0]
    guest.close()
