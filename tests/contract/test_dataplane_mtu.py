"""Packets that are too big for a redirect: told to their senders with what fits, and counted."""

from __future__ import annotations

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
    reach,
    receives,
)
from tests.contract.frames import Guest, ipv4, udp
from tests.contract.namespaces import wait_for
from tests.contract.path_sizes import (
    HEADERS,
    LOCATOR,
    OUTER,
    RELAY,
    TUNNELLED,
    SizedSender,
    Told,
    dont_fragment,
    forget_paths,
    learn,
    redirected,
    set_mtu,
    too_big,
)
from tests.contract.test_dataplane_guards import raw_tunnel
from vmmobility.drivers.linux.ownership import DEFAULT_GATEWAY_MAC
from vmmobility.engine.dataplane import Forwarding, VmDataPlane, port_name
from vmmobility.wire.values import Interface, VmKey

pytestmark = pytest.mark.netns

NEIGHBOUR = {4: "10.77.0.6", 6: "fd77::6"}
NEIGHBOUR_MAC = bytes.fromhex("020000000006")
BESIDE = VmDataPlane(
    VmKey(0, "vm-2"),
    (Interface(NEIGHBOUR_MAC, (ip_network("10.77.0.6/32"), ip_network("fd77::6/128"))),),
    plugged=True,
    forwarding=Forwarding.LOCAL,
)
"""A VM that stays at a."""


@pytest.fixture
def guest(fabric: Fabric) -> Iterator[Guest]:
    with redirected(fabric) as guest:
        yield guest


@pytest.fixture
def narrow(fabric: Fabric) -> Iterator[Fabric]:
    """The same fabric with 1400 octets in the middle of the way from a to b."""
    set_mtu(fabric, 1400)
    yield fabric
    set_mtu(fabric, 1500)
    forget_paths(fabric)


@pytest.fixture(params=["own link", "in the middle"])
def limited(request: pytest.FixtureRequest, fabric: Fabric) -> Iterator[tuple[Fabric, int]]:
    """A fabric and the MTU of the way from a to b: a's own link's, or of one that a must learn."""
    mtu = 1500 if request.param == "own link" else 1400
    set_mtu(fabric, mtu)
    yield fabric, mtu
    set_mtu(fabric, 1500)
    forget_paths(fabric)


@pytest.mark.parametrize("version", [4, 6])
def test_what_fits_passes_and_one_octet_more_is_told(
    limited: tuple[Fabric, int], guest: Guest, version: int
) -> None:
    fabric, path = limited
    fits = path - OUTER[version]
    with SizedSender(fabric.host, version, HOST[version]) as sender:
        learn(fabric, version, path, lambda: sender.send(fits + 1, OWN[version]))
        # Twice: the first finds a path that is not known yet.
        for number in (1, 2):
            sender.send(fits + 1, OWN[version])
            assert sender.told() == Told(LOCATOR[version], fits)
            assert too_big(fabric.a) == number
            payload = sender.send(fits, OWN[version], b"fits%d" % number)
            assert receives(guest, payload)
        assert sender.told(0.02) is None
    assert fabric.a.traffic().dropped == 0
    assert fabric.a.traffic().redirected >= 2


@pytest.mark.parametrize("version", [4, 6])
def test_a_vm_on_the_same_nve_is_told_too(
    limited: tuple[Fabric, int], guest: Guest, version: int
) -> None:
    fabric, path = limited
    fabric.a.apply(BESIDE)
    beside = Guest(fabric.a.space, port_name(BESIDE.vm, 0), NEIGHBOUR_MAC, DEFAULT_GATEWAY_MAC)
    fits = path - OUTER[version]

    def packet(octets: int) -> bytes:
        payload = b"n" * (octets - HEADERS[version])
        return dont_fragment(udp(NEIGHBOUR[version], OWN[version], payload))

    learn(fabric, version, path, lambda: beside.send_packet(packet(fits + 1)))
    for _ in (1, 2):
        beside.send_packet(packet(fits + 1))
        found = beside.find(lambda frame: told_in(frame, version))
        assert found is not None, "no ICMP error"
        source, mtu = found[:-4], int.from_bytes(found[-4:], "big")
        # RFC 1812 section 4.3.2.4: the interface's own address; else the relay's, a locator.
        assert source.decode() in (LOCATOR[version], *({4: ["169.254.1.1"], 6: []}[version]))
        assert mtu == fits
    beside.send_packet(packet(fits))
    assert receives(guest, b"n" * (fits - HEADERS[version]))
    assert too_big(fabric.a) == 2
    beside.close()


def told_in(frame: bytes, version: int) -> bytes | None:
    """The source as text and the MTU, of an ICMP error about size in a frame."""
    if version == 4 and frame[12:14] == b"\x08\x00" and frame[23] == 1 and frame[34:36] == b"\3\4":
        return str(ip_address(frame[26:30])).encode() + bytes(2) + frame[40:42]
    if version == 6 and frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == 2:
        return str(ip_address(frame[22:38])).encode() + frame[58:62]
    return None


