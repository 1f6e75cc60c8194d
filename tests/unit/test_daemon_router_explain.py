"""The router daemon's look at its kernel, when people ask: rows, or why there are none."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

from vmmobility.daemon.router import RouterDaemon
from vmmobility.drivers.fake_router_plane import FakeRouterPlane
from vmmobility.engine.binding_update_list import make_nve
from vmmobility.engine.fabric_routes import RouteAction, Sight, VmRoutes
from vmmobility.engine.outputs import Explain
from vmmobility.errors import DataPlaneError
from vmmobility.wire.values import VmKey

V4, V6 = ip_address("10.1.0.5"), ip_address("fd01::5")
GATEWAY = ip_address("10.0.1.2")
NVE = make_nve("nve-a", (GATEWAY, ip_address("fd00:0:1::2")))
WATCHED = VmRoutes(VmKey(0, "vm1"), (ip_network("10.1.0.5/32"),), None, RouteAction.NONE, NVE)


class Ear:
    """Engine and pump at once: what the daemon answers."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def input(self, feed: Any) -> None:
        feed(1.0)

    def explained(self, *arguments: Any) -> None:
        self.told.append(arguments)


class Blind(FakeRouterPlane):
    def explain(self, address: Any) -> list[dict[str, Any]]:
        raise DataPlaneError("the rules cannot be read", "look at the log")


def explained(plane: FakeRouterPlane, wanted: Explain) -> tuple[Any, ...]:
    plane._started = True
    daemon, ear = RouterDaemon.__new__(RouterDaemon), Ear()
    daemon._plane, daemon.pump, daemon.engine = plane, ear, ear  # type: ignore[assignment]
    daemon._perform(wanted)
    (told,) = ear.told
    return told


def test_rows_by_address_and_the_sight_as_it_is():
    plane = FakeRouterPlane({
        ip_network("10.1.0.0/24"): [(1, GATEWAY)],
        ip_network("10.0.1.0/24"): [(1, None)],
    })  # fmt: skip
    number, rows, sight, error, now = explained(plane, Explain(7, (V4, V6), WATCHED))
    assert (number, error, now) == (7, "", 1.0)
    assert {row["address"] for row in rows} == {str(V4), str(V6)}
    (leads,) = [row for row in rows if row["leads"]]
    assert (leads["address"], leads["prefix"]) == (str(V4), "10.1.0.0/24")
    assert sight == Sight(direct=True, covered=True)


def test_without_a_vm_there_is_no_sight():
    assert explained(FakeRouterPlane(), Explain(1, (V4,), None))[2] is None


def test_a_kernel_that_cannot_be_read_is_said():
    _, rows, sight, error, _ = explained(Blind(), Explain(1, (V4,), WATCHED))
    assert (rows, sight) == ([], None)
    assert "the rules cannot be read" in error
