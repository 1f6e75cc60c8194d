"""What an audit finds: the kernel as it is beside the items that were asked for, in words.

Reads only, and lets the event loop turn between VMs.  Not here: when an audit is made and how
what it finds is repaired (driver.py); what a VM's items are (plan.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from vmmobility.drivers.dataplane import Drift
from vmmobility.drivers.linux import environment, policy_rules, rtnetlink, sysctl
from vmmobility.drivers.linux.filter_listing import Shown
from vmmobility.drivers.linux.filter_state import Filters
from vmmobility.drivers.linux.netlink import Netlink
from vmmobility.drivers.linux.ownership import (
    FLOOR_METRIC,
    INSIDE_TABLE,
    MAIN_TABLE,
    TUNNEL_DEVICES,
    TUNNELLED_TABLE,
    is_our_tap,
)
from vmmobility.drivers.linux.plan import Plan, Port, RouteWish, vm_name
from vmmobility.drivers.linux.policy_rules import Rule
from vmmobility.drivers.linux.routes import METRICS
from vmmobility.drivers.linux.rtnetlink import Link, NextHop, Route, RouteName
from vmmobility.drivers.linux.settings import LinuxSettings
from vmmobility.drivers.linux.tunnels import Tunnels
from vmmobility.errors import EnvironmentProblem
from vmmobility.wire.values import Address, VmKey


@dataclass(slots=True)
class Seen:
    """What the kernel holds that is ours or that ours rests on, read at one time."""

    links: dict[str, Link] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    addresses: dict[int, set[Address]] = field(default_factory=dict)
    neighbours: dict[int, dict[Address, bytes]] = field(default_factory=dict)
    routes: dict[RouteName, list[Route]] = field(default_factory=dict)
    strangers: list[Route] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    filters: Shown = field(default_factory=Shown)


async def look(netlink: Netlink, filters: Filters) -> Seen:
    """Read everything.  Raises DataPlaneError."""
    seen = Seen(filters=await filters.look())
    for link in rtnetlink.links(netlink):
        seen.links[link.name], seen.names[link.index] = link, link.name
    for index, address in rtnetlink.addresses(netlink):
        seen.addresses.setdefault(index, set()).add(address)
    await asyncio.sleep(0)
    for index, address, mac in rtnetlink.permanent_neighbours(netlink):
        seen.neighbours.setdefault(index, {})[address] = mac
    await asyncio.sleep(0)
    for route in rtnetlink.routes_of_ours(netlink):
        if route.metric not in METRICS:
            seen.strangers.append(route)
        else:
            seen.routes.setdefault(route.name, []).append(route)
    seen.rules = list(policy_rules.rules_of_ours(netlink))
    return seen


class Comparison:
    """One look at the kernel, compared with what should be there."""

    def __init__(
        self,
        seen: Seen,
        settings: LinuxSettings,
        filters: Filters,
        owners: Mapping[RouteName, VmKey],
        tunnels: Tunnels,
    ) -> None:
        self._seen, self._settings, self._tunnels = seen, settings, tunnels
        self._filters, self._owners = filters, owners

    # -- a VM's own ---------------------------------------------------------------------------

    def of_vm(self, made: Plan) -> Iterator[Drift]:
        """What differs of one VM's items."""
        for port in made.ports:
            for item, found in self._tap(port):
                yield Drift(made.vm, item, found)
        for wish in made.routes:
            if self._owners.get(wish.name, made.vm) == made.vm:
                found = self._route(wish)
                if found:
                    yield Drift(made.vm, _route_item(wish.name), found)
        for name in self._surplus(made):
            yield Drift(made.vm, _route_item(name), "stands, and should not")
        for prefix in self._filters.uncounted(made.vm, self._seen.filters):
            yield Drift(made.vm, f"counter {prefix}", "is gone")

    def _tap(self, port: Port) -> Iterator[tuple[str, str]]:
        name, settings = port.name, self._settings
        link = self._seen.links.get(name)
        if link is None:
            yield f"tap {name}", "is gone"
            return
        if not link.up:
            yield f"tap {name}", "is down"
        if link.mac != settings.gateway_mac:
            yield f"tap {name}", f"has the MAC {link.mac.hex(':')}"
        if link.queue_length != settings.tap_queue_length:
            yield f"tap {name}", f"has a queue of {link.queue_length} packets"
        if fault := _circuit_fault(port, link):
            yield f"circuit {name}", fault
        held = self._seen.addresses.get(link.index, set())
        for gateway in (settings.gateway4, settings.gateway6):
            if gateway not in held:
                yield f"address {gateway}", f"is missing at {name}"
        yield from self._neighbours(port, link)
        for key, value, current in sysctl.differing(sysctl.for_tap(name)):
            yield _setting(key, value, current)
        if fault := self._filters.fault(port, self._seen.filters):
            yield f"filter {name}", fault

    def _neighbours(self, port: Port, link: Link) -> Iterator[tuple[str, str]]:
        held = self._seen.neighbours.get(link.index, {})
        wanted = rtnetlink.host_addresses(port.prefixes)
        for address in wanted:
            if address not in held:
                yield f"neighbour {address}", f"is missing at {port.name}"
            elif held[address] != port.mac:
                yield f"neighbour {address}", f"has the MAC {held[address].hex(':')}"
        for address in held.keys() - set(wanted):
            if not (isinstance(address, IPv6Address) and address.is_multicast):
                yield f"neighbour {address}", f"stands at {port.name}, and should not"

    def _route(self, wish: RouteWish) -> str:
        """What is wrong with a route, in words; "" if nothing is."""
        held = self._seen.routes.get(wish.name, [])
        hop = _next_hop(wish, self._seen)
        if [route.hop for route in held] == [hop]:
            return ""
        should = wish.interface if wish.interface and wish.tunnel is None else self._way(hop)
        if not held:
            return f"is gone; it should lead to {should}"
        ways = " and ".join(self._way(route.hop) for route in held)
        return f"leads to {ways}; it should lead to {should}"

    def _way(self, hop: NextHop) -> str:
        if not hop.ifindex:
            return "nowhere, or several ways"
        name = self._seen.names.get(hop.ifindex, f"interface {hop.ifindex}")
        if hop.tunnel is not None:
            other = "" if hop.tunnel.usual else " in an unusual header"
            return f"{hop.tunnel.destination} by {name}{other}"
        return name if hop.gateway is None else f"{hop.gateway} by {name}"

    def _surplus(self, made: Plan) -> Iterator[RouteName]:
        """Routes to a VM's addresses that it should not have here."""
        wanted = {wish.name for wish in made.routes} | made.keep
        for name in _all_names(made):
            here = name in self._seen.routes and name not in wanted
            if here and self._owners.get(name, made.vm) == made.vm:
                yield name

    # -- the node's own -----------------------------------------------------------------------

    def of_node(self, netlink: Netlink) -> Iterator[Drift]:
        """What differs of what all VMs share: settings, tunnels, rules, tables."""
        for item, found in self._shared(netlink):
            yield Drift(None, item, found)

    def _shared(self, netlink: Netlink) -> Iterator[tuple[str, str]]:
        try:
            underlays = environment.find_underlays(netlink, self._settings)
        except EnvironmentProblem as error:
            yield "underlay", str(error)
        else:
            names = tuple(link.name for link in underlays)
            wanted = sysctl.for_node(names) | self._tunnels.settings(underlays)
            for key, value, current in sysctl.differing(wanted):
                yield _setting(key, value, current)
            yield from self._tunnels.device_faults(self._seen.links, underlays)
        yield from self._policy()
        if fault := self._filters.base_fault(self._seen.filters):
            yield "filter tables", fault

    def _policy(self) -> Iterator[tuple[str, str]]:
        """The rules, and the blackholes that keep tunnelled packets from going anywhere else."""
        wanted = environment.node_rules(self._tunnels.rules(), self._settings)
        for rule in wanted:
            if rule not in self._seen.rules:
                yield f"rule {_rule(rule)}", "is gone"
        for rule in self._seen.rules:
            if rule not in wanted:
                yield f"rule {_rule(rule)}", "stands, and should not"
        for route in environment.tunnelled_blackholes():
            held = self._seen.routes.get(route.name, [])
            if [one.hop for one in held] != [route.hop]:
                ways = " and ".join(self._way(one.hop) for one in held) or "is not there"
                yield _route_item(route.name), f"{ways}; it should be a blackhole"

    # -- strays -------------------------------------------------------------------------------

    def strays(self, plans: Iterable[Plan]) -> Iterator[Drift]:
        """What bears our mark, and belongs to no VM and not to the node."""
        for item in self._strays(list(plans)):
            yield Drift(None, item, "stands, and nobody asked for it")

    def _strays(self, plans: list[Plan]) -> Iterator[str]:
        taps = {port.name for made in plans for port in made.ports}
        for name in self._seen.links:
            if is_our_tap(name) and name not in taps:
                yield f"tap {name}"
            elif name in TUNNEL_DEVICES and name not in self._tunnels.indices:
                yield f"tunnel {name}"
        names = {route.name for route in environment.tunnelled_blackholes()}
        for made in plans:
            names |= set(_all_names(made))  # a surplus one is told as the VM's own
        yield from (_route_item(name) for name in self._seen.routes if name not in names)
        for route in self._seen.strangers:
            yield f"{_route_item(route.name)} metric {route.metric}"
        for family, name in self._filters.strays(self._seen.filters, taps):
            # A tap that is gone or unwanted is told once; its chain goes with it.
            yield f"filter {family} {name}"
        for prefix in self._filters.surplus(self._seen.filters):
            yield f"counter {prefix}"


