"""What a router's audit finds: its routes in the kernel beside those that were asked for, in words.

Pure over the mirror.  Not here: settings and rules (router_environment.py), the repair
(router_driver.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vmmobility.drivers.dataplane import Drift
from vmmobility.drivers.linux.fib import Fib
from vmmobility.drivers.linux.fib_messages import FibRoute, Hop
from vmmobility.drivers.linux.router_routes import Wish, is_right, item, ours_at
from vmmobility.wire.values import Prefix


def differences(fib: Fib, wishes: Mapping[Prefix, Wish]) -> Iterator[Drift]:
    """What differs of the routes that somebody wants, then what nobody wants."""
    for prefix, wish in wishes.items():
        for number, table in fib.tables.items():
            ours = ours_at(table, prefix)
            if found := _fault(fib, wish, number, ours):
                yield Drift(wish.vm, item(number, prefix), found)
    for number, table in fib.tables.items():
        for route in table:
            if route.ours and route.prefix not in wishes:
                name = item(number, route.prefix)
                yield Drift(None, name, "stands, and nobody asked for it")


def _fault(fib: Fib, wish: Wish, number: int, ours: Sequence[FibRoute]) -> str:
    """What is wrong with a prefix in one table, in words; "" if nothing is."""
    if number not in wish.tables:
        return "stands, and should not" if ours else ""
    if wish.reason or (len(ours) == 1 and is_right(ours[0], wish.hops)):
        return ""
    should = ways(fib, wish.hops)
    if not ours:
        return f"is gone; it should lead to {should}"
    leads = " and ".join(f"{ways(fib, r.hops)} (metric {r.metric})" for r in ours)
    return f"leads to {leads}; it should lead to {should}"


def ways(fib: Fib, hops: Sequence[Hop]) -> str:
    """Next hops in words."""
    return ", ".join(_way(fib, hop) for hop in hops) or "nowhere"


def _way(fib: Fib, hop: Hop) -> str:
    name = fib.interface(hop.ifindex)
    return name if hop.gateway is None else f"{hop.gateway} by {name}"
