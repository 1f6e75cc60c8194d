"""Times of routes from notifications, ways from look-ups, what a report says of them: no kernel."""

from __future__ import annotations

import pytest

from vmmobility.errors import LabError
from vmmobility.lab import fabric as fabrics
from vmmobility.lab import scenario as scenarios
from vmmobility.lab.namespaces import Namespaces
from vmmobility.lab.path_walk import PathWalker, read_routes
from vmmobility.lab.report_fabric import FabricReport, HostRoute, SettledPath
from vmmobility.lab.route_recorder import parse_line
from vmmobility.lab.route_times import route_times
from vmmobility.lab.step_types import Assertion, Carrier, KillFrr, StartFrr

DCS = {"tor-a": "dc1", "tor-b": "dc1", "far": "dc2"}
ADDRESSES = {"10.11.0.5": 4}


def change(at_ms, node, words):
    second, ms = divmod(at_ms, 1000)
    stamp = f"[2026-01-01T00:00:{second:02d}.{ms:03d}000]"
    found = parse_line(f"{stamp} {words}", node, ADDRESSES, {"up"})
    assert found is not None
    return found


def times(*changes, end_ms=50_000):
    begin = change(0, "tor-a", "10.11.0.5 dev up").at_ns
    return route_times(1, 3, "vm1", changes, begin, begin + end_ms * 1_000_000, DCS)


OURS = "10.11.0.5 via 10.0.1.2 dev up proto 77 metric 7"
THEIRS = "10.11.0.5 nhid 9 via 10.0.5.2 dev up proto ospf metric 20"


def test_an_announcement_is_timed_to_the_last_router_and_to_the_last_inside():
    found = times(
        change(100, "tor-a", OURS), change(120, "tor-b", THEIRS), change(250, "far", THEIRS)
    )
    assert found is not None
    assert (found.announced_ms, found.announced_inside_ms) == (150.0, 20.0)
    assert (found.withdrawn_ms, found.converged_ms, found.routers) == (None, 150.0, 2)


def test_a_withdrawal_is_timed_to_the_last_route_that_goes():
    found = times(
        change(100, "tor-a", "Deleted " + OURS), change(130, "tor-b", "Deleted " + THEIRS),
        change(290, "far", "Deleted " + THEIRS),
    )  # fmt: skip
    assert found is not None
    assert (found.withdrawn_ms, found.withdrawn_inside_ms) == (190.0, 30.0)
    assert found.announced_ms is None


def test_what_a_router_holds_for_itself_or_what_comes_much_later_does_not_count():
    held = "[2026-01-01T00:00:00.1] " + OURS.replace("proto", "table 7701 proto")
    assert parse_line(held, "tor-a", ADDRESSES, ()) is None
    found = times(
        change(100, "tor-a", OURS), change(120, "tor-b", THEIRS), change(9000, "far", THEIRS)
    )
    assert found is not None
    assert found.announced_ms == 20.0
    assert times(change(100, "tor-b", THEIRS)) is None


class Walker(PathWalker):
    """Look-ups from a table: (node, interface it came by) -> route."""

    def __init__(self, fabric, routes, targets):
        super().__init__(
            fabric, Namespaces(fabric, "vmltest"), lambda nve, vm: targets.get(nve, "")
        )
        self.routes = routes
        self.kernel_tunnels: set[str] = set()

    def _way_in(self, node, version):
        return f"vmmob-ip{version}" if node in self.kernel_tunnels else "vmmob-tun"

    def _look_up(self, node, packet, came_by):
        return self.routes.get((node, came_by), ({}, "Network is unreachable"))


def dev(device, gateway="192.0.2.1"):
    return {"dev": device, "gateway": gateway, "prefsrc": "192.0.2.9"}, ""


@pytest.fixture
def two_dcs():
    return fabrics.load_fabric(fabrics.find("two-dc-light"))


def test_a_way_ends_at_the_tap(two_dcs):
    walker = Walker(two_dcs, {
        ("near", ""): dev("tor-1a"), ("tor-1a", "near"): dev("tor-1b"),
        ("tor-1b", "tor-1a"): dev("nve-1b"), ("nve-1b", "tor-1b"): dev("vmt2437bba1b.0"),
    }, {})  # fmt: skip
    path = walker.walk("near", "vm1", 4)
    assert (path.hops, path.broken) == (("near", "tor-1a", "tor-1b", "nve-1b", "vm1"), "")


def test_a_tunnel_is_a_hop_with_a_name(two_dcs):
    walker = Walker(two_dcs, {
        ("near", ""): dev("tor-1a"), ("tor-1a", "near"): dev("nve-1a"),
        ("nve-1a", "tor-1a"): dev("vmmob-tun"), ("nve-2a", "vmmob-tun"): dev("vmt2437bba1b.0"),
    }, {"nve-1a": "nve-2a"})  # fmt: skip
    path = walker.walk("near", "vm1", 6)
    assert path.hops == ("near", "tor-1a", "nve-1a", "(tunnel)", "nve-2a", "vm1")
    walker.routes["nve-2a", "vmmob-tun"] = ({"type": "blackhole"}, "")
    assert walker.walk("near", "vm1", 6).broken == "nve-2a leads into a tunnel to nobody"


