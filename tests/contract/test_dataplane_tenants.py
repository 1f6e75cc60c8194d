"""What a guest may not tell its NVE: of paths between NVEs, and by tunnels."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.contract.dataplane_fabric import HOST, LOCAL, OWN, A, B, Fabric
from tests.contract.frames import Guest, ipv4, ipv6, udp, udp_socket
from tests.contract.namespaces import wait_for
from tests.contract.path_sizes import encapsulated, forget_paths
from vmmobility.drivers.linux.size_errors import message

pytestmark = pytest.mark.netns

PACKET = {4: ipv4, 6: ipv6}
ICMP = {4: 1, 6: 58}
TUNNEL = {4: 4, 6: 41}


@pytest.fixture
def tenant(fabric: Fabric) -> Iterator[Guest]:
    """At a."""
    fabric.a.apply(LOCAL)
    guest = fabric.a.plug()
    yield guest
    guest.close()
    forget_paths(fabric)


def forged(version: int) -> bytes:
    """An error about a packet that a could have tunnelled to b: the path takes 1300 octets."""
    quoted = encapsulated(udp(HOST[version], OWN[version], b"q" * 1400), version, B)
    return message(quoted, version, 1300)


def path_to_b(fabric: Fabric, version: int) -> str:
    return fabric.a.space.ip("route", "get", str(B.locator(version)))


def dropped(fabric: Fabric) -> int:
    shown = fabric.a.space.run("nft", "list", "chain", "inet", "vmmobility", "tenants")
    return sum(int(packets) for packets in re.findall(r"counter packets (\d+) ", shown))


def until_heard(fabric: Fabric, tenant: Guest, version: int) -> None:
    """Until what the guest has sent has been taken, or dropped."""
    locator = str(A.locator(version))
    with udp_socket(fabric.a.space, version, locator) as service:
        tenant.send_packet(udp(OWN[version], locator, b"after it"))
        assert service.recv(100) == b"after it"


@pytest.mark.parametrize("version", [4, 6])
def test_a_guest_says_nothing_about_paths_between_nves(
    fabric: Fabric, tenant: Guest, version: int
) -> None:
    before = dropped(fabric)
    locator = str(A.locator(version))
    error = PACKET[version](OWN[version], locator, ICMP[version], forged(version))
    tenant.send_packet(error)
    until_heard(fabric, tenant, version)
    assert "1300" not in path_to_b(fabric, version)
    assert dropped(fabric) == before + 1
    # The same by a router of the underlay is believed: so the guest's could have been.
    family = {4: socket.AF_INET, 6: socket.AF_INET6}[version]
    with fabric.host.call(lambda: socket.socket(family, socket.SOCK_RAW, ICMP[version])) as router:
        router.sendto(forged(version), (locator, 0))
        wait_for(lambda: "mtu 1300" in path_to_b(fabric, version), "the path is learnt")


@pytest.mark.parametrize("version", [4, 6])
def test_a_guest_is_no_tunnels_peer(fabric: Fabric, tenant: Guest, version: int) -> None:
    fabric.a.apply(replace(LOCAL, accept_from=(B,)))
    before, opened = dropped(fabric), fabric.a.opened(version)
    locator = str(A.locator(version))
    inner = udp(HOST[version], OWN[version], b"in a tunnel")
    tenant.send_packet(PACKET[version](OWN[version], locator, TUNNEL[version], inner))
    until_heard(fabric, tenant, version)
    assert dropped(fabric) == before + 1
    assert fabric.a.opened(version) == opened
    assert fabric.a.traffic().dropped == 0, "it is no packet to this VM"


@pytest.mark.parametrize("harm", ["flush chain", "delete chain"])
def test_the_guard_against_guests_is_mended(fabric: Fabric, tenant: Guest, harm: str) -> None:
    node = fabric.a
    node.space.await_(node.driver.audit())
    node.space.run("nft", f"{harm} inet vmmobility tenants")
    found = node.space.await_(node.driver.audit())
    assert [(one.item, one.repaired) for one in found] == [("filter tables", True)]
    assert node.space.await_(node.driver.audit()) == []
    assert dropped(fabric) == 0
