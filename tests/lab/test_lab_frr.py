"""FRR in the lab: fabrics converge, host routes travel as they must, nothing is left behind."""

from __future__ import annotations

import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from tests.lab.fib_watch import FibWatch
from tests.lab.lab_command import await_line, remains
from vmmobility.drivers.frr.check import missing_tools
from vmmobility.lab import fabric as fabrics
from vmmobility.lab import namespaces, teardown, workdir
from vmmobility.lab.bird import Bird
from vmmobility.lab.convergence import Convergence
from vmmobility.lab.faults import Faults, find_link
from vmmobility.lab.frr import Frr
from vmmobility.lab.inside import NETNS
from vmmobility.lab.namespaces import Namespaces
from vmmobility.lab.soundness import command_line, processes_in

pytestmark = [
    pytest.mark.netns,
    pytest.mark.lab,
    pytest.mark.skipif(missing_tools() != "", reason=f"{missing_tools()}: run make setup"),
]

FAMILIES = [4, 6]
AWAY = {4: "10.12.0.77", 6: "fd0c::77"}  # at home at nve-1b, here announced by tor-1a
SETTLED_S = 10.0
ROUNDS = 10


class Routers:
    """A fabric's namespaces with FRR (and BIRD) in them, and nothing else."""

    def __init__(self, name: str) -> None:
        self.fabric = fabrics.load_fabric(fabrics.find(name))
        self.info = workdir.create(name, name, owned=True)
        self.spaces = Namespaces(self.fabric, self.info.lab_id)
        self.frr = Frr(self.fabric, self.spaces, self.info.folder / "frr")
        self.bird = Bird(self.fabric, self.spaces, self.info.folder / "bird")
        self.converged = Convergence(self.fabric, self.spaces, self.frr, self.bird)

    def up(self) -> float:
        self.spaces.up()
        names = namespaces.existing(self.info.lab_id)
        inodes = {name: (NETNS / name).stat().st_ino for name in names}
        self.info = replace(self.info, namespaces=inodes)
        self.info.save()
        self.bird.start()
        self.frr.start()
        return self.converged.wait()

    def down(self) -> list[str]:
        self.frr.stop()
        self.bird.stop()
        return teardown.tear_down(self.info)

    def route(self, verb: str, router: str, address: str, by: str) -> None:
        """Add or delete a host route of a router agent, by a neighbour of the router."""
        version = ip_address(address).version
        link = next(x for x in self.fabric.links if x.end(router) and x.end(by))
        end = link.end(by)
        assert end is not None
        subprocess.run(["ip", "-n", self.spaces.name(router), "route", verb,
                        str(ip_network(address)), "via", str(end.address(version)),
                        "proto", "77", "metric", "7"], check=True)  # fmt: skip

    def watch(self) -> FibWatch:
        return FibWatch(map(self.spaces.name, [*self.frr.plans, *self.bird.plans]))

    def names(self, *routers: str) -> list[str]:
        return [self.spaces.name(router) for router in routers]


