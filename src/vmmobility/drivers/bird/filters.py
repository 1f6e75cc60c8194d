"""A plan's filters in BIRD's language: which route may go from where to where.

The same policy as FRR's (drivers/frr/policies.py, docs/design/frr.md), filter for filter.  Not
here: who applies them (protocols.py).  Rests on drivers/frr/plan.

    vm4, vm6              a VM's host route        covering4  what this data centre announces
    short4                no host route            home4      NVEs' home prefixes
    leads_out             by an uplink: to another autonomous system
    of_own_router         announced by a default router of this data centre
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vmmobility.drivers.frr.plan import (
    COVERING_TAG,
    HOST_TAG,
    IMPORTED_TAG,
    BgpPlan,
    RouterPlan,
)
from vmmobility.drivers.linux.ownership import ROUTE_PROTOCOL
from vmmobility.wire.values import FAMILIES, Prefix

METRIC = 20
"""What FRR gives a route that it brings into OSPF."""
KERNEL_PREFERENCE = 200
"""Above OSPF's 150 and BGP's 100: in the kernel, too, the agent's route hides the others."""
_BITS = {4: 32, 6: 128}


def filters(plan: RouterPlan, bgp: BgpPlan) -> Iterator[str]:
    """All functions and filters that protocols.py names."""
    yield f"define COMMUNITY = ({bgp.community.replace(':', ', ')});"
    yield from _function("leads_out", [f'ifname = "{up.name}"' for up in plan.uplinks()])
    external = "source ~ [ RTS_OSPF_EXT1, RTS_OSPF_EXT2 ]"
    yield from _function("of_own_router", [f"{external} && ospf_tag = {HOST_TAG}"])
    for family in FAMILIES:
        home = [route.prefix for route in plan.static]
        yield from _function(f"vm{family}", _sets(plan.vm_prefixes, family, hosts=True))
        yield from _function(f"home{family}", _sets(home, family))
        yield from _function(f"covering{family}", _sets(plan.covering, family))
        yield from _function(f"short{family}", [f"net.len < {_BITS[family]}"])
        yield from _kernel(family)
        yield from _into_ospf(family)
        yield from _neighbours(family)


def _sets(prefixes: Iterable[Prefix], family: int, hosts: bool = False) -> list[str]:
    """One condition: the route is one of those, or (hosts) a host route inside one of those."""
    bits = _BITS[family]
    span = f"{{{bits},{bits}}}" if hosts else ""
    mine = sorted({prefix for prefix in prefixes if prefix.version == family})
    return [f"net ~ [ {', '.join(f'{prefix}{span}' for prefix in mine)} ]"] if mine else []


def _function(name: str, conditions: list[str]) -> Iterator[str]:
    yield f"function {name}() {{ return {' || '.join(conditions) or 'false'}; }}"


def _filter(name: str, *lines: str) -> Iterator[str]:
    yield f"filter {name} {{"
    yield from (f"  {line}" for line in lines)
    yield "  reject;"
    yield "}"


def _kernel(family: int) -> Iterator[str]:
    yield "# The router agent's routes, and nobody else's."
    yield from _filter(
        f"from_kernel{family}",
        f"if krt_source = {ROUTE_PROTOCOL} && vm{family}() then {{",
        f"  preference = {KERNEL_PREFERENCE};",
        "  accept;",
        "}",
    )
    yield "# What this router has learnt; its interfaces' subnets are the kernel's own."
    learnt = "source != RTS_DEVICE && source != RTS_INHERIT"
    yield from _filter(f"to_kernel{family}", f"if {learnt} then accept;")


def _into_ospf(family: int) -> Iterator[str]:
    yield "# Host routes that lead out lose against those of this data centre (type 2, and not the"
    yield "# tag by which BGP knows its own: what came by BGP never goes back)."
    yield from _filter(
        f"to_ospf{family}",
        f"if vm{family}() then {{",
        "  if source = RTS_BGP || source = RTS_INHERIT && leads_out() then {",
        f"    ospf_metric2 = {METRIC};",
        f"    ospf_tag = {IMPORTED_TAG};",
        "    accept;",
        "  }",
        "  reject;",
        "}",
        f"if source = RTS_STATIC && home{family}() then {{",
        f"  ospf_metric1 = {METRIC};",
        "  accept;",
        "}",
        f"if source = RTS_BGP && short{family}() then {{",
        f"  ospf_metric2 = {METRIC};",
        f"  ospf_tag = {COVERING_TAG};",
        "  accept;",
        "}",
    )


def _neighbours(family: int) -> Iterator[str]:
    vms, covering, short = f"vm{family}()", f"covering{family}()", f"short{family}()"
    own = (
        f"if {covering} && source != RTS_BGP then {{",
        "  bgp_origin = ORIGIN_IGP;",
        "  accept;",
        "}",
    )
    yield "# Host routes: from and to border routers of the same operator only."
    yield from _filter(
        f"inside_in{family}",
        f"if {vms} && COMMUNITY ~ bgp_community then accept;",
        f"if {covering} then reject;",
        f"if {short} then accept;",
    )
    yield "# Only this network's own: a host route that a neighbour withdraws must not come back"
    yield "# from another one that has not heard of it yet."
    yield from _filter(
        f"inside_out{family}",
        f"if {vms} then {{",
        "  if source = RTS_INHERIT && ! leads_out() || of_own_router() then {",
        "    bgp_community.add(COMMUNITY);",
        "    bgp_origin = ORIGIN_IGP;",
        "    accept;",
        "  }",
        "  reject;",
        "}",
        *own,
        f"if source = RTS_BGP && {short} then accept;",
    )
    yield from _filter(
        f"outside_in{family}", f"if {covering} then reject;", f"if {short} then accept;"
    )
    yield from _filter(f"outside_out{family}", *own)
