"""A move across two NAPT boxes, overheard: damaged, cut, turned and said again, everywhere.

Not here: a box that is the attacker itself (engine/test_napt_trust.py), domains without boxes.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest

from tests.engine.napt_world import VM, NaptWorld
from tests.engine.network import Node
from vmmobility.wire.authentication import DIGEST, TRAILER
from vmmobility.wire.origin import RELAYED_TRAILER

SHOTS = 1500
Overheard = tuple[Node, bytes, Any, Any]


def portrait(world: NaptWorld) -> object:
    """All that a message could change: records on every disk but marks of what was heard."""
    return {
        name: {k: v for k, v in node.disk.items() if "mark/" not in k}
        for name, node in world.nodes.items()
    }


def damaged(data: bytes, chance: random.Random) -> bytes:
    """One octet or several differ, it is shorter, or parts of it stand elsewhere."""
    how = chance.randrange(5)
    at = chance.randrange(len(data))
    if how == 0:
        return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
    if how == 1:
        return data[:at]
    if how == 2:  # without Receiver, or with another one's
        return data[:-RELAYED_TRAILER] + data[-TRAILER:]
    if how == 3:
        name = chance.choice((b"a", b"b", b"manager", b"x")).ljust(32, bytes(1))
        return data[: -TRAILER - 32] + name + data[-TRAILER:]
    return data[:-DIGEST] + chance.randbytes(DIGEST)


@pytest.mark.parametrize("manager_at", ["", "x"])
def test_what_is_overheard_between_boxes_is_worth_nothing(manager_at: str) -> None:
    world, chance = NaptWorld(manager_at), random.Random(7)
    world.run(2.0)
    overheard: list[Overheard] = []
    world.overheard = overheard
    world.begin()
    assert world.moved("b").ok
    world.run(30.0)
    world.overheard = None
    assert len(overheard) > 30
    before, nodes = portrait(world), list(world.nodes.values())
    counted = sum(sum(world.drops(name).values()) for name in world.nodes)
    for number in range(SHOTS):
        target, data, source, local = chance.choice(overheard)
        if number % 3:
            data = damaged(data, chance)
            target = chance.choice((target, chance.choice(nodes)))
        engine = target.engine
        assert engine is not None
        world.feed(target, partial(engine.datagram_received, data, source, local, world.now))
    world.run(2.0)
    assert portrait(world) == before
    drops = sum(sum(world.drops(name).values()) for name in world.nodes)
    assert drops - counted >= SHOTS, "each is counted, by its reason"
    assert world.manager.cache.bindings[VM].nve.nve_id == "b"
