"""What every RouterPlane sees of the fabric, finds in an audit, and explains."""

from __future__ import annotations

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
    gateways,
    routes,
)
from vmmobility.drivers.dataplane import Drift
from vmmobility.engine.fabric_routes import VmRoutes

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
