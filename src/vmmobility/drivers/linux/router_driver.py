"""LinuxRouterPlane: a router's desired routes in, the kernel reconciled, failures out item by item.

What stands is read from the mirror of the kernel's tables (fib.py), never remembered: a route that
the kernel dropped with a link is missed at once and put back.  A look at the mirror and the batch
that follows from it are one turn of the event loop, so there is no lock.

Not here: messages (fib_messages.py), the order of a batch (router_routes.py), words for people
(router_audit.py, router_explain.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vmmobility.drivers.dataplane import Drift, Failure
from vmmobility.drivers.linux import router_audit, router_environment, router_explain
from vmmobility.drivers.linux.fib import Fib
from vmmobility.drivers.linux.fib_messages import Hop, dump_routes
from vmmobility.drivers.linux.fib_table import FibTable, Hops
from vmmobility.drivers.linux.netlink import Netlink
from vmmobility.drivers.linux.router_routes import NOBODY, TABLES, Changes, Wish, share
from vmmobility.engine.fabric_routes import RouteAction, Sight, VmRoutes
from vmmobility.errors import DataPlaneError, VmMobilityError
from vmmobility.wire.values import Address, Prefix, VmKey


class LinuxRouterPlane:
    """The RouterPlane of a Linux router.

    `on_failure` hears in words of routes that could not be turned when the fabric changed.  One
    instance a network namespace.
    """

    def __init__(self, on_failure: Callable[[str], None] | None = None) -> None:
        self._on_failure = on_failure or (lambda _: None)
        self._watcher: Callable[[], None] = lambda: None
        self._netlink: Netlink | None = None
        self._fib = Fib(self._fabric_changed)
        self._synchronised = False
        self._desired: dict[VmKey, VmRoutes] = {}
        self._claims: dict[Prefix, dict[VmKey, None]] = {}
        self._users: dict[Address, set[VmKey]] = {}
        self._ways: dict[Address, tuple[Hop, ...]] = {}
        self._unmade: set[Prefix] = set()

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """See RouterPlane.start."""
        router_environment.check_rights()
        router_environment.ensure_settings()
        netlink = self._open()
        router_environment.ensure_rules(netlink)
        self._fib.start(netlink)

    def _open(self) -> Netlink:
        if self._netlink is None:
            self._netlink = Netlink()
        return self._netlink

    def _started(self) -> Netlink:
        if self._netlink is None:
            raise DataPlaneError("the router plane is not started", "call start() first")
        return self._netlink

    async def close(self) -> None:
        """See RouterPlane.close."""
        self._fib.close()
        self._synchronised = False
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    async def remove_all(self) -> None:
        """See RouterPlane.remove_all.  Also without start(): nothing is made first."""
        router_environment.check_rights()
        netlink = self._open()
        self._forget_wishes()
        tables = {number: FibTable() for number in self._fib.tables}
        changes = Changes(tables)
        changes.drop(NOBODY, [route for route in dump_routes(netlink, tables) if route.ours])
        failures = changes.send(netlink)
        router_environment.remove_rules(netlink)
        await self.close()
        if failures:
            raise DataPlaneError(f"{failures[0].item} cannot be removed: {failures[0].reason}")

    def watch(self, changed: Callable[[], None]) -> None:
        """See RouterPlane.watch."""
        self._watcher = changed

    # -- reconciliation -----------------------------------------------------------------------

    async def resync(self, desired: Mapping[VmKey, VmRoutes]) -> Sequence[Failure]:
        """See RouterPlane.resync.  Raises DataPlaneError where the kernel cannot be read."""
        netlink = self._started()
        router_environment.ensure_settings()
        router_environment.ensure_rules(netlink)
        self._fib.reload()
        self._forget_wishes()
        for state in desired.values():
            self._adopt(state)
        self._synchronised = True
        return self._reconcile(self._claims, leftovers=True)

    async def apply(self, desired: Sequence[VmRoutes]) -> Sequence[Failure]:
        """See RouterPlane.apply.  Raises DataPlaneError where the kernel cannot be read."""
        self._started()
        touched: dict[Prefix, None] = {}
        for state in desired:
            touched.update(dict.fromkeys(self._adopt(state)))
        # In the order of their last apply: of two that claim a prefix the later one has it.
        return self._reconcile(touched)

    def _forget_wishes(self) -> None:
        self._desired, self._claims, self._users, self._ways = {}, {}, {}, {}
        self._unmade = set()

    def _adopt(self, state: VmRoutes) -> list[Prefix]:
        """Make this the VM's wish; answers the prefixes of the old one and of the new one."""
        touched: list[Prefix] = list(state.prefixes)
        old = self._desired.pop(state.vm, None)
        if old is not None:
            touched += old.prefixes
            for prefix in dict.fromkeys(old.prefixes):
                claims = self._claims[prefix]
                del claims[state.vm]
                if not claims:
                    del self._claims[prefix]
            for locator in old.serving.locators if old.serving is not None else ():
                users = self._users[locator]
                users.discard(state.vm)
                if not users:
                    del self._users[locator]
                    self._ways.pop(locator, None)
        if state.state is not RouteAction.NONE:
            self._desired[state.vm] = state
            for prefix in state.prefixes:
                self._claims.setdefault(prefix, {})[state.vm] = None
            for locator in state.serving.locators if state.serving is not None else ():
                self._users.setdefault(locator, set()).add(state.vm)
        return touched

    def _wish(self, prefix: Prefix) -> Wish:
        """What should stand for a prefix: the wish of the VM that claimed it last; or, if that is
        a member of a load-shared group, of all its members together."""
        claims = self._claims.get(prefix)
        if not claims:
            return Wish(NOBODY, prefix, ())
        claimants = [self._desired[vm] for vm in claims]
        joined = share(claimants)
        found, lacking = dict[Hop, None](), dict[VmKey, str]()
        for state in joined:
            hops, reason = self._towards(state, prefix)
            found |= dict.fromkeys(hops)
            if reason:
                lacking[state.vm] = reason
        vm, tables = joined[-1].vm, TABLES[joined[-1].state]
        if not found:
            return Wish(vm, prefix, tables, reason=lacking.get(vm, ""))
        return Wish(vm, prefix, tables, tuple(found), lacking=tuple(lacking.items()))

    def _towards(self, state: VmRoutes, prefix: Prefix) -> tuple[tuple[Hop, ...], str]:
        """The next hops for one VM's packets; or none, and why."""
        if state.serving is None:
            return (), "no serving NVE is named"
        locator = state.serving.locator(prefix.version)
        if locator is None:
            return (), f"{state.serving.nve_id} has no IPv{prefix.version} locator"
        hops = self._way(locator)
        return hops, "" if hops else f"no route leads to {locator} of {state.serving.nve_id}"

    def _way(self, locator: Address) -> tuple[Hop, ...]:
        """The next hops towards a locator: itself on a link, else those of the fabric's route."""
        route = self._fib.main.match(locator, others_only=True)
        hops = route.hops if route is not None else ()
        found = tuple(hop if hop.gateway is not None else Hop(hop.ifindex, locator) for hop in hops)
        self._ways[locator] = found
        return found

    def _reconcile(self, prefixes: Iterable[Prefix], leftovers: bool = False) -> list[Failure]:
        netlink = self._started()
        self._read()
        changes = Changes(self._fib.tables)
        asked = dict.fromkeys(prefixes)
        for prefix in asked:
            changes.make(self._wish(prefix))
        if leftovers:
            for table in self._fib.tables.values():
                changes.drop(NOBODY, [r for r in table if r.ours and r.prefix not in self._claims])
        failures = changes.send(netlink)
        self._unmade = (self._unmade - asked.keys()) | changes.unmade
        self._fib.drain()
        return failures

    def _read(self) -> None:
        self._fib.drain()
        if not self._fib.current:
            self._fib.reload()

    # -- the fabric ---------------------------------------------------------------------------

    def _fabric_changed(self) -> None:
        """The mirror has changed: turn what leads elsewhere now, then tell who watches."""
        try:
            for failure in self._follow():
                self._on_failure(f"{failure.vm}: {failure.item}: {failure.reason}")
        except (VmMobilityError, OSError) as error:
            self._on_failure(f"routes cannot be turned after a change of the fabric: {error}")
        self._watcher()

    def _follow(self) -> list[Failure]:
        """Turn routes whose locator is led to otherwise now, and try again what could not be made.

        All are looked at if some may have gone without a word.  Answers what fails anew.
        """
        if not self._fib.current:
            return []
        if self._fib.shaken:
            self._fib.shaken = False
            return self._again(self._claims)
        turned: set[VmKey] = set()
        for locator, users in self._users.items():
            before = self._ways.get(locator)
            if self._way(locator) != before:
                turned |= users
        prefixes = [p for vm in turned for p in self._desired[vm].prefixes]
        return self._again([*prefixes, *self._unmade]) if prefixes or self._unmade else []

    def _again(self, prefixes: Iterable[Prefix]) -> list[Failure]:
        before = {str(prefix) for prefix in self._unmade}
        failures = self._reconcile(prefixes)
        return [one for one in failures if one.item.split()[1] not in before]

    def sights(self, wanted: Sequence[VmRoutes]) -> Mapping[VmKey, Sight]:
        """See RouterPlane.sights."""
        self._fib.drain()
        if not self._fib.current:
            return {state.vm: Sight(direct=False, covered=False) for state in wanted}
        leads: dict[Address, Hops] = {}
        return {state.vm: self._sight(state, leads) for state in wanted}

    def _sight(self, state: VmRoutes, leads: dict[Address, Hops]) -> Sight:
        goal = state.goal or state.serving
        direct = covered = goal is not None
        main = self._fib.main

        def towards(locator: Address) -> Hops:
            if locator not in leads:
                leads[locator] = main.hops(locator)
            return leads[locator]

        for prefix in state.prefixes:
            locator = goal.locator(prefix.version) if goal is not None else None
            if locator is None:
                return Sight(direct=False, covered=False)
            to = towards(locator)
            if not state.group:
                direct = direct and bool(to) and main.hops(prefix) == to
            else:
                others = [nve.locator(prefix.version) for nve in state.others]
                goals = to.union(*(towards(other) for other in others if other is not None))
                found = main.hops(prefix)
                direct = direct and bool(to) and bool(found) and found <= goals
            covered = covered and bool(to) and main.hops(prefix, shorter_only=True) == to
        return Sight(direct, covered)

    # -- audit, people ------------------------------------------------------------------------

    async def audit(self) -> Sequence[Drift]:
        """See RouterPlane.audit.  Reads the whole table anew."""
        if not self._synchronised:
            return []
        self._started()
        self._read()
        self._fib.reload()
        await asyncio.sleep(0)
        netlink = self._started()
        self._read()
        self._follow()  # a path that has just changed is no drift
        found = list(self._differences(netlink))
        if not found:
            return []
        try:
            router_environment.ensure_settings()
            router_environment.ensure_rules(netlink)
            failures = self._reconcile(self._claims, leftovers=True)
        except (VmMobilityError, OSError) as error:
            self._on_failure(f"drift cannot be repaired: {error}")
            failures = []
        for failure in failures:
            self._on_failure(f"{failure.vm}: {failure.item}: {failure.reason}")
        left = {(drift.vm, drift.item) for drift in self._differences(netlink)}
        return [replace(d, repaired=(d.vm, d.item) not in left) for d in found]

    def _differences(self, netlink: Netlink) -> Iterator[Drift]:
        wishes = {prefix: self._wish(prefix) for prefix in self._claims}
        for name, words in router_environment.faults(netlink):
            yield Drift(None, name, words)
        yield from router_audit.differences(self._fib, wishes)

    def held(self) -> Mapping[str, int]:
        """See RouterPlane.held."""
        states = [state.state for state in self._desired.values()]
        return {
            "announced": states.count(RouteAction.ANNOUNCE),
            "held": states.count(RouteAction.HOLD),
        }

    def explain(self, address: Address) -> list[dict[str, Any]]:
        """See RouterPlane.explain.  Reads the rules, and those tables that are not mirrored."""
        netlink = self._started()
        self._read()
        return router_explain.rows(netlink, self._fib, address)
