"""Members of a load-shared group at one router, in the contract of every RouterPlane (Section 7).

Here only what a group changes; a VM that is alone is in test_router_plane.py.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
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
    Router,
    gateways,
    routes,
)
from vmmobility.drivers.linux import sysctl
from vmmobility.drivers.linux.router_environment import SETTINGS
from vmmobility.engine.fabric_routes import RouteAction, VmRoutes
from vmmobility.wire.values import Nve

NOWHERE: list[set[str]] = [set(), set()]
MATE = Nve("mate", IPv4Address("10.0.2.2"), IPv6Address("fd00:2::2"))


def member(state: RouteAction, number: int = 1) -> VmRoutes:
    """Member 1 of "web" is at NEAR (neighbour 1), member 2 at MATE (neighbour 2)."""
    vm, at, other = (VM, NEAR, MATE) if number == 1 else (OTHER, MATE, NEAR)
    return replace(routes(state, at, vm), group="web", goal=at, others=(other,))


def via(*neighbours: int) -> list[set[str]]:
    return [gateways(prefix, *neighbours) for prefix in BOTH]


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_announced_members_share_the_load(router: Router, order: tuple[int, int]) -> None:
    for number in order:
        assert router.apply(member(ANNOUNCE, number)) == []
    assert router.ways("hold") == router.ways("main") == via(1, 2)
    assert router.plane.held() == {"announced": 2, "held": 0}
    assert router.audit() == []


def test_in_one_batch_as_well(router: Router) -> None:
    assert router.apply(member(ANNOUNCE), member(ANNOUNCE, 2)) == []
    assert router.ways("hold") == router.ways("main") == via(1, 2)


def test_a_member_that_goes_leaves_all_to_the_other(router: Router) -> None:
    router.apply(member(ANNOUNCE), member(ANNOUNCE, 2))
    assert router.apply(member(NONE)) == []
    assert router.ways("hold") == router.ways("main") == via(2)
    assert router.apply(member(ANNOUNCE)) == []
    assert router.ways("hold") == router.ways("main") == via(1, 2)
    assert router.apply(member(NONE, 2)) == []
    assert router.apply(member(NONE)) == []
    assert router.ways("hold") == router.ways("main") == NOWHERE


def test_one_that_is_only_held_gets_nothing_beside_one_that_is_announced(router: Router) -> None:
    router.apply(member(ANNOUNCE, 2), member(HOLD))
    assert router.ways("hold") == router.ways("main") == via(2)
    assert router.apply(member(NONE, 2)) == []
    assert (router.ways("hold"), router.ways("main")) == (via(1), NOWHERE)


def test_vms_of_no_group_share_nothing(router: Router) -> None:
    router.apply(routes(ANNOUNCE), routes(ANNOUNCE, MATE, OTHER))
    assert router.ways("hold") == router.ways("main") == via(2)


def test_vms_of_different_groups_share_nothing(router: Router) -> None:
    router.apply(member(ANNOUNCE), replace(member(ANNOUNCE, 2), group="db"))
    assert router.ways("hold") == router.ways("main") == via(2)


def test_a_member_to_which_nothing_leads_is_told_and_tried_again(router: Router) -> None:
    far = replace(member(ANNOUNCE, 2), serving=FAR, goal=FAR)
    router.apply(member(ANNOUNCE))
    failures = router.apply(far)
    assert {failure.vm for failure in failures} == {OTHER}
    assert "no route leads to" in failures[0].reason
    assert router.ways("hold") == router.ways("main") == via(1)
    router.lead(FAR_NETS, 3)
    wait_for(
        lambda: router.call(router.ways, "main") == router.ways("hold") == via(1, 3), "via 1 and 3"
    )


def test_a_resync_puts_both_back(router: Router) -> None:
    router.apply(member(ANNOUNCE), member(ANNOUNCE, 2))
    router.hands.remove_ours(BOTH[0], "main")
    assert router.resync(member(ANNOUNCE), member(ANNOUNCE, 2)) == []
    assert router.ways("hold") == router.ways("main") == via(1, 2)


CASES = {
    "to itself": ((1,), True),
    "to the other": ((2,), True),
    "to both": ((1, 2), True),
    "to neither": ((3,), False),
    "to one, and elsewhere": ((1, 3), False),
}


@pytest.mark.parametrize("case", CASES)
def test_the_fabric_may_lead_to_any_member(router: Router, case: str) -> None:
    ways, direct = CASES[case]
    ends = [
        replace(nve, nve_id=nve.nve_id, ipv4=IPv4Address(f"10.0.{n + 90}.2"),
                ipv6=IPv6Address(f"fd00:{n + 90}::2"))
        for n, nve in ((1, NEAR), (2, MATE))
    ]  # fmt: skip
    for n in (1, 2):
        router.lead((f"10.0.{n + 90}.0/24", f"fd00:{n + 90}::/64"), n)
    router.lead(HOMES, 1)
    wanted = replace(member(NONE), goal=ends[0], others=(ends[1],))
    assert router.sight(wanted) == (True, True)  # the covering prefix leads to member 1
    router.lead(BOTH, *ways)
    assert router.sight(wanted) == (direct, True)
    alone = replace(wanted, group="", others=())
    assert router.sight(alone) == (case == "to itself", True)


@pytest.mark.netns
@pytest.mark.parametrize("router", ["linux"], indirect=True)
def test_a_flow_takes_one_of_several_next_hops(router: Router) -> None:
    """The kernel hashes addresses and ports: set at the start, mended by the audit."""
    keys = [key for key in SETTINGS if key.endswith("fib_multipath_hash_policy")]
    assert len(keys) == 2

    def policies() -> list[str]:
        return [(Path("/proc/sys") / key).read_text().strip() for key in keys]

    assert router.call(policies) == ["1", "1"]
    router.apply(member(ANNOUNCE))
    router.call(sysctl.write, keys[0], "0")
    assert {drift.item for drift in router.audit()} == {f"sysctl {keys[0].replace('/', '.')}"}
    assert router.call(policies) == ["1", "1"]
