"""BIRD and collectors in a lab's fabrics: TOML, plans, GoBGP's configuration and answers."""

from __future__ import annotations

import json
import tomllib
from ipaddress import IPv4Address, ip_address, ip_network
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.test_lab_frr_plans import named, small
from vmmobility.drivers.bird import check as bird
from vmmobility.drivers.bird.render import render as bird_conf
from vmmobility.drivers.frr.check import check as check_frr
from vmmobility.drivers.frr.check import missing_tools
from vmmobility.drivers.frr.plan import Neighbour
from vmmobility.drivers.frr.render import render
from vmmobility.errors import LabError
from vmmobility.lab import fabric as fabrics
from vmmobility.lab import scenario as scenarios
from vmmobility.lab.collected import collected
from vmmobility.lab.daemons import Daemons
from vmmobility.lab.frr_plans import router_plans
from vmmobility.lab.gobgp import Collectors, Heard, collector_toml
from vmmobility.lab.namespaces import Namespaces
from vmmobility.lab.routing import kernel_routes
from vmmobility.lab.step_types import Assertion

V4, V6 = ip_network("10.11.0.5"), ip_network("fd0b::5")


def test_birds_plan_is_the_one_that_frr_would_have():
    there = router_plans(named("two-dc-bird"), "bird")
    assert there == {"border-2": router_plans(named("two-dc"))["border-2"]}
    assert "border-2" not in router_plans(named("two-dc-bird"))


@pytest.mark.skipif(bird.missing_tools() != "", reason=f"{bird.missing_tools()}: run make setup")
def test_bird_accepts_what_the_built_in_fabrics_router_is_told():
    bird.check(bird_conf(router_plans(named("two-dc-bird"), "bird")["border-2"]))


def test_a_router_agent_runs_beside_bird(tmp_path):
    fabric = named("two-dc-bird-light")
    made = Daemons(fabric, Namespaces(fabric, "vml0000"), tmp_path)
    assert "border-2" in {node.name for node in made.agents}


def test_a_collector_has_a_link_to_each_of_its_peers_and_a_default_route():
    fabric = named("two-dc-collector")
    assert [link.name for link in fabric.links[-2:]] == [
        "border-1--collector",
        "border-2--collector",
    ]
    assert {str(r.next_hop) for r in kernel_routes(fabric)["collector"]} == {
        "10.0.19.1",
        "fd00:0:13::1",
    }


def test_border_routers_tell_a_collector_all_and_take_nothing():
    plans = router_plans(named("two-dc-collector"))
    collector = Neighbour(ip_address("10.0.20.2"), 65900, inside=True, listens_only=True)
    bgp = plans["border-2"].bgp
    assert bgp is not None
    assert collector in bgp.neighbours
    lines = [line.strip() for line in render(plans["border-2"]).splitlines()]
    assert "neighbor 10.0.20.2 route-map NOTHING in" in lines
    assert "neighbor 10.0.20.2 route-map INSIDE-OUT4 out" in lines
    assert "route-map NOTHING deny 10" in lines
    others = [n for n in bgp.neighbours if n.listens_only]
    assert len(others) == 2


@pytest.mark.skipif(missing_tools() != "", reason=f"{missing_tools()}: run make setup")
def test_frr_accepts_a_collectors_peer():
    check_frr(render(router_plans(named("two-dc-collector"))["border-1"]))


def test_gobgp_waits_for_its_peers_and_announces_nothing():
    fabric = named("two-dc-collector")
    text = collector_toml(fabric, fabric.node("collector"), IPv4Address("10.254.0.1"))
    config = tomllib.loads(text)
    assert config["global"]["apply-policy"]["config"]["default-export-policy"] == "reject-route"
    found = {n["config"]["neighbor-address"]: n for n in config["neighbors"]}
    assert list(found) == ["10.0.19.1", "fd00:0:13::1", "10.0.20.1", "fd00:0:14::1"]
    assert found["fd00:0:14::1"]["config"]["peer-as"] == 65002
    assert all(n["transport"]["config"]["passive-mode"] for n in found.values())
    (families,) = found["fd00:0:13::1"]["afi-safis"]
    assert families["config"]["afi-safi-name"] == "ipv6-unicast"


