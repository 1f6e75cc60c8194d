"""What the relay drops, and counts: no packet goes round, none leaves by the underlay."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from tests.contract.dataplane_fabric import (
    HOST,
    LOCAL,
    OWN,
    A,
    B,
    C,
    Fabric,
    Node,
    receives,
)
from tests.contract.frames import (
    ipv4,
    ipv6,
    payload_of,
    udp,
)
from tests.contract.namespaces import Namespace, wait_for
from vmmobility.engine.dataplane import Forwarding, VmDataPlane

pytestmark = pytest.mark.netns


def raw_tunnel(space: Namespace, version: int) -> socket.socket:
    family = {4: socket.AF_INET, 6: socket.AF_INET6}[version]
    return space.call(lambda: socket.socket(family, socket.SOCK_RAW, {4: 4, 6: 41}[version]))


def drops(node: Node, reason: str) -> int:
    return int(node.relay()["vms"]["0/vm-1"].get(f"drop_{reason}", 0))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("reason", "state", "hops"),
    [
        ("not_accepted", replace(LOCAL, accept_from=(C,)), 64),
        ("not_here", replace(LOCAL, forwarding=Forwarding.NONE, accept_from=(A,)), 64),
        (
            "same_peer",
            replace(LOCAL, forwarding=Forwarding.REDIRECT, target=A, accept_from=(A,)),
            64,
        ),
        (
            "hop_limit",
            replace(LOCAL, forwarding=Forwarding.REDIRECT, target=C, accept_from=(A,)),
            1,
        ),
    ],
)
def test_the_relay_drops_and_counts(
    fabric: Fabric, version: int, reason: str, state: VmDataPlane, hops: int
) -> None:
    fabric.b.apply(state)
    guest = fabric.b.plug()
    with raw_tunnel(fabric.a.space, version) as tunnel:
        packet = udp(HOST[version], OWN[version], b"guarded", hops)
        tunnel.sendto(packet, (str(B.locator(version)), 0))
    wait_for(lambda: drops(fabric.b, reason) == 1, f"one drop for {reason}")
    assert fabric.b.traffic().dropped >= 1
    assert not receives(guest, b"guarded", 0.02)
    guest.close()


@pytest.mark.parametrize("version", [4, 6])
def test_a_peers_packet_goes_straight_on_to_another_peer(fabric: Fabric, version: int) -> None:
    # b redirects to a what c tunnels to it: directly, one hop spent.
    fabric.b.apply(
        replace(LOCAL, plugged=False, forwarding=Forwarding.REDIRECT, target=A, accept_from=(C,))
    )
    fabric.a.apply(replace(LOCAL, accept_from=(B,)))
    guest = fabric.a.plug()
    fabric.a.space.ip("route", "replace", "10.0.3.0/24", "dev", "toc")
    with raw_tunnel(fabric.b.space, version) as tunnel:
        # c cannot reach b here: b sends to itself in c's name.
        fabric.b.space.ip("addr", "add", str(C.locator(version)), "dev", "lo", *NODAD[version])
        tunnel.bind((str(C.locator(version)), 0))
        packet = udp(HOST[version], OWN[version], b"onward", 9)
        tunnel.sendto(packet, (str(B.locator(version)), 0))
        hop_place = {4: 14 + 8, 6: 14 + 7}[version]
        found = guest.find(
            lambda f: f[hop_place : hop_place + 1] if payload_of(f) == b"onward" else None
        )
        fabric.b.space.ip("addr", "del", str(C.locator(version)), "dev", "lo")
    assert found == b"\x07"  # one at the relay, one at a's routing from its TUN to the tap
    assert fabric.b.traffic().redirected == 1
    guest.close()


NODAD: dict[int, tuple[str, ...]] = {4: (), 6: ("nodad",)}


@pytest.mark.parametrize("version", [4, 6])
def test_a_tunnelled_packet_never_leaves_by_the_underlay(fabric: Fabric, version: int) -> None:
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    # By hand, the worst: the tap's way out of the tunnelled table is gone.
    fabric.b.space.ip(f"-{version}", "route", "del", OWN[version], "table", "7700")
    body = b"\0" * 8
    packet = (ipv4 if version == 4 else ipv6)(HOST[version], OWN[version], 99, body)
    before = fabric.b.space.run("cat", "/proc/net/dev")
    with raw_tunnel(fabric.a.space, version) as tunnel:
        tunnel.sendto(packet, (str(B.locator(version)), 0))
    wait_for(lambda: fabric.b.relay()["vms"]["0/vm-1"].get("decapsulated"), "decapsulation")
    assert fabric.b.traffic().redirected == 0, before
