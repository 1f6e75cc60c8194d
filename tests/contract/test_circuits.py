"""An NVE apart from its servers: what a circuit does to a guest's packets, and who may use it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.contract.circuit_fabric import HOST, OTHER, VM, Apart, mac, make_apart, own, state
from tests.contract.frames import (
    BROADCAST,
    Guest,
    advertised_mac,
    arp_reply_mac,
    arp_request,
    payload_of,
    solicitation,
    udp,
    udp_socket,
)
from tests.contract.namespaces import wait_for
from vmmobility.drivers.linux.ownership import DEFAULT_GATEWAY_MAC as GATEWAY
from vmmobility.drivers.linux.server_circuits import LEAST_MTU6, ServerCircuits
from vmmobility.engine.dataplane import Forwarding, port_name
from vmmobility.errors import EnvironmentProblem
from vmmobility.wire.server_frames import CIRCUIT_PORT

pytestmark = pytest.mark.netns
TAP = port_name(VM, 0)
ABSENT = replace(state(), plugged=False, forwarding=Forwarding.NONE)


@pytest.fixture(scope="module", params=[4, 6], ids=["access-v4", "access-v6"])
def standing(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Apart]:
    yield from make_apart(tmp_path_factory.mktemp("apart"), request.param)


@pytest.fixture
def apart(standing: Apart) -> Iterator[Apart]:
    standing.resync()
    yield standing
    for name, space in standing.servers.items():
        circuits = standing.circuits[name]
        space.call(circuits.remove, list(space.call(circuits.names)))


def send(apart: Apart, vm_address: str, payload: bytes) -> None:
    version = 6 if ":" in vm_address else 4
    with udp_socket(apart.host, version, HOST[version]) as sender:
        sender.sendto(payload, (vm_address, 4000))


def gets(guest: Guest, payload: bytes, deadline_s: float = 3.0) -> bool:
    found = guest.find(lambda f: payload if payload_of(f) == payload else None, deadline_s)
    return found is not None


def test_the_nve_answers_for_the_gateways_with_the_mac_of_every_nve(apart: Apart) -> None:
    apart.apply(state())
    guest = apart.plug("s1")
    for target in ("169.254.1.1", own(OTHER, 4)):
        guest.send(arp_request(mac(VM), own(VM, 4), target))
        assert guest.find(lambda f, t=target: arp_reply_mac(f, t)) == GATEWAY  # type: ignore[misc]
    for target in ("fe80::1", own(OTHER, 6)):
        guest.send(solicitation(mac(VM), own(VM, 6), target))
        assert guest.find(lambda f, t=target: advertised_mac(f, t)) == GATEWAY  # type: ignore[misc]
    guest.close()


@pytest.mark.parametrize("version", [4, 6])
def test_both_directions_are_routed_and_counted(apart: Apart, version: int) -> None:
    apart.apply(state())
    guest = apart.plug("s1")
    with udp_socket(apart.host, version, HOST[version]) as host:
        guest.send_packet(udp(own(VM, version), HOST[version], b"out"))
        assert host.recv(100) == b"out"
        host.sendto(b"in", (own(VM, version), 4000))
    assert gets(guest, b"in")
    traffic = apart.space.await_(apart.driver.traffic())[VM]
    assert traffic.delivered >= 1
    assert traffic.dropped == 0
    guest.close()


def test_long_packets_pass(apart: Apart) -> None:
    # Over IPv4 the access link has an MTU of 1,500, and packets on it are fragmented.
    apart.apply(state())
    guest = apart.plug("s1")
    payload = bytes(1472)  # 1,500 octets with their headers
    with udp_socket(apart.host, 4, HOST[4]) as host:
        guest.send_packet(udp(own(VM, 4), HOST[4], payload))
        assert host.recv(2000) == payload
        host.sendto(payload, (own(VM, 4), 4000))
    assert gets(guest, payload)
    guest.close()


@pytest.mark.parametrize("version", [4, 6])
def test_a_guest_speaks_for_itself_alone(apart: Apart, version: int) -> None:
    apart.apply(state(), state(OTHER))
    guest = apart.plug("s1")
    before = apart.space.await_(apart.driver.traffic())[VM].dropped
    with udp_socket(apart.host, version, HOST[version]) as host:
        guest.send_packet(udp(own(OTHER, version), HOST[version], b"other's address"))
        guest.send_packet(udp(own(VM, version), HOST[version], b"other's mac"), mac(OTHER))
        guest.send_packet(udp(own(VM, version), HOST[version], b"own"))
        assert host.recv(100) == b"own"
    assert apart.space.await_(apart.driver.traffic())[VM].dropped == before + 2
    guest.close()


@pytest.mark.parametrize("version", [4, 6])
def test_guests_of_one_server_meet_at_the_nve_alone(apart: Apart, version: int) -> None:
    apart.apply(state(), state(OTHER))
    one, two = apart.plug("s1"), apart.plug("s1", OTHER)
    kind = b"\x08\x00" if version == 4 else b"\x86\xdd"
    past = udp(own(VM, version), own(OTHER, version), b"past the NVE")
    for target in (mac(OTHER), BROADCAST):
        one.send(target + mac(VM) + kind + past)
    before = apart.space.await_(apart.driver.traffic())[OTHER].delivered
    one.send_packet(udp(own(VM, version), own(OTHER, version), b"by the NVE"))
    seen = []

    def wanted(frame: bytes) -> bytes | None:
        seen.append(payload_of(frame))
        return frame if seen[-1] == b"by the NVE" else None

    assert two.find(wanted) is not None
    assert b"past the NVE" not in seen
    assert apart.space.await_(apart.driver.traffic())[OTHER].delivered == before + 1
    one.close()
    two.close()


def test_early_packets_wait_in_the_tap_of_the_server(apart: Apart) -> None:
    apart.apply(state())
    guest = apart.plug("s1")  # it reads nothing yet, as a guest that waits for its memory
    for number in range(50):
        send(apart, own(VM, 4 if number % 2 else 6), b"early%d" % number)
    found = set()

    def all_there(frame: bytes) -> bytes | None:
        found.add(payload_of(frame))
        return frame if {b"early%d" % number for number in range(50)} <= found else None

    assert guest.find(all_there) is not None
    guest.close()


def test_a_turn_leads_to_the_other_server_and_both_may_send(apart: Apart) -> None:
    apart.apply(state())
    old = apart.plug("s1")
    number, index = apart.number(), _index(apart)
    apart.apply(state(sends=("s2",)))
    new = apart.plug("s2")
    send(apart, own(VM, 4), b"before")
    assert gets(old, b"before")
    apart.apply(state(server="s2", sends=("s1",)))
    assert (apart.number(), _index(apart)) == (number, index), "nothing is made anew"
    send(apart, own(VM, 4), b"after")
    assert gets(new, b"after")
    with udp_socket(apart.host, 4, HOST[4]) as host:
        for guest, words in ((old, b"still here"), (new, b"here now")):
            guest.send_packet(udp(own(VM, 4), HOST[4], words))
            assert host.recv(100) == words
    assert not [frame for frame in old.frames() if payload_of(frame) == b"after"]
    assert not [frame for frame in new.frames() if payload_of(frame) == b"before"]
    old.close()
    new.close()


def _index(apart: Apart) -> str:
    return apart.space.ip("-o", "link", "show", TAP).split(":")[0]


@pytest.mark.parametrize("moving", [False, True])
def test_only_the_servers_of_a_vm_send_into_its_circuit(apart: Apart, moving: bool) -> None:
    apart.apply(state(sends=("s2",) if moving else ()))
    stranger = apart.plug("s2")  # an agent that was never told to, with the right number
    guest = apart.plug("s1")
    with udp_socket(apart.host, 4, HOST[4]) as host:
        stranger.send_packet(udp(own(VM, 4), HOST[4], b"s2"))
        if moving:
            assert host.recv(100) == b"s2"
        guest.send_packet(udp(own(VM, 4), HOST[4], b"s1"))
        assert host.recv(100) == b"s1"
    stranger.close()
    guest.close()


def test_what_comes_by_the_underlay_or_from_a_guest_opens_no_circuit(apart: Apart) -> None:
    apart.apply(state())
    guest = apart.plug("s1")
    forged = _vxlan(apart.number(), udp(own(VM, 4), HOST[4], b"forged"))
    own_end = str(apart.settings.servers["s1"].own)
    family = socket.AF_INET if apart.version == 4 else socket.AF_INET6
    with apart.host.call(lambda: socket.socket(family, socket.SOCK_DGRAM)) as sender:
        sender.sendto(forged, (own_end, CIRCUIT_PORT))
    packet = udp(own(VM, apart.version), own_end, forged)
    at = 20 if apart.version == 4 else 40
    packet = packet[: at + 2] + CIRCUIT_PORT.to_bytes(2, "big") + packet[at + 4 :]
    guest.send_packet(packet)
    with udp_socket(apart.host, 4, HOST[4]) as host:
        guest.send_packet(udp(own(VM, 4), HOST[4], b"own"))
        assert host.recv(100) == b"own"
    guest.close()


def _vxlan(number: int, packet: bytes) -> bytes:
    frame = GATEWAY + mac(VM) + b"\x08\x00" + packet
    return b"\x08\0\0\0" + number.to_bytes(3, "big") + b"\0" + frame


def test_a_guest_reaches_no_server(apart: Apart) -> None:
    apart.apply(state())
    guest = apart.plug("s1")
    version = apart.version
    for name in ("s1", "s2"):
        address = str(apart.address(name))
        with udp_socket(apart.servers[name], version, address) as server:
            server.settimeout(0.2)
            guest.send_packet(udp(own(VM, version), address, b"by the NVE"))
            if name == "s1":  # to the host itself, past the NVE
                for link in ("vmb", "vmt"):
                    there = link + TAP.removeprefix("vmt")
                    shown = apart.servers[name].ip("-o", "link", "show", there)
                    at = bytes.fromhex(shown.split("link/ether ")[1].split()[0].replace(":", ""))
                    kind = b"\x08\x00" if version == 4 else b"\x86\xdd"
                    guest.send(at + mac(VM) + kind + udp(own(VM, version), address, b"past it"))
                guest.send(arp_request(mac(VM), own(VM, 4), "10.0.41.2"))
            with pytest.raises(TimeoutError):
                server.recv(100)
    assert not any(f[12:14] == b"\x08\x06" and f[21] == 2 and f[6:12] != GATEWAY
                   for f in guest.frames())  # fmt: skip
    guest.close()


def test_hands_at_a_circuit_are_found_and_undone(apart: Apart) -> None:
    apart.apply(state())
    assert apart.audit() == []
    apart.space.ip("link", "set", TAP, "type", "vxlan", "remote", str(apart.address("s2")))
    assert [words for words in apart.audit() if words.startswith(f"circuit {TAP} leads")]
    assert apart.audit() == []
    apart.space.run("nft", "delete table inet vmmobility_circuits")
    assert [words for words in apart.audit() if words.startswith("circuits is gone")]
    assert apart.audit() == []
    apart.space.run("nft", "flush set inet vmmobility_circuits sources4")
    apart.space.run("nft", "flush set inet vmmobility_circuits sources6")
    assert [words for words in apart.audit() if words.startswith("circuits lets in")]
    assert apart.audit() == []


def test_a_restarted_nve_keeps_its_circuits(apart: Apart) -> None:
    apart.apply(state())
    guest = apart.plug("s1")
    number, index = apart.number(), _index(apart)
    apart.space.await_(apart.driver.close())
    apart.space.await_(apart.driver.start())
    apart.resync(state())
    assert (apart.number(), _index(apart)) == (number, index)
    send(apart, own(VM, 4), b"after")
    assert gets(guest, b"after")
    apart.resync()
    assert f" {TAP}: " not in apart.space.ip("-o", "link")
    guest.close()


def test_circuits_have_numbers_of_their_own(apart: Apart) -> None:
    apart.apply(state(), state(OTHER))
    assert apart.number() != apart.number(OTHER)


def test_a_server_that_is_not_configured_is_a_failure(apart: Apart) -> None:
    failures = apart.space.await_(apart.driver.apply([state(server="s3")]))
    assert "server s3" in [failure.item for failure in failures]
    apart.apply(ABSENT)


def test_ipv6_access_links_must_be_wide_enough(apart: Apart) -> None:
    space = apart.servers["s1"]
    ends = apart.settings.servers["s1"]
    again = space.call(ServerCircuits, ends.server, ends.own)
    space.ip("link", "set", "uplink", "mtu", "1500")
    try:
        if apart.version == 4:
            space.await_(again.start())
        else:
            with pytest.raises(EnvironmentProblem, match="need 1570"):
                space.await_(again.start())
    finally:
        space.call(again.close)
        space.ip("link", "set", "uplink", "mtu", "1500" if apart.version == 4 else str(LEAST_MTU6))


def test_an_agent_makes_its_ends_once_and_removes_them(apart: Apart) -> None:
    apart.apply(state())
    apart.attach("s1")
    space, circuits = apart.servers["s1"], apart.circuits["s1"]

    def shown() -> str:
        return space.ip("-o", "link")

    before = [line.split(":")[0] for line in shown().splitlines()]
    apart.attach("s1")
    assert [line.split(":")[0] for line in shown().splitlines()] == before
    assert list(space.call(circuits.names)) == [TAP]
    space.call(circuits.remove, [TAP])
    space.call(circuits.remove, [TAP])
    assert list(space.call(circuits.names)) == []
    wait_for(lambda: TAP[3:] not in shown(), "nothing of it is left")
