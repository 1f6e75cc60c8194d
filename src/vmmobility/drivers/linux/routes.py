"""Our routes in the kernel: what it holds, turned and removed in batches.

A turn is one replace, so no packet meets a hole; what is added goes before what is removed.
Not here: where routes should lead (plan.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from vmmobility.drivers.linux import rtnetlink
from vmmobility.drivers.linux.netlink import Netlink, Refusal
from vmmobility.drivers.linux.ownership import FLOOR_METRIC, ROUTE_METRIC
from vmmobility.drivers.linux.rtnetlink import NextHop, Route, RouteName
from vmmobility.wire.values import VmKey

METRICS = (ROUTE_METRIC, FLOOR_METRIC)
_GONE = {3, 19}  # ESRCH, ENODEV: a route that is not there need not be removed


class Routes:
    """The VMs' routes with our protocol number, by name, and whose they are."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink
        self.held: dict[RouteName, NextHop] = {}
        self.owners: dict[RouteName, VmKey] = {}
        self._of_vm: dict[VmKey, set[RouteName]] = {}
        self.strangers: list[Route] = []

    def read(self) -> None:
        """Take what the kernel holds; `strangers` are ours by number but not by metric."""
        self.held, self.owners, self._of_vm, self.strangers = {}, {}, {}, []
        for route in rtnetlink.routes_of_ours(self._netlink):
            if route.metric not in METRICS:
                self.strangers.append(route)
            else:
                self.held[route.name] = route.hop

    def of(self, vm: VmKey) -> frozenset[RouteName]:
        """The names of the routes that were installed for a VM."""
        return frozenset(self._of_vm.get(vm, ()))

    def _disown(self, name: RouteName) -> None:
        owner = self.owners.pop(name, None)
        if owner is not None:
            names = self._of_vm[owner]
            names.discard(name)
            if not names:
                del self._of_vm[owner]

    def forget_interface(self, ifindex: int) -> None:
        """The kernel removed an interface, and with it the routes to it."""
        for name in [n for n, hop in self.held.items() if hop.ifindex == ifindex]:
            del self.held[name]
            self._disown(name)

    def keep(self, vm: VmKey, name: RouteName) -> None:
        """Count a route that stands as the VM's, wherever it leads."""
        if name in self.held:
            self._own(vm, name)

    def _own(self, vm: VmKey, name: RouteName) -> None:
        if self.owners.get(name) != vm:
            self._disown(name)
            self.owners[name] = vm
            self._of_vm.setdefault(vm, set()).add(name)

    def turn(self, wanted: Sequence[tuple[VmKey, Route]]) -> list[tuple[VmKey, Route, Refusal]]:
        """Install or turn the routes that differ; answers what the kernel refused."""
        differing = []
        for vm, route in wanted:
            self._own(vm, route.name)
            if self.held.get(route.name) != route.hop:
                differing.append((vm, route))
        if not differing:
            return []
        refused = []
        outcomes = self._netlink.batch([rtnetlink.new_route(r) for _, r in differing])
        for (vm, route), outcome in zip(differing, outcomes, strict=True):
            if outcome is None:
                self.held[route.name] = route.hop
            else:
                refused.append((vm, route, outcome))
        return refused

    def remove(self, names: Sequence[RouteName]) -> list[tuple[RouteName, Refusal]]:
        """Remove routes by name, blackholes before what they lie beneath; answers what the kernel
        refused."""
        present = sorted((n for n in names if n in self.held), key=lambda n: -n.metric)
        for name in names:
            self._disown(name)
        if not present:
            return []
        routes = [Route(n.table, n.prefix, self.held[n], n.metric) for n in present]
        refused = []
        outcomes = self._netlink.batch([rtnetlink.delete_route(r) for r in routes])
        for name, outcome in zip(present, outcomes, strict=True):
            if outcome is None or outcome.number in _GONE:
                del self.held[name]
            else:
                refused.append((name, outcome))
        return refused
