"""TCP transfers under way while a VM's packets turn from a 1500-octet path into a tunnel."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from tests.contract.dataplane_fabric import LOCAL, MAC, OWN, TAP, A, B, Fabric
from tests.contract.kernel_guest import KernelGuest
from tests.contract.namespaces import Namespace, wait_for
from tests.contract.path_sizes import forget_paths, set_mtu
from tests.contract.tcp_bulk import Bulk
from vmmobility.engine.dataplane import Forwarding

pytestmark = pytest.mark.netns

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
LEVEL = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
PATH_MTU = {4: 14, 6: 24}
OUTER = {4: 20, 6: 40}
ENOUGH = 5_000_000
"""So many octets, some thousand segments, each way before and after each turn."""


@pytest.fixture
def guest(fabric: Fabric) -> Iterator[KernelGuest]:
    """Plugged at a and at b; it lives at a, which delivers to it."""
    fabric.b.apply(replace(LOCAL, forwarding=Forwarding.NONE, accept_from=(A,)))
    fabric.a.apply(LOCAL)
    guest = KernelGuest("tcpguest", MAC, OWN)
    try:
        for node in (fabric.a, fabric.b):
            guest.plug(node.space, TAP)
        guest.speak_at(fabric.a.space)
        yield guest
    finally:
        guest.close()
        set_mtu(fabric, 1500)
        forget_paths(fabric)


def connected(host: Namespace, guest: KernelGuest, version: int, port: int) -> list[socket.socket]:
    """The host's end of a session, and the guest's."""
    with guest.listen(version, OWN[version], port) as server:
        client = host.call(lambda: socket.socket(FAMILY[version], socket.SOCK_STREAM))
        client.settimeout(5)
        client.connect((OWN[version], port))
        return [client, server.accept()[0]]


def more(bulks: list[Bulk]) -> None:
    """Wait until each has carried enough more."""
    goals = [bulk.received + ENOUGH for bulk in bulks]

    def done() -> bool:
        assert not any(bulk.fault for bulk in bulks), [bulk.fault for bulk in bulks]
        return all(bulk.received >= goal for bulk, goal in zip(bulks, goals, strict=True))

    wait_for(done, "octets both ways", 40)


@pytest.mark.parametrize("path", [1500, 1400])
@pytest.mark.parametrize("version", [4, 6])
def test_transfers_go_on_into_the_tunnel_and_out_of_it(
    fabric: Fabric, guest: KernelGuest, version: int, path: int
) -> None:
    set_mtu(fabric, path)
    with ExitStack() as at_end:
        down = connected(fabric.host, guest, version, 5001)
        up = connected(fabric.host, guest, version, 5002)
        bulks = [Bulk(down[0], down[1]), Bulk(up[1], up[0])]
        for bulk in bulks:
            at_end.callback(bulk.close)
        more(bulks)
        # From here on packets of 1500 octets are on their way.
        assert down[0].getsockopt(LEVEL[version], PATH_MTU[version]) == 1500
        fabric.b.apply(replace(LOCAL, accept_from=(A,)))
        guest.speak_at(fabric.b.space)
        fabric.a.apply(replace(LOCAL, plugged=True, forwarding=Forwarding.REDIRECT, target=B))
        more(bulks)
        assert down[0].getsockopt(LEVEL[version], PATH_MTU[version]) == path - OUTER[version]
        assert fabric.a.traffic().too_big >= 1
        assert fabric.a.traffic().redirected > 0
        fabric.a.apply(LOCAL)
        guest.speak_at(fabric.a.space)
        more(bulks)
        for bulk in bulks:
            bulk.end()
        assert [bulk.fault for bulk in bulks] == ["", ""]
        assert [bulk.received for bulk in bulks] == [bulk.sent for bulk in bulks]
