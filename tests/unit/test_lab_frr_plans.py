"""Fabrics with FRR: what may stand in their TOML, each router's plan, the agents' configuration."""

from __future__ import annotations

import tomllib
from ipaddress import ip_address, ip_network

import pytest

from vmmobility.drivers.frr.check import check, missing_tools
from vmmobility.drivers.frr.plan import InterfacePlan, Neighbour
from vmmobility.drivers.frr.render import render
from vmmobility.errors import LabError
from vmmobility.lab import fabric as fabrics
from vmmobility.lab.daemons import Daemons
from vmmobility.lab.frr_plans import expected_prefixes, router_plans
from vmmobility.lab.namespaces import Namespaces
from vmmobility.lab.routing import kernel_routes

FRR_FABRICS = ["two-dc", "three-dc", "isis-dc", "fat-tree-4"]


def named(name):
    return fabrics.load_fabric(fabrics.find(name))


@pytest.fixture(scope="module")
def two_dc():
    return named("two-dc")


@pytest.fixture(scope="module")
def plans(two_dc):
    return router_plans(two_dc)


def test_a_tor_has_its_igp_its_nves_home_prefixes_and_no_bgp(plans):
    tor = plans["tor-1a"]
    by_name = {interface.name: interface for interface in tor.interfaces}
    assert by_name["tor-1b"] == InterfacePlan("tor-1b", "active")
    assert by_name["nve-1a"] == InterfacePlan("nve-1a", "passive")
    assert {(str(s.prefix), str(s.next_hop)) for s in tor.static} == {
        ("10.11.0.0/24", "10.0.1.2"),
        ("fd0b::/64", "fd00:0:1::2"),
    }
    assert tor.bgp is None
    assert ip_network("10.22.0.0/24") in tor.vm_prefixes  # any data centre's VM may come here


def test_border_routers_exchange_host_routes_with_each_other_and_not_with_the_internet(plans):
    bgp = plans["border-1"].bgp
    assert Neighbour(ip_address("10.0.11.2"), 65002, inside=True) in bgp.neighbours
    assert Neighbour(ip_address("fd00:0:c::1"), 65100, inside=False) in bgp.neighbours
    assert [i.name for i in plans["border-1"].uplinks()] == ["border-2", "internet"]
    assert ip_network("10.11.0.0/24") in plans["border-1"].covering
    assert ip_network("10.21.0.0/24") not in plans["border-1"].covering


def test_the_internet_has_no_igp_and_no_policy(plans):
    internet = plans["internet"]
    assert (internet.igp, internet.bgp.transit) == ("none", True)
    assert not any(neighbour.inside for neighbour in internet.bgp.neighbours)


def test_every_prefix_is_expected_everywhere(two_dc):
    expected = expected_prefixes(two_dc)
    assert {ip_network("fd15::/64"), ip_network("10.0.18.0/24")} <= expected
    assert len(expected) == 2 * (18 + 4)


def test_only_what_is_no_router_gets_a_route_of_the_labs_own(two_dc):
    routes = kernel_routes(two_dc)
    assert {str(route.prefix) for route in routes["nve-2b"]} == {"0.0.0.0/0", "::/0"}
    assert {str(route.next_hop) for route in routes["outside"]} == {"10.0.18.1", "fd00:0:12::1"}
    assert not any(node.startswith(("tor", "border")) for node in routes)


@pytest.mark.skipif(missing_tools() != "", reason=f"{missing_tools()}: run make setup")
@pytest.mark.parametrize("name", FRR_FABRICS)
def test_frr_accepts_what_every_built_in_fabrics_routers_are_told(name):
    kinds = {render(plan): router for router, plan in router_plans(named(name)).items()}
    assert len(kinds) == len(router_plans(named(name)))
    for text, router in list(kinds.items())[:: 1 if len(kinds) < 12 else 6]:
        check(text, router)