def _circuit_fault(port: Port, link: Link) -> str:
    """What is wrong with the device that leads to the guest, in words; "" if nothing is."""
    wanted, held = port.circuit, link.circuit
    if wanted is None and held is None:
        return ""
    if wanted is None or held is None:
        return "is a device of another kind"
    if (held.remote, held.local) != (wanted.remote, wanted.local):
        return f"leads from {held.local} to {held.remote}; it should from {wanted.local} to " + str(
            wanted.remote
        )
    return "" if held.usual else "learns, or has another port"


def duplicates(seen: Seen, plans: Iterable[Plan]) -> list[Route]:
    """Routes that stand beside the right one under the same name: a replace leaves them."""
    found = []
    for made in plans:
        for wish in made.routes:
            held = seen.routes.get(wish.name, [])
            hop = _next_hop(wish, seen)
            if len(held) > 1 and hop in [route.hop for route in held]:
                found += [route for route in held if route.hop != hop]
    return found


def tunnel_drifts(faults: Iterable[tuple[str, str, str]], vms: Iterable[VmKey]) -> list[Drift]:
    """The tunnels' faults (VM name or "", item, words), those of VMs not compared left out."""
    names: dict[str, VmKey | None] = {"": None, **{vm_name(vm): vm for vm in vms}}
    return [Drift(names[name], item, found) for name, item, found in faults if name in names]


def _next_hop(wish: RouteWish, seen: Seen) -> NextHop:
    link = seen.links.get(wish.interface)
    return wish.route(link.index if link is not None else -1).hop


def _all_names(made: Plan) -> list[RouteName]:
    tables = (MAIN_TABLE, TUNNELLED_TABLE, INSIDE_TABLE)
    names = [RouteName(table, prefix) for prefix in made.prefixes for table in tables]
    return names + [RouteName(MAIN_TABLE, prefix, FLOOR_METRIC) for prefix in made.prefixes]


def _route_item(name: RouteName) -> str:
    if name.metric == FLOOR_METRIC:
        return f"blackhole {name.prefix}"
    where = "" if name.table == MAIN_TABLE else f" in table {name.table}"
    return f"route {name.prefix}{where}"


def _setting(key: str, value: str, current: str) -> tuple[str, str]:
    return f"sysctl {key.replace('/', '.')}", f"is {current}; it should be {value}"


def _rule(rule: Rule) -> str:
    who = rule.interface or f"packets from {rule.source or 'anywhere'}"
    return f"IPv{rule.version} of {who}, table {rule.table}, priority {rule.priority}"
