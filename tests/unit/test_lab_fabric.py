"""Fabrics: numbering, validation, static routes."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from vmmobility.errors import LabError
from vmmobility.lab import fabric as fabrics
from vmmobility.lab.faults import find_link
from vmmobility.lab.routing import static_routes


def small(**changes):
    data = {
        "router": [{"name": "r"}],
        "nve": [{"name": "nve-a", "prefixes": ["10.1.0.0/24", "fd01::/64"]}],
        "manager": [{"name": "manager"}],
        "correspondent": [{"name": "c"}],
        "link": [{"nodes": ["r", "nve-a"]}, {"nodes": ["r", "manager"]}, {"nodes": ["r", "c"]}],
        "vm": [
            {
                "name": "vm1",
                "kind": "netns",
                "home": "nve-a",
                "addresses": ["10.1.0.5", "fd01::5"],
            }
        ],
    }
    return {**data, **changes}


@pytest.mark.parametrize("name", sorted(fabrics.built_in()))
def test_every_built_in_fabric_is_right_and_described(name):
    fabric = fabrics.load_fabric(fabrics.built_in()[name])
    assert fabric.name == name
    assert fabric.description
    assert fabric.mtu == (1500 if name == "three-racks-narrow" else 1600)


def test_links_are_numbered_in_order():
    fabric = fabrics.parse_fabric(small(), "f")
    assert [str(a) for a in fabric.first_end("nve-a").addresses] == [
        "10.0.1.2/24",
        "fd00:0:1::2/64",
    ]
    assert [str(a) for a in fabric.first_end("c").addresses] == ["10.0.3.2/24", "fd00:0:3::2/64"]
    assert fabric.first_end("r").interface == "nve-a"
    assert fabric.vm("vm1").mac.startswith("02:")


def test_given_addresses_are_kept():
    link = {
        "nodes": ["r", "nve-a"],
        "name": "up",
        "prefixes": ["192.0.2.0/24", "2001:db8::/64"],
        "addresses": {"nve-a": ["192.0.2.77", "2001:db8::77"]},
    }
    links = [link, {"nodes": ["r", "manager"]}, {"nodes": ["r", "c"]}]
    fabric = fabrics.parse_fabric(small(link=links), "f")
    assert str(fabric.first_end("nve-a").address(4)) == "192.0.2.77"
    assert str(fabric.first_end("r").address(6)) == "2001:db8::1"
    assert find_link(fabric, "nve-a--r", "f").name == "up"


def test_routes_lead_home_prefixes_to_their_nve():
    fabric = fabrics.parse_fabric(small(), "f")
    routes = {route.prefix: route for route in static_routes(fabric)["c"]}
    assert routes[ip_network("10.1.0.0/24")].next_hop == ip_address("10.0.3.1")
    at_router = {route.prefix: route for route in static_routes(fabric)["r"]}
    assert at_router[ip_network("fd01::/64")].next_hop == ip_address("fd00:0:1::2")
    assert ip_network("10.1.0.0/24") not in {r.prefix for r in static_routes(fabric)["nve-a"]}


def test_only_routers_carry_what_is_not_theirs():
    nodes = small(
        nve=[{"name": "x"}, {"name": "y", "prefixes": ["10.1.0.0/24", "fd01::/64"]}],
        link=[
            {"nodes": ["c", "x"]},
            {"nodes": ["x", "y"]},
            {"nodes": ["r", "manager"]},
            {"nodes": ["r", "y"]},
        ],
        vm=[],
    )
    routes = static_routes(fabrics.parse_fabric(nodes, "f"))
    assert ip_network("10.1.0.0/24") not in {route.prefix for route in routes["c"]}
    assert ip_network("10.1.0.0/24") in {route.prefix for route in routes["x"]}


WRONG = [
    ({"routr": []}, "unknown key `routr`", "router"),
    ({"vm": [{"name": "vm1", "kind": "netns", "home": "r"}]}, "home 'r' is no NVE", "nve"),
    ({"link": [{"nodes": ["r", "nobody"]}]}, "nobody", "two or more"),
    ({"router": [{"name": "c"}]}, "", ""),
    ({"router": [{"name": "Rack 1"}]}, "name 'Rack 1'", "a-z"),
    ({"mtu": "big"}, "`mtu` is 'big'", "whole number"),
    ({"manager": [{"name": "manager"}, {"name": "m2"}]}, "m2 is on no link", "[[link]]"),
]


@pytest.mark.parametrize(("change", "message", "remedy"), WRONG)
def test_mistakes_name_the_place_and_the_remedy(change, message, remedy):
    with pytest.raises(LabError) as caught:
        fabrics.parse_fabric(small(**change), "f.toml")
    assert caught.value.message.startswith("f.toml")
    assert message in caught.value.message
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("vm", "message"),
    [
        ({"addresses": ["10.9.0.5", "fd01::5"]}, "10.9.0.5 is not in nve-a's prefixes"),
        ({"addresses": ["10.1.0.5"]}, "addresses"),
        ({"addresses": ["10.1.0.5/24", "fd01::5"]}, "10.1.0.5/24 has a prefix length"),
        ({"mac": "01:00:00:00:00:01"}, "mac"),
        ({"kind": "guest", "on_link": True}, "on_link of a guest"),
        ({"memory": 3}, "unknown key `memory`"),
    ],
)
def test_a_wrong_vm_is_refused(vm, message):
    right = {"name": "v", "kind": "netns", "home": "nve-a", "addresses": ["10.1.0.5", "fd01::5"]}
    with pytest.raises(LabError) as caught:
        fabrics.parse_fabric(small(vm=[{**right, **vm}]), "f.toml")
    assert message in caught.value.message


def test_overlapping_prefixes_are_refused():
    nves = [{"name": "nve-a", "prefixes": ["10.0.0.0/8", "fd01::/64"]}]
    with pytest.raises(LabError, match="overlap"):
        fabrics.parse_fabric(small(nve=nves, vm=[]), "f.toml")


def test_long_peer_names_give_distinct_interfaces():
    names = ["correspondent-in-a", "correspondent-in-b"]
    links = [{"nodes": ["r", name]} for name in [*names, "nve-a", "manager"]]
    data = small(correspondent=[{"name": name} for name in names], link=links)
    fabric = fabrics.parse_fabric(data, "f")
    interfaces = [end.interface for link in fabric.links for end in link.ends if end.node == "r"]
    assert len(set(interfaces)) == 4
    assert all(len(name) <= 15 for name in interfaces)


def test_a_fabric_can_be_like_another_with_some_keys_of_its_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('like = "three-racks-light"\ntimers = { lifetime_s = 8 }\nmtu = 1500\n')
    fabric = fabrics.load_fabric(path)
    assert (fabric.name, fabric.mtu, len(fabric.of_kind("nve"))) == ("mine", 1500, 3)
    assert dict(fabric.timers) == {"drain_s": 2.0, "lifetime_s": 8, "step_s": 15.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timers": {"lifetime": 4}}, "unknown key `lifetime`"),
        ({"timers": {"lifetime_s": 0}}, "`lifetime_s` is 0"),
        ({"like": "nowhere"}, "no fabric 'nowhere'"),
        ({"like": 3}, "`like` is 3"),
    ],
)
def test_wrong_timers_and_bases_are_refused(changes, message):
    with pytest.raises(LabError) as caught:
        fabrics.parse_fabric(small(**changes), "f.toml")
    assert message in caught.value.message


def test_settings_change_tunnel_and_redirect_of_every_nve():
    fabric = fabrics.load_fabric(fabrics.built_in()["three-racks-light"])
    assert (fabric.tunnel, {n.redirect for n in fabric.of_kind("nve")}) == ("auto", {"auto"})
    changed = fabrics.with_settings(fabric, {"tunnel": "kernel", "redirect": "tunnel"})
    assert changed.tunnel == "kernel"
    assert {n.redirect for n in changed.of_kind("nve")} == {"tunnel"}
    assert fabrics.with_settings(fabric, {}) == fabric
    patient = fabrics.with_settings(fabric, {"step_s": "60"})
    assert dict(patient.timers) == {**dict(fabric.timers), "step_s": 60.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"colour": "red"}, "no setting 'colour'"),
        ({"tunnel": "gre"}, "tunnel cannot be 'gre'"),
        ({"step_s": "0"}, "step_s cannot be '0'"),
        ({"step_s": "soon"}, "step_s cannot be 'soon'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(LabError, match=message) as caught:
        fabrics.with_settings(
            fabrics.load_fabric(fabrics.built_in()["three-racks-light"]), settings
        )
    assert caught.value.remedy


def test_a_vm_may_have_a_redirect_policy_of_its_own():
    fabric = fabrics.load_fabric(fabrics.built_in()["two-dc-redirects"])
    assert [vm.redirect for vm in fabric.vms] == ["", "host-route"]


BOX = {"name": "napt-1", "at": "r", "publics": ["192.0.2.0/28"]}


def boxed(**changes):
    nve = {"name": "nve-b", "prefixes": ["10.2.0.0/24", "fd02::/64"]}
    base = small()
    links = [*base["link"], {"nodes": ["s", "nve-b"]}, {"nodes": ["s", "r"]}]
    return {**base, "napt": [BOX], "router": [{"name": "r"}, {"name": "s"}], "nve":
            [*base["nve"], nve], "link": links, **changes}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"at": "nve-a"}, "napt-1 is at 'nve-a'"),
        ({"publics": []}, "publics"),
        ({"publics": ["2001:db8::/64"]}, "publics"),
        ({"publics": ["10.1.0.0/25"]}, "overlap"),
        ({"name": "r"}, "used twice"),
        ({"policy": "share"}, "policy"),
        ({"strange": 1}, "strange"),
    ],
)
def test_a_box_that_cannot_be_is_an_error(changes, words):
    with pytest.raises(LabError, match=words):
        fabrics.parse_fabric(small(napt=[{**BOX, **changes}]), "f")


def test_a_public_address_leads_to_a_box():
    vm = {**small()["vm"][0], "public": "192.0.2.99"}
    with pytest.raises(LabError, match="leads to no box"):
        fabrics.parse_fabric(small(napt=[BOX], vm=[vm]), "f")
    fabric = fabrics.parse_fabric(small(napt=[BOX], vm=[{**vm, "public": "192.0.2.9"}]), "f")
    assert fabric.vm("vm1").public == ip_address("192.0.2.9")


def test_outside_knows_public_prefixes_and_nothing_private():
    two = [BOX, {"name": "napt-2", "at": "s", "publics": ["203.0.113.0/28"]}]
    routes = static_routes(fabrics.parse_fabric(boxed(napt=two), "f"))
    by_node = {node: {str(route.prefix) for route in found} for node, found in routes.items()}
    assert {"192.0.2.0/28", "203.0.113.0/28", "fd02::/64"} <= by_node["nve-a"]
    assert "10.2.0.0/24" not in by_node["nve-a"] | by_node["r"]
    assert "10.2.0.0/24" in by_node["s"]
    assert "10.1.0.0/24" in by_node["r"]
    assert "192.0.2.0/28" in by_node["s"]
