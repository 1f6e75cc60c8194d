"""A plan's BGP as FRR's configuration: eBGP with an explicit policy for every neighbour.

Not here: the policies (policies.py).  Rests on plan.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmmobility.drivers.frr.plan import BgpPlan, Neighbour, RouterPlan
from vmmobility.wire.values import FAMILIES

_IGP = {("ospf", 4): "ospf", ("ospf", 6): "ospf6", ("isis", 4): "isis", ("isis", 6): "isis"}


def bgp(plan: RouterPlan, own: BgpPlan) -> Iterator[str]:
    """The BGP process."""
    yield f"router bgp {own.asn}"
    yield f" bgp router-id {plan.router_id}"
    yield " no bgp default ipv4-unicast"
    yield " ! Tell peers at once: FRR's own waits for up to a second for more to tell."
    yield " coalesce-time 0"
    for neighbour in own.neighbours:
        yield from _session(neighbour)
    for family in FAMILIES:
        yield f" address-family ipv{family} unicast"
        yield "  ! Below the IGP: with eBGP's own 20, another data centre's route would hide the"
        yield "  ! one by which this data centre announces a VM that has just come."
        yield "  distance bgp 200 200 200"
        for source, route_map in _sources(plan, own, family):
            yield f"  redistribute {source} route-map {route_map}{family}"
        for neighbour in own.neighbours:
            if neighbour.address.version == family:
                yield from _activated(own, neighbour, family)
        yield " exit-address-family"
    yield "exit"


def _session(neighbour: Neighbour) -> Iterator[str]:
    address = neighbour.address
    yield f" neighbor {address} remote-as {neighbour.asn}"
    yield " ! A peer that is gone is noticed after 3 s, not 180; one that is back is asked at once."
    yield f" neighbor {address} timers 1 3"
    yield f" neighbor {address} timers connect 1"
    yield f" neighbor {address} advertisement-interval 0"


def _sources(plan: RouterPlan, own: BgpPlan, family: int) -> Iterator[tuple[str, str]]:
    """(whose routes, by which route-map) go into BGP."""
    yield "connected", "OWN"
    if own.transit:
        return
    yield "kernel", "HOSTBGP"
    if plan.static:
        yield "static", "OWN"
    if plan.igp != "none":
        yield _IGP[plan.igp, family], "TOBGP"


def _activated(own: BgpPlan, neighbour: Neighbour, family: int) -> Iterator[str]:
    address = neighbour.address
    side = "INSIDE" if neighbour.inside else "OUTSIDE"
    into = "OPEN" if own.transit else f"{side}-IN{family}"
    if neighbour.listens_only:
        into = "NOTHING"
    out = "OPEN" if own.transit else f"{side}-OUT{family}"
    yield f"  neighbor {address} activate"
    yield f"  neighbor {address} route-map {into} in"
    yield f"  neighbor {address} route-map {out} out"
    if neighbour.inside:
        yield f"  neighbor {address} send-community"
    else:
        yield f"  no neighbor {address} send-community"