def test_a_tunnel_may_begin_and_end_in_different_devices(two_dcs):
    walker = Walker(two_dcs, {
        ("near", ""): dev("tor-1a"), ("tor-1a", "near"): dev("nve-1a"),
        ("nve-1a", "tor-1a"): dev("vmmob-tun"), ("nve-2a", "vmmob-ip6"): dev("vmt2437bba1b.0"),
    }, {"nve-1a": "nve-2a"})  # fmt: skip
    walker.kernel_tunnels = {"nve-2a"}
    path = walker.walk("near", "vm1", 6)
    assert path.hops == ("near", "tor-1a", "nve-1a", "(tunnel)", "nve-2a", "vm1")


def test_a_route_into_a_kernel_tunnel_keeps_its_own_destination():
    printed = (
        '[{"dst":"10.77.0.5","encap":"ip","id":0,"src":"10.0.1.1","dst":"10.0.2.2","ttl":64,'
        '"dev":"vmmob-ip4","table":"7700","flags":[]}]'
    )
    (route,) = read_routes(printed)
    assert (route["dst"], route["dev"], route["table"]) == ("10.77.0.5", "vmmob-ip4", "7700")
    assert read_routes("") == []


def test_loops_and_dead_ends_are_named(two_dcs):
    walker = Walker(two_dcs, {
        ("near", ""): dev("tor-1a"), ("tor-1a", "near"): dev("tor-1b"),
        ("tor-1b", "tor-1a"): dev("tor-1a"), ("tor-1a", "tor-1b"): dev("tor-1b"),
    }, {})  # fmt: skip
    assert walker.walk("near", "vm1", 4).broken == "loop at tor-1b"
    del walker.routes["tor-1a", "tor-1b"]
    path = walker.walk("near", "vm1", 4)
    assert path.hops[-1] == "(no route at tor-1a: Network is unreachable)"
    walker.routes["tor-1a", "tor-1b"] = dev("gone")
    assert "nobody has" in walker.walk("near", "vm1", 4).broken


def test_a_report_says_how_the_fabric_followed():
    paths = (
        SettledPath(1, 1, "near", "vm1", "ipv4", ("near", "tor-1b", "nve-1b", "vm1"), (), True),
        SettledPath(1, 1, "far", "vm1", "ipv4", ("far", "nve-1a", "(tunnel)"), ("nve-1a",), False),
    )
    found = times(change(100, "tor-a", OURS), change(120, "tor-b", THEIRS))
    assert found is not None
    left = HostRoute(1, "tor-1b", "vm1", "ipv4", "main", "ospf")
    report = FabricReport(paths) + FabricReport(routes=(found,), left=(left,))
    data = report.as_json()
    assert [len(data[key]) for key in ("settled_path", "routes", "host_routes_left")] == [2, 1, 1]
    summary = report.summary()
    assert (summary["settled_direct"], summary["host_routes_left"]) == (1, 1)
    assert summary["announced_ms"] == {"median": 20.0, "max": 20.0}
    text = "\n".join(report.lines())
    assert "announced p50 20.0 ms" in text
    assert "not direct: far > nve-1a > (tunnel) (ipv4)" in text
    assert FabricReport().lines() == []


STEPS = """
fabric = "two-dc-light"
[[step]]
do = "kill-frr"
node = "tor-2a"
daemons = ["zebra"]
[[step]]
do = "start-frr"
node = "tor-2a"
[[step]]
do = "link-down"
link = "border-2--border-1"
[[step]]
do = "assert"
what = "routes-at-most"
node = "internet"
max = 0
[[step]]
do = "assert"
what = "drained"
vm = "vm1"
node = "nve-1a"
"""


def read(tmp_path, text):
    (tmp_path / "s.toml").write_text(text)
    return scenarios.load_scenario(tmp_path / "s.toml")


def test_the_fabrics_steps_are_read(tmp_path):
    kill, start, down, most, drained = read(tmp_path, STEPS).steps
    assert isinstance(kill, KillFrr)
    assert (kill.node, kill.daemons, kill.signal.name) == ("tor-2a", ("zebra",), "SIGKILL")
    assert start == StartFrr("tor-2a")
    assert down == Carrier("border-1--border-2", up=False)
    assert isinstance(most, Assertion)
    assert (most.node, most.maximum) == ("internet", 0)
    assert isinstance(drained, Assertion)
    assert (drained.node, drained.within_s) == ("nve-1a", 30.0)


@pytest.mark.parametrize(("old", "new", "words"), [
    ('"zebra"', '"isisd"', "`daemons` is 'isisd'"),
    ('daemons = ["zebra"]', 'signal = "NONE"', "signal 'NONE'"),
    ('"tor-2a"', '"nve-2a"', "`node` is 'nve-2a'"),
    ("border-2--border-1", "nowhere", "no link 'nowhere'"),
])  # fmt: skip
def test_what_cannot_be_is_refused(tmp_path, old, new, words):
    with pytest.raises(LabError, match=words):
        read(tmp_path, STEPS.replace(old, new))
