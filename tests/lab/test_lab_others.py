"""BIRD in a border router's place, GoBGP as a collector: host routes travel as among FRRs.

Not here: what tshark reads of it (test_lab_decoded.py).
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from tests.lab.fib_watch import FibWatch
from tests.lab.lab_command import Lab
from tests.lab.test_lab_frr import AWAY, FAMILIES, SETTLED_S, Routers, assert_hop, running
from vmmobility.drivers.bird import check as bird
from vmmobility.drivers.frr.check import missing_tools as missing_frr
from vmmobility.lab import gobgp

pytestmark = [
    pytest.mark.netns,
    pytest.mark.lab,
    pytest.mark.timeout(180),
    pytest.mark.skipif(missing_frr() != "", reason=f"{missing_frr()}: run make setup"),
]
needs_bird = pytest.mark.skipif(
    bird.missing_tools() != "", reason=f"{bird.missing_tools()}: run make setup"
)
needs_gobgp = pytest.mark.skipif(
    gobgp.missing_tools() != "", reason=f"{gobgp.missing_tools()}: run make setup"
)

HERE = ("tor-2b", "border-2")
FAR = ("border-1", "tor-1a", "tor-1b")


@pytest.fixture(scope="module")
def routers(tmp_path_factory) -> Iterator[Routers]:
    with running("two-dc-bird", tmp_path_factory.mktemp("run")) as made:
        yield made


@pytest.fixture
def watch(routers) -> Iterator[FibWatch]:
    made = routers.watch()
    yield made
    made.close()


@needs_bird
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tors_host_route_reaches_every_router_by_bird_and_never_the_internet(
    routers, watch, family
):
    address = ip_address(AWAY[family])
    for verb in ("add", "del"):
        routers.route(verb, "tor-2a", AWAY[family], "nve-2a")
        begun = time.monotonic()
        for names in (HERE, FAR):
            at = watch.wait(routers.names(*names), address, verb == "add", SETTLED_S)
            print(f"IPv{family}, {verb}, {', '.join(names)}: {(at - begun) * 1000:.0f} ms")
    assert (routers.spaces.name("internet"), address) not in watch.seen


@needs_bird
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("by", "told", "not_told"),
    [
        pytest.param("tor-2a", FAR, ("tor-2a", "tor-2b"), id="in: the other data centre"),
        pytest.param("border-1", ("tor-2a", "tor-2b"), FAR, id="out: its own"),
    ],
)
def test_a_route_of_the_agent_that_leads_in_or_out_is_told_to_one_data_centre_alone(
    routers, watch, by, told, not_told, family
):
    address = ip_address(AWAY[family])
    for verb in ("add", "del"):
        routers.route(verb, "border-2", AWAY[family], by)
        watch.wait(routers.names(*told), address, verb == "add", SETTLED_S)
    for router in (*not_told, "internet"):
        assert (routers.spaces.name(router), address) not in watch.seen


@needs_bird
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_while_both_data_centres_announce_each_goes_by_its_own_and_then_by_the_one_that_stays(
    routers, watch, family
):
    address = ip_address(AWAY[family])
    routers.route("add", "tor-1a", AWAY[family], "nve-1a")
    watch.wait(routers.names("tor-1b", "border-1", *HERE), address, True, SETTLED_S)
    routers.route("add", "tor-2a", AWAY[family], "nve-2a")
    assert_hop(routers, "border-1", AWAY[family], "tor-1a")
    assert_hop(routers, "border-2", AWAY[family], "tor-2a")
    routers.route("del", "tor-2a", AWAY[family], "nve-2a")
    assert_hop(routers, "border-2", AWAY[family], "border-1")
    assert_hop(routers, "tor-2a", AWAY[family], "border-2")
    routers.route("del", "tor-1a", AWAY[family], "nve-1a")
    watch.wait(routers.names("tor-1b", "border-1", *HERE), address, False, SETTLED_S)


@needs_bird
def test_birds_own_words_agree_with_the_kernel(routers):
    said = routers.bird.birdc("border-2", "show route 10.21.0.0/24")
    assert "via" in said
    assert set(routers.bird.sessions("border-2").values()) == {"Established"}
    shown = ["ip", "-n", routers.spaces.name("border-2"), "route", "show", "10.21.0.0/24"]
    kernel = subprocess.run(shown, capture_output=True, text=True, check=True).stdout
    assert "proto bird" in kernel


@needs_bird
def test_moves_to_bird_and_home_lose_nothing(lab: Lab) -> None:
    report = lab.run("inter-dc-bird-light")
    assert report["summary"]["lost"] == 0
    assert report["host_routes_left"] == []


@needs_gobgp
@pytest.mark.slow
def test_a_collector_hears_each_host_route_while_the_vm_is_away(lab: Lab) -> None:
    report = lab.run("inter-dc-collector-light")
    judged = [step for step in report["steps"] if step["assert"].startswith("collected")]
    assert len(judged) == 5
