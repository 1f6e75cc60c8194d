"""From a VM's desired state to the items of this node: ports, routes, relay entry, failures.

Pure but for one question to the routing table, handed in: is this locator adjacent?  Not here:
what the kernel holds now, or how to change it (driver.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from vmmobility.drivers.dataplane import Failure
from vmmobility.drivers.linux.filter import counted_prefixes
from vmmobility.drivers.linux.outside import queues_outside
from vmmobility.drivers.linux.ownership import (
    INSIDE_TABLE,
    MAIN_TABLE,
    TUN_NAME,
    TUNNELLED_TABLE,
)
from vmmobility.drivers.linux.rtnetlink import NextHop
from vmmobility.drivers.linux.settings import LinuxSettings
from vmmobility.engine.dataplane import Forwarding, RedirectPolicy, VmDataPlane, port_name
from vmmobility.wire.values import Address, Prefix, VmKey

Adjacent = Callable[[Address], NextHop | str]
"""The next hop to an adjacent address, or the words why it is not adjacent."""


@dataclass(frozen=True, slots=True)
class Port:
    """A tap that should exist, for one interface of a VM."""

    name: str
    vm: VmKey
    mac: bytes
    prefixes: tuple[Prefix, ...]


@dataclass(frozen=True, slots=True)
class RouteWish:
    """A route that should exist: to an interface by name, or to a next hop known already."""

    table: int
    prefix: Prefix
    interface: str = ""
    hop: NextHop | None = None


@dataclass(slots=True)
class Plan:
    """All items of one VM at this node; an empty one leaves nothing behind."""

    vm: VmKey
    prefixes: list[Prefix] = field(default_factory=list)
    ports: list[Port] = field(default_factory=list)
    routes: list[RouteWish] = field(default_factory=list)
    keep: set[tuple[int, Prefix]] = field(default_factory=set)
    counted: list[Prefix] = field(default_factory=list)
    entry: dict[str, Any] | None = None
    failures: list[Failure] = field(default_factory=list)


def vm_name(vm: VmKey) -> str:
    """The VM's name in the relay's table: VNI/VM-ID."""
    return f"{vm.vni}/{vm.vm_id}"


def is_absent(state: VmDataPlane) -> bool:
    """Whether this node should hold nothing for the VM."""
    return not state.plugged and state.forwarding is Forwarding.NONE


def plan(state: VmDataPlane, settings: LinuxSettings, adjacent: Adjacent) -> Plan:
    """The items of one VM.  What cannot be is a Failure, and the route there now is kept."""
    made = Plan(state.vm)
    if is_absent(state):
        return made
    prefixes = [p for interface in state.interfaces for p in interface.prefixes]
    made.prefixes = prefixes
    made.counted = counted_prefixes(prefixes)
    made.entry = _relay_entry(state, prefixes)
    for index, interface in enumerate(state.interfaces):
        tap = port_name(state.vm, index)
        if state.plugged:
            made.ports.append(Port(tap, state.vm, interface.mac, interface.prefixes))
            made.routes += [RouteWish(TUNNELLED_TABLE, p, tap) for p in interface.prefixes]
        for prefix in interface.prefixes:
            wish = _main_route(state, prefix, tap, settings, adjacent)
            if isinstance(wish, RouteWish) and wish.interface not in ("", tap):
                if queues_outside(state, settings.dc_prefixes):
                    made.routes.append(replace(wish, table=INSIDE_TABLE))
                    made.routes.append(RouteWish(MAIN_TABLE, prefix, tap))
                else:
                    made.routes.append(wish)
            elif isinstance(wish, RouteWish):
                made.routes.append(wish)
            elif wish:
                # Turning it elsewhere could make a loop: leave what is there, and say so.
                made.keep |= {(MAIN_TABLE, prefix), (INSIDE_TABLE, prefix)}
                made.failures.append(Failure(state.vm, f"route {prefix}", wish))
    return made


def _main_route(
    state: VmDataPlane, prefix: Prefix, tap: str, settings: LinuxSettings, adjacent: Adjacent
) -> RouteWish | str:
    """The main table's route for a prefix, "" for none, or the words why it cannot be."""
    if state.forwarding is Forwarding.NONE:
        return ""
    if state.forwarding is Forwarding.LOCAL:
        if not state.plugged:
            return "local delivery needs the VM plugged in here"
        return RouteWish(MAIN_TABLE, prefix, tap)
    return _redirect(state, prefix, settings, adjacent)


def _redirect(
    state: VmDataPlane, prefix: Prefix, settings: LinuxSettings, adjacent: Adjacent
) -> RouteWish | str:
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
    if settings.locator(version) is None:
        return f"a tunnel to {locator} needs an IPv{version} locator of this node"
    return RouteWish(MAIN_TABLE, prefix, TUN_NAME)


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
