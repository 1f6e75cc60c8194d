"""What tunnels drop, and count: no packet goes round, none leaves by the underlay."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from tests.contract.dataplane_fabric import (
    HOST,
    LOCAL,
    OWN,
    A,
    B,
    C,
    Fabric,
    receives,
)
from tests.contract.frames import (
    ipv4,
    ipv6,
    payload_of,
    udp,
    udp_socket,
)
from tests.contract.namespaces import Namespace, wait_for
from vmmobility.engine.dataplane import Forwarding, VmDataPlane

pytestmark = pytest.mark.netns


def raw_tunnel(space: Namespace, version: int) -> socket.socket:
    family = {4: socket.AF_INET, 6: socket.AF_INET6}[version]
    return space.call(lambda: socket.socket(family, socket.SOCK_RAW, {4: 4, 6: 41}[version]))


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
def test_the_tunnel_drops_and_counts(
    fabric: Fabric, version: int, reason: str, state: VmDataPlane, hops: int
) -> None:
    fabric.b.apply(state)
    guest = fabric.b.plug()
    with raw_tunnel(fabric.a.space, version) as tunnel:
        packet = udp(HOST[version], OWN[version], b"guarded", hops)
        tunnel.sendto(packet, (str(B.locator(version)), 0))
    wait_for(lambda: fabric.b.drops(reason) == 1, f"one drop for {reason}")
    assert fabric.b.traffic().dropped == 1
    assert not receives(guest, b"guarded", 0.02)
    guest.close()


NODAD: dict[int, tuple[str, ...]] = {4: (), 6: ("nodad",)}


@contextlib.contextmanager
def in_the_name_of_c(fabric: Fabric, version: int) -> Iterator[None]:
    """a may send with c's locator."""
    locator = str(C.locator(version))
    fabric.a.space.ip("addr", "add", locator, "dev", "lo", *NODAD[version])
    yield
    fabric.a.space.ip("addr", "del", locator, "dev", "lo")


@pytest.mark.parametrize("version", [4, 6])
def test_a_peers_packet_goes_straight_on_to_another_peer(fabric: Fabric, version: int) -> None:
    # b redirects to a what c tunnels to it: directly, one hop spent.
    fabric.b.apply(
        replace(LOCAL, plugged=False, forwarding=Forwarding.REDIRECT, target=A, accept_from=(C,))
    )
    fabric.a.apply(replace(LOCAL, accept_from=(B,)))
    guest = fabric.a.plug()
    with raw_tunnel(fabric.a.space, version) as tunnel, in_the_name_of_c(fabric, version):
        # c cannot reach b here: a sends in c's name.
        tunnel.bind((str(C.locator(version)), 0))
        packet = udp(HOST[version], OWN[version], b"onward", 9)
        tunnel.sendto(packet, (str(B.locator(version)), 0))
        hop_place = {4: 14 + 8, 6: 14 + 7}[version]
        found = guest.find(
            lambda f: f[hop_place : hop_place + 1] if payload_of(f) == b"onward" else None
        )
    assert found == b"\x07"  # one at b's tunnel, one at a's routing from its tunnel to the tap
    assert fabric.b.traffic().redirected == 1
    guest.close()


@pytest.mark.parametrize("version", [4, 6])
def test_a_tunnelled_packet_never_leaves_by_the_underlay(fabric: Fabric, version: int) -> None:
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    # By hand, the worst: the tap's way out of the tunnelled table is gone.
    fabric.b.space.ip(f"-{version}", "route", "del", OWN[version], "table", "7700")
    body = b"\0" * 8
    packet = (ipv4 if version == 4 else ipv6)(HOST[version], OWN[version], 99, body)
    before, opened = fabric.b.space.run("cat", "/proc/net/dev"), fabric.b.opened(version)
    with raw_tunnel(fabric.a.space, version) as tunnel:
        tunnel.sendto(packet, (str(B.locator(version)), 0))
    wait_for(lambda: fabric.b.opened(version) == opened + 1, "decapsulation")
    assert fabric.b.traffic().redirected == 0, before


NETWORKS = replace(
    LOCAL,
    interfaces=(
        replace(
            LOCAL.interfaces[0],
            prefixes=(ip_network("10.77.0.0/28"), ip_network("fd77::/124")),
        ),
    ),
)


@pytest.mark.parametrize("version", [4, 6])
def test_a_peer_may_tunnel_to_the_whole_prefix_and_no_further(fabric: Fabric, version: int) -> None:
    fabric.b.apply(replace(NETWORKS, accept_from=(A,)))
    guest = fabric.b.plug()
    inside = {4: ("10.77.0.0", "10.77.0.15"), 6: ("fd77::", "fd77::f")}[version]
    outside = {4: "10.77.0.16", 6: "fd77::10"}[version]
    opened = fabric.b.opened(version)
    with raw_tunnel(fabric.a.space, version) as tunnel:
        peer = (str(B.locator(version)), 0)
        tunnel.sendto(udp(HOST[version], outside, b"outside"), peer)
        for address in inside:
            word = address.encode()
            tunnel.sendto(udp(HOST[version], address, word), peer)
            assert receives(guest, word)
    assert fabric.b.opened(version) - opened in (2, 3)  # the kernel opens the stranger, and drops
    assert not receives(guest, b"outside", 0.02)
    assert fabric.b.traffic().dropped == 0, "it is no packet of this VM"
    # c is no peer, and nothing is taken in its name.
    with raw_tunnel(fabric.a.space, version) as tunnel, in_the_name_of_c(fabric, version):
        tunnel.bind((str(C.locator(version)), 0))
        tunnel.sendto(udp(HOST[version], inside[1], b"stranger"), peer)
        wait_for(lambda: fabric.b.drops("not_accepted") == 1, "one drop")
    assert not receives(guest, b"stranger", 0.02)
    guest.close()


