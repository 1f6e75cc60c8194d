"""A plan's protocols in BIRD's language: kernel, OSPFv2 and OSPFv3, BGP.

The timers are FRR's (docs/design/frr.md) where BIRD has them.  Not here: the filters that they
name (filters.py).  Rests on drivers/frr/plan.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmmobility.drivers.frr.plan import BgpPlan, InterfacePlan, Neighbour, RouterPlan
from vmmobility.wire.values import FAMILIES

_OSPF = {4: "v2", 6: "v3"}


def kernel(plan: RouterPlan) -> Iterator[str]:
    """The kernel's main table, both ways, and what lies in no protocol."""
    yield "protocol device { }"
    yield "protocol direct { ipv4; ipv6; }"
    for family in FAMILIES:
        yield f"protocol kernel kernel{family} {{"
        yield "  learn;"
        yield f"  ipv{family} {{"
        yield f"    import filter from_kernel{family};"
        yield f"    export filter to_kernel{family};"
        yield "  };"
        yield "}"
        routes = [route for route in plan.static if route.prefix.version == family]
        if routes:
            yield "# NVEs' home prefixes, by their locators."
            yield f"protocol static home_routes{family} {{"
            yield f"  ipv{family};"
            yield from (f"  route {route.prefix} via {route.next_hop};" for route in routes)
            yield "}"


def ospf(plan: RouterPlan) -> Iterator[str]:
    """One process a family."""
    for family in FAMILIES:
        yield f"protocol ospf {_OSPF[family]} ospf{family} {{"
        yield "  # Compute within a second of a change: BIRD has nothing shorter."
        yield "  tick 1;"
        yield f"  ipv{family} {{ import all; export filter to_ospf{family}; }};"
        yield "  area 0 {"
        for interface in plan.interfaces:
            yield from _ospf_interface(interface)
        yield "  };"
        yield "}"


def _ospf_interface(interface: InterfacePlan) -> Iterator[str]:
    if interface.igp == "passive":
        yield f'    interface "{interface.name}" {{ stub yes; }};'
        return
    yield f'    interface "{interface.name}" {{'
    yield "      # A neighbour that is gone without a word is noticed after 4 s, not 40."
    yield "      hello 1; dead 4;"
    yield "      # A lost update is sent again after 2 s, not 5."
    yield "      retransmit 2;"
    if not interface.shared:
        yield "      # No designated router to wait for: adjacent in 1 s, not 40."
        yield "      type ptp;"
    yield "    };"


def sessions(bgp: BgpPlan) -> Iterator[str]:
    """eBGP with an explicit policy for every neighbour."""
    for number, neighbour in enumerate(bgp.neighbours, 1):
        yield from _session(bgp, number, neighbour)


def _session(bgp: BgpPlan, number: int, neighbour: Neighbour) -> Iterator[str]:
    family = neighbour.address.version
    side = "inside" if neighbour.inside else "outside"
    into = "none" if neighbour.listens_only else f"filter {side}_in{family}"
    yield f"protocol bgp peer{number} {{"
    yield f"  local as {bgp.asn};"
    yield f"  neighbor {neighbour.address} as {neighbour.asn};"
    yield "  # A peer that is gone is noticed after 3 s, not 240; one that is back, after 1 s."
    yield "  keepalive time 1; hold time 3;"
    yield "  connect delay time 1; connect retry time 1; error wait time 1, 2;"
    yield f"  ipv{family} {{"
    yield f"    import {into};"
    yield f"    export filter {side}_out{family};"
    yield "    next hop self;"
    yield "  };"
    yield "}"