ANSWER = {
    "10.11.0.5/32": [
        {
            "attrs": [
                {"type": 1, "value": 0},
                {"type": 2, "as_paths": [{"segment_type": 2, "num": 1, "asns": [65001]}]},
                {"type": 3, "nexthop": "10.0.19.1"},
                {"type": 8, "communities": [65000 << 16 | 777]},
            ],
            "neighbor-ip": "10.0.19.1",
        }
    ],
    "10.0.1.0/24": [
        {
            "attrs": [{"type": 1, "value": 2}, {"type": 2, "as_paths": []}],
            "neighbor-ip": "10.0.20.1",
        }
    ],
}


def test_gobgps_answer_is_read(monkeypatch, tmp_path):
    fabric = named("two-dc-collector")
    made = Collectors(fabric, Namespaces(fabric, "vml0000"), tmp_path)
    answers = {"ipv4": ANSWER, "ipv6": {}}

    def run(command, **_):
        return SimpleNamespace(returncode=0, stdout=json.dumps(answers[command[-1]]), stderr="")

    monkeypatch.setattr("vmmobility.lab.gobgp.subprocess.run", run)
    assert made.heard("collector") == [
        Heard(V4, ip_address("10.0.19.1"), "IGP", (65001,), ("65000:777",)),
        Heard(ip_network("10.0.1.0/24"), ip_address("10.0.20.1"), "INCOMPLETE", (), ()),
    ]


def heard(prefix, origin="IGP", communities=("65000:777",)):
    return Heard(prefix, ip_address("10.0.19.1"), origin, (65001,), communities)


BOTH = [heard(V4), heard(V6)]
JUDGED = [
    ("away", BOTH, ""),
    ("home", [], ""),
    ("home", [heard(ip_network("10.11.0.0/24"))], ""),
    ("away", BOTH[:1], "collector has no route to fd0b::5"),
    ("home", BOTH[:1], "collector has a route by 10.0.19.1 to 10.11.0.5"),
    ("away", [heard(V4, origin="INCOMPLETE"), heard(V6)], "ORIGIN INCOMPLETE"),
    ("away", [heard(V4), heard(V6, communities=())], "communities []"),
]


@pytest.mark.parametrize(("state", "paths", "seen"), JUDGED)
def test_what_a_collector_has_heard_is_judged(state, paths, seen):
    collectors = SimpleNamespace(names=("collector",), heard=lambda name: paths)
    lab = SimpleNamespace(collectors=collectors, addresses=lambda vm: ["10.11.0.5", "fd0b::5"])
    run: Any = SimpleNamespace(lab=lab)
    found = collected(run, Assertion("collected", 0, "vm1", state=state))
    assert seen in found if seen else found == ""


STEP = """
fabric = "two-dc-collector-light"

[[step]]
do = "wait"
until = "collected"
vm = "vm1"
state = "away"
"""


def test_the_assertion_is_read_from_toml(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(STEP)
    (read,) = scenarios.load_scenario(path).steps
    assert read == Assertion("collected", 30.0, "vm1", state="away")
    path.write_text(STEP.replace("away", "lost"))
    with pytest.raises(LabError) as caught:
        scenarios.load_scenario(path)
    assert "away, home" in caught.value.remedy


@pytest.mark.parametrize("name", ["inter-dc-bird-light", "inter-dc-collector-light"])
def test_the_built_in_scenarios_are_read(name):
    assert len(list(scenarios.load_scenario(scenarios.find(name)).moves())) >= 2


BIRD = {"frr": False, "software": "bird"}
BORDER = {"role": "border", "dc": "d", "asn": 5}
EAR = {"name": "ear", "asn": 6, "peers": ["r1"]}
WRONG = [
    (small({"software": "bird"}, {}), "both `frr` and bird"),
    (small({**BIRD, "role": "default", "dc": "d"}, {"dc": "d"}), "no border router and runs BIRD"),
    (small({**BIRD, **BORDER}, {"dc": "d"}, igp="isis"), "speaks no IS-IS"),
    (small({"software": "quagga"}, {}), "`software` is 'quagga'"),
    (small({}, {}, collector=[EAR]), "ear is to hear r1"),
    (small(BORDER, {"dc": "d"}, collector=[{**EAR, "asn": 0}]), "ear is a collector without asn"),
    (small(BORDER, {"dc": "d"}, collector=[{**EAR, "peers": ["r9"]}]), "nodes are ['r9', 'ear']"),
    (small({"frr": False}, {"frr": False}, collector=[EAR]), "has nobody to hear"),
]


@pytest.mark.parametrize(("data", "message"), WRONG)
def test_mistakes_name_the_place_and_have_a_remedy(data, message):
    with pytest.raises(LabError) as caught:
        fabrics.parse_fabric(data, "f.toml")
    assert message in str(caught.value)
    assert caught.value.remedy
