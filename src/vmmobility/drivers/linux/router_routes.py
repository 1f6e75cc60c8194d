"""A router's routes for VMs: what should stand for a prefix beside what stands, and the way there.

One batch, in the order that meets no hole: into table 7701, into main, out of main, out of 7701.
Only what differs is in it.  Not here: who wants a prefix (router_driver.py).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vmmobility.drivers.dataplane import Failure
from vmmobility.drivers.linux.fib_messages import FibRoute, Hop, drop, lead
from vmmobility.drivers.linux.fib_table import FibTable
from vmmobility.drivers.linux.netlink import Netlink, Request
from vmmobility.drivers.linux.ownership import HOLD_TABLE, MAIN_TABLE, ROUTE_METRIC
from vmmobility.drivers.linux.rtnetlink import RTM_DELROUTE
from vmmobility.engine.fabric_routes import RouteAction, VmRoutes
from vmmobility.wire.values import Prefix, VmKey

TABLES = {
    RouteAction.NONE: (),
    RouteAction.HOLD: (HOLD_TABLE,),
    RouteAction.ANNOUNCE: (HOLD_TABLE, MAIN_TABLE),
}
_GONE = {errno.ESRCH, errno.ENODEV}  # a route that is not there need not be removed
NOBODY = VmKey(0, "")


@dataclass(frozen=True, slots=True)
class Wish:
    """What should stand for one prefix: in which tables, leading where, for whom.

    reason: why it cannot lead anywhere now; what stands in the wanted tables then stays
    lacking: members of its group to which nothing leads, and why: the others have their load
    """

    vm: VmKey
    prefix: Prefix
    tables: tuple[int, ...]
    hops: tuple[Hop, ...] = ()
    reason: str = ""
    lacking: tuple[tuple[VmKey, str], ...] = ()


def share(claimants: Sequence[VmRoutes]) -> list[VmRoutes]:
    """Of those that want one prefix, in the order of their last apply, whose wishes count.

    The last one's alone; or, if that is a member of a group, those of all members that are
    announced, else of all that are held.  Each packet's flow is hashed to one of their next hops.
    """
    last = claimants[-1]
    if not last.group:
        return [last]
    mates = [s for s in claimants if s.group == last.group and s.vm.vni == last.vm.vni]
    return [s for s in mates if s.state is RouteAction.ANNOUNCE] or mates


def item(table: int, prefix: Prefix) -> str:
    """A route's name for people."""
    return f"route {prefix}" if table == MAIN_TABLE else f"route {prefix} in table {table}"


def ours_at(table: FibTable, prefix: Prefix) -> list[FibRoute]:
    """Our routes of one prefix, best first."""
    return [route for route in table.at(prefix) if route.ours]


def is_right(route: FibRoute, hops: Sequence[Hop]) -> bool:
    """Whether a route of ours is the one that should stand."""
    return route.metric == ROUTE_METRIC and set(route.hops) == set(hops)


class _Entry(NamedTuple):
    vm: VmKey
    prefix: Prefix
    table: int
    request: Request


@dataclass(slots=True)
class Changes:
    """The requests of one batch, and the failures known before it is sent.

    unmade: prefixes whose routes could not be made so
    """

    tables: Mapping[int, FibTable]
    failures: list[Failure] = field(default_factory=list)
    unmade: set[Prefix] = field(default_factory=set)
    _leads: dict[int, list[_Entry]] = field(default_factory=dict)
    _drops: dict[int, list[_Entry]] = field(default_factory=dict)

    def make(self, wish: Wish) -> None:
        """Add what it takes to fulfil the wish."""
        if wish.reason and wish.tables:
            self._fail(wish.vm, f"route {wish.prefix}", wish.prefix, wish.reason)
        for vm, reason in wish.lacking:
            self._fail(vm, f"route {wish.prefix}", wish.prefix, reason)
        for number, table in self.tables.items():
            if number not in wish.tables:
                self.drop(wish.vm, ours_at(table, wish.prefix))
            elif not wish.reason:
                self._lead(wish, number, table.at(wish.prefix))

    def _lead(self, wish: Wish, number: int, here: Sequence[FibRoute]) -> None:
        ours = [route for route in here if route.ours]
        right = [route for route in ours if is_right(route, wish.hops)]
        if right:
            # A second one of its name may have its way before it, and a replace would be refused.
            self.drop(wish.vm, [route for route in ours if route is not right[0]], exactly=True)
            return
        if any(route.metric == ROUTE_METRIC and not route.ours for route in here):
            reason = f"another's route of metric {ROUTE_METRIC} stands there: change its metric"
            self._fail(wish.vm, item(number, wish.prefix), wish.prefix, reason)
            return
        request = lead(number, wish.prefix, wish.hops)
        entry = _Entry(wish.vm, wish.prefix, number, request)
        self._leads.setdefault(number, []).append(entry)
        turned = [route for route in ours if route.metric == ROUTE_METRIC][:1]
        self.drop(wish.vm, [route for route in ours if route not in turned], exactly=True)

    def drop(self, vm: VmKey, routes: Sequence[FibRoute], *, exactly: bool = False) -> None:
        """Remove routes of ours."""
        for route in routes:
            entry = _Entry(vm, route.prefix, route.table, drop(route, exactly=exactly))
            self._drops.setdefault(route.table, []).append(entry)

    def _fail(self, vm: VmKey, name: str, prefix: Prefix, reason: str) -> None:
        self.failures.append(Failure(vm, name, reason))
        self.unmade.add(prefix)

    def _ordered(self) -> Iterator[_Entry]:
        yield from self._leads.get(HOLD_TABLE, ())
        yield from self._leads.get(MAIN_TABLE, ())
        yield from self._drops.get(MAIN_TABLE, ())
        yield from self._drops.get(HOLD_TABLE, ())

    def send(self, netlink: Netlink) -> list[Failure]:
        """Send the batch, if there is anything in it; answers all that failed."""
        batch = list(self._ordered())
        if not batch:
            return self.failures
        outcomes = netlink.batch([entry.request for entry in batch])
        for entry, outcome in zip(batch, outcomes, strict=True):
            removal = entry.request.kind == RTM_DELROUTE
            if outcome is None or (removal and outcome.number in _GONE):
                continue
            self._fail(entry.vm, item(entry.table, entry.prefix), entry.prefix, str(outcome))
        return self.failures
