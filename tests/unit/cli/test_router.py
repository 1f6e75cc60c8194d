"""`vmmob router …`, `vmmob show routers|routes` against fakes behind real sockets."""

from __future__ import annotations

import shutil

import pytest

from tests.unit.cli.command_line import Vmmob
from tests.unit.fake_services import FakeManager, FakeRouter

FRR = (
    "router", "frr-config", "--vm-prefix", "10.0.0.0/8", "--vm-prefix", "fd00::/8",
    "--interface", "eth0", "--interface", "eth1:passive", "--hostname", "tor",
)  # fmt: skip


def test_the_vms_that_a_router_leads(vmmob: Vmmob, router: FakeRouter):
    assert vmmob("router", "list", "--json").json == router.routes()
    out = vmmob("router", "list").out
    assert "announce" in out
    assert "direct" in out
    assert vmmob("router", "status", "--json").json["routes"] == {"announced": 1, "held": 0}


def test_why_a_router_leads_an_address_there(vmmob: Vmmob, router: FakeRouter):
    assert vmmob("router", "explain", "10.1.0.5", "--json").json == router.explain("10.1.0.5")
    assert "7701" in vmmob("router", "explain", "10.1.0.5").out
    ran = vmmob("router", "explain", "nonsense")
    assert ran.code == 1
    assert "remedy: write an IPv4 or IPv6 address" in ran.err


def test_a_router_that_differs_from_its_record(vmmob: Vmmob, router: FakeRouter):
    assert vmmob("router", "check").code == 0
    row = {"vni": 0, "vm": "vm1", "nve": "tor", "what": "kernel", "expected": "as wanted"}
    router.compared["drift"] = [{**row, "found": "route 10.1.0.5/32: gone", "repaired": True}]
    ran = vmmob("router", "check")
    assert ran.code == 1
    assert "route 10.1.0.5/32: gone" in ran.out


def test_no_router_there(vmmob: Vmmob, tmp_path):
    ran = vmmob("router", "list", "--socket", tmp_path / "none.sock")
    assert ran.code == 1
    assert "vmmob router run --config FILE" in ran.err


def test_what_the_manager_says_of_routers(vmmob: Vmmob, manager: FakeManager):
    assert vmmob("show", "routers", "--json").json == manager.routers()
    assert "tor-a" in vmmob("show", "routers").out
    assert vmmob("show", "routes", "--json").json == manager.routes()
    assert "elsewhere" in vmmob("show", "routes").out


# --- FRR's configuration ---


def test_frr_s_configuration_for_a_tor(vmmob: Vmmob):
    ran = vmmob(*FRR, "--home", "10.1.0.0/24=10.0.1.2")
    assert ran.code == 0
    for line in ("hostname tor", " redistribute kernel route-map HOST4", "router ospf6"):
        assert line in ran.out.splitlines()
    assert "router bgp" not in ran.out
    assert "router isis" in vmmob(*FRR, "--igp", "isis").out


@pytest.mark.skipif(shutil.which("vtysh") is None, reason="FRR is not installed")
def test_frr_s_own_tool_takes_it(vmmob: Vmmob):
    neighbours = ("--asn", 65001, "--neighbour", "10.9.0.2=65002", "--upstream", "fd00::1=65100")
    ran = vmmob(*FRR, *neighbours, "--covering", "10.1.0.0/16", "--check")
    assert (ran.code, ran.err) == (0, "")
    assert "router bgp 65001" in ran.out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--home", "10.1.0.0/24=fd00::1"), 2, "one family"),
        (("--interface", "eth0:sideways"), 2, "NAME:passive"),
        (("--neighbour", "10.9.0.2"), 2, "ADDRESS=ASN"),
        (("--neighbour", "10.9.0.2=65002"), 2, "need --asn"),
    ],
)
def test_wrong_usage_of_frr_config(vmmob: Vmmob, words: tuple[str, ...], code: int, said: str):
    ran = vmmob(*FRR, *words)
    assert ran.code == code
    assert said in ran.err


def test_a_family_without_a_prefix(vmmob: Vmmob):
    ran = vmmob("router", "frr-config", "--vm-prefix", "10.0.0.0/8", "--interface", "eth0")
    assert ran.code == 1
    assert "no IPv6 prefix for host routes" in ran.err
