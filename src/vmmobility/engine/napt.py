"""The engine of a NAPT box: registration messages cross it, and keep their originators' names.

Section 9: "Private IPv4 addresses in the VM Mobility Registration messages have to be converted
into public IPv4 addresses at the NAPT box before sending out to the destination data center."

A message from one side for a node on the other is opened under the key of the hop that it came by,
translated, and sealed under the key of the next.  Requests and replies pass alike; the ends repeat
what is lost.  What becomes of a VM the box learns from what crosses it.
Inputs are methods that take the time (monotonic seconds); outputs come from `flush()`.  Peer input
never raises.  Not here: how a message crosses (napt_crossing.py), other boxes (napt_boxes.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from vmmobility.engine.channel import Peer
from vmmobility.engine.napt_boxes import NaptBoxes
from vmmobility.engine.napt_crossing import NaptCrossing, Party
from vmmobility.engine.napt_desired import desired
from vmmobility.engine.napt_mappings import Mappings
from vmmobility.engine.napt_observe import NaptObserver
from vmmobility.engine.napt_plane import NaptState
from vmmobility.engine.napt_settings import NaptSettings, Neighbour
from vmmobility.engine.napt_translate import Translator
from vmmobility.engine.outputs import DropFlows, Endpoint, Event, Flushing, Outbox, SetNapt
from vmmobility.engine.relay_channel import BoxChannel, RelayChannel
from vmmobility.errors import DecodeError
from vmmobility.wire.authentication import read_seal
from vmmobility.wire.origin import read_receiver
from vmmobility.wire.registry import Purpose, Role, Status
from vmmobility.wire.values import Address

RETRY_S = 5.0  # what the kernel refused is tried again after so long


class NaptEngine(NaptCrossing, NaptBoxes, NaptObserver, Flushing):
    """One box.  `state` is what the store held; `boot` is above every earlier start's."""

    def __init__(
        self,
        settings: NaptSettings,
        neighbours: Iterable[Neighbour],
        state: Mapping[str, Any],
        boot: int,
        jitter: random.Random,
        now: float,
    ) -> None:
        self.settings = settings
        self.outbox = Outbox()
        self.neighbours = {n.name: n for n in neighbours}
        self.parties = {
            name: Party(name, role, n.name, n.inside)
            for n in self.neighbours.values()
            for name, role in n.originators
        }
        self.mappings = Mappings(settings, state, self.outbox, now)
        boxes = {n.name: n.pool for n in self.neighbours.values() if n.peer.role is Role.NAPT}
        insiders = frozenset(p.name for p in self.parties.values() if p.inside)
        self.translator = Translator(self.mappings, insiders, boxes)
        peers = [n.peer for n in self.neighbours.values()]
        self.channel = BoxChannel(
            settings.box_id, boot, peers, self.outbox, jitter, settings.retransmission
        )
        self.channel.restore(state)
        self.channel.refused = self._pass_refusal
        self.channel.state_was_lost = self._state_was_lost
        self.channel.peer_lost_state = self._neighbour_lost_state
        self.relays = {name: self._relay(name, boot, jitter) for name in self.parties}
        for relay in self.relays.values():
            relay.restore(state)
        self._applied_version, self._tag = -1, 0
        self._lost = False
        self._retry_at: float | None = None
        self._begin_crossing()
        self._begin_boxes()

    def _relay(self, name: str, boot: int, jitter: random.Random) -> RelayChannel:
        """The channel in the place of one originator, to all those on the other side."""
        own = self.parties[name]
        peers = []
        for other in self.parties.values():
            if other.inside is own.inside:
                continue
            hop = self.neighbours[other.neighbour].peer
            made = Peer(other.name, other.role, hop.endpoints, dict(hop.secrets), hop.signing)
            made.via = hop.node_id
            peers.append(made)
        relay = RelayChannel(name, boot, peers, self.outbox, jitter, self.settings.retransmission)
        relay.drops = self.channel.drops
        relay.undecodable = self._undecodable
        relay.peer_lost_state = partial(self._end_lost_state, name)
        relay.lost = self._let_others_tell
        return relay

    # ---- inputs --------------------------------------------------------------------------------

    def started(self, now: float) -> None:
        """After a (re)start, when the kernel holds desired() again."""
        self._applied_version = self.mappings.version
        self.channel.start(now)
        for relay in self.relays.values():
            relay.start(now)
        self._hold_all(now)
        self._settle()

    def datagram_received(
        self, data: bytes, source: Endpoint, local: Address | None, now: float
    ) -> None:
        try:
            receiver = read_receiver(data)
            sender = read_seal(data).sender if receiver is not None else ""
        except DecodeError as error:
            self._drop(error.reason, str(source.address))
            return
        if receiver is None:
            self._own_received(data, source, local, now)
        elif receiver in self.relays and sender in self.relays[receiver].peers:
            received = self.relays[receiver].datagram(data, source, local, now)
            if received is not None:
                self._cross(received, receiver, now)
        else:
            self._drop("no-path", f"{sender} to {receiver}")
        self._settle()

    def _own_received(
        self, data: bytes, source: Endpoint, local: Address | None, now: float
    ) -> None:
        received = self.channel.datagram(data, source, local, now)
        if received is None:
            return
        held = received.message.purpose is Purpose.HOLD
        try:
            (self._hold_asked if held else self._handover_asked)(received, now)
        except DecodeError as error:
            self.channel.drops[error.reason] += 1
            self.channel.reply(received, Status.MALFORMED, reason=str(error))

    def napt_applied(self, tag: int, failures: Sequence[str], now: float) -> None:
        """The kernel holds (or, with failures, does not) what was asked for under `tag`."""
        for failure in failures:
            self.outbox.emit(Event("data-plane.failure", {"reason": failure}))
        if failures and tag == self._tag:
            self._retry_at = now + RETRY_S
        self._kernel_answered(tag, failures, now)
        self._take(now)

    def next_timer(self) -> float | None:
        due = [self.channel.next_timer(), self.mappings.next_due(), self._hold_at, self._retry_at]
        due += [until for _, until in self._awaited.values()]
        return min((d for d in due if d is not None), default=None)

    def timer(self, now: float) -> None:
        self.channel.timer(now)
        for mapping in self.mappings.expire(now):
            self.mappings.end(mapping, "nothing was heard of it", now)
        self._forget_flows(now)
        self._end_awaiting(now)
        if self._hold_at is not None and self._hold_at <= now:
            self._hold_all(now)
        if self._retry_at is not None and self._retry_at <= now:
            self._retry_at, self._applied_version = None, -1
        self._settle()

    def set_secrets(self, node_id: str, secrets: dict[int, bytes], signing: int) -> None:
        """New keys of a neighbour (rotation): of the box itself, and of all that it speaks for."""
        for channel in (self.channel, *self.relays.values()):
            channel.set_secrets(node_id, secrets, signing)

    def desired(self) -> NaptState:
        """What the kernel should hold."""
        boxes = self.neighbours.values()
        detours = {n.name: n.detour for n in boxes if n.peer.role is Role.NAPT}
        return desired(self.mappings, detours)

    def _end_lost_state(self, name: str, peer: Peer, now: float) -> None:
        """An end came back without its memory: `name`, on the other side, is to notice."""
        relay = self.relays[peer.node_id]
        relay.tell_loss(relay.peers[name], now)

    def _state_was_lost(self, now: float) -> None:
        """Somebody remembers this box better than it does itself."""
        detail = {"node": self.settings.box_id, "lost": "mappings"}
        self.outbox.emit(Event("state.lost", detail))
        self._let_others_tell(now)

    def _let_others_tell(self, now: float) -> None:
        """Other boxes may have what this one gave out, and say so within hold_s: until then nothing
        of its pool is to be anybody else's."""
        others = any(n.peer.role is Role.NAPT for n in self.neighbours.values())
        if others and not self._lost:
            self._lost = True
            self.mappings.nothing_new(now + self.settings.hold_s)

    def _settle(self) -> None:
        """Tell the data plane what has changed."""
        if self._applied_version != self.mappings.version:
            self._applied_version = self.mappings.version
            self._tag += 1
            self.outbox.emit(SetNapt(self.desired(), self._tag))
        over, self.mappings.over = self.mappings.over, []
        if over:  # flows outlive their mapping, and would lead to whoever gets the address next
            kept = {(m.private, m.public) for m in self.desired().static}
            whole = {private for private, public in over if public is None}
            whole -= {private for private, _ in kept}  # another has it
            some = {(a, b) for a, b in over if b is not None and a not in whole}
            for private in sorted(whole):
                self.outbox.emit(DropFlows(private))
            for private, public in sorted(some - kept):
                self.outbox.emit(DropFlows(private, public))

    def _drop(self, reason: str, who: str) -> None:
        self.channel.drops[reason] += 1
        self.outbox.emit(Event("drop", {"reason": reason, "peer": who}))