@contextmanager
def running(name: str, folder: Path) -> Iterator[Routers]:
    """A fabric that has converged; nothing of it is left afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        routers = Routers(name)
        try:
            print(f"{name}: converged after {routers.up():.1f} s")
            yield routers
        finally:
            left = routers.down()
        assert left == []


@pytest.fixture(scope="module")
def two_dc(tmp_path_factory) -> Iterator[Routers]:
    with running("two-dc", tmp_path_factory.mktemp("run")) as routers:
        yield routers


@pytest.fixture
def watch(two_dc) -> Iterator[FibWatch]:
    made = two_dc.watch()
    yield made
    made.close()


NEAR = ("tor-1b", "border-1")
FAR = ("border-2", "tor-2a", "tor-2b")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tors_host_route_reaches_every_router_of_the_operator_and_never_the_internet(
    two_dc, watch, family
):
    address = ip_address(AWAY[family])
    figures: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for verb in ("add", "del"):
            two_dc.route(verb, "tor-1a", AWAY[family], "nve-1a")
            begun = time.monotonic()
            for where, routers in (("in its data centre", NEAR), ("in the other", FAR)):
                at = watch.wait(two_dc.names(*routers), address, verb == "add", SETTLED_S)
                figures.setdefault((verb, where), []).append((at - begun) * 1000)
    for (verb, where), found in figures.items():
        p50, worst = statistics.median(found), max(found)
        print(f"IPv{family}, {verb}, last router {where}: p50 {p50:.0f} ms, max {worst:.0f} ms")
    assert (two_dc.spaces.name("internet"), address) not in watch.seen


@pytest.mark.parametrize("family", FAMILIES)
def test_a_border_routers_route_that_leads_in_is_told_to_the_other_data_centre_alone(
    two_dc, watch, family
):
    address = ip_address(AWAY[family])
    two_dc.route("add", "border-1", AWAY[family], "tor-1a")
    watch.wait(two_dc.names(*FAR), address, there=True, within_s=SETTLED_S)
    two_dc.route("del", "border-1", AWAY[family], "tor-1a")
    watch.wait(two_dc.names(*FAR), address, there=False, within_s=SETTLED_S)
    for router in ("tor-1a", "tor-1b", "internet"):
        assert (two_dc.spaces.name(router), address) not in watch.seen


@pytest.mark.parametrize("family", FAMILIES)
def test_a_border_routers_route_that_leads_out_is_told_to_its_own_data_centre_alone(
    two_dc, watch, family
):
    address = ip_address(AWAY[family])
    two_dc.route("add", "border-1", AWAY[family], "border-2")
    watch.wait(two_dc.names("tor-1a", "tor-1b"), address, there=True, within_s=SETTLED_S)
    two_dc.route("del", "border-1", AWAY[family], "border-2")
    watch.wait(two_dc.names("tor-1a", "tor-1b"), address, there=False, within_s=SETTLED_S)
    for router in (*FAR, "internet"):
        assert (two_dc.spaces.name(router), address) not in watch.seen


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_while_both_data_centres_announce_each_goes_by_its_own_and_then_by_the_one_that_stays(
    two_dc, watch, family
):
    address = ip_address(AWAY[family])
    two_dc.route("add", "tor-2a", AWAY[family], "nve-2a")
    watch.wait(two_dc.names("tor-2b", *NEAR), address, there=True, within_s=SETTLED_S)
    two_dc.route("add", "tor-1a", AWAY[family], "nve-1a")
    assert_hop(two_dc, "border-1", AWAY[family], "tor-1a")
    assert_hop(two_dc, "border-2", AWAY[family], "tor-2a")
    two_dc.route("del", "tor-2a", AWAY[family], "nve-2a")
    assert_hop(two_dc, "border-2", AWAY[family], "border-1")
    assert_hop(two_dc, "tor-2a", AWAY[family], "border-2")
    two_dc.route("del", "tor-1a", AWAY[family], "nve-1a")
    watch.wait(two_dc.names("tor-2b", *NEAR), address, there=False, within_s=SETTLED_S)


def assert_hop(routers: Routers, router: str, address: str, device: str) -> None:
    """Soon its kernel leads the address out of that interface."""
    command = ["ip", "-n", routers.spaces.name(router), "route", "get", address]
    deadline = time.monotonic() + SETTLED_S
    while time.monotonic() < deadline:
        seen = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if f" dev {device} " in seen:
            return
    raise AssertionError(f"{router} has not turned to {device}: {seen}")


def test_while_the_link_between_data_centres_is_cut_host_routes_go_and_the_rest_goes_round(
    two_dc, watch
):
    faults, address = Faults(two_dc.spaces), ip_address(AWAY[4])
    two_dc.route("add", "tor-2a", AWAY[4], "nve-2a")
    watch.wait(two_dc.names(*NEAR), address, there=True, within_s=SETTLED_S)
    link = find_link(two_dc.fabric, "border-1--border-2", "test")
    faults.drop(link, 1000)
    watch.wait(two_dc.names(*NEAR), address, there=False, within_s=SETTLED_S)
    assert_hop(two_dc, "border-1", "10.22.0.5", "internet")
    faults.heal(link)
    watch.wait(two_dc.names(*NEAR), address, there=True, within_s=SETTLED_S)
    assert_hop(two_dc, "border-1", "10.22.0.5", "border-2")
    assert (two_dc.spaces.name("internet"), address) not in watch.seen
    two_dc.route("del", "tor-2a", AWAY[4], "nve-2a")
    watch.wait(two_dc.names("tor-2b", *NEAR), address, there=False, within_s=SETTLED_S)


@pytest.mark.parametrize("daemon", ["ospfd", "zebra"])
def test_killed_daemons_are_revived_and_the_fabric_converges_again(two_dc, watch, daemon):
    two_dc.frr.kill("tor-1b", [daemon], signal.SIGKILL)
    assert daemon in two_dc.frr.revive("tor-1b")
    two_dc.converged.wait()
    two_dc.route("add", "tor-1a", AWAY[4], "nve-1a")
    address = ip_address(AWAY[4])
    watch.wait(two_dc.names(*NEAR, *FAR), address, there=True, within_s=SETTLED_S)
    two_dc.route("del", "tor-1a", AWAY[4], "nve-1a")
    watch.wait(two_dc.names(*NEAR, *FAR), address, there=False, within_s=SETTLED_S)


@pytest.mark.parametrize("name", ["three-dc", "isis-dc", "fat-tree-4"])
def test_a_fabric_converges_and_leaves_nothing(name, tmp_path):
    with running(name, tmp_path) as routers:
        hosts = routers.fabric.of_kind("correspondent")
        near, last = routers.spaces.name(hosts[0].name), hosts[-1].name
        for address in routers.fabric.first_end(last).addresses:
            command = ["ip", "netns", "exec", near, "ping", "-c1", "-W2", str(address.ip)]
            subprocess.run(command, check=True, capture_output=True)
    assert list(tmp_path.iterdir()) == []


def test_all_correspondents_reach_the_vm_and_nothing_is_left_after_down(lab):
    output = lab.call("up", "two-dc-light")
    assert "FRR has converged at 7 routers" in output
    for where in ("near", "side", "far", "outside"):
        for address in ("10.11.0.5", "fd0b::5"):
            seen = lab.call("exec", where, "--", "ping", "-c1", "-W2", address)
            assert " 0% packet loss" in seen
    lab.call("down")
    assert remains(lab) == []


SCENARIO = """
fabric = "two-dc-light"

