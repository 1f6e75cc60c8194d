"""A RouterPlane under its contract's tests: the in-memory twin, or the Linux driver in a namespace.

The router has three links, eth1 to eth3: neighbour N is 10.0.N.2 and fd00:N::2.  NEAR is an NVE at
neighbour 1; FAR lies behind neighbours 2 and 3, where the test's fabric says so.
Beside each plane stand other hands: a routing daemon's, and those that meddle with our routes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Protocol, TypeVar

import pytest

from tests.contract.namespaces import Namespace, join, wait_for
from vmmobility.drivers.dataplane import Drift, Failure
from vmmobility.drivers.fake_router_plane import FakeRouterPlane
from vmmobility.drivers.linux import sysctl
from vmmobility.drivers.linux.fib import Fib
from vmmobility.drivers.linux.netlink import Netlink
from vmmobility.drivers.linux.router_driver import LinuxRouterPlane
from vmmobility.drivers.router_plane import RouterPlane
from vmmobility.engine.fabric_routes import RouteAction, Sight, VmRoutes
from vmmobility.wire.values import Address, Nve, Prefix, VmKey

T = TypeVar("T")

VM, OTHER = VmKey(0, "vm-1"), VmKey(0, "vm-2")
NEAR = Nve("near", IPv4Address("10.0.1.2"), IPv6Address("fd00:1::2"))
FAR = Nve("far", IPv4Address("10.0.99.2"), IPv6Address("fd00:99::2"))
FAR_NETS = ("10.0.99.0/24", "fd00:99::/64")
BOTH = ("10.77.0.5/32", "fd77::5/128")
HOMES = ("10.77.0.0/24", "fd77::/64")
LINKS = (1, 2, 3)
HOLD, ANNOUNCE, NONE = RouteAction.HOLD, RouteAction.ANNOUNCE, RouteAction.NONE


def routes(
    state: RouteAction = HOLD, serving: Nve | None = NEAR, vm: VmKey = VM, number: int = 5
) -> VmRoutes:
    """A VM with one address a family, served by an NVE."""
    prefixes = (ip_network(f"10.77.0.{number}/32"), ip_network(f"fd77::{number}/128"))
    return VmRoutes(vm, prefixes, None if state is NONE else serving, state)


def neighbour(number: int, version: int) -> str:
    return f"10.0.{number}.2" if version == 4 else f"fd00:{number}::2"


def gateways(prefix: str, *numbers: int) -> set[str]:
    """The neighbours' addresses of the prefix's family."""
    return {neighbour(n, ip_network(prefix).version) for n in numbers}


class Hands(Protocol):
    """Other hands than the driver's."""

    def lead(self, prefix: str, *neighbours: int) -> None:
        """As a routing daemon: the fabric's route to a prefix; none: a blackhole."""

    def unlead(self, prefix: str) -> None: ...
    def ours(self, prefix: str, table: str) -> set[str]:
        """Through which gateways our route of a prefix in `main` or `hold` leads."""

    def remove_ours(self, prefix: str, table: str) -> None: ...
    def misdirect_ours(self, prefix: str, table: str) -> None: ...
    def writes(self) -> int: ...


class Router:
    """A router plane, called from outside its event loop."""

    def __init__(self, plane: RouterPlane, await_: Callable[[Any], Any], hands: Hands) -> None:
        self.plane, self.await_, self.hands = plane, await_, hands

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        async def inside() -> T:
            return function(*arguments)

        answer: T = self.await_(inside())
        return answer

    def start(self) -> None:
        self.await_(self.plane.start())

    def apply(self, *desired: VmRoutes) -> Sequence[Failure]:
        found: Sequence[Failure] = self.await_(self.plane.apply(desired))
        return found

    def resync(self, *desired: VmRoutes) -> Sequence[Failure]:
        found: Sequence[Failure] = self.await_(self.plane.resync({d.vm: d for d in desired}))
        return found

    def audit(self) -> Sequence[Drift]:
        found: Sequence[Drift] = self.await_(self.plane.audit())
        return found

    def sight(self, wanted: VmRoutes) -> tuple[bool, bool]:
        """(direct, covered)"""
        sights: Mapping[VmKey, Sight] = self.call(self.plane.sights, [wanted])
        found = sights[wanted.vm]
        return found.direct, found.covered

    def explain(self, address: Address | str) -> list[dict[str, Any]]:
        return self.call(self.plane.explain, ip_address(address))

    def close(self) -> None:
        self.await_(self.plane.close())

    def remove_all(self) -> None:
        self.await_(self.plane.remove_all())

    def lead(self, prefixes: Sequence[str], *neighbours: int) -> None:
        """The fabric's routes to prefixes of both families."""
        for prefix in prefixes:
            self.call(self.hands.lead, prefix, *neighbours)

    def unlead(self, prefixes: Sequence[str]) -> None:
        for prefix in prefixes:
            self.call(self.hands.unlead, prefix)

    def ways(self, table: str, prefixes: Sequence[str] = BOTH) -> list[set[str]]:
        return [self.hands.ours(prefix, table) for prefix in prefixes]


