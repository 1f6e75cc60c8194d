"""A RouterPlan as FRR's integrated configuration (frr.conf), with comments that say why.

Not here: its parts (policies.py, igp.py, bgp.py), whether FRR takes it (check.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from vmmobility.drivers.frr.bgp import bgp
from vmmobility.drivers.frr.igp import igp
from vmmobility.drivers.frr.plan import RouterPlan
from vmmobility.drivers.frr.policies import WORD, bgp_maps, igp_maps, prefix_lists


def render(plan: RouterPlan) -> str:
    """The whole of frr.conf."""
    return "\n".join(_lines(plan)) + "\n"


def _lines(plan: RouterPlan) -> Iterator[str]:
    yield f"hostname {plan.hostname}"
    yield "service integrated-vtysh-config"
    yield "! A next hop that nobody uses leaves the kernel after 1 s, not 180."
    yield "zebra nexthop-group keep 1"
    yield "!"
    if plan.static:
        yield "! NVEs' home prefixes, by their locators."
        for route in plan.static:
            yield f"{WORD[route.prefix.version]} route {route.prefix} {route.next_hop}"
        yield "!"
    yield from prefix_lists(plan)
    yield "!"
    yield from igp_maps(plan)
    if plan.bgp is not None:
        yield from bgp_maps(plan, plan.bgp)
    yield "!"
    yield from igp(plan)
    if plan.bgp is not None:
        yield from bgp(plan, plan.bgp)
