"""The engine of a NAPT box: registration messages cross it, and keep their originators' names.

Section 9: "Private IPv4 addresses in the VM Mobility Registration messages have to be converted
into public IPv4 addresses at the NAPT box before sending out to the destination data center."

A message from one side for a node on the other is opened under the key of the hop that it came by,
translated, and sealed under the key of the next.  Requests and replies pass alike; the ends repeat
what is lost.  What becomes of a VM the box learns from what crosses it.
Inputs are methods that take the time (monotonic seconds); outputs come from `flush()`.  Peer input
never raises.  Not here: which addresses (napt_translate.py), other boxes (napt_boxes.py).
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from typing import Any

from vmmobility.engine.channel import Peer, Received
from vmmobility.engine.manager import RIGHTS as MANAGER_RIGHTS
from vmmobility.engine.napt_boxes import NaptBoxes
from vmmobility.engine.napt_mappings import Mappings, NaptRefused
from vmmobility.engine.napt_observe import NaptObserver
from vmmobility.engine.napt_plane import NaptState
from vmmobility.engine.napt_settings import NaptSettings, Neighbour
from vmmobility.engine.napt_translate import Translator
from vmmobility.engine.nve import RIGHTS as NVE_RIGHTS
from vmmobility.engine.outputs import DropFlows, Endpoint, Event, Outbox, Output, SetNapt
from vmmobility.engine.peer import Arrival
from vmmobility.engine.relay_channel import BoxChannel, RelayChannel
from vmmobility.engine.router import RIGHTS as ROUTER_RIGHTS
from vmmobility.errors import DecodeError
from vmmobility.wire.authentication import read_seal
from vmmobility.wire.message import Message
from vmmobility.wire.options import Reason, Translation
from vmmobility.wire.origin import read_receiver, translate
from vmmobility.wire.registry import Kind, Purpose, Role, Status
from vmmobility.wire.values import Address

RETRY_S = 5.0  # what the kernel refused is tried again after so long
REMEMBERED = 512  # requests under way a box knows the way back of, at least
ITEMS = frozenset(("static", "port", "pool", "detour", "route", "flow"))  # of the data plane
# While the kernel refuses, nothing new begins; what is under way or only says "I live" goes on.
BEGINNING = frozenset((Purpose.ATTACH, Purpose.PREPARE))
RIGHTS = {
    Role.MANAGER: MANAGER_RIGHTS,
    Role.NVE: NVE_RIGHTS,
    Role.DEFAULT_ROUTER: ROUTER_RIGHTS,
    Role.BORDER_ROUTER: ROUTER_RIGHTS,
}


@dataclass(frozen=True, slots=True)
class Party:
    """An originator: where it is, seen from the box."""

    name: str
    role: Role
    neighbour: str
    inside: bool


@dataclass(slots=True)
class Crossing:
    """A request that was sent on: whose it is, and how often it passed."""

    sender: str
    receiver: str
    message: Message
    source: Endpoint
    local: Address | None
    times: int = 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that leaves when the kernel holds what was asked for under `tag`.

    message: as it will leave; substituted: the addresses that changed, before and after
    """

    tag: int
    received: Received
    target: Party
    message: Message
    asked: Crossing | None
    substituted: frozenset[IPv4Address]

    def rests_on(self, failure: str) -> bool:
        """Whether what the kernel refused, in words, is about one of its addresses, or about all:
        what begins with no item's name is that nothing could be done."""
        item = failure.split(":")[0].split()
        about_all = not item or item[0] not in ITEMS
        if about_all:
            return bool(self.substituted)
        return any(str(address) in item for address in self.substituted)


