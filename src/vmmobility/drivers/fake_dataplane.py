"""FakeDataPlane: the data plane's in-memory twin, with failures to inject and traffic to add.

It passes the same contract tests as drivers/linux (tests/contract/test_dataplane_contract.py).
Not here: packets.  What the kernel would hold is shown as `routes`, `inside_routes` (what senders
in the data centres see before these) and `taps`: hands that change them make drift.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from vmmobility.drivers.dataplane import Drift, Failure, Traffic
from vmmobility.engine.dataplane import (
    Forwarding,
    Outside,
    RedirectPolicy,
    VmDataPlane,
    port_name,
)
from vmmobility.errors import DataPlaneError, EnvironmentProblem
from vmmobility.wire.values import Address, Interface, Prefix, VmKey


class FakeDataPlane:
    """A data plane without a kernel.

    adjacent: locators to which `auto` and `host-route` may use a host route
    dc_prefixes: of all hosts in the data centres; empty: every sender counts as one
    applied:  every state given to apply or resync, in order
    writes:   how often something was made, changed or removed
    """

    def __init__(
        self,
        adjacent: frozenset[Address] = frozenset(),
        dc_prefixes: tuple[Prefix, ...] = (),
    ) -> None:
        self.adjacent, self.dc_prefixes = adjacent, dc_prefixes
        self.applied: list[VmDataPlane] = []
        self.held: dict[VmKey, VmDataPlane] = {}
        self.routes: dict[Prefix, str] = {}
        self.inside_routes: dict[Prefix, str] = {}
        self.taps: dict[str, Interface] = {}
        self.missing = ""
        self.writes = 0
        self._owners: dict[Prefix, VmKey] = {}
        self._synchronised = False
        self._failing: list[tuple[VmKey | None, str, str]] = []
        self._traffic: dict[VmKey, Traffic] = {}
        self._started = False

    # -- for tests ----------------------------------------------------------------------------

    def fail_next(self, item: str, reason: str = "injected", vm: VmKey | None = None) -> None:
        """Refuse the next item whose name begins with `item` (`tap`, `route`, `relay`, ...)."""
        self._failing.append((vm, item, reason))

    def add_traffic(
        self,
        vm: VmKey,
        *,
        delivered: int = 0,
        consumed: int = 0,
        redirected: int = 0,
        dropped: int = 0,
        outside: int = 0,
    ) -> None:
        """Count packets for a VM that this node holds something for."""
        old = self._traffic[vm]
        self._traffic[vm] = Traffic(
            old.delivered + delivered,
            old.consumed + consumed,
            old.redirected + redirected,
            old.dropped + dropped + outside,
            old.outside + outside,
        )

    def forwarding(self, vm: VmKey) -> Forwarding:
        """Where the VM's packets lead from here."""
        state = self.held.get(vm)
        return state.forwarding if state is not None else Forwarding.NONE

    # -- DataPlane ----------------------------------------------------------------------------

    async def start(self) -> None:
        """See DataPlane.start; fails while `missing` names something."""
        if self.missing:
            raise EnvironmentProblem(f"{self.missing} is missing", f"install {self.missing}")
        self._started = True

    async def resync(self, desired: Mapping[VmKey, VmDataPlane]) -> Sequence[Failure]:
        """See DataPlane.resync."""
        self._check_started()
        self._synchronised = True
        for vm in [vm for vm in self.held if vm not in desired]:
            self._withdraw(vm)
            self._traffic.pop(vm, None)
        failures = await self.apply(list(desired.values()))
        self._remove_strays()
        return failures

    async def apply(self, desired: Sequence[VmDataPlane]) -> Sequence[Failure]:
        """See DataPlane.apply."""
        self._check_started()
        self.writes += 1
        before = (dict(self.routes), dict(self.inside_routes))
        for state in desired:
            self._withdraw(state.vm)
        return [failure for state in desired for failure in self._apply_one(state, before)]

    async def audit(self, vms: Collection[VmKey] | None = None) -> Sequence[Drift]:
        """See DataPlane.audit."""
        self._check_started()
        if not (self._synchronised and self._differences(vms)):
            return []
        found = self._differences(None)
        await self.apply(list(self.held.values()))
        self._remove_strays()
        left = {(drift.vm, drift.item) for drift in self._differences(None)}
        return [replace(drift, repaired=(drift.vm, drift.item) not in left) for drift in found]

    async def traffic(self) -> Mapping[VmKey, Traffic]:
        """See DataPlane.traffic."""
        self._check_started()
        return {vm: self._traffic[vm] for vm in self.held}

    async def close(self) -> None:
        """See DataPlane.close: what is held stays."""
        self._started = False

    async def remove_all(self) -> None:
        """See DataPlane.remove_all."""
        self.held, self.routes, self.taps, self._traffic = {}, {}, {}, {}
        self._owners, self.inside_routes = {}, {}
        self._started = self._synchronised = False

    # -- inside -------------------------------------------------------------------------------

    def _check_started(self) -> None:
        if not self._started:
            raise DataPlaneError("the data plane is not started", "call start() first")

    def _apply_one(
        self, state: VmDataPlane, before: tuple[Mapping[Prefix, str], Mapping[Prefix, str]]
    ) -> list[Failure]:
        """Install one VM's state; `before`: the routes that stood before this apply."""
        self.applied.append(state)
        vm, failures = state.vm, list[Failure]()
        if not state.plugged and state.forwarding is Forwarding.NONE:
            self._traffic.pop(vm, None)
            return []
        self.held[vm] = replace(state)
        self._traffic.setdefault(vm, Traffic())
        for index, interface in enumerate(state.interfaces):
            tap, tap_stands = port_name(vm, index), False
            if state.plugged:
                reason = self._injected(vm, f"tap {tap}")
                tap_stands = not reason
                if reason:
                    failures.append(Failure(vm, f"tap {tap}", reason))
                else:
                    self.taps[tap] = interface
            for prefix in interface.prefixes:
                if state.forwarding is Forwarding.LOCAL and state.plugged and not tap_stands:
                    continue
                ways = self._ways(state, prefix, tap)
                reason = ways[0].partition("!")[2] or self._injected(vm, f"route {prefix}")
                if reason:
                    failures.append(Failure(vm, f"route {prefix}", reason))
                    # As in the kernel: what stood there before stays.
                    ways = (before[0].get(prefix, ""), before[1].get(prefix, ""))
                for table, leads in zip((self.routes, self.inside_routes), ways, strict=True):
                    if leads:
                        table[prefix] = leads
                        self._owners[prefix] = vm
        return failures

    def _ways(self, state: VmDataPlane, prefix: Prefix, tap: str) -> tuple[str, str]:
        """Where a prefix leads for all, and before that for senders in the data centres."""
        leads = self._leads(state, prefix, tap)
        queue = bool(self.dc_prefixes) and state.outside is Outside.QUEUE and state.plugged
        return (tap, leads) if queue and leads.startswith("tunnel") else (leads, "")

    def _leads(self, state: VmDataPlane, prefix: Prefix, tap: str) -> str:
        """Where a prefix leads; "" nowhere; "!REASON" where it cannot lead."""
        if state.forwarding is Forwarding.NONE:
            return ""
        if state.forwarding is Forwarding.LOCAL:
            return tap if state.plugged else "!local delivery needs the VM plugged in here"
        locator = state.target.locator(prefix.version) if state.target is not None else None
        if locator is None:
            return f"!the redirect's target has no IPv{prefix.version} locator"
        if state.policy is not RedirectPolicy.TUNNEL and locator in self.adjacent:
            return f"via {locator}"
        if state.policy is RedirectPolicy.HOST_ROUTE:
            return f"!no host route to {locator}: it is not adjacent"
        return f"tunnel {locator}"

    def _withdraw(self, vm: VmKey) -> None:
        state = self.held.pop(vm, None)
        for index, interface in enumerate(state.interfaces if state is not None else ()):
            self.taps.pop(port_name(vm, index), None)
            for prefix in interface.prefixes:
                if self._owners.get(prefix) == vm:
                    self.routes.pop(prefix, None)
                    self.inside_routes.pop(prefix, None)
                    del self._owners[prefix]

    def _differences(self, vms: Collection[VmKey] | None) -> list[Drift]:
        """What hands have changed of these VMs; of all, strays included, for None."""
        found = list[Drift]()
        for vm, state in self.held.items():
            if vms is None or vm in vms:
                found += [Drift(vm, item, words) for item, words in self._differences_of(state)]
        if vms is None:
            stray = [f"tap {tap}" for tap in self.taps if tap not in self._wanted_taps()]
            told = {p for s in self.held.values() for i in s.interfaces for p in i.prefixes}
            held = {**self.routes, **self.inside_routes}
            stray += [f"route {p}" for p in held if p not in {*self._owners, *told}]
            found += [Drift(None, item, "stands, and nobody asked for it") for item in stray]
        return found

    def _differences_of(self, state: VmDataPlane) -> Iterator[tuple[str, str]]:
        for index, interface in enumerate(state.interfaces):
            tap = port_name(state.vm, index)
            if state.plugged and self.taps.get(tap) != interface:
                yield f"tap {tap}", "has another guest" if tap in self.taps else "is gone"
            for prefix in interface.prefixes:
                ways = self._ways(state, prefix, tap)
                if ways[0].startswith("!") or self._owners.get(prefix, state.vm) != state.vm:
                    continue
                for table, leads in zip((self.routes, self.inside_routes), ways, strict=True):
                    if found := _difference(leads, table.get(prefix)):
                        yield f"route {prefix}", found

    def _wanted_taps(self) -> set[str]:
        plugged = [state for state in self.held.values() if state.plugged]
        return {port_name(s.vm, index) for s in plugged for index in range(len(s.interfaces))}

    def _remove_strays(self) -> None:
        wanted = self._wanted_taps()
        self.taps = {tap: one for tap, one in self.taps.items() if tap in wanted}
        for table in (self.routes, self.inside_routes):
            for prefix in [p for p in table if p not in self._owners]:
                del table[prefix]

    def _injected(self, vm: VmKey, item: str) -> str:
        for failing in self._failing:
            wanted, prefix, reason = failing
            if item.startswith(prefix) and wanted in (None, vm):
                self._failing.remove(failing)
                return reason
        return ""


def _difference(leads: str, held: str | None) -> str:
    """What is wrong with a route, in words; "" if nothing is."""
    if leads and held != leads:
        way = f"leads to {held}" if held else "is gone"
        return f"{way}; it should lead to {leads}"
    return "stands, and should not" if held and not leads else ""
