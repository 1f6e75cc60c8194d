"""One contract for every RouterPlane: the in-memory twin and the Linux driver in a namespace."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_network

import pytest

from tests.contract.namespaces import wait_for
from tests.contract.router_planes import (
    ANNOUNCE,
    BOTH,
    FAR,
    FAR_NETS,
    HOLD,
    NEAR,
    NONE,
    OTHER,
    VM,
    Router,
    gateways,
    routes,
)
from vmmobility.drivers.fake_router_plane import FakeRouterPlane
from vmmobility.engine.fabric_routes import RouteAction, VmRoutes
from vmmobility.errors import DataPlaneError, EnvironmentProblem

NOWHERE: list[set[str]] = [set(), set()]
SECOND = ("10.77.0.6/32", "fd77::6/128")


def via(*neighbours: int) -> list[set[str]]:
    return [gateways(prefix, *neighbours) for prefix in BOTH]


def led_by(router: Router, *neighbours: int) -> None:
    """Wait until the VM's routes in both tables lead there."""
    wait_for(
        lambda: router.call(router.ways, "main") == router.ways("hold") == via(*neighbours),
        f"via {neighbours}",
    )


# -- desired state ----------------------------------------------------------------------------


def test_hold_leads_and_announces_nothing(router: Router) -> None:
    assert router.apply(routes(HOLD)) == []
    assert (router.ways("hold"), router.ways("main")) == (via(1), NOWHERE)
    assert router.plane.held() == {"announced": 0, "held": 1}


def test_announce_leads_in_both_tables(router: Router) -> None:
    assert router.apply(routes(ANNOUNCE)) == []
    assert (router.ways("hold"), router.ways("main")) == (via(1), via(1))
    assert router.plane.held() == {"announced": 1, "held": 0}


@pytest.mark.parametrize("after", [HOLD, ANNOUNCE, NONE])
@pytest.mark.parametrize("before", [HOLD, ANNOUNCE, NONE])
def test_each_state_follows_each(router: Router, before: RouteAction, after: RouteAction) -> None:
    assert router.apply(routes(before)) == []
    assert router.apply(routes(after)) == []
    assert router.ways("hold") == (NOWHERE if after is NONE else via(1))
    assert router.ways("main") == (via(1) if after is ANNOUNCE else NOWHERE)


def test_nothing_is_written_where_nothing_differs(router: Router) -> None:
    router.lead(FAR_NETS, 2, 3)
    desired = (routes(ANNOUNCE), routes(HOLD, FAR, OTHER, 6))
    assert router.apply(*desired) == []
    before = router.hands.writes()
    assert router.apply(*desired) == []
    assert router.resync(*desired) == []
    assert router.audit() == []
    assert router.hands.writes() == before


def test_an_apply_touches_its_own_vm_only(router: Router) -> None:
    router.apply(routes(ANNOUNCE), routes(ANNOUNCE, NEAR, OTHER, 6))
    router.apply(routes(NONE))
    assert router.ways("main") == NOWHERE
    assert router.ways("main", SECOND) == via(1)


def test_a_vm_moves_to_another_nve_and_to_other_addresses(router: Router) -> None:
    router.lead(FAR_NETS, 2)
    router.apply(routes(ANNOUNCE))
    assert router.apply(routes(ANNOUNCE, FAR)) == []
    assert router.ways("main") == router.ways("hold") == via(2)
    assert router.apply(routes(ANNOUNCE, FAR, number=6)) == []
    assert (router.ways("main"), router.ways("hold")) == (NOWHERE, NOWHERE)
    assert router.ways("main", SECOND) == via(2)


def test_an_address_can_change_its_vm_and_falls_back(router: Router) -> None:
    router.lead(FAR_NETS, 2)
    router.apply(routes(ANNOUNCE))
    assert router.apply(routes(HOLD, FAR, OTHER)) == []
    assert (router.ways("hold"), router.ways("main")) == (via(2), NOWHERE)
    assert router.apply(routes(NONE, vm=OTHER)) == []
    assert router.ways("main") == via(1), "the first one's claim still stands"


def test_prefixes_of_any_length(router: Router) -> None:
    prefixes = ("10.78.0.0/24", "10.78.0.16/28", "fd78::/64", "fd78::10/124")
    wanted = replace(routes(ANNOUNCE), prefixes=tuple(ip_network(p) for p in prefixes))
    assert router.apply(wanted) == []
    assert router.ways("main", prefixes) == [gateways(p, 1) for p in prefixes]


def test_resync_removes_what_nobody_wants(router: Router) -> None:
    router.apply(routes(ANNOUNCE), routes(ANNOUNCE, NEAR, OTHER, 6))
    assert router.resync(routes(HOLD, NEAR, OTHER, 6)) == []
    assert (router.ways("hold"), router.ways("main")) == (NOWHERE, NOWHERE)
    assert (router.ways("hold", SECOND), router.ways("main", SECOND)) == (via(1), NOWHERE)


