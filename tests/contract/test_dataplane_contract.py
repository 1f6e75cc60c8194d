"""One contract for every DataPlane: the in-memory twin and the Linux driver in a namespace."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_network

import pytest

from tests.contract.planes import ABSENT, BOTH, FAR, NEAR, OTHER, REDIRECT, TAP, VM, Plane, state
from vmmobility.drivers.dataplane import Traffic
from vmmobility.drivers.fake_dataplane import FakeDataPlane
from vmmobility.engine.dataplane import Forwarding, RedirectPolicy, port_name
from vmmobility.errors import DataPlaneError
from vmmobility.wire.values import Interface, VmKey


def test_local_leads_to_the_tap(plane: Plane) -> None:
    assert plane.apply(state()) == []
    assert all(TAP in plane.leads(prefix) for prefix in BOTH)
    assert plane.traffic() == {VM: Traffic()}


def test_apply_is_idempotent(plane: Plane) -> None:
    for _ in range(3):
        assert plane.apply(state()) == []
    assert all(TAP in plane.leads(prefix) for prefix in BOTH)


def test_redirect_to_a_far_target_is_a_tunnel(plane: Plane) -> None:
    assert plane.apply(state(), state(OTHER, 6)) == []
    assert plane.apply(state(**REDIRECT)) == []
    assert all(plane.tunnelled(prefix) for prefix in BOTH)
    assert port_name(OTHER, 0) in plane.leads("10.77.0.6/32")


@pytest.mark.parametrize("policy", [RedirectPolicy.AUTO, RedirectPolicy.HOST_ROUTE])
def test_redirect_to_an_adjacent_target_is_a_host_route(
    plane: Plane, policy: RedirectPolicy
) -> None:
    redirect = state(plugged=False, forwarding=Forwarding.REDIRECT, target=NEAR, policy=policy)
    assert plane.apply(redirect) == []
    assert "via 10.0.1.2" in plane.leads(BOTH[0])
    assert "via fd00:1::2" in plane.leads(BOTH[1])


def test_tunnel_can_be_forced_to_an_adjacent_target(plane: Plane) -> None:
    redirect = state(**{**REDIRECT, "target": NEAR, "policy": RedirectPolicy.TUNNEL})
    assert plane.apply(redirect) == []
    assert all(plane.tunnelled(prefix) for prefix in BOTH)


def test_forced_host_route_to_a_far_target_fails_and_keeps_the_route(plane: Plane) -> None:
    assert plane.apply(state()) == []
    failures = plane.apply(state(**REDIRECT, policy=RedirectPolicy.HOST_ROUTE))
    assert {f.item for f in failures} == {f"route {prefix}" for prefix in BOTH}
    assert all("adjacent" in f.reason for f in failures)
    assert all(TAP in plane.leads(prefix) for prefix in BOTH)


def test_a_resync_that_cannot_redirect_keeps_the_route_too(plane: Plane) -> None:
    assert plane.apply(state()) == []
    assert len(plane.resync(state(**REDIRECT, policy=RedirectPolicy.HOST_ROUTE))) == 2
    assert all(TAP in plane.leads(prefix) for prefix in BOTH)


def test_target_without_a_locator_of_the_family_fails_for_that_family(plane: Plane) -> None:
    failures = plane.apply(state(**{**REDIRECT, "target": replace(FAR, ipv6=None)}))
    assert [f.item for f in failures] == ["route fd77::5/128"]
    assert plane.tunnelled(BOTH[0])


def test_redirect_without_target_and_local_without_tap_fail_alone(plane: Plane) -> None:
    bad = state(forwarding=Forwarding.REDIRECT)
    worse = state(OTHER, 6, plugged=False)
    good = state(VmKey(0, "vm-3"), 7)
    assert {f.vm for f in plane.apply(bad, worse, good)} == {VM, OTHER}
    assert port_name(good.vm, 0) in plane.leads("10.77.0.7/32")


def test_absent_leaves_nothing(plane: Plane) -> None:
    plane.apply(state(), state(OTHER, 6, plugged=False, **REDIRECT))
    assert plane.apply(state(**ABSENT), state(OTHER, 6, **ABSENT)) == []
    assert plane.traffic() == {}
    assert [plane.leads(p) for p in (*BOTH, "10.77.0.6/32", "fd77::6/128")] == [""] * 4


def test_unplugged_redirect_stays(plane: Plane) -> None:
    plane.apply(state())
    assert plane.apply(state(plugged=False, **REDIRECT)) == []
    assert all(plane.tunnelled(prefix) for prefix in BOTH)
    assert plane.traffic().keys() == {VM}


def test_plugged_without_forwarding_has_no_route(plane: Plane) -> None:
    assert plane.apply(state(forwarding=Forwarding.NONE)) == []
    assert [plane.leads(prefix) for prefix in BOTH] == ["", ""]
    assert plane.traffic().keys() == {VM}


def test_an_address_can_change_its_vm_in_one_apply(plane: Plane) -> None:
    plane.apply(state())
    assert plane.apply(state(OTHER, 5), state(**ABSENT)) == []
    assert all(port_name(OTHER, 0) in plane.leads(prefix) for prefix in BOTH)


def test_interfaces_can_change(plane: Plane) -> None:
    plane.apply(state())
    assert plane.apply(state(number=9)) == []
    assert plane.leads(BOTH[0]) == ""
    assert TAP in plane.leads("10.77.0.9/32")


def test_prefixes_longer_and_shorter_and_nested(plane: Plane) -> None:
    prefixes = tuple(
        ip_network(p) for p in ("10.78.0.0/24", "10.78.0.16/28", "fd78::/64", "fd78::10/124")
    )
    interface = Interface(b"\2\0\0\0\0\1", prefixes)
    assert plane.apply(state(interfaces=(interface,))) == []
    assert all(TAP in plane.leads(str(prefix)) for prefix in prefixes)


def test_resync_removes_what_is_not_desired(plane: Plane) -> None:
    plane.apply(state(), state(OTHER, 6))
    assert plane.resync(state(OTHER, 6)) == []
    assert plane.traffic().keys() == {OTHER}
    assert [plane.leads(prefix) for prefix in BOTH] == ["", ""]
    assert port_name(OTHER, 0) in plane.leads("10.77.0.6/32")


def test_close_keeps_and_start_finds(plane: Plane) -> None:
    plane.apply(state())
    plane.close()
    assert all(TAP in plane.leads(prefix) for prefix in BOTH)
    plane.start()
    assert plane.resync(state()) == []
    assert all(TAP in plane.leads(prefix) for prefix in BOTH)


def test_remove_all_removes_all(plane: Plane) -> None:
    plane.apply(state())
    plane.remove_all()
    assert [plane.leads(prefix) for prefix in BOTH] == ["", ""]


def test_before_start_is_an_error_that_says_so() -> None:
    with pytest.raises(DataPlaneError, match="start"):
        asyncio.run(FakeDataPlane().apply([state()]))


def test_the_twin_injects_failures_and_traffic() -> None:
    async def tell() -> None:
        fake = FakeDataPlane()
        await fake.start()
        fake.fail_next("tap", vm=VM)
        fake.fail_next("route fd77", "refused")
        failures = await fake.apply([state(), state(OTHER, 6)])
        assert [(f.vm, f.item.split()[0]) for f in failures] == [(VM, "tap"), (OTHER, "route")]
        assert await fake.apply([state(), state(OTHER, 6)]) == []
        fake.add_traffic(VM, redirected=3)
        fake.add_traffic(VM, redirected=2, dropped=1)
        assert (await fake.traffic())[VM] == Traffic(redirected=5, dropped=1)

    asyncio.run(tell())