class NaptEngine(NaptBoxes, NaptObserver):
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
        self.relays = {name: self._relay(name, boot, jitter) for name in self.parties}
        for relay in self.relays.values():
            relay.restore(state)
        self._crossings: OrderedDict[tuple[str, str, Purpose, int], Crossing] = OrderedDict()
        self._applied_version, self._tag, self._applied_tag = -1, 0, 0
        self._failed: tuple[str, ...] = ()  # of what was applied last
        self._waiting: list[Waiting] = []
        self._retry_at: float | None = None
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
        self._applied_tag, self._failed = max(self._applied_tag, tag), tuple(failures)
        ready = [w for w in self._waiting if w.tag <= self._applied_tag]
        self._waiting = [w for w in self._waiting if w.tag > self._applied_tag]
        for waiting in ready:
            self._leave_if_held(waiting, now)

    def next_timer(self) -> float | None:
        due = [self.channel.next_timer(), self.mappings.next_due(), self._hold_at, self._retry_at]
        return min((d for d in due if d is not None), default=None)

    def timer(self, now: float) -> None:
        self.channel.timer(now)
        for mapping in self.mappings.expire(now):
            self.mappings.end(mapping, "nothing was heard of it", now)
        self._forget_flows(now)
        if self._hold_at is not None and self._hold_at <= now:
            self._hold_all(now)
        if self._retry_at is not None and self._retry_at <= now:
            self._retry_at, self._applied_version = None, -1
        self._settle()

    def set_secrets(self, node_id: str, secrets: dict[int, bytes], signing: int) -> None:
        """New keys of a neighbour (rotation): of the box itself, and of all that it speaks for."""
        for channel in (self.channel, *self.relays.values()):
            channel.set_secrets(node_id, secrets, signing)

    def flush(self) -> list[Output]:
        return self.outbox.flush()

    def persisted(self, number: int) -> None:
        self.outbox.persisted(number)

    def persist_failed(self, reason: str) -> None:
        self.outbox.persist_failed(reason)

    def desired(self) -> NaptState:
        """What the kernel should hold."""
        boxes = self.neighbours.values()
        return self.mappings.desired({n.name: n.detour for n in boxes if n.peer.role is Role.NAPT})

    # ---- messages that cross --------------------------------------------------------------------

    def _cross(self, received: Received, receiver: str, now: float) -> None:
        """Translate a message and send it on; refuse a request that cannot be."""
        sender, message = self.parties[received.peer.node_id], received.message
        target = self.parties[receiver]
        wrong = self._wrong_role(sender, target, message)
        if wrong:
            self._drop("wrong-role", sender.name)
            self._refuse(received, Status.ADMINISTRATIVELY_PROHIBITED, wrong)
            return
        asked = self._asked(sender, target, message)
        try:
            if sender.inside:
                manager = sender.role is Role.MANAGER
                changes = self.translator.outward(message, sender.name, now, manager)
            else:
                changes = self.translator.inward(message, receiver, now)
            made = translate(message, self.settings.box_id, changes)
        except NaptRefused as refused:
            self._refuse(received, refused.status, str(refused))
            return
        except DecodeError as error:
            self._drop(error.reason, sender.name)
            self._refuse(received, Status.MALFORMED, str(error))
            return
        self._settle()
        # Of `changes`, only what stands in the message: inward they are all locators.
        notes = [o for o in made.options[len(message.options) :] if isinstance(o, Translation)]
        used = frozenset(a for note in notes for a in (note.original, note.substitute))
        waiting = Waiting(self._tag, received, target, made, asked, used)
        if changes and self._tag > self._applied_tag:
            self._waiting.append(waiting)
        elif used and message.kind is Kind.REQUEST and message.purpose in BEGINNING:
            self._leave_if_held(waiting, now)
        else:
            self._leave(waiting, now)

    def _leave_if_held(self, waiting: Waiting, now: float) -> None:
        """Send it on unless the kernel refuses what it rests on."""
        why = next((f for f in self._failed if waiting.rests_on(f)), "")
        if why:
            words = f"{self.settings.box_id}: the kernel refused: {why}"
            self._refuse(waiting.received, Status.INSUFFICIENT_RESOURCES, words)
        else:
            self._leave(waiting, now)

    def _leave(self, waiting: Waiting, now: float) -> None:
        """The kernel holds the mappings that this message rests on."""
        received, target, asked = waiting.received, waiting.target, waiting.asked
        try:
            self._send_on(received, target, waiting.message, asked)
        except ValueError as error:  # translated, it is too long
            self._refuse(received, Status.INSUFFICIENT_RESOURCES, str(error))
            return
        sender = self.parties[received.peer.node_id]
        self._observe(sender, target, received.message, asked.message if asked else None, now)
        self._settle()

    @staticmethod
    def _wrong_role(sender: Party, target: Party, message: Message) -> str:
        """Only what the sender's role may ask of the receiver's, or answer it, passes."""
        asks, asked = (sender, target) if message.kind is Kind.REQUEST else (target, sender)
        if asks.role in RIGHTS[asked.role].get(message.purpose, frozenset()):
            return ""
        return f"a {asks.role.name} may not ask a {asked.role.name} for {message.purpose.name}"

    def _asked(self, sender: Party, target: Party, message: Message) -> Crossing | None:
        """The request that a reply is to, as it crossed here; None: a request, or not known."""
        if message.kind is Kind.REQUEST:
            return None
        key = (target.name, sender.name, message.purpose, message.sequence)
        return self._crossings.get(key)

    def _send_on(
        self, received: Received, target: Party, message: Message, asked: Crossing | None
    ) -> None:
        relay = self.relays[received.peer.node_id]
        peer = relay.peers[target.name]
        if message.kind is Kind.REPLY:
            # Section 2 of the protocol: from the address asked, to where the request came from.
            to, local = (asked.source, asked.local) if asked else (peer.endpoints[0], None)
            relay.forward(peer, message, to, local)
            return
        key = (received.peer.node_id, target.name, message.purpose, message.sequence)
        crossing = self._crossings.pop(key, None)
        if crossing is None:
            crossing = Crossing(
                received.peer.node_id,
                target.name,
                received.message,
                received.source,
                received.local,
            )
        crossing.source, crossing.local = received.source, received.local
        relay.forward(peer, message, peer.endpoints[crossing.times % len(peer.endpoints)], None)
        crossing.times += 1
        self._crossings[key] = crossing
        while len(self._crossings) > max(REMEMBERED, REMEMBERED * len(self.parties)):
            self._crossings.popitem(last=False)

    def _refuse(self, received: Received, status: Status, why: str) -> None:
        """Answer a request in the box's own name; a reply that cannot pass is but counted."""
        message, sender = received.message, self.parties[received.peer.node_id]
        if message.kind is Kind.REPLY:
            self._drop("no-mapping", sender.name)
            return
        detail = {"peer": sender.name, "purpose": message.purpose.name.lower(), "reason": why}
        self.outbox.emit(Event("refused", {**detail, "status": status.name.lower()}))
        peer = self.neighbours[sender.neighbour].peer
        request = (message.purpose, message.sequence)
        self.channel.refuse(peer, request, status, why, received.source)

    def _undecodable(self, arrival: Arrival, purpose: int, sequence: int) -> None:
        sender = self.parties[arrival.peer.node_id]
        peer = self.neighbours[sender.neighbour].peer
        if purpose in set(Purpose):
            words = f"{self.settings.box_id} cannot read it"
            request = (Purpose(purpose), sequence)
            self.channel.refuse(peer, request, Status.MALFORMED, words, arrival.source)

    def _pass_refusal(self, received: Received) -> bool:
        """The next box has refused what was sent on to it: tell whoever asked."""
        message, box = received.message, received.peer.node_id
        asked = (message.purpose, message.sequence)
        found = (c for k, c in self._crossings.items() if k[2:] == asked)
        crossing = next((c for c in found if self.parties[c.receiver].neighbour == box), None)
        if crossing is None:
            return False
        peer = self.neighbours[self.parties[crossing.sender].neighbour].peer
        reason = message.find(Reason)
        words = reason.text if reason else message.status.name.lower()
        request = (message.purpose, message.sequence)
        self.channel.refuse(peer, request, message.status, words, crossing.source)
        return True

    def _end_lost_state(self, name: str, peer: Peer, now: float) -> None:
        """An end came back without its memory: `name`, on the other side, is to notice."""
        relay = self.relays[peer.node_id]
        relay.tell_loss(relay.peers[name], now)

    def _state_was_lost(self, now: float) -> None:
        detail = {"node": self.settings.box_id, "lost": "mappings"}
        self.outbox.emit(Event("state.lost", detail))

    def _settle(self) -> None:
        """Tell the data plane what has changed."""
        if self._applied_version != self.mappings.version:
            self._applied_version = self.mappings.version
            self._tag += 1
            self.outbox.emit(SetNapt(self.desired(), self._tag))
        over, self.mappings.over = self.mappings.over, []
        if over:  # flows outlive their mapping, and would lead to whoever gets the address next
            kept = {m.private for m in self.desired().static}
            for private in sorted(set(over) - kept):
                self.outbox.emit(DropFlows(private))

    def _drop(self, reason: str, who: str) -> None:
        self.channel.drops[reason] += 1
        self.outbox.emit(Event("drop", {"reason": reason, "peer": who}))
