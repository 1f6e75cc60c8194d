"""One contract for every RouterPlane: the in-memory twin and the Linux driver in a namespace."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
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
    HOMES,
    NEAR,
    NONE,
    OTHER,
    VM,
    Router,
    fake_router,
    gateways,
    linux_router,
    routes,
)
from vmmobility.drivers.dataplane import Drift
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


@pytest.fixture(params=["fake", pytest.param("linux", marks=pytest.mark.netns)])
def router(request: pytest.FixtureRequest) -> Iterator[Router]:
    """Each router plane in turn, started and empty."""
    for one in fake_router() if request.param == "fake" else linux_router():
        one.start()
        assert one.resync() == []
        yield one


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


# -- sights -----------------------------------------------------------------------------------

CASES = {
    "no route": ((), (), (), (False, False)),
    "no route to the locator": ((), (2,), (2,), (False, False)),
    "home": ((2,), (2,), (), (True, True)),
    "another's home": ((2,), (3,), (), (False, False)),
    "host route here, home elsewhere": ((2,), (3,), (2,), (True, False)),
    "host route elsewhere, home here": ((2,), (2,), (3,), (False, True)),
    "host route and home here": ((2,), (2,), (2,), (True, True)),
    "host route only": ((2,), (), (2,), (True, False)),
    "two ways, both": ((2, 3), (2, 3), (), (True, True)),
    "two ways, one": ((2, 3), (2,), (), (False, False)),
    "one way, two": ((2,), (2, 3), (3, 2), (False, False)),
    "host route by two ways": ((2, 3), (), (3, 2), (True, False)),
}


@pytest.mark.parametrize("case", CASES)
def test_direct_and_covered(router: Router, case: str) -> None:
    locators, homes, hosts, expected = CASES[case]
    for prefixes, neighbours in ((FAR_NETS, locators), (HOMES, homes), (BOTH, hosts)):
        if neighbours:
            router.lead(prefixes, *neighbours)
    assert router.sight(routes(NONE, FAR)) == (False, False), "no NVE is named"
    assert router.sight(routes(HOLD, FAR)) == expected
    one = {4: routes(HOLD, replace(FAR, ipv6=None)), 6: routes(HOLD, replace(FAR, ipv4=None))}
    for state in one.values():
        assert router.sight(state) == (False, False), "a family without a locator"
    for place in (0, 1):
        state = routes(HOLD, FAR)
        alone = VmRoutes(VM, (state.prefixes[place],), FAR, HOLD)
        assert router.sight(alone) == expected, "each family alone"


def test_one_family_that_leads_elsewhere_is_not_direct(router: Router) -> None:
    router.lead(FAR_NETS, 2)
    router.lead(HOMES, 2)
    router.lead(BOTH[1:], 3)
    assert router.sight(routes(HOLD, FAR)) == (False, True)


def test_what_is_on_the_link_itself_is_not_the_nve(router: Router) -> None:
    """A connected subnet leads to the VM's address by ARP, not to the locator."""
    beside = VmRoutes(VM, (ip_network("10.0.1.9/32"), ip_network("fd00:1::9/128")), NEAR, HOLD)
    assert router.sight(beside) == (False, False)
    assert router.apply(replace(beside, state=ANNOUNCE)) == []
    assert router.sight(beside) == (True, False)


def test_held_routes_do_not_count_and_announced_ones_do(router: Router) -> None:
    router.lead(HOMES, 2)
    router.apply(routes(HOLD))
    assert router.sight(routes(HOLD)) == (False, False)
    router.apply(routes(ANNOUNCE))
    assert router.sight(routes(ANNOUNCE)) == (True, False)
    router.apply(routes(HOLD))
    assert router.sight(routes(HOLD)) == (False, False)


def test_our_route_beside_anothers(router: Router) -> None:
    """Mid-chain: the IGP still has the host route to the last place."""
    router.lead(HOMES, 1)
    router.lead(BOTH, 3)
    assert router.sight(routes(HOLD)) == (False, True)
    router.apply(routes(ANNOUNCE))
    assert router.sight(routes(HOLD)) == (True, True)
    router.unlead(BOTH)
    assert router.ways("main") == via(1)
    router.apply(routes(NONE))
    assert router.sight(routes(HOLD)) == (True, True)


