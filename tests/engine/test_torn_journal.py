"""The journal is torn at every octet of the last batch of a real conversation, and it heals.

Each batch that a node makes while a VM attaches and moves is the last one once.  Whatever octets of
it reached the disk, the daemon finds the state before it, or with all of them the state after it;
from either the conversation comes to its end.  Not here: damage elsewhere (unit/test_journal.py).
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.fabric_talk import sites
from tests.engine.network import MANAGER, Node, World
from tests.engine.test_restarts import settle, then_moves_again
from vmmobility.engine.manager_moves import MoveRefused
from vmmobility.engine.outputs import Output, Persist
from vmmobility.store import frames

VM = vm_key("vm1")
ROUTERS = sites("ra:a/rb:b,c/x")
ROUTED = ("manager, routed", "ra", "rb", "x")
NODES = (MANAGER, "a", "b", *ROUTED)
MOST_BATCHES = 60


class Paper:
    """A node's journal as octets, written beside its disk: a header, then a frame a batch."""

    def __init__(self, disk: dict[str, Any]) -> None:
        # A snapshot of what is there already, as a compaction writes it.
        first = frames.encode_frame(1, payload(list(disk.items())))
        self.octets = frames.encode_header(frames.Header(0, len(first))) + first
        self.sequence = 1

    def append(self, changes: list[tuple[str, Any]]) -> None:
        self.octets += self.frame(changes)
        self.sequence += 1

    def frame(self, changes: list[tuple[str, Any]]) -> bytes:
        return frames.encode_frame(self.sequence + 1, payload(changes))


def payload(changes: list[tuple[str, Any]]) -> bytes:
    return frames.payload_of(frames.encode_changes(changes))


def read(octets: bytes) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for frame in frames.scan(octets).frames:
        for key, value in frames.changes_of(frame):
            if value is None:
                state.pop(key, None)
            else:
                state[key] = json.loads(value)
    return state


class Torn:
    """A world in which a node dies as it writes its batch number `last`."""

    def __init__(self, name: str, last: int) -> None:
        self.world = World(routers=ROUTERS if name in ROUTED else ())
        name = name.removesuffix(", routed")
        self.node = self.world.nodes[name]
        self.paper = Paper(self.node.disk)
        self.batch: list[tuple[str, Any]] | None = None
        self._left = last
        self.world.interrupt = self._interrupt
        self.world.observe = self._observe
        self.world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
        self.run(5)
        try:
            if self.batch is None:
                self.world.move(VM, "b")
                self.run(30)
        except MoveRefused:
            pass

    def run(self, seconds: float) -> None:
        end = self.world.now + seconds
        while self.batch is None and self.world.now < end:
            self.world.run(0.05)

    def _interrupt(self, node: Node, output: Output) -> bool:
        if node is not self.node or not isinstance(output, Persist) or self.batch is not None:
            return False
        self._left -= 1
        if self._left < 0:
            self.batch = list(output.changes)
        return self.batch is not None

    def _observe(self, node: Node, what: str, value: Any) -> None:
        if node is self.node and what == "durable" and self.batch is None:
            self.paper.append([(key, new) for key, new in value])

    def found(self, octets: int) -> dict[str, Any]:
        """What a start finds if so many octets of the last batch reached the disk."""
        assert self.batch is not None
        torn = self.paper.frame(self.batch)[:octets]
        # Behind it is what was reserved.
        return read(self.paper.octets + torn + bytes(100))

    def heal(self, state: dict[str, Any]) -> None:
        """The daemon starts on that; what was under way ends, and a new move works."""
        world = self.world
        self.node.disk = state
        world.run(1)
        world.restart(self.node.node_id)
        settle(world)
        if not safety.running(world, VM):
            # The order to start the VM died with the daemon: whoever gave it gives it again.
            world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
            settle(world)
        safety.check_settled(world)
        then_moves_again(world)


@pytest.mark.parametrize("name", NODES)
def test_every_batch_torn_at_every_octet_heals(name: str) -> None:
    torn_octets = 0
    for last in range(MOST_BATCHES):
        torn = Torn(name, last)
        if torn.batch is None:
            break
        before = json.loads(json.dumps(torn.node.disk))
        whole = torn.found(1 << 30)
        size = len(torn.paper.frame(torn.batch))
        for octets in range(size):
            assert torn.found(octets) == before, (last, octets)
        torn_octets += size
        torn.heal(before)
        # All of it arrived, and the daemon died before it knew: nothing was said on its strength.
        after = Torn(name, last)
        assert after.found(1 << 30) == whole
        after.heal(whole)
    else:
        pytest.fail("the conversation does not end")
    routers = name in ROUTED and MANAGER not in name
    assert last >= (1 if routers else 4), "there are few batches to tear"
    assert torn_octets > (100 if routers else 1000)
