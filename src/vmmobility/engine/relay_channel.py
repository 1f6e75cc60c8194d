"""A NAPT box's channels: one in the place of each originator, and one of its own.

In the place of an originator the box speaks under that one's name with the key of the hop, has
boots, counters and replay windows of its own for it, and answers and asks challenges itself.  It
keeps no replies and repeats no requests: the ends do, and what they send passes.
Not here: what is altered (napt_translate.py), the way (napt_crossing.py).  Rests on channel.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from vmmobility.engine.challenge import FLOOR
from vmmobility.engine.channel import Channel, Peer, Received, Retransmission
from vmmobility.engine.outputs import Endpoint, Event, Outbox, Output
from vmmobility.engine.peer import Arrival
from vmmobility.wire.message import Message
from vmmobility.wire.options import Reason
from vmmobility.wire.registry import Kind, Purpose, Role, Status
from vmmobility.wire.values import Address

BOX_RIGHTS = {purpose: frozenset({Role.NAPT}) for purpose in (Purpose.HOLD, Purpose.HANDOVER)}


class Scope(Outbox):
    """One channel's part of a box's records: its keys stand under the name it speaks in."""

    def __init__(self, outbox: Outbox, name: str) -> None:
        super().__init__()
        self._outer, self._name = outbox, name

    def record(self, key: str, value: object) -> None:
        self._outer.record(f"as/{self._name}/{key}", value)

    def emit(self, output: Output) -> None:
        if isinstance(output, Event):
            output = replace(output, detail={**output.detail, "as": self._name})
        self._outer.emit(output)


class RelayChannel(Channel):
    """In the place of `name` towards all its peers on the other side of the box.

    undecodable(arrival, purpose, sequence): told of an authentic request that cannot be
    read, and so cannot be sent on
    lost(now): told that a peer remembers this name better, though its bearer has lost nothing: it
    is the box that has
    """

    def __init__(
        self,
        name: str,
        boot: int,
        peers: Iterable[Peer],
        outbox: Outbox,
        jitter: random.Random,
        retransmission: Retransmission,
    ) -> None:
        scope = Scope(outbox, name)
        super().__init__(name, boot, peers, {}, scope, jitter, retransmission)
        self._scope = scope
        self.undecodable: Callable[[Arrival, int, int], None] = lambda *_: None
        self.state_was_lost = self._risen
        self.lost: Callable[[float], None] = lambda now: None
        self._falling: set[str] = set()

    def restore(self, state: Mapping[str, object]) -> None:
        prefix = f"as/{self.node_id}/"
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        super().restore(own)
        self._falling = {name for name in self.peers if own.get(f"fallen/{name}")}

    def start(self, now: float) -> None:
        """Ask every peer at once, on record or not: so each proves this start's boot before there
        is anything to send on."""
        for peer in self.peers.values():
            if peer.node_id in self._falling:
                self._own.fall(peer.node_id)
            self._challenge(peer, "unproven", now)

    def tell_loss(self, peer: Peer, now: float) -> None:
        """The one in whose place this is has lost its state: the peer is to notice, as it would
        without a box, by a boot below the one that it has on record."""
        self._falling.add(peer.node_id)
        self._scope.record(f"fallen/{peer.node_id}", True)
        self._own.fall(peer.node_id)
        self._challenge(peer, "unproven", now)

    def _risen(self, now: float) -> None:
        """A peer knew a higher boot, and has said so: what tell_loss is for is done."""
        risen = [n for n in self._falling if self._own.boot_to(n) > FLOOR]
        for name in risen:
            self._scope.record(f"fallen/{name}", None)
            self._falling.remove(name)
        if not risen:
            self.lost(now)

    def forward(self, peer: Peer, message: Message, to: Endpoint, local: Address | None) -> None:
        """Send on what has come for the peer.  Raises ValueError if it does not fit."""
        self._send(peer, message, to, local)

    def _admit(self, received: Received, now: float) -> Received | None:
        return received

    def _match(self, received: Received, now: float) -> Received | None:
        return received

    def _answer_header(
        self, data: bytes, arrival: Arrival, status: Status, supported: tuple[int, ...]
    ) -> None:
        if data[1] == Kind.REQUEST:
            self.undecodable(arrival, data[2], int.from_bytes(data[8:12], "big"))


class BoxChannel(Channel):
    """The box in its own name: HOLD and HANDOVER between boxes, and refusals to its neighbours.

    refused(received): a neighbouring box has refused what was sent on to it
    """

    def __init__(
        self,
        box_id: str,
        boot: int,
        peers: Iterable[Peer],
        outbox: Outbox,
        jitter: random.Random,
        retransmission: Retransmission,
    ) -> None:
        super().__init__(box_id, boot, peers, BOX_RIGHTS, outbox, jitter, retransmission)
        self.refused: Callable[[Received], bool] = lambda received: False

    def refuse(
        self, peer: Peer, request: tuple[Purpose, int], status: Status, why: str, to: Endpoint
    ) -> None:
        """Answer a request that is not sent on: (purpose, sequence) of it."""
        purpose, sequence = request
        reply = Message(Kind.REPLY, purpose, sequence, (Reason(why),), status=status)
        self._send(peer, reply, to, None)

    def _match(self, received: Received, now: float) -> Received | None:
        relayed = received.message.purpose not in BOX_RIGHTS
        if relayed and not received.message.status.accepted and self.refused(received):
            return None
        return super()._match(received, now)
