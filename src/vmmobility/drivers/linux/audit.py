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
from vmmobility.drivers.linux import environment, rtnetlink, sysctl
from vmmobility.drivers.linux.filter_listing import Shown
from vmmobility.drivers.linux.filter_state import Filters
from vmmobility.drivers.linux.netlink import Netlink
from vmmobility.drivers.linux.ownership import (
    INSIDE_TABLE,
    MAIN_TABLE,
    ROUTE_METRIC,
    TUN_NAME,
    TUNNELLED_TABLE,
    is_our_tap,
)
from vmmobility.drivers.linux.plan import Plan, Port, RouteWish, vm_name
from vmmobility.drivers.linux.routes import RouteName
from vmmobility.drivers.linux.rtnetlink import Link, NextHop, Route, Rule
from vmmobility.drivers.linux.settings import LinuxSettings
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
        if route.metric != ROUTE_METRIC:
            seen.strangers.append(route)
        else:
            seen.routes.setdefault((route.table, route.prefix), []).append(route)
    seen.rules = list(rtnetlink.rules_of_ours(netlink))
    return seen


class Comparison:
    """One look at the kernel, compared with what should be there."""

    def __init__(
        self,
        seen: Seen,
        settings: LinuxSettings,
        filters: Filters,
        owners: Mapping[RouteName, VmKey],
    ) -> None:
        self._seen, self._settings = seen, settings
        self._filters, self._owners = filters, owners

    # -- a VM's own ---------------------------------------------------------------------------

    def of_vm(self, made: Plan) -> Iterator[Drift]:
        """What differs of one VM's items."""
        for port in made.ports:
            for item, found in self._tap(port):
                yield Drift(made.vm, item, found)
        for wish in made.routes:
            if self._owners.get((wish.table, wish.prefix), made.vm) == made.vm:
                found = self._route(wish)
                if found:
                    yield Drift(made.vm, _route_item(wish.table, wish.prefix), found)
        for name in self._surplus(made):
            yield Drift(made.vm, _route_item(*name), "stands, and should not")
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
        held = self._seen.routes.get((wish.table, wish.prefix), [])
        hop = wish.hop
        if hop is None:
            link = self._seen.links.get(wish.interface)
            hop = NextHop(link.index if link is not None else -1)
        if [route.hop for route in held] == [hop]:
            return ""
        should = wish.interface or self._way(hop)
        if not held:
            return f"is gone; it should lead to {should}"
        ways = " and ".join(self._way(route.hop) for route in held)
        return f"leads to {ways}; it should lead to {should}"

    def _way(self, hop: NextHop) -> str:
        if not hop.ifindex:
            return "nowhere, or several ways"
        name = self._seen.names.get(hop.ifindex, f"interface {hop.ifindex}")
        return name if hop.gateway is None else f"{hop.gateway} by {name}"

    def _surplus(self, made: Plan) -> Iterator[RouteName]:
        """Routes to a VM's addresses that it should not have here."""
        wanted = {(wish.table, wish.prefix) for wish in made.routes} | made.keep
        for name in _all_names(made):
            here = name in self._seen.routes and name not in wanted
            if here and self._owners.get(name, made.vm) == made.vm:
                yield name

    # -- the node's own -----------------------------------------------------------------------

    def of_node(self, netlink: Netlink) -> Iterator[Drift]:
        """What differs of what all VMs share: settings, TUN, rules, tables."""
        for item, found in self._shared(netlink):
            yield Drift(None, item, found)

    def _shared(self, netlink: Netlink) -> Iterator[tuple[str, str]]:
        try:
            underlays = environment.find_underlays(netlink, self._settings)
        except EnvironmentProblem as error:
            yield "underlay", str(error)
        else:
            names = tuple(link.name for link in underlays)
            wanted = sysctl.for_node(names) | environment.tun_settings(underlays)
            for key, value, current in sysctl.differing(wanted):
                yield _setting(key, value, current)
            for found in environment.tun_faults(self._seen.links.get(TUN_NAME), underlays):
                yield f"tun {TUN_NAME}", found
        yield from self._policy()
        if fault := self._filters.base_fault(self._seen.filters):
            yield "filter tables", fault

    def _policy(self) -> Iterator[tuple[str, str]]:
        """The rules, and the blackholes that keep tunnelled packets from going anywhere else."""
        wanted = environment.node_rules(self._settings)
        for rule in wanted:
            if rule not in self._seen.rules:
                yield f"rule {_rule(rule)}", "is gone"
        for rule in self._seen.rules:
            if rule not in wanted:
                yield f"rule {_rule(rule)}", "stands, and should not"
        for route in environment.tunnelled_blackholes():
            held = self._seen.routes.get((route.table, route.prefix), [])
            if [one.hop for one in held] != [route.hop]:
                ways = " and ".join(self._way(one.hop) for one in held) or "is not there"
                yield _route_item(route.table, route.prefix), f"{ways}; it should be a blackhole"

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
        names = {(r.table, r.prefix) for r in environment.tunnelled_blackholes()}
        for made in plans:
            names |= set(_all_names(made))  # a surplus one is told as the VM's own
        yield from (_route_item(*name) for name in self._seen.routes if name not in names)
        for route in self._seen.strangers:
            yield f"{_route_item(route.table, route.prefix)} metric {route.metric}"
        for family, name in self._filters.strays(self._seen.filters, taps):
            # A tap that is gone or unwanted is told once; its chain goes with it.
            yield f"filter {family} {name}"
        for prefix in self._filters.surplus(self._seen.filters):
            yield f"counter {prefix}"


def duplicates(seen: Seen, plans: Iterable[Plan]) -> list[Route]:
    """Routes that stand beside the right one under the same name: a replace leaves them."""
    found = []
    for made in plans:
        for wish in made.routes:
            held = seen.routes.get((wish.table, wish.prefix), [])
            link = seen.links.get(wish.interface)
            hop = wish.hop or NextHop(link.index if link is not None else -1)
            if len(held) > 1 and hop in [route.hop for route in held]:
                found += [route for route in held if route.hop != hop]
    return found


def relay_drifts(faults: Iterable[tuple[str, str]], vms: Iterable[VmKey]) -> list[Drift]:
    """The relay's faults (VM name or "", words), those of VMs that are not compared left out."""
    names: dict[str, VmKey | None] = {"": None, **{vm_name(vm): vm for vm in vms}}
    return [Drift(names[name], "relay", found) for name, found in faults if name in names]


def _all_names(made: Plan) -> list[RouteName]:
    tables = (MAIN_TABLE, TUNNELLED_TABLE, INSIDE_TABLE)
    return [(table, prefix) for prefix in made.prefixes for table in tables]


def _route_item(table: int, prefix: object) -> str:
    return f"route {prefix}" if table == MAIN_TABLE else f"route {prefix} in table {table}"


def _setting(key: str, value: str, current: str) -> tuple[str, str]:
    return f"sysctl {key.replace('/', '.')}", f"is {current}; it should be {value}"


def _rule(rule: Rule) -> str:
    who = rule.interface or f"packets from {rule.source or 'anywhere'}"
    return f"IPv{rule.version} of {who}, table {rule.table}, priority {rule.priority}"
