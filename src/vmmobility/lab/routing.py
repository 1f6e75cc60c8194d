"""Routes that the lab itself puts into a fabric's kernels.

Static fabrics: the shortest path from every node to every prefix; prefixes are the links' subnets
and the NVEs' home prefixes, and only routers carry what is not theirs.  Fabrics with FRR: default
routes of what is no router.  Not here: how routes get into a kernel (namespaces.py), what FRR
does (frr_plans.py).  Rests on fabric_values.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from ipaddress import ip_network

from vmmobility.lab.fabric_values import Fabric, Link
from vmmobility.lab.napt_daemons import hidden
from vmmobility.wire.values import Address, Prefix


@dataclass(frozen=True, slots=True)
class Route:
    """`prefix` goes by `next_hop` out of `interface`."""

    prefix: Prefix
    next_hop: Address
    interface: str


_DEFAULT = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


def kernel_routes(fabric: Fabric) -> dict[str, tuple[Route, ...]]:
    """What the lab puts into every node's kernel."""
    if not fabric.dynamic:
        return static_routes(fabric)
    routes = default_routes(fabric)
    for node, more in public_routes(fabric).items():
        routes[node] = (*routes.get(node, ()), *more)
    return routes


def public_routes(fabric: Fabric) -> dict[str, tuple[Route, ...]]:
    """Public prefixes lead to their boxes, at routers outside (without a dc) that boxes are on."""
    routes: dict[str, list[Route]] = {}
    for box in fabric.boxes:
        for link in fabric.links:
            there = link.end(box.at)
            for router in fabric.of_kind("router"):
                here = link.end(router.name)
                if there is None or here is None or router.dc or router.name == box.at:
                    continue
                routes.setdefault(router.name, []).extend(
                    Route(prefix, there.address(4), here.interface) for prefix in box.publics
                )
    return {node: tuple(found) for node, found in routes.items()}


def default_routes(fabric: Fabric) -> dict[str, tuple[Route, ...]]:
    """By the first router on its first link, for every node that is none."""
    routes = {}
    for node in fabric.nodes:
        if node.kind == "router":
            continue
        link = next(link for link in fabric.links if link.end(node.name) is not None)
        here, there = link.end(node.name), link.end(fabric.routers_of(node.name)[0].name)
        assert here is not None
        assert there is not None
        routes[node.name] = tuple(
            Route(prefix, there.address(version), here.interface)
            for version, prefix in _DEFAULT.items()
        )
    return routes


def static_routes(fabric: Fabric) -> dict[str, tuple[Route, ...]]:
    """Every node's routes to all that it is not itself attached to."""
    routers = {node.name for node in fabric.nodes if node.kind == "router"}
    routers |= {node.nve for node in fabric.nodes if node.nve}  # which carry for their servers
    routes: dict[str, list[Route]] = {node.name: [] for node in fabric.nodes}
    goals: list[tuple[tuple[Prefix, ...], list[str]]] = [
        (link.prefixes, [end.node for end in link.ends]) for link in fabric.links
    ]
    goals += [(node.home_prefixes, [node.name]) for node in fabric.nodes if node.home_prefixes]
    goals += [(box.publics, [box.at]) for box in fabric.boxes]
    for prefixes, goal in goals:
        for node, (link, neighbour) in _steps_towards(fabric, goal, routers).items():
            here, there = link.end(node), link.end(neighbour)
            assert here is not None
            assert there is not None
            routes[node] += [
                Route(prefix, there.address(prefix.version), here.interface)
                for prefix in prefixes
                if not hidden(fabric, node, goal, prefix)
            ]
    return {node: tuple(found) for node, found in routes.items()}


def _steps_towards(
    fabric: Fabric, goal: list[str], routers: set[str]
) -> dict[str, tuple[Link, str]]:
    """node -> (link, neighbour) of its first step on a shortest path to one of `goal`."""
    steps: dict[str, tuple[Link, str]] = {}
    seen = set(goal)
    queue = deque(goal)
    while queue:
        current = queue.popleft()
        if current not in routers and goal != [current]:
            continue  # reached, but carries nothing on
        for link in fabric.links:
            if link.end(current) is None:
                continue
            for end in link.ends:
                if end.node not in seen:
                    seen.add(end.node)
                    steps[end.node] = (link, current)
                    queue.append(end.node)
    return steps