def test_close_keeps_and_a_restart_finds(router: Router) -> None:
    router.apply(routes(ANNOUNCE), routes(ANNOUNCE, NEAR, OTHER, 6))
    router.close()
    assert router.ways("main") == via(1)
    router.start()
    assert router.ways("main") == via(1), "before the first resync nothing is known to be unwanted"
    assert router.audit() == []
    before = router.hands.writes()
    assert router.resync(routes(ANNOUNCE), routes(ANNOUNCE, NEAR, OTHER, 6)) == []
    assert router.hands.writes() == before
    assert router.resync(routes(ANNOUNCE)) == []
    assert router.ways("main", SECOND) == NOWHERE


def test_remove_all_removes_all(router: Router) -> None:
    router.apply(routes(ANNOUNCE), routes(HOLD, NEAR, OTHER, 6))
    router.remove_all()
    assert router.ways("hold") + router.ways("hold", SECOND) + router.ways("main") == NOWHERE * 3


# -- failures ---------------------------------------------------------------------------------


def test_what_cannot_be_fails_alone(router: Router) -> None:
    nowhere = routes(ANNOUNCE, FAR)
    unserved = routes(HOLD, None, OTHER, 6)
    good = routes(HOLD, NEAR, replace(VM, vm_id="vm-3"), 7)
    failures = router.apply(nowhere, unserved, good)
    assert {(f.vm, f.item) for f in failures} == {
        *((VM, f"route {prefix}") for prefix in BOTH),
        *((OTHER, f"route {prefix}") for prefix in SECOND),
    }
    assert any("no route leads to 10.0.99.2 of far" in f.reason for f in failures)
    assert any("no serving NVE" in f.reason for f in failures)
    assert router.ways("hold", ("10.77.0.7/32", "fd77::7/128")) == via(1)


def test_a_locator_missing_in_one_family_fails_for_that_family(router: Router) -> None:
    failures = router.apply(routes(ANNOUNCE, replace(NEAR, ipv6=None)))
    assert [f.item for f in failures] == ["route fd77::5/128"]
    assert router.ways("main") == [gateways(BOTH[0], 1), set()]


def test_what_cannot_be_turned_keeps_what_stands(router: Router) -> None:
    router.apply(routes(ANNOUNCE))
    assert len(router.apply(routes(ANNOUNCE, FAR))) == 2
    assert router.ways("main") == router.ways("hold") == via(1)
    assert len(router.apply(routes(HOLD, FAR))) == 2
    assert (router.ways("hold"), router.ways("main")) == (via(1), NOWHERE), "it can be withdrawn"
    assert router.audit() == [], "what could not be is no drift"
    router.lead(FAR_NETS, 3)
    wait_for(lambda: router.call(router.ways, "hold") == via(3), "tried again")


# -- the next hop -----------------------------------------------------------------------------


def test_the_next_hop_follows_the_locators_path(router: Router) -> None:
    """On a link, by a router, by two at once, back."""
    moved = replace(FAR, ipv4=NEAR.ipv4, ipv6=NEAR.ipv6)
    hosts = (f"{moved.ipv4}/32", f"{moved.ipv6}/128")
    router.apply(routes(ANNOUNCE, moved))
    assert router.ways("main") == via(1)
    for neighbours in ((2,), (2, 3), (3,)):
        router.lead(hosts, *neighbours)
        led_by(router, *neighbours)
        assert router.sight(routes(ANNOUNCE, moved))[0]
    router.unlead(hosts)
    led_by(router, 1)
    assert router.audit() == []


def test_a_path_that_ends_leaves_the_route_and_one_that_comes_turns_it(router: Router) -> None:
    router.lead(FAR_NETS, 2)
    router.apply(routes(ANNOUNCE, FAR))
    router.unlead(FAR_NETS)
    assert router.ways("main") == via(2)
    assert router.sight(routes(ANNOUNCE, FAR)) == (False, False)
    router.lead(FAR_NETS, 3)
    wait_for(lambda: router.ways("main") == via(3), "turned")


# -- the twin ---------------------------------------------------------------------------------


def test_before_start_is_an_error_that_says_so() -> None:
    with pytest.raises(DataPlaneError, match="start"):
        asyncio.run(FakeRouterPlane().apply([routes()]))


def test_the_twin_injects_failures_and_is_blind() -> None:
    async def tell() -> None:
        fake = FakeRouterPlane({ip_network("10.0.1.0/24"): [(1, None)]})
        fake.missing = "the kernel"
        with pytest.raises(EnvironmentProblem, match="kernel"):
            await fake.start()
        fake.missing = ""
        await fake.start()
        state = VmRoutes(VM, (ip_network(BOTH[0]),), NEAR, ANNOUNCE)
        fake.fail_next("route 10.77", vm=VM)
        assert [f.item for f in await fake.apply([state])] == ["route 10.77.0.5/32 in table 7701"]
        assert await fake.apply([state]) == []
        assert fake.state(VM) is ANNOUNCE
        assert fake.sights([state])[VM].direct
        fake.blind = True
        assert not fake.sights([state])[VM].direct

    asyncio.run(tell())
