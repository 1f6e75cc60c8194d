"""From a VM's desired state to the items of this node: ports, routes, relay entry, failures.

Pure but for one question to the routing table, handed in: is this locator adjacent?  Not here:
what the kernel holds now, or how to change it (driver.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vmmobility.drivers.dataplane import Failure
from vmmobility.drivers.linux.filter import counted_prefixes
from vmmobility.drivers.linux.outside import queues_outside
from vmmobility.drivers.linux.ownership import (
    FLOOR_METRIC,
    INSIDE_TABLE,
    MAIN_TABLE,
    ROUTE_METRIC,
    TUNNELLED_TABLE,
)
from vmmobility.drivers.linux.rtnetlink import NextHop, Route, RouteName
from vmmobility.drivers.linux.settings import LinuxSettings
from vmmobility.drivers.linux.tunnel_messages import Encapsulation
from vmmobility.engine.dataplane import Forwarding, RedirectPolicy, VmDataPlane, port_name
from vmmobility.wire.values import Address, Prefix, VmKey

Adjacent = Callable[[Address], NextHop | str]
"""The next hop to an adjacent address, or the words why it is not adjacent."""


@dataclass(frozen=True, slots=True)
class Circuit:
    """To a guest that is at a server: where its frames go, from which address of ours, and from
    which servers frames may come."""

    remote: Address
    local: Address
    takes: frozenset[Address]


@dataclass(frozen=True, slots=True)
class Port:
    """A tap that should exist, for one interface of a VM; or a circuit's end in its place."""

    name: str
    vm: VmKey
    mac: bytes
    prefixes: tuple[Prefix, ...]
    circuit: Circuit | None = None


@dataclass(frozen=True, slots=True)
class TunnelWays:
    """How routes lead into the tunnels of this node.

    devices:     their names by IP version
    names_peers: a route says itself which peer its packets go to, and packets out of a tunnel that
                 go on to another peer are routed, too; else the device's other end knows all this
    """

    devices: Mapping[int, str]
    names_peers: bool


@dataclass(frozen=True, slots=True)
class RouteWish:
    """A route that should exist: to an interface by name, or to a next hop known already."""

    table: int
    prefix: Prefix
    interface: str = ""
    hop: NextHop | None = None
    tunnel: Encapsulation | None = None
    metric: int = ROUTE_METRIC

    @property
    def name(self) -> RouteName:
        return RouteName(self.table, self.prefix, self.metric)

    def route(self, ifindex: int) -> Route:
        """The route, where `interface` has this index."""
        hop = self.hop or NextHop(ifindex, tunnel=self.tunnel)
        return Route(self.table, self.prefix, hop, self.metric)


@dataclass(slots=True)
class Plan:
    """All items of one VM at this node; an empty one leaves nothing behind.

    entry: what the relay is told; accepted: which peer may tunnel here what is for which prefix
    """

    vm: VmKey
    prefixes: list[Prefix] = field(default_factory=list)
    ports: list[Port] = field(default_factory=list)
    routes: list[RouteWish] = field(default_factory=list)
    keep: set[RouteName] = field(default_factory=set)
    counted: list[Prefix] = field(default_factory=list)
    entry: dict[str, Any] | None = None
    accepted: frozenset[tuple[Address, Prefix]] = frozenset()
    failures: list[Failure] = field(default_factory=list)


def vm_name(vm: VmKey) -> str:
    """The VM's name in the relay's table: VNI/VM-ID."""
    return f"{vm.vni}/{vm.vm_id}"


def is_absent(state: VmDataPlane) -> bool:
    """Whether this node should hold nothing for the VM."""
    return not state.plugged and state.forwarding is Forwarding.NONE


def plan(state: VmDataPlane, settings: LinuxSettings, adjacent: Adjacent, ways: TunnelWays) -> Plan:
    """The items of one VM.  What cannot be is a Failure, and the route there now is kept."""
    made = Plan(state.vm)
    if is_absent(state):
        return made
    prefixes = [p for interface in state.interfaces for p in interface.prefixes]
    made.prefixes = prefixes
    made.counted = counted_prefixes(prefixes)
    made.entry = _relay_entry(state, prefixes)
    made.accepted = _accepted(state, made.counted)
    circuit = _circuit(state, settings, made) if state.plugged else None
    for index, interface in enumerate(state.interfaces):
        tap = port_name(state.vm, index)
        if state.plugged and (circuit is not None or not state.server):
            made.ports.append(Port(tap, state.vm, interface.mac, interface.prefixes, circuit))
        for prefix in interface.prefixes:
            made.routes += _tunnelled_routes(state, prefix, tap, settings, ways)
            wish = _main_route(state, prefix, tap, settings, adjacent, ways)
            if isinstance(wish, RouteWish):
                made.routes += _led_apart(wish, state, tap, settings)
                made.routes.append(_floor(prefix))
            elif wish:
                # Turning it elsewhere could make a loop: leave what is there, and say so.
                made.keep |= {RouteName(MAIN_TABLE, prefix), RouteName(INSIDE_TABLE, prefix)}
                made.keep.add(_floor(prefix).name)
                made.failures.append(Failure(state.vm, f"route {prefix}", wish))
    return made


