"""FakeRouterPlane: the router plane's in-memory twin, with failures to inject and a fabric to tell.

It passes the same contract tests as drivers/linux (tests/contract/test_router_plane.py).  What the
kernel would hold of ours is shown as `main` and `hold`: hands that change them make drift.
Not here: packets, links, metrics other than ours and a routing daemon's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vmmobility.drivers.dataplane import Drift, Failure
from vmmobility.engine.fabric_routes import RouteAction, Sight, VmRoutes
from vmmobility.errors import DataPlaneError, EnvironmentProblem
from vmmobility.wire.values import Address, Prefix, VmKey

Hop = tuple[int, Address | None]
"""(interface index, gateway); without a gateway the destination is on the link."""
Hops = frozenset[Hop]

_MAIN, _HOLD = "main", "hold"
_WANTED = {
    RouteAction.NONE: (),
    RouteAction.HOLD: (_HOLD,),
    RouteAction.ANNOUNCE: (_HOLD, _MAIN),
}
_ITEM = {_MAIN: "route {}", _HOLD: "route {} in table 7701"}


class FakeRouterPlane:
    """A router without a kernel.

    fabric:  what others have put into the main table: prefix -> next hops (`lead`, `unlead`)
    main, hold: routes of ours, announced and not
    applied: every state given to apply or resync, in order
    writes:  how often a route of ours was made, changed or removed
    blind:   the main table cannot be read: no sight is direct or covered
    missing: start() fails and names this
    """

    def __init__(self, leads: Mapping[Prefix, Iterable[Hop]] | None = None) -> None:
        self.fabric: dict[Prefix, Hops] = {p: frozenset(h) for p, h in (leads or {}).items()}
        self.main: dict[Prefix, Hops] = {}
        self.hold: dict[Prefix, Hops] = {}
        self.applied: list[VmRoutes] = []
        self.writes = 0
        self.blind = False
        self.missing = ""
        self._desired: dict[VmKey, VmRoutes] = {}
        self._failing: list[tuple[VmKey | None, str, str]] = []
        self._watcher: Callable[[], None] = lambda: None
        self._told = False
        self._started = self._synchronised = False

    # -- for tests ----------------------------------------------------------------------------

    def lead(self, prefix: Prefix, *hops: Hop) -> None:
        """Have the fabric's own route to a prefix; without a next hop it is a blackhole."""
        self.fabric[prefix] = frozenset(hops)
        self._fabric_changed()

    def unlead(self, prefix: Prefix) -> None:
        """Take the fabric's own route away."""
        self.fabric.pop(prefix, None)
        self._fabric_changed()

    def fail_next(self, item: str, reason: str = "injected", vm: VmKey | None = None) -> None:
        """Refuse the next route to be made whose name begins with `item` (`route 10.7`, …)."""
        self._failing.append((vm, item, reason))

    def state(self, vm: VmKey) -> RouteAction:
        """What was last asked for a VM."""
        wish = self._desired.get(vm)
        return wish.state if wish is not None else RouteAction.NONE

    # -- RouterPlane --------------------------------------------------------------------------

    async def start(self) -> None:
        """See RouterPlane.start; fails while `missing` names something."""
        if self.missing:
            raise EnvironmentProblem(f"{self.missing} is missing", f"install {self.missing}")
        self._started = True

    async def resync(self, desired: Mapping[VmKey, VmRoutes]) -> Sequence[Failure]:
        """See RouterPlane.resync."""
        self._check_started()
        self._desired = {}
        self._synchronised = True
        self._adopt(desired.values())
        return self._reconcile()

    async def apply(self, desired: Sequence[VmRoutes]) -> Sequence[Failure]:
        """See RouterPlane.apply."""
        self._check_started()
        touched = [old for state in desired if (old := self._desired.get(state.vm)) is not None]
        self._adopt(desired)
        return self._reconcile({p for state in (*touched, *desired) for p in state.prefixes})

    def watch(self, changed: Callable[[], None]) -> None:
        """See RouterPlane.watch."""
        self._watcher = changed

    def sights(self, wanted: Sequence[VmRoutes]) -> Mapping[VmKey, Sight]:
        """See RouterPlane.sights."""
        if self.blind or not self._started:
            return {state.vm: Sight(direct=False, covered=False) for state in wanted}
        return {state.vm: self._sight(state) for state in wanted}

    async def audit(self) -> Sequence[Drift]:
        """See RouterPlane.audit."""
        self._check_started()
        found = self._differences() if self._synchronised else []
        if not found:
            return []
        self._reconcile()
        left = {(drift.vm, drift.item) for drift in self._differences()}
        return [replace(drift, repaired=(drift.vm, drift.item) not in left) for drift in found]

    def held(self) -> Mapping[str, int]:
        """See RouterPlane.held."""
        states = [state.state for state in self._desired.values()]
        return {
            "announced": states.count(RouteAction.ANNOUNCE),
            "held": states.count(RouteAction.HOLD),
        }

    def explain(self, address: Address) -> list[dict[str, Any]]:
        """See RouterPlane.explain."""
        self._check_started()
        rows: list[dict[str, Any]] = []
        for priority, number, table in (
            (78, 7701, self.hold),
            (32766, 254, {**self.fabric, **self.main}),
        ):
            found = [prefix for prefix in table if address in prefix]
            prefix = max(found, key=lambda p: p.prefixlen, default=None)
            hops = sorted(table[prefix], key=str) if prefix is not None else []
            ours = prefix in self.hold if number == 7701 else prefix in self.main
            rows.append({
                "priority": priority, "only": "", "table": number,
                "prefix": str(prefix) if prefix is not None else None,
                "metric": None if prefix is None else 7 if ours else 20,
                "protocol": None if prefix is None else 77 if ours else 188,
                "kind": None if prefix is None else "unicast" if hops else "blackhole",
                "ours": ours,
                "next_hops": [
                    {"interface": f"eth{i}", "gateway": str(g) if g is not None else None}
                    for i, g in hops
                ],
                "leads": prefix is not None and not any(row["leads"] for row in rows),
            })  # fmt: skip
        return rows

    async def close(self) -> None:
        """See RouterPlane.close: what is held stays."""
        self._started = self._synchronised = False

    async def remove_all(self) -> None:
        """See RouterPlane.remove_all."""
        self.main, self.hold, self._desired = {}, {}, {}
        self._started = self._synchronised = False

    # -- inside -------------------------------------------------------------------------------

    def _check_started(self) -> None:
        if not self._started:
            raise DataPlaneError("the router plane is not started", "call start() first")

    def _tables(self) -> dict[str, dict[Prefix, Hops]]:
        return {_HOLD: self.hold, _MAIN: self.main}

    def _adopt(self, desired: Iterable[VmRoutes]) -> None:
        for state in desired:
            self.applied.append(state)
            self._desired.pop(state.vm, None)
            if state.state is not RouteAction.NONE:
                self._desired[state.vm] = state

    def _owners(self) -> dict[Prefix, VmRoutes]:
        """Who has each prefix: of two that claim it, whoever was given later."""
        return {p: state for state in self._desired.values() for p in state.prefixes}

    def _joined(self, state: VmRoutes, prefix: Prefix) -> list[VmRoutes]:
        """Whose wishes count beside that of the last claimant: its group's."""
        claimants = [s for s in self._desired.values() if prefix in s.prefixes]
        mates = [s for s in claimants if s.group == state.group and s.vm.vni == state.vm.vni]
        announced = [s for s in mates if s.state is RouteAction.ANNOUNCE]
        return (announced or mates) if state.group else [state]

    def _ways(self, joined: Sequence[VmRoutes], prefix: Prefix) -> tuple[Hops, dict[VmKey, str]]:
        """Where a prefix should lead, and for whom it cannot, in words."""
        ways = {s.vm: self._way(s, prefix) for s in joined}
        hops = [way for way in ways.values() if not isinstance(way, str)]
        lacking = {vm: way for vm, way in ways.items() if isinstance(way, str)}
        return frozenset().union(*hops), lacking

    def _way(self, state: VmRoutes, prefix: Prefix) -> Hops | str:
        """Where one VM's packets for a prefix should go, or the words why they cannot."""
        if state.serving is None:
            return "no serving NVE is named"
        locator = state.serving.locator(prefix.version)
        if locator is None:
            return f"{state.serving.nve_id} has no IPv{prefix.version} locator"
        found = _match(self.fabric, locator, locator.max_prefixlen)
        if not found:
            return f"no route leads to {locator} of {state.serving.nve_id}"
        return frozenset((i, g if g is not None else locator) for i, g in found)

    def _reconcile(self, only: set[Prefix] | None = None) -> list[Failure]:
        """Make, turn and remove routes of ours; all, or those of some prefixes."""
        owners, failures = self._owners(), list[Failure]()
        for prefix in {*owners, *self.main, *self.hold} if only is None else only:
            state = owners.get(prefix)
            joined = self._joined(state, prefix) if state is not None else []
            way, lacking = self._ways(joined, prefix)
            failures += [Failure(vm, f"route {prefix}", why) for vm, why in lacking.items()]
            for name, table in self._tables().items():
                if state is None or name not in _WANTED[joined[-1].state]:
                    self.writes += prefix in table
                    self._announce(name, table.pop(prefix, None) is not None)
                    continue
                item = _ITEM[name].format(prefix)
                if way and table.get(prefix) != way:
                    if reason := self._injected(state.vm, item):
                        failures.append(Failure(state.vm, item, reason))
                        continue
                    self.writes += 1
                    table[prefix] = way
                    self._announce(name, True)
        return failures

    def _announce(self, table: str, changed: bool) -> None:
        if changed and table == _MAIN:
            self._tell()

    def _fabric_changed(self) -> None:
        if self._started:
            self._reconcile({p for state in self._desired.values() for p in state.prefixes})
        self._tell()

    def _tell(self) -> None:
        """Call the watcher: on the loop and once for many changes; at once where no loop runs."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._watcher()
            return
        if not self._told:
            self._told = True
            loop.call_soon(self._telling)

    def _telling(self) -> None:
        self._told = False
        self._watcher()

    def _sight(self, state: VmRoutes) -> Sight:
        goal = state.goal or state.serving
        direct = covered = goal is not None
        table = {**self.fabric, **self.main}
        for prefix in state.prefixes:
            locator = goal.locator(prefix.version) if goal is not None else None
            if locator is None:
                return Sight(direct=False, covered=False)
            own, length = prefix.network_address, prefix.prefixlen
            to = _resolved(_match(table, locator, locator.max_prefixlen), locator)
            found = _resolved(_match(table, own, length), own)
            goals = to
            for nve in state.others:
                if (other := nve.locator(prefix.version)) is not None:
                    goals |= _resolved(_match(table, other, other.max_prefixlen), other)
            leads = found == to if not state.group else bool(found) and found <= goals
            direct = direct and bool(to) and leads
            shorter = _resolved(_match(table, own, length - 1), own)
            covered = covered and bool(to) and shorter == to
        return Sight(direct, covered)

    def _differences(self) -> list[Drift]:
        owners, found = self._owners(), list[Drift]()
        for prefix, state in owners.items():
            found += [Drift(state.vm, *words) for words in self._faults(prefix, state)]
        for name, table in self._tables().items():
            for prefix in table.keys() - owners.keys():
                item = _ITEM[name].format(prefix)
                found.append(Drift(None, item, "stands, and nobody asked for it"))
        return found

    def _faults(self, prefix: Prefix, state: VmRoutes) -> Iterator[tuple[str, str]]:
        joined = self._joined(state, prefix)
        way, _ = self._ways(joined, prefix)
        for name, table in self._tables().items():
            item = _ITEM[name].format(prefix)
            if name not in _WANTED[joined[-1].state]:
                if prefix in table:
                    yield item, "stands, and should not"
            elif way and table.get(prefix) != way:
                leads = f"leads to {table[prefix]}" if prefix in table else "is gone"
                yield item, f"{leads}; it should lead to {way}"

    def _injected(self, vm: VmKey, item: str) -> str:
        for failing in self._failing:
            wanted, name, reason = failing
            if item.startswith(name) and wanted in (None, vm):
                self._failing.remove(failing)
                return reason
        return ""


def _match(table: Mapping[Prefix, Hops], address: Address, longest: int) -> Hops:
    """The longest match of at most that length; empty where there is none."""
    found = [p for p in table if p.prefixlen <= longest and address in p]
    return table[max(found, key=lambda p: p.prefixlen)] if found else frozenset()


def _resolved(hops: Hops, address: Address) -> Hops:
    return frozenset((i, gateway if gateway is not None else address) for i, gateway in hops)
