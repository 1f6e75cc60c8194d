"""What FRR or BIRD shall do on each router: a RouterPlan a router, from the fabric alone.

Not here: its text (drivers/frr, drivers/bird), its daemons (frr.py, bird.py).  Rests on
fabric_values.

Routers of one data centre share an IGP; routers of different autonomous systems speak eBGP.  A
router with an asn and no data centre is the internet: it passes everything on, and hears of
covering prefixes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

from vmmobility.drivers.frr.plan import (
    BgpPlan,
    Igp,
    InterfacePlan,
    Neighbour,
    RouterPlan,
    StaticRoute,
)
from vmmobility.lab.fabric_values import End, Fabric, Link, Node
from vmmobility.wire.values import Prefix

_ROUTER_IDS = int(IPv4Address("10.255.0.0"))


def router_plans(fabric: Fabric, software: str = "frr") -> dict[str, RouterPlan]:
    """Name -> plan, of every router that runs that software."""
    hosts = tuple(p for node in fabric.of_kind("nve") for p in node.home_prefixes)
    plans = {}
    for number, node in enumerate(fabric.of_kind("router"), 1):
        if node.software == software:
            internet = _is_internet(node)
            plans[node.name] = RouterPlan(
                hostname=node.name,
                router_id=IPv4Address(_ROUTER_IDS + number),
                interfaces=tuple(_interfaces(fabric, node)),
                igp=_igp(fabric, node),
                static=tuple(_home_routes(fabric, node)),
                vm_prefixes=() if internet else hosts,
                covering=tuple(_covering(fabric, node)) if node.asn else (),
                bgp=_bgp(fabric, node),
            )
    return plans


def expected_prefixes(fabric: Fabric) -> frozenset[Prefix]:
    """What every router must have a route to once the fabric has converged."""
    found = {prefix for link in fabric.links for prefix in link.prefixes}
    return frozenset(found | {p for node in fabric.nodes for p in node.home_prefixes})


def _is_internet(node: Node) -> bool:
    return bool(node.asn) and not node.dc


def _igp(fabric: Fabric, node: Node) -> Igp:
    if _is_internet(node):
        return "none"
    return "isis" if fabric.igp == "isis" else "ospf"


def _peers(fabric: Fabric, node: Node, link: Link) -> list[Node]:
    """The other routers on a link."""
    routers = fabric.of_kind("router")
    return [r for r in routers if r.name != node.name and link.end(r.name) is not None]


def _interfaces(fabric: Fabric, node: Node) -> Iterator[InterfacePlan]:
    for link in fabric.links:
        end = link.end(node.name)
        if end is not None:
            peers = _peers(fabric, node, link)
            inside = any(peer.dc == node.dc and not _is_internet(peer) for peer in peers)
            uplink = any(peer.asn != node.asn and peer.dc != node.dc for peer in peers)
            yield InterfacePlan(end.interface, "active" if inside else "passive",
                                shared=link.shared, uplink=uplink)  # fmt: skip


def _home_routes(fabric: Fabric, node: Node) -> Iterator[StaticRoute]:
    for nve in fabric.of_kind("nve"):
        if node in fabric.routers_of(nve.name):
            locators = fabric.first_end(nve.name)
            for prefix in nve.home_prefixes:
                yield StaticRoute(prefix, locators.address(prefix.version))


def _covering(fabric: Fabric, node: Node) -> Iterator[Prefix]:
    """The subnets that its data centre's nodes are on (or that the internet is on), and the home
    prefixes of its NVEs."""
    members = {n.name for n in fabric.of_kind("router") if n.dc == node.dc}
    if _is_internet(node):
        members = {node.name}
    for link in fabric.links:
        if any(link.end(name) is not None for name in members):
            yield from link.prefixes
    for nve in fabric.of_kind("nve"):
        if node.dc and fabric.dc_of(nve.name) == node.dc:
            yield from nve.home_prefixes


def _bgp(fabric: Fabric, node: Node) -> BgpPlan | None:
    if not node.asn:
        return None
    neighbours = []
    for link in fabric.links:
        if link.end(node.name) is None:
            continue
        for peer in _peers(fabric, node, link):
            end = link.end(peer.name)
            if end is not None and peer.asn not in (0, node.asn):
                inside = node.role == peer.role == "border"
                neighbours += [Neighbour(a.ip, peer.asn, inside) for a in end.addresses]
    for collector in fabric.of_kind("collector"):
        if node.name in collector.peers:
            neighbours += [
                Neighbour(address.ip, collector.asn, inside=True, listens_only=True)
                for address in end_at(fabric, collector.name, node.name).addresses
            ]
    return BgpPlan(node.asn, tuple(neighbours), transit=_is_internet(node))


def end_at(fabric: Fabric, node: str, peer: str) -> End:
    """A node's end of its link to a peer."""
    shared = (link for link in fabric.links if link.end(peer) is not None)
    return next(end for link in shared if (end := link.end(node)) is not None)