def _circuit(state: VmDataPlane, settings: LinuxSettings, made: Plan) -> Circuit | None:
    """The way to the VM's server; None if it has none, or (a Failure) if that is not known here."""
    if not state.server:
        return None
    named = {state.server, *state.sends}
    for name in sorted(named - settings.servers.keys()):
        made.failures.append(Failure(state.vm, f"server {name}", "is not configured at this NVE"))
    if state.server not in settings.servers:
        return None
    ends = settings.servers[state.server]
    takes = frozenset(settings.servers[n].server for n in named if n in settings.servers)
    return Circuit(ends.server, ends.own, takes)


def _led_apart(
    wish: RouteWish, state: VmDataPlane, tap: str, settings: LinuxSettings
) -> list[RouteWish]:
    """A route; or two, where it leads into a tunnel that is not for senders outside.

    Those wait in the tap, or the guard drops and counts them.  Where a tunnel's route names its
    peer, theirs names none: the device itself drops what is not told where to go, so that routes
    alone keep them out, also while nftables is flushed.
    """
    tunnelled = wish.interface not in ("", tap)
    if not tunnelled or not settings.dc_prefixes:
        return [wish]
    if queues_outside(state, settings.dc_prefixes):
        theirs = RouteWish(MAIN_TABLE, wish.prefix, tap)
    elif wish.tunnel is not None:
        theirs = replace(wish, tunnel=None)
    else:
        return [wish]
    return [replace(wish, table=INSIDE_TABLE), theirs]


def _floor(prefix: Prefix) -> RouteWish:
    """What is beneath a VM's route in the main table."""
    return RouteWish(MAIN_TABLE, prefix, hop=NextHop(0), metric=FLOOR_METRIC)


def _main_route(
    state: VmDataPlane, prefix: Prefix, tap: str, settings: LinuxSettings, adjacent: Adjacent,
    ways: TunnelWays,
) -> RouteWish | str:  # fmt: skip
    """The main table's route for a prefix, "" for none, or the words why it cannot be."""
    if state.forwarding is Forwarding.NONE:
        return ""
    if state.forwarding is Forwarding.LOCAL:
        if not state.plugged:
            return "local delivery needs the VM plugged in here"
        return RouteWish(MAIN_TABLE, prefix, tap)
    return _redirect(state, prefix, settings, adjacent, ways)


def _redirect(
    state: VmDataPlane, prefix: Prefix, settings: LinuxSettings, adjacent: Adjacent,
    ways: TunnelWays,
) -> RouteWish | str:  # fmt: skip
    version = prefix.version
    locator = state.target.locator(version) if state.target is not None else None
    if locator is None:
        return f"the redirect's target has no IPv{version} locator"
    if locator == settings.locator(version):
        return f"the redirect's target {locator} is this node itself"
    if state.policy is not RedirectPolicy.TUNNEL:
        found = adjacent(locator)
        if isinstance(found, NextHop):
            return RouteWish(MAIN_TABLE, prefix, hop=NextHop(found.ifindex, locator))
        if state.policy is RedirectPolicy.HOST_ROUTE:
            return f"no host route to {locator}: {found}; its router would send packets back"
    own = settings.locator(version)
    if own is None:
        return f"a tunnel to {locator} needs an IPv{version} locator of this node"
    return _into_tunnel(MAIN_TABLE, prefix, own, locator, ways)


def _into_tunnel(
    table: int, prefix: Prefix, own: Address, peer: Address, ways: TunnelWays
) -> RouteWish:
    tunnel = Encapsulation(own, peer) if ways.names_peers else None
    return RouteWish(table, prefix, ways.devices[prefix.version], tunnel=tunnel)


def _tunnelled_routes(
    state: VmDataPlane, prefix: Prefix, tap: str, settings: LinuxSettings, ways: TunnelWays
) -> list[RouteWish]:
    """The route of packets that came out of a tunnel.

    Where routes name peers it says as much as the relay's table does: to the tap only while the VM
    is delivered to here; straight on to the target of a redirect, one hop spent.
    """
    local = RouteWish(TUNNELLED_TABLE, prefix, tap)
    if not ways.names_peers:
        return [local] if state.plugged else []
    if state.forwarding is Forwarding.LOCAL:
        return [local] if state.plugged else []
    peer = state.target.locator(prefix.version) if state.target is not None else None
    own = settings.locator(prefix.version)
    if state.forwarding is Forwarding.NONE or peer is None or own is None or peer == own:
        return []
    return [_into_tunnel(TUNNELLED_TABLE, prefix, own, peer, ways)]


def _accepted(state: VmDataPlane, prefixes: list[Prefix]) -> frozenset[tuple[Address, Prefix]]:
    """Who may tunnel what here: nobody where it has no way on, and never the one it goes on to."""
    if state.forwarding is Forwarding.NONE:
        return frozenset()
    redirected = state.forwarding is Forwarding.REDIRECT
    found = set()
    for prefix in prefixes:
        target = state.target.locator(prefix.version) if state.target is not None else None
        for nve in state.accept_from:
            peer = nve.locator(prefix.version)
            if peer is not None and not (redirected and target in (None, peer)):
                found.add((peer, prefix))
    return frozenset(found)


def _relay_entry(state: VmDataPlane, prefixes: list[Prefix]) -> dict[str, Any]:
    mode = state.forwarding.value
    target = state.target if state.forwarding is Forwarding.REDIRECT else None
    return {
        "vm": vm_name(state.vm),
        "mode": mode,
        "prefixes": [str(p) for p in dict.fromkeys(prefixes)],
        "targets": [str(a) for a in target.locators] if target is not None else [],
        "accept": sorted({str(a) for nve in state.accept_from for a in nve.locators}),
    }