HEADERS = [(4, "options"), (6, "options"), (6, "fragments")]


def with_other_headers(tunnel: socket.socket, version: int, header: str) -> int:
    """Have the socket's outer packets carry them; how many octets the inner payload should have."""
    if header == "fragments":
        return 1440  # with both headers more than the link takes
    if version == 4:
        no_operation = bytes([1, 1, 1, 0])
        tunnel.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, no_operation)
    else:
        padding = bytes([0, 0, 1, 4, 0, 0, 0, 0])  # a destination options header, PadN
        tunnel.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, padding)
    return 0


@pytest.mark.parametrize(("version", "header"), HEADERS)
def test_other_outer_headers_are_no_way_round_the_guard(
    fabric: Fabric, version: int, header: str
) -> None:
    fabric.b.apply(replace(LOCAL, accept_from=(C,)))
    guest = fabric.b.plug()
    with raw_tunnel(fabric.a.space, version) as tunnel:
        payload = b"hidden".ljust(with_other_headers(tunnel, version, header))
        inner = udp(HOST[version], OWN[version], payload)
        tunnel.sendto(inner, (str(B.locator(version)), 0))
    wait_for(lambda: fabric.b.drops("not_accepted") == 1, "one drop")
    assert not receives(guest, payload, 0.02)
    guest.close()


@pytest.mark.parametrize(("version", "header"), HEADERS)
def test_other_outer_headers_of_an_accepted_peer(fabric: Fabric, version: int, header: str) -> None:
    """They hide the inner packet's place from the kernel's guard, which accepts none of them."""
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    guest = fabric.b.plug()
    with raw_tunnel(fabric.a.space, version) as tunnel:
        size = with_other_headers(tunnel, version, header)
        payloads = [b"hidden%d".ljust(size) % number for number in range(2)]
        for payload in payloads:
            inner = udp(HOST[version], OWN[version], payload)
            tunnel.sendto(inner, (str(B.locator(version)), 0))
            assert receives(guest, payload, 0.1) is (fabric.back_end == "relay")
    dropped = 2 if fabric.back_end == "kernel" else 0
    wait_for(lambda: fabric.b.traffic().dropped == dropped, f"{dropped} drops")
    guest.close()


def dropped_for_nobody(fabric: Fabric) -> int:
    """What b's guard has dropped that was for no VM."""
    shown = fabric.b.space.run("nft", "list", "chain", "inet", "vmmobility_tunnels", "opened")
    return sum(int(packets) for packets in re.findall(r"counter packets (\d+) ", shown))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("accepted", [False, True], ids=["from anybody", "from a peer"])
def test_what_is_for_the_nve_itself_does_not_come_out_of_a_tunnel(
    fabric: Fabric, version: int, accepted: bool
) -> None:
    """Its own services trust the interface that a packet came by; a tunnel's peer is no such."""
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    guest = fabric.b.plug()
    locator = str(B.locator(version))
    if accepted and fabric.back_end == "kernel":
        # By hand, the worst: a peer may tunnel to the locator.
        inner = f"{int(ip_address(locator)):#x}"
        pair = f"{{ {A.locator(version)} . {inner} }}"
        table = ("inet", "vmmobility_tunnels", f"accepted{version}")
        fabric.b.space.run("nft", "add", "element", *table, pair)
    before = dropped_for_nobody(fabric) if fabric.back_end == "kernel" else 0
    with (
        udp_socket(fabric.b.space, version, locator) as service,
        raw_tunnel(fabric.a.space, version) as tunnel,
    ):
        peer = (locator, 0)
        tunnel.sendto(udp(HOST[version], locator, b"to the NVE"), peer)
        tunnel.sendto(udp(HOST[version], OWN[version], b"to the guest"), peer)
        assert receives(guest, b"to the guest")
        # What came before has been looked at before.
        service.setblocking(False)
        with pytest.raises(BlockingIOError):
            service.recv(100)
    if fabric.back_end == "kernel":
        assert dropped_for_nobody(fabric) == before + 1
        # What rules have counted is no change of theirs.
        surplus = fabric.b.space.await_(fabric.b.driver.audit())
        assert len(surplus) == int(accepted), surplus
    guest.close()


@pytest.mark.parametrize("version", [4, 6])
def test_a_flushed_ruleset_opens_nothing(fabric: Fabric, version: int) -> None:
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    guest = fabric.b.plug()
    fabric.b.space.run("nft", "flush", "ruleset")
    strange = {4: "10.0.1.200", 6: "fd00:1::200"}[version]
    fabric.a.space.ip("addr", "add", strange, "dev", "lo", *NODAD[version])
    with raw_tunnel(fabric.a.space, version) as tunnel:
        tunnel.bind((strange, 0))
        tunnel.sendto(udp(HOST[version], OWN[version], b"in the gap"), (str(B.locator(version)), 0))
    fabric.a.space.ip("addr", "del", strange, "dev", "lo")
    assert not receives(guest, b"in the gap", 0.1)
    assert fabric.b.space.await_(fabric.b.driver.audit())
    with raw_tunnel(fabric.a.space, version) as tunnel:
        tunnel.sendto(udp(HOST[version], OWN[version], b"mended"), (str(B.locator(version)), 0))
        assert receives(guest, b"mended")
    guest.close()