class FakeHands:
    def __init__(self, fake: FakeRouterPlane) -> None:
        self._fake = fake

    def _hops(self, prefix: Prefix, *neighbours: int) -> frozenset[tuple[int, Address | None]]:
        return frozenset((n, ip_address(neighbour(n, prefix.version))) for n in neighbours)

    def lead(self, prefix: str, *neighbours: int) -> None:
        net = ip_network(prefix)
        self._fake.lead(net, *self._hops(net, *neighbours))

    def unlead(self, prefix: str) -> None:
        self._fake.unlead(ip_network(prefix))

    def _table(self, table: str) -> dict[Prefix, frozenset[tuple[int, Address | None]]]:
        return self._fake.main if table == "main" else self._fake.hold

    def ours(self, prefix: str, table: str) -> set[str]:
        return {str(gateway) for _, gateway in self._table(table).get(ip_network(prefix), ())}

    def remove_ours(self, prefix: str, table: str) -> None:
        del self._table(table)[ip_network(prefix)]

    def misdirect_ours(self, prefix: str, table: str) -> None:
        net = ip_network(prefix)
        self._table(table)[net] = self._hops(net, 3)

    def writes(self) -> int:
        return self._fake.writes


class LinuxHands:
    """Hands with `ip`; writes are netlink batches and sysctls."""

    def __init__(self, space: Namespace) -> None:
        self.space, self._writes = space, 0

    def count(self, real: Callable[..., T]) -> Callable[..., T]:
        def counted(*arguments: Any) -> T:
            self._writes += 1
            return real(*arguments)

        return counted

    def route(self, verb: str, prefix: str, *words: str) -> str:
        return self.space.ip("-6" if ":" in prefix else "-4", "route", verb, *words)

    def lead(self, prefix: str, *neighbours: int) -> None:
        ways = []
        for way in sorted(gateways(prefix, *neighbours)):
            ways += ["nexthop", "via", way]
        kind = [prefix] if ways else ["blackhole", prefix]
        self.route("replace", prefix, *kind, "proto", "188", "metric", "20", *ways)

    def unlead(self, prefix: str) -> None:
        self.route("del", prefix, prefix, "proto", "188", "metric", "20")

    def all_ours(self, version: int) -> list[dict[str, Any]]:
        """Every route of protocol 77, as `ip -j` shows it."""
        shown = self.space.ip(f"-{version}", "-j", "route", "show", "table", "all", "proto", "77")
        found: list[dict[str, Any]] = json.loads(shown or "[]")
        return found

    def ours(self, prefix: str, table: str) -> set[str]:
        net = ip_network(prefix)
        number = {"main": "main", "hold": "7701"}[table]
        found = set()
        for route in self.all_ours(net.version):
            if ip_network(route["dst"]) == net and route.get("table", "main") == number:
                found |= {hop["gateway"] for hop in route.get("nexthops", [route])}
        return found

    def _ours(self, verb: str, prefix: str, table: str, *words: str) -> None:
        number = {"main": "main", "hold": "7701"}[table]
        mark = ("table", number, "proto", "77", "metric", "7")
        self.route(verb, prefix, prefix, *words, *mark)

    def remove_ours(self, prefix: str, table: str) -> None:
        self._ours("del", prefix, table)

    def misdirect_ours(self, prefix: str, table: str) -> None:
        self._ours("replace", prefix, table, "via", *gateways(prefix, 3))

    def writes(self) -> int:
        return self._writes


class Kernel(Router):
    """The Linux router with its insides."""

    driver: LinuxRouterPlane
    hands: LinuxHands

    def ip(self, *words: str) -> str:
        return self.hands.space.ip(*words)

    @property
    def fib(self) -> Fib:
        return self.driver._fib

    def via(self, *neighbours: int) -> list[set[str]]:
        return [gateways(prefix, *neighbours) for prefix in BOTH]

    def led_by(self, *neighbours: int) -> None:
        wanted = self.via(*neighbours)
        wait_for(
            lambda: self.ways("main") == wanted and self.ways("hold") == wanted, f"by {neighbours}"
        )


def fake_router() -> Iterator[Router]:
    loop = asyncio.new_event_loop()
    connected: dict[Prefix, list[tuple[int, Address | None]]] = {}
    for n in LINKS:
        connected[ip_network(f"10.0.{n}.0/24")] = [(n, None)]
        connected[ip_network(f"fd00:{n}::/64")] = [(n, None)]
    fake = FakeRouterPlane(connected)
    yield Router(fake, loop.run_until_complete, FakeHands(fake))
    loop.close()


def linux_router() -> Iterator[Router]:
    space, peer = Namespace("r"), Namespace("p")
    try:
        for n in LINKS:
            join(space, f"eth{n}", peer, f"eth{n}", n)
        driver = space.call(LinuxRouterPlane)
        hands = LinuxHands(space)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Netlink, "batch", hands.count(Netlink.batch))
            patch.setattr(sysctl, "write", hands.count(sysctl.write))
            yield Router(driver, space.await_, hands)
        space.await_(driver.remove_all())
    finally:
        space.close()
        peer.close()
