"""Routes that go with their interface, and links that only look adjacent: no packet comes back.

A packet that loops between this node and its router crosses the link tens of times.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.contract.dataplane_fabric import LOCAL, OWN, TAP, B, C, Fabric, Node, reach, send
from tests.contract.namespaces import Namespace, wait_for
from vmmobility.drivers.linux.ownership import KERNEL_TUNNELS, TUN_NAME
from vmmobility.engine.dataplane import Forwarding, RedirectPolicy

pytestmark = pytest.mark.netns

VERSIONS = pytest.mark.parametrize("version", [4, 6])
REDIRECT = replace(LOCAL, plugged=False, forwarding=Forwarding.REDIRECT, target=B)
FEW = 10
"""Of the packets that cross a link in a test, those that are not the test's own."""


def sent_out(space: Namespace, interface: str) -> int:
    shown = json.loads(space.ip("-j", "-s", "link", "show", interface))
    return int(shown[0]["stats64"]["tx"]["packets"])


def crossings(fabric: Fabric, work: Callable[[], None]) -> int:
    """How many packets r1 sends to a meanwhile, and until one more has got as far."""
    before = sent_out(fabric.r1, "toa")
    work()
    fabric.host.run("ping", "-c1", "-W3", "10.0.1.2")  # what loops is faster than its way and back
    return sent_out(fabric.r1, "toa") - before


def restart(space: Namespace, interface: str) -> None:
    """Down and up; its addresses stay, as with IPv4."""
    space.run("sysctl", "-qw", "net.ipv6.conf.all.keep_addr_on_down=1")
    space.ip("link", "set", interface, "down")
    space.ip("link", "set", interface, "up")


def tunnel_of(node: Node, version: int) -> str:
    return KERNEL_TUNNELS[version] if node.settings.tunnel == "kernel" else TUN_NAME


@VERSIONS
@pytest.mark.parametrize("what", ["host route", "tunnel", "tap"])
def test_a_route_that_goes_with_its_interface_leaves_no_loop(
    fabric: Fabric, what: str, version: int
) -> None:
    states = {
        "host route": (replace(REDIRECT, target=C), "toc"),
        "tunnel": (REDIRECT, tunnel_of(fabric.a, version)),
        "tap": (LOCAL, TAP),
    }
    state, interface = states[what]
    fabric.a.apply(state)
    restart(fabric.a.space, interface)
    left = fabric.a.space.ip(f"-{version}", "route", "show", OWN[version])
    assert [line.split()[0] for line in left.splitlines()] == ["blackhole"]
    assert crossings(fabric, lambda: send(fabric, version, b"once")) <= FEW
    fabric.a.space.await_(fabric.a.driver.audit())
    assert fabric.a.space.await_(fabric.a.driver.audit()) == []


@VERSIONS
def test_what_lies_beneath_goes_with_the_redirect(fabric: Fabric, version: int) -> None:
    fabric.a.apply(REDIRECT)
    fabric.a.apply(replace(LOCAL, plugged=False, forwarding=Forwarding.NONE))
    assert fabric.a.space.ip(f"-{version}", "route", "show", OWN[version]) == ""


def test_a_removed_blackhole_is_found_and_made_again(fabric: Fabric) -> None:
    fabric.a.apply(REDIRECT)
    fabric.a.space.ip("route", "del", "blackhole", "10.77.0.5/32", "metric", str(2**32 - 1))
    found = fabric.a.space.await_(fabric.a.driver.audit())
    assert [(d.item, d.repaired) for d in found] == [("blackhole 10.77.0.5/32", True)]
    shown = fabric.a.space.ip("route", "show", "type", "blackhole")
    assert "10.77.0.5 proto 77 metric 4294967295" in shown


@VERSIONS
def test_a_locator_that_only_a_router_answers_for_is_not_adjacent(
    fabric: Fabric, version: int
) -> None:
    """Its subnet stands as a route to the link, but no address of ours is in it (proxy ARP)."""
    space = fabric.a.space
    network = {4: "10.0.2.0/24", 6: "fd00:2::/64"}[version]
    fabric.b.apply(replace(LOCAL, accept_from=()))
    space.ip(f"-{version}", "route", "add", network, "dev", "eth0")
    try:
        forced = replace(REDIRECT, policy=RedirectPolicy.HOST_ROUTE)
        failures = space.await_(fabric.a.driver.apply([forced]))
        locator = str(B.locator(version))
        assert any(f"{locator}: it is not adjacent" in failure.reason for failure in failures)
        fabric.a.apply(REDIRECT)
        assert fabric.a.leads_into_tunnel(version)
    finally:
        space.ip(f"-{version}", "route", "del", network, "dev", "eth0")


def test_a_host_route_is_back_after_its_link(fabric: Fabric) -> None:
    fabric.c.apply(LOCAL)
    fabric.a.apply(replace(REDIRECT, target=C))
    guest = fabric.c.plug()
    reach(fabric, guest, 4, b"before")
    restart(fabric.a.space, "toc")

    def back() -> bool:
        fabric.a.space.await_(fabric.a.driver.audit())
        return "via 10.0.3.2" in fabric.a.space.ip("route", "show", OWN[4])

    wait_for(back, "the host route stands again")
    reach(fabric, guest, 4, b"after")
    guest.close()