@pytest.mark.parametrize("version", [4, 6])
def test_a_peers_packet_that_does_not_fit_on_to_the_next_peer(
    narrow: Fabric, guest: Guest, version: int
) -> None:
    narrow.a.apply(replace(TUNNELLED, accept_from=(C,)))
    fits = 1400 - OUTER[version]
    packet = udp(HOST[version], OWN[version], b"p" * (fits + 1 - HEADERS[version]))
    with (
        # It hears what packets in its name cause.
        SizedSender(narrow.host, version, HOST[version]) as sender,
        raw_tunnel(narrow.c.space, version) as tunnel,
    ):
        there = (str(A.locator(version)), 0)
        learn(narrow, version, 1400, lambda: tunnel.sendto(dont_fragment(packet), there))
        for number in (1, 2):
            tunnel.sendto(dont_fragment(packet), there)
            assert sender.told() == Told(LOCATOR[version], fits)
            assert too_big(narrow.a) == number


def test_ipv4_that_may_be_fragmented_arrives_whole(narrow: Fabric, guest: Guest) -> None:
    with SizedSender(narrow.host, 4, HOST[4], fragments=True) as sender:
        for number in (1, 2):
            # As big as the TUN device takes, and more than the link in the middle.
            payload = sender.send(1480, OWN[4], b"fragments%d" % number)
            assert receives(guest, payload)
        assert sender.told(0.02) is None
    # One that may not be makes a learn the path: now it is a that fragments.
    with SizedSender(narrow.host, 4, HOST[4]) as exact:
        learn(narrow, 4, 1400, lambda: exact.send(1381, OWN[4]))
        exact.send(1381, OWN[4])
        assert exact.told() == Told(LOCATOR[4], 1380)
    narrow.host.ip("route", "flush", "cache")  # else the sender fragments
    with SizedSender(narrow.host, 4, HOST[4], fragments=True) as sender:
        payload = sender.send(1480, OWN[4], b"from here")
        assert receives(guest, payload)
        assert sender.told(0.02) is None
    assert too_big(narrow.a) == 1


@RELAY
def test_ipv6_that_every_link_takes_is_fragmented_outside(fabric: Fabric, guest: Guest) -> None:
    set_mtu(fabric, 1300)
    try:
        with SizedSender(fabric.host, 6, HOST[6]) as sender:
            sender.send(1281, OWN[6])
            assert sender.told() == Told(LOCATOR[6], 1280)
            payload = sender.send(1280, OWN[6], b"least")
            assert receives(guest, payload)
            assert sender.told(0.02) is None
        assert too_big(fabric.a) == 1
    finally:
        set_mtu(fabric, 1500)
        forget_paths(fabric)


def test_an_underlay_of_the_least_mtu_carries_both_families(fabric: Fabric, guest: Guest) -> None:
    """A TUN device of less than 1280 octets would have no IPv6."""
    r1, _ = fabric.routers

    def narrowed(mtu: int) -> None:
        r1.ip("link", "set", "toa", "mtu", str(mtu))
        fabric.a.space.ip("link", "set", "eth0", "mtu", str(mtu))
        fabric.a.resync(TUNNELLED)

    narrowed(1280)
    try:
        if fabric.back_end == "relay":
            with SizedSender(fabric.host, 6, HOST[6]) as sender:
                assert receives(guest, sender.send(1280, OWN[6], b"least"))
        with SizedSender(fabric.host, 4, HOST[4]) as sender:
            sender.send(1261, OWN[4])
            assert sender.told() == Told(LOCATOR[4], 1260)
            assert receives(guest, sender.send(1260, OWN[4], b"fits"))
        assert too_big(fabric.a) == 1
    finally:
        narrowed(1500)
        forget_paths(fabric)


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_too_big_is_counted_for_a_whole_prefix(fabric: Fabric, version: int) -> None:
    prefixes = tuple(ip_network(text) for text in ("10.77.0.16/28", "fd77::10/124"))
    wide = replace(TUNNELLED, vm=VmKey(0, "wide"), interfaces=(Interface(NEIGHBOUR_MAC, prefixes),))
    fabric.a.apply(TUNNELLED, wide)
    with SizedSender(fabric.host, version, HOST[version]) as sender:
        for last in (0, 4, 15):
            sender.send(1500, str(prefixes[version == 6][last]))
            assert sender.told() == Told(LOCATOR[version], 1500 - OUTER[version])
        sender.send(1500, OWN[version])
        assert sender.told() == Told(LOCATOR[version], 1500 - OUTER[version])
    counted = fabric.a.space.await_(fabric.a.driver.traffic())
    assert {vm.vm_id: one.too_big for vm, one in counted.items()} == {"vm-1": 1, "wide": 3}


