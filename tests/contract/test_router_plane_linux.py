"""What only a kernel has: links, other daemons' routes, next hop objects, rights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
    Kernel,
    gateways,
    routes,
)
from vmmobility.drivers.linux import router_environment, rtnetlink, sysctl
from vmmobility.drivers.linux.netlink import Netlink, Refusal, Request, number, parse_attributes
from vmmobility.drivers.linux.router_driver import LinuxRouterPlane
from vmmobility.errors import EnvironmentProblem

pytestmark = pytest.mark.netns


# -- environment ------------------------------------------------------------------------------


def test_start_makes_a_router_of_it(kernel: Kernel) -> None:
    for key in router_environment.SETTINGS:
        assert kernel.call(sysctl.read, key) == "1"
    for family in ("-4", "-6"):
        (rule,) = [line for line in kernel.ip(family, "rule").splitlines() if "7701" in line]
        assert rule.split() == ["78:", "from", "all", "lookup", "7701", "proto", "77"]
    kernel.close()
    before = kernel.hands.writes()
    kernel.start()
    assert kernel.hands.writes() == before


def test_a_missing_capability_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t0000000000000000\n")
    monkeypatch.setattr(router_environment, "_STATUS", status)
    with pytest.raises(EnvironmentProblem, match="CAP_NET_ADMIN") as raised:
        router_environment.check_rights()
    assert "AmbientCapabilities" in raised.value.remedy


def test_forwarding_that_cannot_be_set_is_named(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(key: str, value: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    kernel.close()
    kernel.hands.space.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    monkeypatch.setattr(sysctl, "write", refuse)
    with pytest.raises(EnvironmentProblem, match=r"net\.ipv4\.ip_forward"):
        kernel.start()


def test_settings_and_rules_that_hands_changed_are_drift(kernel: Kernel) -> None:
    kernel.apply(routes(ANNOUNCE))
    kernel.ip("-6", "rule", "del", "priority", "78")
    kernel.ip("-4", "rule", "add", "table", "7701", "priority", "90", "protocol", "77")
    kernel.hands.space.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0")
    found = kernel.audit()
    assert {drift.kind for drift in found} == {"rule", "sysctl"}
    assert len(found) == 3
    assert all(drift.vm is None and drift.repaired for drift in found)
    assert kernel.audit() == []


# -- one batch, in order ----------------------------------------------------------------------


def test_one_batch_an_apply_and_no_hole_in_it(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[tuple[int, int]]] = []
    real = Netlink.batch

    def seen(netlink: Netlink, requests: Sequence[Request]) -> list[Refusal | None]:
        tables = [number(parse_attributes(r.body[12:])[15]) for r in requests]
        batches.append([(r.kind, t) for r, t in zip(requests, tables, strict=True)])
        return real(netlink, requests)

    monkeypatch.setattr(Netlink, "batch", seen)
    new, old = rtnetlink.RTM_NEWROUTE, rtnetlink.RTM_DELROUTE
    kernel.apply(routes(ANNOUNCE))
    assert batches.pop() == [(new, 7701)] * 2 + [(new, 254)] * 2
    kernel.apply(routes(NONE), routes(ANNOUNCE, NEAR, OTHER, 6))
    added = [(new, 7701)] * 2 + [(new, 254)] * 2
    assert batches.pop() == [*added, *[(old, 254)] * 2, *[(old, 7701)] * 2]
    assert batches == []


# -- strangers --------------------------------------------------------------------------------


def test_strangers_are_left_alone(kernel: Kernel) -> None:
    strange: list[list[str]] = []
    for family, prefix in zip(("-4", "-6"), BOTH, strict=True):
        (way,) = gateways(prefix, 2)
        for words in (["proto", "188", "metric", "20"], ["proto", "77", "table", "7700"],
                      ["proto", "4", "metric", "30", "table", "7701"]):  # fmt: skip
            strange.append([family, "route", "add", prefix, "via", way, *words])
        strange.append([family, "rule", "add", "table", "7700", "priority", "77", "protocol", "77"])
    for command in strange:
        kernel.ip(*command)

    def others() -> list[str]:
        shown = [kernel.ip(f, "route", "show", "table", "all") for f in ("-4", "-6")]
        shown += [kernel.ip(f, "rule") for f in ("-4", "-6")]
        return [line for text in shown for line in text.splitlines() if "metric 7 " not in line]

    before = others()
    kernel.apply(routes(ANNOUNCE))
    assert kernel.ways("main") == kernel.via(1)
    assert kernel.audit() == []
    kernel.resync()
    assert kernel.ways("main") == [set(), set()]
    assert others() == before
    kernel.remove_all()
    assert others() == [line for line in before if "7701 proto 77" not in line]


def test_anothers_route_of_our_metric_is_not_replaced(kernel: Kernel) -> None:
    kernel.ip("route", "add", BOTH[0], "via", "10.0.3.2", "metric", "7", "proto", "4")
    (failure,) = kernel.apply(routes(ANNOUNCE))
    assert failure.item == f"route {BOTH[0]}"
    assert "another's route of metric 7" in failure.reason
    assert "via 10.0.3.2" in kernel.ip("route", "show", BOTH[0])
    assert (kernel.ways("main")[1], kernel.ways("hold")) == ({"fd00:1::2"}, kernel.via(1))
    kernel.ip("route", "del", BOTH[0], "metric", "7")
    wait_for(lambda: kernel.ways("main") == kernel.via(1), "made once it can be")


def test_a_second_route_of_one_name_is_removed(kernel: Kernel) -> None:
    kernel.apply(routes(ANNOUNCE))
    for prefix, verb in ((BOTH[0], "prepend"), (BOTH[0], "append"), (BOTH[1], "append")):
        neighbour = 2 if verb == "prepend" else 3
        kernel.hands._ours(verb, prefix, "main", "via", *gateways(prefix, neighbour))
        assert kernel.hands.ours(prefix, "main") >= gateways(prefix, 1, neighbour)
    kernel.ip("route", "add", BOTH[0], "via", "10.0.2.2", "proto", "77", "metric", "5")
    assert {drift.item for drift in kernel.audit()} == {f"route {prefix}" for prefix in BOTH}
    assert kernel.ways("main") == kernel.via(1)
    assert kernel.audit() == []


def test_another_process_takes_over_what_one_left(kernel: Kernel) -> None:
    kernel.lead(FAR_NETS, 2, 3)
    kernel.apply(routes(ANNOUNCE, FAR), routes(ANNOUNCE, NEAR, OTHER, 6))
    kernel.close()
    next_one = kernel.call(LinuxRouterPlane)
    kernel.await_(next_one.start())
    before = kernel.hands.writes()
    both = {VM: routes(ANNOUNCE, FAR), OTHER: routes(ANNOUNCE, NEAR, OTHER, 6)}
    assert kernel.await_(next_one.resync(both)) == []
    assert kernel.hands.writes() == before
    assert kernel.await_(next_one.resync({OTHER: routes(HOLD, NEAR, OTHER, 6)})) == []
    shown = [route for version in (4, 6) for route in kernel.hands.all_ours(version)]
    assert [(r["dst"], r.get("table")) for r in shown] == [
        ("10.77.0.6", "7701"),
        ("fd77::6", "7701"),
    ]
    kernel.await_(next_one.close())


def test_what_cannot_be_turned_later_is_told_once(kernel: Kernel) -> None:
    told: list[str] = []
    kernel.driver._on_failure = told.append
    kernel.lead(FAR_NETS, 2)
    kernel.apply(routes(ANNOUNCE, FAR))
    kernel.unlead(FAR_NETS)
    kernel.lead(HOMES, 3)
    kernel.unlead(HOMES)
    wait_for(lambda: len(told) == 2, "both families are told")
    assert kernel.sight(routes(HOLD, FAR)) == (False, False)
    assert sorted(told) == [
        "vm-1: route 10.77.0.5/32: no route leads to 10.0.99.2 of far",
        "vm-1: route fd77::5/128: no route leads to fd00:99::2 of far",
    ]
    kernel.lead(FAR_NETS, 3)
    kernel.led_by(3)
    assert len(told) == 2


# -- links and addresses ----------------------------------------------------------------------


def test_a_link_that_comes_back_gets_its_routes_again(kernel: Kernel) -> None:
    kernel.apply(routes(ANNOUNCE))
    kernel.ip("link", "set", "eth1", "down")
    # The kernel has dropped all; IPv4 without a word.
    wait_for(lambda: kernel.ways("main") == [set(), set()], "gone")
    wait_for(lambda: kernel.sight(routes(HOLD)) == (False, False), "not direct")
    kernel.ip("link", "set", "eth1", "up")
    kernel.ip("addr", "replace", "fd00:1::1/64", "dev", "eth1", "nodad")
    kernel.led_by(1)
    assert kernel.audit() == []


def test_a_short_flap_is_seen_too(kernel: Kernel) -> None:
    kernel.apply(routes(ANNOUNCE))
    kernel.hands.space.run("sh", "-c", "ip link set eth1 down; ip link set eth1 up; "
                           "ip addr replace fd00:1::1/64 dev eth1 nodad")  # fmt: skip
    kernel.led_by(1)


def test_an_address_that_goes_takes_routes_without_a_word(kernel: Kernel) -> None:
    kernel.ip("addr", "add", "10.0.2.7/32", "dev", "eth2")
    kernel.ip("route", "add", "10.0.99.0/24", "via", "10.0.2.2", "src", "10.0.2.7")
    kernel.ip("-6", "route", "add", "fd00:99::/64", "via", "fd00:2::2")
    kernel.lead(HOMES, 2)
    assert kernel.sight(routes(HOLD, FAR)) == (True, True)
    kernel.ip("addr", "del", "10.0.2.7/32", "dev", "eth2")
    wait_for(lambda: kernel.sight(routes(HOLD, FAR)) == (False, False), "not direct")


# -- what routing daemons install -------------------------------------------------------------


def test_next_hop_objects_and_their_groups(kernel: Kernel) -> None:
    for version, base in ((4, 40), (6, 60)):
        for n in (2, 3):
            prefix = BOTH[version == 6]
            (way,) = gateways(prefix, n)
            kernel.ip(f"-{version}", "nexthop", "add", "id", str(base + n), "via", way,
                      "dev", f"eth{n}")  # fmt: skip
        kernel.ip("nexthop", "add", "id", str(base), "group", f"{base + 2}/{base + 3}")
        net, home = FAR_NETS[version == 6], HOMES[version == 6]
        kernel.ip(f"-{version}", "route", "add", net, "nhid", str(base), "proto", "188")
        kernel.ip(f"-{version}", "route", "add", home, "nhid", str(base + 2), "proto", "188")
    kernel.apply(routes(ANNOUNCE, FAR))
    kernel.led_by(2, 3)
    assert kernel.sight(routes(HOLD, FAR)) == (True, False)
    for base in (40, 60):
        kernel.ip("nexthop", "replace", "id", str(base), "group", str(base + 2))
    kernel.led_by(2)
    assert kernel.sight(routes(HOLD, FAR)) == (True, True)
    for base in (40, 60):
        kernel.ip("nexthop", "del", "id", str(base + 2))  # takes group and routes along
    wait_for(lambda: kernel.sight(routes(HOLD, FAR)) == (False, False), "not direct")
    assert kernel.ways("main") == kernel.via(2), "what stands stays"


def test_a_gateway_of_the_other_family_and_one_beyond_the_subnet(kernel: Kernel) -> None:
    kernel.ip("route", "add", "10.0.99.0/24", "via", "inet6", "fd00:2::2", "dev", "eth2")
    kernel.ip("-6", "route", "add", "fd00:99::/64", "via", "fd00:ee::2", "dev", "eth2", "onlink")
    assert kernel.apply(routes(ANNOUNCE, FAR)) == []
    assert kernel.sight(routes(HOLD, FAR)) == (True, False)
    assert "via inet6 fd00:2::2 dev eth2" in kernel.ip("route", "show", BOTH[0])
    assert "via fd00:ee::2 dev eth2" in kernel.ip("-6", "route", "show", BOTH[1])
    assert kernel.audit() == []
    before = kernel.hands.writes()
    kernel.apply(routes(ANNOUNCE, FAR))
    assert kernel.hands.writes() == before


def test_the_lowest_metric_wins(kernel: Kernel) -> None:
    kernel.lead(FAR_NETS, 2)
    for prefix in FAR_NETS:
        kernel.hands.route("add", prefix, prefix, "via", *gateways(prefix, 3), "metric", "10")
    kernel.apply(routes(ANNOUNCE, FAR))
    kernel.led_by(3)
    for prefix in FAR_NETS:
        kernel.hands.route("del", prefix, prefix, "metric", "10")
    kernel.led_by(2)


def test_explain_knows_other_rules_and_tables(kernel: Kernel) -> None:
    kernel.ip("route", "add", "10.77.0.0/16", "via", "10.0.3.2", "table", "99")
    kernel.ip("rule", "add", "from", "10.0.1.0/24", "dev", "eth1", "table", "99", "priority", "50")
    kernel.ip("rule", "add", "to", "10.77.9.0/24", "table", "99", "priority", "60")
    kernel.ip("rule", "add", "to", "10.78.0.0/16", "prohibit", "priority", "61")
    kernel.lead(("10.77.0.0/24",), 2)
    rows = kernel.explain("10.77.0.5")
    assert [row["priority"] for row in rows] == [0, 50, 78, 32766, 32767]
    assert (rows[1]["only"], rows[1]["prefix"]) == ("from 10.0.1.0/24, in by eth1", "10.77.0.0/16")
    assert [row["leads"] for row in rows] == [False, False, False, True, False]
    (row,) = [row for row in kernel.explain("10.77.9.1") if row["leads"]]
    assert (row["priority"], row["table"]) == (60, 99)
    (row,) = [row for row in kernel.explain("10.78.0.1") if row["leads"]]
    assert (row["priority"], row["kind"]) == (61, "prohibit")
    (row,) = [row for row in kernel.explain("10.0.1.1") if row["leads"]]
    assert (row["table"], row["kind"]) == (255, "local")
