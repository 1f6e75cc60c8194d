"""What a tap does to a guest's packets: gateways answered, addresses checked, both ways routed."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest

from tests.contract.dataplane_fabric import (
    GATEWAY,
    HOST,
    LOCAL,
    MAC,
    OWN,
    B,
    Fabric,
    reach,
    receives,
)
from tests.contract.frames import (
    advertised_mac,
    arp_reply_mac,
    arp_request,
    solicitation,
    udp,
    udp_socket,
)
from vmmobility.engine.dataplane import Forwarding, port_name
from vmmobility.wire.values import Interface, VmKey

pytestmark = pytest.mark.netns


def test_the_tap_answers_for_the_gateways_and_for_what_is_elsewhere(fabric: Fabric) -> None:
    fabric.a.apply(LOCAL)
    guest = fabric.a.plug()
    for target in ("169.254.1.1", "10.77.0.200", HOST[4]):
        guest.send(arp_request(MAC, OWN[4], target))
        assert guest.find(lambda f, t=target: arp_reply_mac(f, t)) == GATEWAY  # type: ignore[misc]
    for target, source in (("fe80::1", OWN[6]), ("fd77::200", OWN[6]), (HOST[6], "fe80::5")):
        guest.send(solicitation(MAC, source, target))
        assert guest.find(lambda f, t=target: advertised_mac(f, t)) == GATEWAY  # type: ignore[misc]
    guest.close()


def test_own_addresses_and_duplicate_detection_stay_unanswered(fabric: Fabric) -> None:
    # Also while the addresses lead away, when proxies would be tempted most.
    fabric.a.apply(replace(LOCAL, forwarding=Forwarding.REDIRECT, target=B))
    guest = fabric.a.plug()
    guest.send(arp_request(MAC, "0.0.0.0", OWN[4]))
    guest.send(arp_request(MAC, OWN[4], OWN[4]))
    guest.send(solicitation(MAC, "::", OWN[6]))
    guest.send(solicitation(MAC, "::", "fd77::200"))
    guest.send(solicitation(MAC, "fe80::5", OWN[6]))
    # What is asked last is answered first: the others had their time.
    guest.send(arp_request(MAC, OWN[4], "169.254.1.1"))
    guest.send(solicitation(MAC, OWN[6], "fd77::201"))
    seen = []

    def wanted(frame: bytes) -> bytes | None:
        seen.append(frame)
        return advertised_mac(frame, "fd77::201")

    assert guest.find(wanted) == GATEWAY
    assert not any(arp_reply_mac(frame, OWN[4]) for frame in seen)
    assert not any(advertised_mac(frame, t) for frame in seen for t in (OWN[6], "fd77::200"))
    guest.close()


@pytest.mark.parametrize("version", [4, 6])
def test_both_directions_are_routed_and_counted(fabric: Fabric, version: int) -> None:
    fabric.a.apply(LOCAL)
    guest = fabric.a.plug()
    before = fabric.a.traffic()
    for number in range(5):
        reach(fabric, guest, version, b"in%d" % number)
    with udp_socket(fabric.host, version, HOST[version]) as listener:
        guest.send_packet(udp(OWN[version], HOST[version], b"out"))
        assert listener.recv(100) == b"out"
    after = fabric.a.traffic()
    assert after.delivered - before.delivered == 5
    assert after.consumed - before.consumed >= 5
    assert (after.redirected, after.dropped) == (0, before.dropped)
    guest.close()


@pytest.mark.parametrize("version", [4, 6])
def test_spoofed_sources_are_dropped_and_counted(fabric: Fabric, version: int) -> None:
    fabric.a.apply(LOCAL)
    guest = fabric.a.plug()
    before = fabric.a.traffic().dropped
    wrong = {4: "10.77.0.6", 6: "fd77::6"}[version]
    with udp_socket(fabric.host, version, HOST[version]) as listener:
        guest.send_packet(udp(wrong, HOST[version], b"spoofed address"))
        guest.send_packet(udp(OWN[version], HOST[version], b"spoofed MAC"), source=b"\2" * 6)
        if version == 4:
            guest.send(arp_request(MAC, wrong, "169.254.1.1"))
            guest.send(arp_request(b"\2" * 6, OWN[4], "169.254.1.1", source=MAC))
        else:
            guest.send(solicitation(MAC, wrong, "fe80::1"))
            guest.send_packet(udp("fe80::5", HOST[6], b"link-local is for neighbours only"))
        guest.send_packet(udp(OWN[version], HOST[version], b"honest"))
        assert listener.recv(100) == b"honest"
    assert fabric.a.traffic().dropped - before == 4
    guest.close()


def test_two_guests_of_one_node_talk_by_routing(fabric: Fabric) -> None:
    other = VmKey(0, "vm-2")
    prefixes = (ip_network("10.77.0.6/32"), ip_network("fd77::6/128"))
    second = replace(LOCAL, vm=other, interfaces=(Interface(b"\2\0\0\0\0\6", prefixes),))
    fabric.a.apply(LOCAL, second)
    guest = fabric.a.plug()
    friend = fabric.a.plug(port_name(other, 0), b"\2\0\0\0\0\6")
    for version, target in ((4, "10.77.0.6"), (6, "fd77::6")):
        guest.send_packet(udp(OWN[version], target, b"hello"))
        assert receives(friend, b"hello")
    guest.close()
    friend.close()