def test_a_withdrawn_host_route_leaves_the_home(router: Router) -> None:
    router.lead(FAR_NETS, 2)
    router.lead(HOMES, 3)
    router.lead(BOTH, 2)
    assert router.sight(routes(HOLD, FAR)) == (True, False)
    router.unlead(BOTH)
    assert router.sight(routes(HOLD, FAR)) == (False, False)
    router.lead(HOMES, 2)
    assert router.sight(routes(HOLD, FAR)) == (True, True)


def test_a_blackhole_is_an_end(router: Router) -> None:
    router.lead(FAR_NETS, 2)
    router.lead(("0.0.0.0/0", "::/0"), 2)
    assert router.sight(routes(HOLD, FAR)) == (True, True)
    router.lead(HOMES)
    assert router.sight(routes(HOLD, FAR)) == (False, False)


def test_changes_of_the_main_table_are_told(router: Router) -> None:
    told: list[int] = []
    router.call(router.plane.watch, lambda: told.append(1))

    def hears(act: object) -> None:
        assert callable(act)
        router.call(lambda: None)
        told.clear()
        act()
        wait_for(lambda: router.call(lambda: bool(told)), "told")

    hears(lambda: router.lead(HOMES, 2))
    hears(lambda: router.unlead(HOMES))
    hears(lambda: router.apply(routes(ANNOUNCE)))
    hears(lambda: router.apply(routes(HOLD)))


# -- audit, people ----------------------------------------------------------------------------


def items(found: object) -> set[tuple[object, str]]:
    assert isinstance(found, list)
    assert all(isinstance(drift, Drift) and drift.repaired for drift in found), found
    return {(drift.vm, drift.item) for drift in found}


@pytest.mark.parametrize("prefix", BOTH)
@pytest.mark.parametrize("table", ["main", "hold"])
@pytest.mark.parametrize("way", ["remove_ours", "misdirect_ours"])
def test_a_route_is_put_back(router: Router, prefix: str, table: str, way: str) -> None:
    router.apply(routes(ANNOUNCE), routes(ANNOUNCE, NEAR, OTHER, 6))
    getattr(router.hands, way)(prefix, table)
    name = f"route {prefix}" + (" in table 7701" if table == "hold" else "")
    found = router.audit()
    assert items(found) == {(VM, name)}
    assert "should lead to" in found[0].found
    assert (router.ways("main"), router.ways("hold")) == (via(1), via(1))
    assert router.audit() == []


def test_strays_and_surplus_are_removed(router: Router) -> None:
    router.apply(routes(HOLD))
    for prefix in (BOTH[0], "10.98.0.0/16", "fd98::/32"):
        router.hands.misdirect_ours(prefix, "main")
    assert items(router.audit()) == {
        (VM, f"route {BOTH[0]}"),
        (None, "route 10.98.0.0/16"),
        (None, "route fd98::/32"),
    }
    assert router.ways("main") == router.ways("main", ("10.98.0.0/16", "fd98::/32")) == NOWHERE
    assert router.audit() == []


def test_explain_shows_each_table_and_the_one_that_leads(router: Router) -> None:
    router.lead(HOMES, 2)
    for address in ("10.77.0.5", "fd77::5"):
        shown = {row["table"]: row for row in router.explain(address)}
        assert (shown[7701]["prefix"], shown[7701]["leads"]) == (None, False)
        assert shown[254]["leads"]
        assert not shown[254]["ours"]
    router.apply(routes(HOLD))
    for address, host, home in zip(("10.77.0.5", "fd77::5"), BOTH, HOMES, strict=True):
        shown = {row["table"]: row for row in router.explain(address)}
        first, second = shown[7701], shown[254]
        assert (first["priority"], first["prefix"], first["leads"]) == (78, host, True)
        assert (first["ours"], first["protocol"], first["metric"]) == (True, 77, 7)
        assert first["next_hops"] == [{"interface": "eth1", "gateway": gateways(host, 1).pop()}]
        assert (second["prefix"], second["leads"], second["protocol"]) == (home, False, 188)
        assert [row["leads"] for row in router.explain(address)].count(True) == 1
    (row,) = [row for row in router.explain("10.0.1.2") if row["leads"]]
    assert row["next_hops"] == [{"interface": "eth1", "gateway": None}]


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
