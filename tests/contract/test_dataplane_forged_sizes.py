"""ICMP errors about a tunnel's path that nobody had reason to send, or that say too little."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.contract.dataplane_fabric import HOST, LOCAL, OWN, B, C, Fabric, receives
from tests.contract.frames import Guest, udp
from tests.contract.namespaces import wait_for
from tests.contract.path_sizes import (
    LEAST,
    LOCATOR,
    OUTER,
    RELAY,
    TUNNELLED,
    SizedSender,
    Told,
    dont_fragment,
    encapsulated,
    forget_paths,
    redirected,
)
from vmmobility.drivers.linux.size_errors import message

pytestmark = pytest.mark.netns


@pytest.fixture
def guest(fabric: Fabric) -> Iterator[Guest]:
    with redirected(fabric) as guest:
        yield guest


@pytest.mark.parametrize("version", [4, 6])
@RELAY
@pytest.mark.parametrize("lie", ["", "late", "fits", "to another peer", "for nobody"])
def test_a_forged_error_about_a_tunnel_makes_no_other(
    fabric: Fabric, guest: Guest, version: int, lie: str
) -> None:
    """Who quotes what this node could not have sent does not make it send anything.  (ip6tnl
    believes whatever quotes its own outer header: docs/design/dataplane.md, Limits.)

    Without a lie it does: so the others did reach the relay; also of a packet that was on its way
    when the VM turned.
    """
    quoted, peer = udp(HOST[version], OWN[version], b"q" * 1300), B
    if lie == "fits":
        quoted = udp(HOST[version], OWN[version], b"q" * 900)
    elif lie == "to another peer":
        peer = C
    elif lie == "for nobody":
        quoted = udp(HOST[version], "10.77.0.9" if version == 4 else "fd77::9", b"q" * 1300)
    outer = encapsulated(dont_fragment(quoted), version, peer)
    kind = {4: socket.AF_INET, 6: socket.AF_INET6}[version]
    protocol = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}[version]
    forger = fabric.host.call(lambda: socket.socket(kind, socket.SOCK_RAW, protocol))
    with SizedSender(fabric.host, version, HOST[version]) as sender, forger:
        if lie == "late":
            fabric.a.apply(LOCAL)
            lie = ""
        for _ in range(3):
            forger.sendto(message(outer, version, 1300), (LOCATOR[version], 0))
        if not lie:
            assert sender.told() == Told(
                LOCATOR[version], max(1300 - OUTER[version], LEAST[version])
            )
        else:
            assert sender.told(0.1) is None
        # The relay is well, and its sockets' errors are emptied.
        fabric.a.apply(TUNNELLED)
        payload = sender.send(1000, OWN[version], b"after it")
        assert receives(guest, payload)
    told = fabric.a.relay()["vms"]["0/vm-1"].get("too_big_told", 0)
    assert told == (0 if lie else 3)
    forget_paths(fabric)


@pytest.mark.parametrize("mtu", [0, 68])
def test_nobody_is_told_less_than_the_kernel_believes(
    fabric: Fabric, guest: Guest, mtu: int
) -> None:
    """A router that names no MTU (older than RFC 1191), or one that none has."""
    outer = encapsulated(dont_fragment(udp(HOST[4], OWN[4], b"q" * 1300)), 4, B)
    forger = fabric.host.call(
        lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    )
    try:
        with SizedSender(fabric.host, 4, HOST[4]) as sender, forger:
            forger.sendto(message(outer, 4, mtu), (LOCATOR[4], 0))

            def learnt() -> bool:
                # "lock": the path is known to take less than what the kernel believes.
                return "mtu lock 552 " in fabric.a.space.ip("route", "get", str(B.ipv4))

            wait_for(learnt, "the path")
            if fabric.back_end == "kernel":
                sender.send(1400, OWN[4])  # it tells of the next one only
            assert sender.told() == Told(LOCATOR[4], 552 - 20)
            assert receives(guest, sender.send(532, OWN[4], b"fits"))
    finally:
        forget_paths(fabric)
