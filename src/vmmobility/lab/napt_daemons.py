"""What the daemons of a fabric with NAPT boxes are told: the boxes, and all that they stand before.

Static fabrics only: an NVE is behind the box at its router; manager and correspondents are outside.
Tables of configuration, no files.  Not here: processes (daemons.py).  Rests on fabric_values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vmmobility.lab.fabric_values import Box, Fabric, Node
from vmmobility.wire.values import Prefix

Tables = dict[str, Any]


def boxes_of(fabric: Fabric) -> tuple[Box, ...]:
    """Those that the lab runs daemons for: where routers run daemons of their own, none."""
    return () if fabric.dynamic else fabric.boxes


def box_of(fabric: Fabric, nve: str) -> Box:
    """The box that an NVE is behind."""
    routers = {router.name for router in fabric.routers_of(nve)}
    return next(box for box in fabric.boxes if box.at in routers)


def _nves(fabric: Fabric, box: Box) -> list[Node]:
    return [nve for nve in fabric.of_kind("nve") if box_of(fabric, nve.name) == box]


def private(fabric: Fabric, box: Box) -> list[Prefix]:
    """The IPv4 prefixes behind a box: its NVEs' links and home prefixes."""
    found: list[Prefix] = []
    for nve in _nves(fabric, box):
        links = [link for link in fabric.links if link.end(nve.name) is not None]
        found += [p for link in links for p in link.prefixes if p.version == 4]
        found += [p for p in nve.home_prefixes if p.version == 4]
    return found


def hidden(fabric: Fabric, node: str, goal: Sequence[str], prefix: Prefix) -> bool:
    """Whether a node has no route to a prefix of the nodes `goal`: it is private behind a box that
    the node is not behind.  Two boxes may have the same prefixes.
    """
    for box in boxes_of(fabric):
        behind = {box.at, *(nve.name for nve in _nves(fabric, box))}
        if node not in behind and behind & set(goal) and prefix in private(fabric, box):
            return True
    return False


def apart(fabric: Fabric, one: str, other: str) -> bool:
    """Whether two NVEs are behind different boxes: their private prefixes may be the same."""
    boxes = boxes_of(fabric)
    found = [box for nve in (one, other) for box in boxes
             if box.at in {router.name for router in fabric.routers_of(nve)}]  # fmt: skip
    return len(found) == 2 and found[0] != found[1]


def key_pairs(fabric: Fabric) -> list[tuple[str, str]]:
    """A hop's two ends, with their roles: between boxes, and from each to NVEs and manager."""
    boxes = boxes_of(fabric)
    pairs = []
    for number, box in enumerate(boxes):
        pairs += [(f"{box.name}:napt", f"{nve.name}:nve") for nve in _nves(fabric, box)]
        pairs += [(f"{box.name}:napt", f"{m.name}:manager") for m in fabric.of_kind("manager")]
        pairs += [(f"{box.name}:napt", f"{other.name}:napt") for other in boxes[number + 1 :]]
    return pairs


def _ipv4(fabric: Fabric, node: str, peer: str) -> str:
    return str(fabric.end_towards(node, peer).address(4))


def _outer_router(fabric: Fabric) -> str:
    """The router that the manager hangs on: outside."""
    return fabric.routers_of(fabric.of_kind("manager")[0].name)[0].name


def _pool(box: Box) -> list[str]:
    return [str(prefix) for prefix in box.publics]


def in_managers_file(fabric: Fabric) -> Tables:
    """Its peers, each by its box, and the boxes."""
    outer = _outer_router(fabric)
    nves = fabric.of_kind("nve")
    return {
        "peer": [
            {"id": n.name, "role": "nve", "via": box_of(fabric, n.name).name} for n in nves
        ],
        "napt": [
            {"id": b.name, "addresses": [_ipv4(fabric, b.at, outer)], "pool": _pool(b)}
            for b in fabric.boxes
        ],
    }  # fmt: skip


def in_nves_file(fabric: Fabric, nve: str, manager: str) -> Tables:
    """Its manager, by its box, and the boxes."""
    own = box_of(fabric, nve)
    boxes: list[Tables] = []
    for box in fabric.boxes:
        near = {"addresses": [_ipv4(fabric, box.at, nve)]} if box == own else {}
        boxes.append({"id": box.name, **near, "pool": _pool(box)})
    return {"manager": [{"id": manager, "via": own.name}], "napt": boxes}


def addresses(fabric: Fabric, box: Box) -> list[str]:
    """Where a box listens: its router's IPv4 addresses."""
    ends = [end for link in fabric.links if (end := link.end(box.at)) is not None]
    return [str(end.address(4)) for end in ends]


def in_boxs_file(fabric: Fabric, box: Box) -> Tables:
    """Its policy's defaults, and its neighbours on both sides."""
    manager = fabric.of_kind("manager")[0].name
    around: list[Tables] = [
        {
            "id": n.name,
            "role": "nve",
            "side": "inside",
            "addresses": [_ipv4(fabric, n.name, box.at)],
        }
        for n in _nves(fabric, box)
    ]
    outside = [str(fabric.first_end(manager).address(4))]
    around.append({"id": manager, "role": "manager", "side": "outside", "addresses": outside})
    for other in fabric.boxes:
        if other != box:
            there = [_ipv4(fabric, other.at, box.at)]
            around.append({"id": other.name, "role": "napt", "side": "outside",
                           "addresses": there, "pool": _pool(other), "detour": there})  # fmt: skip
    napt = {"inside": [str(p) for p in private(fabric, box)], "pool": _pool(box),
            "policy": box.policy}  # fmt: skip
    return {"napt": napt, "neighbour": around}