[[step]]
do = "move"
vm = "vm1"
to = "nve-2a"

[[step]]
do = "wait"
seconds = 60
"""


def frr_processes(lab) -> list[int]:
    """FRR's, in the namespaces of the labs in this folder."""
    prefixes = tuple(path.name for path in lab.folder.glob("vmmobility-lab/vml*"))
    spaces = [path.name for path in NETNS.iterdir() if path.name.startswith(prefixes)]
    found = [pid for space in spaces for pid in processes_in(space)]
    return [pid for pid in found if "/usr/lib/frr/" in command_line(pid)]


@pytest.mark.parametrize("moment", ["FRR has converged", "namespaces, prefix"])
def test_the_next_run_sweeps_a_lab_with_frr_whose_owner_was_killed(lab, moment):
    (lab.out / "mine.toml").write_text(SCENARIO)
    process = lab.start("run", str(lab.out / "mine.toml"))
    await_line(process, moment)
    deadline = time.monotonic() + 20
    while not (pids := frr_processes(lab)):
        assert time.monotonic() < deadline
    process.kill()
    process.communicate(timeout=30)
    assert remains(lab)
    assert "swept the abandoned lab" in lab.call("run", "adjacent")
    assert remains(lab) == []
    assert not any("/usr/lib/frr/" in command_line(pid) for pid in pids)
