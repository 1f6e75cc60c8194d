"""BIRD's configuration: a golden that BIRD itself accepts, and the refusals of its check.

REWRITE_GOLDENS=1 writes the golden anew.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.unit.frr_plans import BORDER, INTERNET, TOR
from vmmobility.drivers.bird import check as checks
from vmmobility.drivers.bird.render import render
from vmmobility.drivers.frr.plan import Neighbour
from vmmobility.errors import ConfigError, EnvironmentProblem

GOLDEN = Path(__file__).with_name("bird_goldens") / "border.conf"

needs_bird = pytest.mark.skipif(
    checks.missing_tools() != "", reason=f"{checks.missing_tools()}: run make setup"
)
COLLECTOR = Neighbour(ip_address("10.0.12.2"), 65900, inside=True, listens_only=True)


def with_neighbour(neighbour):
    assert BORDER.bgp is not None
    return replace(BORDER, bgp=replace(BORDER.bgp, neighbours=(neighbour,)))


def test_a_border_routers_plan_becomes_its_golden():
    text = render(BORDER)
    if os.environ.get("REWRITE_GOLDENS"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


@needs_bird
@pytest.mark.parametrize(
    "plan", [BORDER, replace(BORDER, static=TOR.static), replace(BORDER, covering=())]
)
def test_bird_itself_accepts_it(plan):
    checks.check(render(plan))


@needs_bird
def test_a_refusal_names_the_line_and_has_birds_words():
    with pytest.raises(ConfigError) as caught:
        checks.check(render(BORDER).replace("tick 1;", "tick soon;", 1), "border-1's bird.conf")
    assert caught.value.message.startswith("border-1's bird.conf: line ")
    assert "`tick soon;`: BIRD says " in caught.value.message


def test_without_bird_the_remedy_is_to_install_it(monkeypatch):
    monkeypatch.setattr(checks, "BIRD", "no-such-program")
    with pytest.raises(EnvironmentProblem) as caught:
        checks.check("")
    assert "apt install bird2" in caught.value.remedy


@pytest.mark.parametrize("plan", [TOR, INTERNET, replace(BORDER, igp="isis")])
def test_only_border_routers_with_ospf_run_bird(plan):
    with pytest.raises(ConfigError, match="border routers with OSPF alone"):
        render(plan)


def test_every_filter_and_function_that_is_named_is_there():
    text = render(BORDER)
    made = set(re.findall(r"^(?:filter|function) (\w+)", text, re.MULTILINE))
    assert set(re.findall(r"(?:import|export) filter (\w+)", text)) <= made
    assert set(re.findall(r"(\w+)\(\)", text)) <= made


def test_of_a_collector_nothing_is_taken():
    text = render(with_neighbour(COLLECTOR))
    assert "    import none;\n    export filter inside_out4;" in text


def test_the_internet_is_told_no_host_routes():
    text = render(BORDER)
    body = text[text.index("filter outside_out4 {") : text.index("function vm6()")]
    assert "vm4()" not in body
