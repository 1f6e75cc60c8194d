"""A World with routers, and an attacker in it who hears every datagram.

It keeps what was delivered, so that it can be replayed, and adds peers that exist in keys and
configuration alone: the attacker holds their keys.

Not here: what it sends (shots.py, insiders.py).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from tests.engine.network import Node, World, a_secret
from vmmobility.engine.channel import Peer
from vmmobility.engine.fabric_record import RouterSite
from vmmobility.engine.outputs import Endpoint, Send
from vmmobility.wire.authentication import TRAILER, Seal, read_seal, seal
from vmmobility.wire.message import Message, decode_part, encode_parts
from vmmobility.wire.options import KnownBoot, Nonce
from vmmobility.wire.registry import MAX_DATAGRAM, UDP_PORT, Kind, Purpose, Role
from vmmobility.wire.values import Address

# node -> role: what the attacker has taken over; all have keys with the manager, every NVE and
# every router.
TAKEN = {
    "rogue": Role.NVE,
    "tor": Role.DEFAULT_ROUTER,
    "border": Role.BORDER_ROUTER,
    "napt": Role.NAPT,
    "manager-2": Role.MANAGER,
}
SITES = (
    RouterSite("r1", border=False, serves=("a", "b"), dc="dc1"),
    RouterSite("r2", border=False, serves=("c", "d"), dc="dc1"),
    RouterSite("edge", border=True, dc="dc1"),
)
ATTACKER = Endpoint(ip_address("198.51.100.66"), 6666)
KEPT = 4000  # datagrams remembered


@dataclass(frozen=True, slots=True)
class Heard:
    """A datagram as it was delivered."""

    data: bytes
    mark: Seal
    sender: str
    receiver: str
    source: Endpoint
    local: Address | None


def taken_endpoint(name: str) -> Endpoint:
    return Endpoint(ip_address(f"198.51.100.{1 + list(TAKEN).index(name)}"), UDP_PORT)


class Domain(World):
    """attack(self) is called after every event."""

    def __init__(self, nves: tuple[str, ...] = ("a", "b", "c", "d"), **options: Any) -> None:
        self.heard: deque[Heard] = deque(maxlen=KEPT)
        self.answers: list[Send] = []
        self.counters: Counter[tuple[str, str]] = Counter()
        self.boots: dict[tuple[str, str], int] = {}
        self.spoken: dict[tuple[str, str], int] = {}
        self.attack: Callable[[Domain], None] = lambda domain: None
        super().__init__(nves, **{"routers": SITES, **options})
        safety = self.watch
        self.watch = lambda world: (safety(world), self.attack(self))[0]

    # ---- peers that the attacker holds ---------------------------------------------------------

    def _make_engine(self, node: Node) -> None:
        super()._make_engine(node)
        assert node.engine is not None
        channel = node.engine.channel
        for name, role in TAKEN.items():
            if node.role is not Role.MANAGER and role is Role.MANAGER:
                continue  # that one would have every right there
            secret = a_secret(node.node_id, name, 1)
            channel.peers[name] = Peer(name, role, (taken_endpoint(name),), {1: secret}, 1)
        channel.restore(node.disk)

    def sealed(self, sender: str, receiver: str, message: Message) -> list[bytes]:
        """The message under the true key and the next counter of its sender."""
        datagrams = []
        for part in encode_parts(message, MAX_DATAGRAM, TRAILER):
            mark = self._next_mark(sender, receiver)
            datagrams.append(seal(part, mark, a_secret(sender, receiver, 1)))
        return datagrams

    def _next_mark(self, sender: str, receiver: str) -> Seal:
        """A living node's is its channel's own next one: what it says later is fresh."""
        node = self.nodes.get(sender)
        if node is not None:
            assert node.engine is not None
            channel = node.engine.channel
            return channel.next_mark(channel.peers[receiver])
        self.counters[sender, receiver] += 1
        return Seal(
            sender, 1, self.boots.get((sender, receiver), 1), self.counters[sender, receiver]
        )

    def has_spoken(self, sender: str, receiver: str) -> bool:
        """Whether a living node's present boot is no news to the receiver."""
        return self.spoken.get((sender, receiver)) == self._next_mark(sender, receiver).boot

    # ---- the wire ------------------------------------------------------------------------------

    def _send(self, node: Node, output: Send) -> None:
        """What is sent to the attacker ends there; a challenge of one of its peers is answered."""
        if output.destination.address in self.by_address:
            super()._send(node, output)
            return
        self.answers.append(output)
        message = decode_part(output.data, TRAILER).message
        nonce = message.find(Nonce)
        if message.kind is not Kind.REQUEST or message.purpose is not Purpose.CHALLENGE:
            return
        [name] = [n for n in TAKEN if taken_endpoint(n) == output.destination]
        known = message.find(KnownBoot)
        assert nonce is not None
        if known is not None and known.boot > self.boots.get((name, node.node_id), 1):
            self.boots[name, node.node_id] = known.boot + 1
            self.counters[name, node.node_id] = 0
        reply = Message(Kind.REPLY, Purpose.CHALLENGE, message.sequence, (nonce, KnownBoot(0)))
        [data] = self.sealed(name, node.node_id, reply)
        self.later(0.001, lambda: self._arrive(node, data, taken_endpoint(name), None))

    def _arrive(self, node: Node, data: bytes, source: Endpoint, local: Any) -> None:
        """What its receiver takes for fresh is kept: from then on it is a replay."""
        engine, recorded = node.engine, list[str]()
        if engine is None:
            return
        outbox: Any = engine.outbox
        record = outbox.record

        def recording(key: str, value: Any) -> None:
            recorded.append(key)
            record(key, value)

        outbox.record = recording
        super()._arrive(node, data, source, local)
        del outbox.record
        mark = read_seal(data)
        if node.engine is engine and f"mark/{mark.sender}" in recorded:
            self.spoken[mark.sender, node.node_id] = mark.boot
            self.heard.append(Heard(data, mark, mark.sender, node.node_id, source, local))

    def crash(self, name: str) -> None:
        """What the node took in and had not yet made durable counts as never delivered."""
        super().crash(name)
        disk = self.nodes[name].disk
        kept = [h for h in self.heard if h.receiver != name or _durable(disk, h.mark)]
        self.heard = deque(kept, maxlen=KEPT)


def _durable(disk: dict[str, Any], mark: Seal) -> bool:
    """Whether that datagram lies at or below the mark that the disk holds."""
    boot, high, *_ = disk.get(f"mark/{mark.sender}", [0, 0])
    return (mark.boot, mark.counter) <= (boot, high)