def test_no_error_about_an_error(narrow: Fabric, guest: Guest) -> None:
    """An ICMP error that is too big itself is dropped, and nobody is told; the relay counts it."""
    narrow.a.apply(replace(TUNNELLED, accept_from=(C,)))
    with (
        SizedSender(narrow.host, 4, HOST[4]) as sender,
        raw_tunnel(narrow.c.space, 4) as tunnel,
    ):
        learn(narrow, 4, 1400, lambda: sender.send(1400, OWN[4]))
        sender.send(1400, OWN[4])
        assert sender.told() == Told(LOCATOR[4], 1380)
        error = ipv4(HOST[4], OWN[4], 1, b"\3\1" + bytes(1378))
        tunnel.sendto(dont_fragment(error), (str(A.locator(4)), 0))
        if narrow.back_end == "relay":
            wait_for(lambda: too_big(narrow.a) == 2, "the drop is counted")
        assert sender.told(0.5) is None


@pytest.mark.parametrize("version", [4, 6])
def test_local_delivery_takes_what_the_tap_takes(fabric: Fabric, version: int) -> None:
    fabric.a.apply(LOCAL)
    guest = fabric.a.plug()
    reach(fabric, guest, version, b"x" * (1500 - HEADERS[version]))
    assert too_big(fabric.a) == 0
    guest.close()


def test_ipv4_too_big_for_the_tunnel_itself_is_fragmented_before_it(
    fabric: Fabric, guest: Guest
) -> None:
    with SizedSender(fabric.host, 4, HOST[4], fragments=True) as sender:
        sender.send(1500, OWN[4])
    pieces: dict[int, int] = {}

    def whole(frame: bytes) -> bytes | None:
        if frame[12:14] == b"\x08\x00" and frame[23] == 17:
            offset = (int.from_bytes(frame[20:22], "big") & 0x1FFF) * 8
            pieces[offset] = int.from_bytes(frame[16:18], "big") - 20
        return b"" if sum(pieces.values()) == 1480 and len(pieces) == 2 else None

    assert guest.find(whole) is not None, pieces
    assert max(pieces.values()) <= 1480 - 20
    assert too_big(fabric.a) == 0


@pytest.fixture
def jumbo(fabric: Fabric) -> Iterator[Fabric]:
    """Links of 1600 octets, and taps of 1500, as an underlay with room for tunnels has."""

    def set_all(mtu: int) -> None:
        r1, r2 = fabric.routers
        ends = [(fabric.host, "eth0"), (fabric.a.space, "eth0"), (fabric.b.space, "eth0")]
        ends += [(fabric.a.space, "toc"), (fabric.c.space, "eth0"), (r1, "toh"), (r1, "toa")]
        for space, name in [*ends, (r1, "tor2"), (r2, "tor1"), (r2, "tob")]:
            space.ip("link", "set", name, "mtu", str(mtu))
        for node in (fabric.a, fabric.b, fabric.c):
            node.resync()

    set_all(1600)
    yield fabric
    set_all(1500)
    forget_paths(fabric)


@pytest.mark.parametrize("version", [4, 6])
def test_who_delivers_tells_what_the_guest_takes(jumbo: Fabric, version: int) -> None:
    """Out of the tunnel, too: the error does not go where decapsulated packets go."""
    with SizedSender(jumbo.host, version, HOST[version]) as sender:
        jumbo.a.apply(LOCAL)
        here = jumbo.a.plug()
        sender.send(1501, OWN[version])
        assert sender.told() == Told(LOCATOR[version], 1500)
        assert receives(here, sender.send(1500, OWN[version], b"here"))
        assert too_big(jumbo.a) == 1
        jumbo.b.apply(replace(LOCAL, accept_from=(A,)))
        there = jumbo.b.plug()
        jumbo.a.apply(replace(TUNNELLED, plugged=True))
        sender.send(1501, OWN[version])
        assert sender.told() == Told(str(B.locator(version)), 1500)
        assert receives(there, sender.send(1500, OWN[version], b"there"))
        assert (too_big(jumbo.a), too_big(jumbo.b)) == (1, 1)
    here.close()
    there.close()


@pytest.mark.parametrize(
    "harm",
    ["flush chain inet vmmobility sizes", "delete chain inet vmmobility sizes",
     "flush set inet vmmobility too_big6"],
)  # fmt: skip
def test_the_counting_is_mended(fabric: Fabric, guest: Guest, harm: str) -> None:
    node = fabric.a
    node.space.await_(node.driver.audit())
    node.space.run("nft", harm)
    found = node.space.await_(node.driver.audit())
    assert {one.kind for one in found} <= {"filter", "counter"}
    assert found
    assert all(one.repaired for one in found)
    assert node.space.await_(node.driver.audit()) == []
    with SizedSender(fabric.host, 6, HOST[6]) as sender:
        sender.send(1500, OWN[6])
        assert sender.told() == Told(LOCATOR[6], 1460)
    assert too_big(node) == 1
