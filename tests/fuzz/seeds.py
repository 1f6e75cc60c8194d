"""Inputs that are right, for decoders to begin with: docs/vectors, and what real engines say.

Not here: kept inputs (corpus/).  Rests on the tests' in-memory network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import MANAGER, Node, World
from tests.forge.domain import SITES
from vmmobility.engine.outputs import Persist, Send

VECTORS = Path(__file__).parents[2] / "docs" / "vectors"


def _datagrams(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _datagrams(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "datagram":
                yield item
            elif key == "datagrams":
                yield from item
            else:
                yield from _datagrams(item)


@cache
def vectors() -> tuple[bytes, ...]:
    """Every datagram of docs/vectors, the invalid ones too."""
    files = sorted(VECTORS.glob("*.json"))
    texts = [t for f in files for t in _datagrams(json.loads(f.read_text()))]
    return tuple(dict.fromkeys(bytes.fromhex(text) for text in texts))


@cache
def conversation() -> tuple[tuple[bytes, ...], tuple[Persist, ...]]:
    """What the engines of a domain send and record while VMs start, move and end."""
    said: list[bytes] = []
    recorded: list[Persist] = []

    def overhear(_: Node, what: str, value: Any) -> None:
        if what == "output" and isinstance(value, Send):
            said.append(value.data)
        elif what == "output" and isinstance(value, Persist):
            recorded.append(value)

    world, vm = World(), vm_key("vm1")
    world.observe = overhear
    world.start_vm(vm, "a", interfaces_of("vm1", 1, 2))
    world.run(3)
    world.move(vm, "b")
    world.run(5)
    world.stop_vm(vm, "b")
    world.run(5)
    return tuple(dict.fromkeys(said)), tuple(recorded)


@dataclass(frozen=True)
class Routed:
    """Of a domain with routers: what the manager told them, and every node's disk at times."""

    orders: tuple[bytes, ...]
    disks: tuple[dict[str, Any], ...]


@cache
def routed() -> Routed:
    """A VM leaves home, moves on among the routers' NVEs and comes home."""
    orders: list[bytes] = []
    disks: list[dict[str, Any]] = []
    world, vm = World(routers=SITES), vm_key("vm1")

    def overhear(node: Node, what: str, value: Any) -> None:
        if what == "output" and isinstance(value, Send) and node.node_id == MANAGER:
            if world.by_address[value.destination.address].router is not None:
                orders.append(value.data)
        elif what == "durable":
            disks.append(json.loads(json.dumps(node.disk)))

    world.observe = overhear
    world.start_vm(vm, "a", interfaces_of("vm1", 1, 2))
    world.run(3)
    for to in ("b", "c", "a"):
        world.move(vm, to)
        world.run(8)
    return Routed(tuple(dict.fromkeys(orders)), tuple(disks[::8]))


def datagrams() -> tuple[bytes, ...]:
    return vectors() + conversation()[0]