@pytest.mark.parametrize(("ports", "routers", "nves"), [(2, 5, 2), (4, 20, 8), (8, 80, 32)])
def test_a_fat_tree_of_any_size(ports, routers, nves):
    fabric = named(f"fat-tree-{ports}")
    assert fabric.name == f"fat-tree-{ports}"
    assert (len(fabric.of_kind("router")), len(fabric.of_kind("nve"))) == (routers, nves)
    for node in fabric.of_kind("router"):
        peers = sum(link.end(node.name) is not None for link in fabric.links)
        assert peers <= ports + 2 if node.name.startswith("edge") else peers == ports, node.name


@pytest.mark.parametrize("name", ["fat-tree-3", "fat-tree-0", "fat-tree-100", "fat-tree-x"])
def test_no_other_fat_tree(name):
    with pytest.raises(LabError, match="fat-tree-K"):
        fabrics.find(name)


def small(first, second, **changes):
    router = [{"name": "r1", "frr": True, **first}, {"name": "r2", "frr": True, **second}]
    links = [["r1", "nve"], ["r2", "manager"], ["r1", "r2"]]
    return {
        "router": router,
        "nve": [{"name": "nve", "prefixes": ["10.1.0.0/24", "fd01::/64"]}],
        "manager": [{"name": "manager"}],
        "link": [{"nodes": nodes} for nodes in links],
        **changes,
    }


WRONG = [
    (small({}, {"frr": False}), "r2 runs no FRR"),
    (small({"frr": False, "role": "default"}, {"frr": False}), "r1 has a role"),
    (small({"frr": False}, {"frr": False}, igp="isis"), "`igp` without FRR"),
    (small({"role": "default"}, {}), "r1 is a default router of no dc"),
    (small({"role": "border", "dc": "d"}, {"dc": "d"}), "r1 is a border router without asn"),
    (small({"role": "default", "dc": "d", "asn": 5}, {"dc": "d"}), "default router with an asn"),
    (small({"dc": "one"}, {"dc": "two"}), "neither one IGP nor BGP"),
    (small({"dc": "d", "asn": 5}, {"dc": "d", "asn": 6}), "neither one IGP nor BGP"),
    (small({"asn": -1}, {}), "asn -1"),
    (small({"dc": "D"}, {}), "dc 'D'"),
    (small({"role": "boss"}, {}), "`role` is 'boss'"),
    (small({}, {}, igp="rip"), "`igp` is 'rip'"),
    (small({}, {}, link=[{"nodes": ["nve", "manager"]}, {"nodes": ["r1", "r2"]}]), "has no router"),
    (small({"role": "border", "dc": "d", "asn": 5}, {"role": "border", "dc": "d", "asn": 5},
           igp="isis"), "with IS-IS"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), WRONG)
def test_mistakes_name_the_place_and_have_a_remedy(data, message):
    with pytest.raises(LabError) as caught:
        fabrics.parse_fabric(data, "f.toml")
    assert message in str(caught.value)
    assert caught.value.message.startswith("f.toml")
    assert caught.value.remedy


def configured(fabric, folder):
    made = Daemons(fabric, Namespaces(fabric, "vml0000"), folder)
    made.configure()
    return {
        node.name: tomllib.loads((made.home(node.name) / "config.toml").read_text())
        for node in made.nodes
    }, made


def test_agents_run_at_default_and_border_routers_and_the_manager_knows_whom_they_serve(
    two_dc, tmp_path
):
    found, made = configured(two_dc, tmp_path)
    tor = found["tor-1a"]["node"]
    assert tor["role"] == "default-router"
    assert tor["addresses"][:2] == ["10.0.1.1", "fd00:0:1::1"]
    assert len(tor["addresses"]) == 2 * 5
    assert found["border-2"]["node"]["role"] == "border-router"
    assert found["border-2"]["manager"][0]["id"] == "manager"
    assert (made.home("tor-1a") / "keys" / "manager--tor-1a.toml").exists()
    assert "internet" not in found
    peers = {peer["id"]: peer for peer in found["manager"]["peer"]}
    assert (peers["nve-2b"]["role"], peers["nve-2b"]["dc"]) == ("nve", "dc2")
    assert (peers["tor-2b"]["serves"], peers["tor-2b"]["dc"]) == (["nve-2b"], "dc2")
    assert (peers["border-1"]["role"], peers["border-1"]["serves"]) == ("border-router", [])
