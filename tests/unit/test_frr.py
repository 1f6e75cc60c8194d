"""FRR's configuration: goldens that FRR itself accepts, and the refusals of its check.

REWRITE_GOLDENS=1 writes the goldens anew.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.frr_plans import BORDER, INTERNET, PLANS, TOR
from vmmobility.drivers.frr import check as checks
from vmmobility.drivers.frr.plan import daemons
from vmmobility.drivers.frr.render import render
from vmmobility.errors import ConfigError, EnvironmentProblem

GOLDENS = Path(__file__).with_name("frr_goldens")

needs_frr = pytest.mark.skipif(
    checks.missing_tools() != "", reason=f"{checks.missing_tools()}: run make setup"
)


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_becomes_its_golden(name):
    golden, text = GOLDENS / f"{name}.conf", render(PLANS[name])
    if os.environ.get("REWRITE_GOLDENS"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


@needs_frr
@pytest.mark.parametrize("name", PLANS)
def test_frr_itself_accepts_the_golden(name):
    checks.check((GOLDENS / f"{name}.conf").read_text(), name)


@needs_frr
def test_a_refusal_names_the_line_and_has_frrs_words():
    text = render(TOR).replace("timers throttle spf 0 10 100", "timers throttle spf soon")
    with pytest.raises(ConfigError) as caught:
        checks.check(text, "tor-1.conf")
    assert "`timers throttle spf soon`: FRR says % Unknown command" in caught.value.message
    assert caught.value.message.startswith("tor-1.conf: line ")


def test_without_frr_the_remedy_is_to_install_it(monkeypatch):
    monkeypatch.setattr(checks, "VTYSH", "no-such-program")
    with pytest.raises(EnvironmentProblem) as caught:
        checks.check(render(TOR))
    assert "apt install frr" in caught.value.remedy


def test_only_the_daemons_that_are_needed_run():
    assert daemons(TOR) == ("zebra", "staticd", "ospfd", "ospf6d")
    assert daemons(replace(BORDER, igp="isis")) == ("zebra", "staticd", "isisd", "bgpd")
    assert daemons(INTERNET) == ("zebra", "staticd", "bgpd")


def test_every_neighbour_has_a_policy_in_and_out():
    for plan in PLANS.values():
        for neighbour in plan.bgp.neighbours if plan.bgp else ():
            words = f"neighbor {neighbour.address} route-map"
            lines = [line for line in render(plan).splitlines() if words in line]
            assert [line.split()[-1] for line in lines] == ["in", "out"]


def test_every_route_map_and_list_that_is_named_is_there():
    for plan in PLANS.values():
        lines = [line.strip() for line in render(plan).splitlines()]
        maps = {line.split()[1] for line in lines if line.startswith("route-map ")}
        used = {line.split("route-map ")[1].split()[0] for line in lines if " route-map " in line}
        assert used <= maps
        lists = {line.split()[2] for line in lines if line.startswith(("ip prefix", "ipv6 prefix"))}
        assert {line.split()[-1] for line in lines if "address prefix-list" in line} <= lists


def test_outside_neighbours_get_no_host_route():
    text = render(BORDER)
    for family in ("4", "6"):
        blocks = text.split("exit\n")
        (entry,) = [block for block in blocks if f"route-map OUTSIDE-OUT{family} permit" in block]
        assert f"prefix-list COVERING{family}" in entry
    assert "prefix-list COVERING4 seq 5 permit 10.1.0.0/24\n" in text  # exact: no ge


def test_a_router_needs_prefixes_of_both_families_for_host_routes():
    with pytest.raises(ConfigError, match="no IPv6 prefix"):
        replace(TOR, vm_prefixes=tuple(p for p in TOR.vm_prefixes if p.version == 4))
