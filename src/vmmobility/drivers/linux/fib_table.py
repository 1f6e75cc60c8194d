"""One routing table in memory: fed by the kernel's words, looked up as the kernel does.

Routes lie in a bucket for each prefix length; those of one prefix in the order of preference,
lowest metric first.  Feeding the same word twice, or one that a dump has overtaken, does no harm.
Pure.  Not here: where the words come from (fib.py).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

from vmmobility.drivers.linux.fib_messages import FibRoute
from vmmobility.drivers.linux.netlink import NLM_F_REPLACE
from vmmobility.wire.values import FAMILIES, Address, Prefix

NLM_F_APPEND = 0x800

_WIDTH = {4: 32, 6: 128}
_MASKS = {v: [((1 << n) - 1) << (w - n) for n in range(w + 1)] for v, w in _WIDTH.items()}

Hops = frozenset[tuple[int, Address]]
"""Where packets go on: (interface index, gateway), or the destination itself on a link."""


class FibTable:
    """The routes of one table, both families.

    nh_ids: counts the next hop objects in use
    unsure: set where the words cannot tell whose a route is: IPv6 joins next hops of several hands
            in one route, which bears the first one's number.  All is to be read again then.
    """

    def __init__(self) -> None:
        self._levels: dict[int, dict[int, dict[int, list[FibRoute]]]] = {v: {} for v in FAMILIES}
        self._lengths: dict[int, list[int]] = {v: [] for v in FAMILIES}
        self.nh_ids: Counter[int] = Counter()
        self.unsure = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FibTable) and self._levels == other._levels

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[FibRoute]:
        for levels in self._levels.values():
            for level in levels.values():
                for routes in level.values():
                    yield from routes

    def __len__(self) -> int:
        return sum(len(level) for levels in self._levels.values() for level in levels.values())

    # -- fed ----------------------------------------------------------------------------------

    def append(self, route: FibRoute) -> None:
        """A dump's next route: behind those of its metric."""
        self._put(self._at(route), route, behind=True)

    def learn(self, route: FibRoute, flags: int) -> bool:
        """RTM_NEWROUTE with its flags; answers whether it changed anything."""
        here = self._at(route)
        if route in here and not (flags & NLM_F_REPLACE and route.version == 6):
            return False
        if route.version == 6:
            return self._learn6(here, route, bool(flags & NLM_F_REPLACE))
        if flags & NLM_F_REPLACE:
            for index, old in enumerate(here):
                if old.metric == route.metric:
                    self._count(old, -1)
                    self._count(route, 1)
                    here[index] = route
                    return True
        self._put(here, route, behind=bool(flags & NLM_F_APPEND))
        return True

    def _learn6(self, here: list[FibRoute], route: FibRoute, replace: bool) -> bool:
        """IPv6 tells all next hops of a prefix and metric, also when one was added."""
        rivals = [old for old in here if old.metric == route.metric]
        if rivals == [route]:
            return False
        told = set(route.hops)
        if replace:
            # The kernel replaces what is of its kind, and only in want of that something else.
            gone = [old for old in rivals if _joins(old) == _joins(route)] or rivals
        else:
            gone = [old for old in rivals if old.hops and told.issuperset(old.hops)]
            self.unsure = self.unsure or any(old.protocol != route.protocol for old in gone)
        for old in gone if _joins(route) else gone[:1]:
            here.remove(old)
            self._count(old, -1)
        self._put(here, route, behind=True)
        return True

    def forget(self, route: FibRoute) -> bool:
        """RTM_DELROUTE: the route of just these next hops, or (IPv6) these of its next hops."""
        level = self._levels[route.version].get(route.length, {})
        here = level.get(route.bits, [])
        told = set(route.hops)
        for index, old in enumerate(here):
            if old.metric != route.metric or old.kind != route.kind:
                continue
            left = tuple(hop for hop in old.hops if hop not in told)
            if route.version == 4 and (left or len(told) != len(old.hops)):
                continue
            if old.hops and left == old.hops:
                continue
            self._count(old, -1)
            if left:
                here[index] = dataclasses.replace(old, hops=left)
                self._count(old, 1)
                self.unsure = True
            else:
                del here[index]
                self._tidy(route)
            return True
        return False

    def _at(self, route: FibRoute) -> list[FibRoute]:
        levels = self._levels[route.version]
        level = levels.get(route.length)
        if level is None:
            level = levels[route.length] = {}
            self._lengths[route.version] = sorted(levels, reverse=True)
        here = level.get(route.bits)
        if here is None:
            here = level[route.bits] = []
        return here

    def _put(self, here: list[FibRoute], route: FibRoute, behind: bool) -> None:
        metric = route.metric
        place = 0
        for old in here:
            if old.metric > metric or (old.metric == metric and not behind):
                break
            place += 1
        here.insert(place, route)
        self._count(route, 1)

    def _tidy(self, route: FibRoute) -> None:
        levels = self._levels[route.version]
        if not levels[route.length][route.bits]:
            del levels[route.length][route.bits]
            if not levels[route.length]:
                del levels[route.length]
                self._lengths[route.version] = sorted(levels, reverse=True)

    def _count(self, route: FibRoute, by: int) -> None:
        if route.nh_id:
            self.nh_ids[route.nh_id] += by
            if not self.nh_ids[route.nh_id]:
                del self.nh_ids[route.nh_id]

    # -- looked up ----------------------------------------------------------------------------

    def at(self, prefix: Prefix) -> list[FibRoute]:
        """The routes of just this prefix, best first."""
        level = self._levels[prefix.version].get(prefix.prefixlen)
        return list(level.get(int(prefix.network_address), ())) if level else []

    def match(
        self,
        destination: Prefix | Address,
        *,
        shorter_only: bool = False,
        others_only: bool = False,
    ) -> FibRoute | None:
        """The longest match; the best route of its prefix that is alive.

        shorter_only: only routes shorter than the destination; others_only: none of ours
        """
        version = destination.version
        longest, bits = _WIDTH[version], 0
        if isinstance(destination, Prefix):
            longest, bits = destination.prefixlen, int(destination.network_address)
        else:
            bits = int(destination)
        levels, masks = self._levels[version], _MASKS[version]
        longest -= shorter_only
        for length in self._lengths[version]:
            if length > longest:
                continue
            for route in levels[length].get(bits & masks[length], ()):
                if route.decides and not (others_only and route.ours):
                    return route
        return None

    def hops(self, destination: Prefix | Address, *, shorter_only: bool = False) -> Hops:
        """Where the longest match leads; empty where nothing does, or a blackhole.

        A connected route leads to (its interface, the destination).
        """
        route = self.match(destination, shorter_only=shorter_only)
        if route is None:
            return frozenset()
        own: Address = (
            destination.network_address if isinstance(destination, Prefix) else destination
        )
        return frozenset((hop.ifindex, hop.gateway or own) for hop in route.hops)


def _joins(route: FibRoute) -> bool:
    """Whether IPv6 joins it with others of its prefix and metric to one of several next hops."""
    return bool(route.hops) and route.hops[0].gateway is not None and not route.nh_id
