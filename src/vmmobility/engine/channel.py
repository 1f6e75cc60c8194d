"""The message channel of a node: everything between datagrams and whole, authentic messages.

Incoming: length, seal, replay, challenges, decoding, parts, rights of the sender's role, the reply
cache.
Outgoing: cutting into parts, sealing, retransmission with back-off, matching replies.
Every drop is counted by reason (docs/protocol.md, Drops).

Not here: what messages mean (manager.py, nve.py), nonces and own boots (challenge.py), sockets
(daemon/endpoint.py).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from vmmobility.engine import origin
from vmmobility.engine.challenge import Challenges, OwnMarks
from vmmobility.engine.outputs import Endpoint, Event, Outbox, Send
from vmmobility.engine.peer import Arrival, Peer, Received
from vmmobility.errors import DecodeError
from vmmobility.wire.authentication import TRAILER, Seal, open_sealed, seal
from vmmobility.wire.message import Message, Part, UnsupportedVersion, decode_part, encode_parts
from vmmobility.wire.options import KnownBoot, Option, Reason, Supported, UnsupportedOption
from vmmobility.wire.origin import RELAYED_TRAILER, read_receiver, receiver_option
from vmmobility.wire.registry import MAX_DATAGRAM, VERSION, Kind, Purpose, Role, Status
from vmmobility.wire.values import Address

__all__ = ["Channel", "Peer", "Received", "Retransmission"]

PURPOSES = frozenset(int(purpose) for purpose in Purpose)
PULSES = frozenset({Purpose.HEARTBEAT})  # what comes all the time, and of which nothing rests
STRANGE = ("unproven", "old-boot")  # of such a sender nothing is believed but an answered challenge


@dataclass(frozen=True, slots=True)
class Retransmission:
    """first_s: before the first repetition; doubled up to most_s; each with +-20 % of jitter."""

    first_s: float = 0.25
    most_s: float = 8.0


@dataclass(slots=True)
class Outstanding:
    """A request without its reply: its subject lets a newer request supersede it."""

    peer: Peer
    message: Message
    subject: object
    attempts: int
    due: float
    on_reply: Callable[[Message, float], None]


class Channel:
    """One node's channel to all its peers.

    rights:  (kind, purpose) -> roles that may send it here; anything else is refused
    jitter:  a random.Random of the caller's (randomness is an argument)
    boot:    this start's boot number, durable before the first datagram, above all before
             (it rises further towards a peer that knows a higher one)

    state_was_lost(now):          told that a peer remembers this node better than it does itself
    peer_lost_state(peer, now):   told that a peer came back without its memory
    """

    def __init__(
        self,
        node_id: str,
        boot: int,
        peers: Iterable[Peer],
        rights: Mapping[Purpose, frozenset[Role]],
        outbox: Outbox,
        jitter: random.Random,
        retransmission: Retransmission,
        boxes: origin.Boxes = origin.NO_BOXES,
    ) -> None:
        self.node_id = node_id
        self._boxes = boxes
        self.peers = {peer.node_id: peer for peer in peers}
        self.drops: Counter[str] = Counter()
        self.state_was_lost: Callable[[float], None] = lambda now: None
        self.peer_lost_state: Callable[[Peer, float], None] = lambda peer, now: None
        self._rights = rights
        self._outbox = outbox
        self._jitter = jitter
        self._retransmission = retransmission
        self._own = OwnMarks(boot, outbox, jitter)
        self._challenges = Challenges(jitter, retransmission.first_s)
        self._sequence = jitter.getrandbits(32)
        self._outstanding: dict[int, Outstanding] = {}
        self._by_subject: dict[object, int] = {}

    @property
    def boot(self) -> int:
        return self._own.boot

    def boot_to(self, node_id: str) -> int:
        """The boot under which this node speaks to that peer."""
        return self._own.boot_to(node_id)

    def start(self, now: float) -> None:
        """After a (re)start: ask every peer of which nothing is known to prove itself."""
        for peer in self.peers.values():
            if not peer.window.boot:
                self._challenge(peer, "unproven", now)

    # ---- incoming ------------------------------------------------------------------------------

    def datagram(
        self, data: bytes, source: Endpoint, local: Address | None, now: float
    ) -> Received | None:
        """A whole request to act on, or None (dropped, answered here, a reply, or a part)."""
        try:
            return self._open(data, source, local, now)
        except DecodeError as error:
            self._drop(error.reason, str(source.address))
            return None

    def _open(
        self, data: bytes, source: Endpoint, local: Address | None, now: float
    ) -> Received | None:
        if len(data) > MAX_DATAGRAM:
            raise DecodeError("too-long", f"{len(data)} octets")
        mark = open_sealed(data, self._secret)
        peer = self.peers[mark.sender]
        if read_receiver(data) != (self.node_id if peer.via else None):
            raise DecodeError("wrong-receiver", f"from {mark.sender}, key {mark.key_id}")
        refused = peer.window.check(mark.boot, mark.counter)
        if refused in STRANGE:
            self._hear_stranger(data, Arrival(peer, mark, source, local), refused, now)
            return None
        if refused:
            raise DecodeError(refused, f"boot {mark.boot} counter {mark.counter}")
        self._note(peer, mark, now, durable=data[2] not in PULSES)
        part = self._decode(data, Arrival(peer, mark, source, local))
        message = peer.assemble(part, mark, now)
        if message is None:
            return None
        received = Received(peer, message, mark.boot, source, local)
        if message.purpose is Purpose.CHALLENGE:
            self._hear_challenge(received, now)
            return None
        if peer.origin is not None:
            received = origin.trusted(received, self.node_id, self._boxes, self._outbox.record)
        return (self._match if message.kind is Kind.REPLY else self._admit)(received, now)

    def _decode(self, data: bytes, arrival: Arrival) -> Part:
        """One datagram's part of a message; an authentic request that is none is answered."""
        try:
            return decode_part(data, RELAYED_TRAILER if arrival.peer.via else TRAILER)
        except UnsupportedVersion:
            self._answer_header(data, arrival, Status.UNSUPPORTED_VERSION, (VERSION,))
            raise
        except UnsupportedOption as error:
            self._answer_header(data, arrival, Status.UNSUPPORTED_OPTION, (error.number,))
            raise
        except DecodeError:
            self._answer_header(data, arrival, Status.MALFORMED, ())
            raise

    def _secret(self, sender: str, key_id: int) -> bytes | None:
        peer = self.peers.get(sender)
        return peer.secrets.get(key_id) if peer else None

    def _note(self, peer: Peer, mark: Seal, now: float, *, durable: bool) -> None:
        """The seal is right: the datagram is spent, whatever it says (and the mark is durable
        before anything that follows from it; from a heartbeat nothing durable follows, and what
        is older than the receiver's start says so itself: Section 10.11)."""
        peer.window.accept(mark.counter)
        if durable:
            self._note_mark(peer, now)
        else:
            peer.last_heard = now

    def _note_mark(self, peer: Peer, now: float) -> None:
        peer.last_heard = now
        self._outbox.record(f"mark/{peer.node_id}", [peer.window.boot, peer.window.high])

    # ---- challenges ----------------------------------------------------------------------------

    def _hear_stranger(self, data: bytes, arrival: Arrival, why: str, now: float) -> None:
        """From a sender without a record, or under another boot than that on record: it may have
        been recorded long ago.  Nothing is believed but the nonce of our own challenge."""
        peer, mark = arrival.peer, arrival.mark
        part = self._decode(data, arrival) if data[2] == Purpose.CHALLENGE else None
        if part is None or part.count > 1:
            self._drop(why, peer.node_id)
        elif part.message.kind is Kind.REQUEST:
            received = Received(peer, part.message, mark.boot, arrival.source, arrival.local)
            self._answer_challenge(received, now)
        elif why == "unproven" and self._is_answered(peer, part.message, now):
            self._prove(peer, mark, now)
            return
        else:
            self._drop(why, peer.node_id)
        self._challenge(peer, why, now)

    def _prove(self, peer: Peer, mark: Seal, now: float) -> None:
        """The peer spoke after it was asked: all that it said before counts as seen."""
        peer.prove(mark)
        self._note_mark(peer, now)
        self._outbox.emit(Event("peer.proven", {"peer": peer.node_id, "boot": mark.boot}))
        if self._challenges.came_back(peer.node_id, mark.boot):
            origin.begin_anew(peer, self._outbox.record)
            self.peer_lost_state(peer, now)
        self._repeat(peer, now)  # its replies were dropped

    def _hear_challenge(self, received: Received, now: float) -> None:
        """From a peer on record: a question like any, and answers."""
        if received.message.kind is Kind.REQUEST:
            self._answer_challenge(received, now)
        elif self._is_answered(received.peer, received.message, now):
            self._challenges.came_back(received.peer.node_id, received.boot)  # it had not left
        else:
            self.drops["unexpected-reply"] += 1

    def _is_answered(self, peer: Peer, reply: Message, now: float) -> bool:
        known = reply.need(KnownBoot).boot
        if not self._challenges.is_answered(peer.node_id, reply):
            return False
        if self._own.rise_above(peer.node_id, known):
            self.state_was_lost(now)
        return True

    def _answer_challenge(self, received: Received, now: float) -> None:
        peer = received.peer
        reply = self._challenges.answer(received.message, peer.window.boot)
        if self._own.rise_above(peer.node_id, received.message.need(KnownBoot).boot):
            self.state_was_lost(now)
        self._send(peer, reply, received.source, received.local)
        if self._challenges.may_repeat(peer.node_id, now):
            self._repeat(peer, now)  # whoever asks has dropped what it was sent

    def _repeat(self, peer: Peer, now: float) -> None:
        for outstanding in [o for o in self._outstanding.values() if o.peer is peer]:
            outstanding.attempts %= len(peer.endpoints)
            self._transmit(outstanding, now)

    def _challenge(self, peer: Peer, why: str, now: float) -> None:
        """Ask the peer, at one of its configured endpoints, to prove that it speaks now."""
        if not peer.endpoints:
            return
        found = self._challenges.question(
            peer.node_id, peer.window.boot, self._next_sequence, now, below=why == "old-boot"
        )
        if found is not None:
            message, before = found
            self._send(peer, message, peer.endpoints[before % len(peer.endpoints)], None)
            self._outbox.emit(Event("peer.challenged", {"peer": peer.node_id, "reason": why}))

    def _admit(self, received: Received, now: float) -> Received | None:
        peer, message = received.peer, received.message
        key = (received.boot, message.sequence)
        if key in peer.replies:
            self.drops["repeated-request"] += 1
            reply = peer.replies[key]
            if reply is not None:
                self._send(peer, reply, received.source, received.local)
            return None
        if peer.role not in self._rights.get(message.purpose, frozenset()):
            self._drop("wrong-role", peer.node_id)
            self.reply(received, Status.ADMINISTRATIVELY_PROHIBITED)
            return None
        if message.purpose not in PULSES:
            peer.remember(key, None)
        return received

    def _answer_header(
        self, data: bytes, arrival: Arrival, status: Status, supported: tuple[int, ...]
    ) -> None:
        """Reject an authentic request that cannot be decoded; its header tells enough."""
        if data[1] != Kind.REQUEST or data[2] not in PURPOSES:
            return
        options = (Supported(supported),) if supported else ()
        sequence = int.from_bytes(data[8:12], "big")
        message = Message(Kind.REPLY, Purpose(data[2]), sequence, options, status=status)
        self._send(arrival.peer, message, arrival.source, arrival.local)

    def _drop(self, reason: str, who: str) -> None:
        self.drops[reason] += 1
        self._outbox.emit(Event("drop", {"reason": reason, "peer": who}))

    def disregard(self, received: Received) -> None:
        """As if the request had not come: its sender repeats it, and then it is a first one."""
        received.peer.replies.pop((received.boot, received.message.sequence), None)

    # ---- outgoing ------------------------------------------------------------------------------

    def request(
        self,
        peer: Peer,
        purpose: Purpose,
        options: Iterable[Option],
        now: float,
        on_reply: Callable[[Message, float], None],
        lifetime: int = 0,
        subject: object = None,
    ) -> int:
        """Send a request until its reply comes; returns its sequence number.

        A request of the same `subject` to the same peer supersedes an outstanding one: the old
        one is not repeated and its reply is ignored.
        """
        message = Message(Kind.REQUEST, purpose, self._next_sequence(), tuple(options), lifetime)
        if subject is not None:
            subject = (peer.node_id, subject)
            self.withdraw(self._by_subject.get(subject))
            self._by_subject[subject] = self._sequence
        outstanding = Outstanding(peer, message, subject, 0, now, on_reply)
        self._outstanding[self._sequence] = outstanding
        self._transmit(outstanding, now)
        return self._sequence

    def _next_sequence(self) -> int:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        return self._sequence

    def withdraw(self, sequence: int | None) -> None:
        """Stop repeating a request; a late reply to it is ignored."""
        outstanding = self._outstanding.pop(sequence, None) if sequence is not None else None
        if outstanding and self._by_subject.get(outstanding.subject) == sequence:
            del self._by_subject[outstanding.subject]

    def is_asking(self, peer: Peer, subject: object) -> bool:
        """Whether a request of that subject is outstanding to the peer."""
        return (peer.node_id, subject) in self._by_subject

    def withdraw_subject(self, peer: Peer, subject: object) -> None:
        """Stop repeating whatever request of that subject is outstanding to the peer."""
        self.withdraw(self._by_subject.get((peer.node_id, subject)))

    def reply(
        self,
        received: Received,
        status: Status,
        options: Iterable[Option] = (),
        lifetime: int = 0,
        reason: str = "",
    ) -> None:
        """Answer a request, from the address asked, and remember the answer for a repetition."""
        request = received.message
        words = (Reason(reason),) if reason else ()
        message = Message(
            Kind.REPLY, request.purpose, request.sequence, (*options, *words), lifetime, status
        )
        if request.purpose not in PULSES:
            received.peer.remember((received.boot, request.sequence), message)
        self._send(received.peer, message, received.source, received.local)

    def next_timer(self) -> float | None:
        return min((o.due for o in self._outstanding.values()), default=None)

    def timer(self, now: float) -> None:
        """Repeat what is due."""
        for outstanding in [o for o in self._outstanding.values() if o.due <= now]:
            self._transmit(outstanding, now)

    def _transmit(self, outstanding: Outstanding, now: float) -> None:
        peer = outstanding.peer
        endpoint = peer.endpoints[outstanding.attempts % len(peer.endpoints)]
        self._send(peer, outstanding.message, endpoint, None)
        wait = min(
            self._retransmission.first_s * 2 ** min(outstanding.attempts, 16),
            self._retransmission.most_s,
        )
        outstanding.due = now + wait * self._jitter.uniform(0.8, 1.2)
        outstanding.attempts += 1

    def _send(self, peer: Peer, message: Message, to: Endpoint, local: Address | None) -> None:
        """design: a retransmission keeps its sequence and takes a fresh counter."""
        secret, receiver = peer.secrets[peer.signing], b""
        if peer.via:
            receiver = receiver_option(peer.node_id)
            if message.purpose is not Purpose.CHALLENGE:
                boot = self._own.boot_to(peer.node_id)
                message = origin.sealed(message, self.node_id, peer, boot)
        for datagram in encode_parts(message, MAX_DATAGRAM, TRAILER + len(receiver)):
            whole = datagram + receiver
            self._outbox.emit(Send(seal(whole, self.next_mark(peer), secret), to, local))

    def next_mark(self, peer: Peer) -> Seal:
        """The mark of this node's next datagram to a peer; each is taken once."""
        return Seal(self.node_id, peer.signing, *self._own.next(peer.node_id))

    def _match(self, received: Received, now: float) -> Received | None:
        message = received.message
        outstanding = self._outstanding.get(message.sequence)
        if (
            outstanding is None
            or not origin.may_answer(received, outstanding.peer)
            or outstanding.message.purpose is not message.purpose
        ):
            self.drops["unexpected-reply"] += 1
            return None
        self.withdraw(message.sequence)
        try:
            outstanding.on_reply(message, now)
        except DecodeError as error:
            # A reply that says nothing is none: the request is asked on.
            self._drop(error.reason, received.peer.node_id)
            if outstanding.subject not in self._by_subject:
                self._outstanding[message.sequence] = outstanding
                if outstanding.subject is not None:
                    self._by_subject[outstanding.subject] = message.sequence
        return None

    # ---- keys and marks ------------------------------------------------------------------------

    def restore(self, state: Mapping[str, object]) -> None:
        """Take the durable marks ("mark/NODE" -> [boot, high], "boot/NODE") after a restart."""
        for peer in self.peers.values():
            self._own.restore(peer.node_id, state.get(f"boot/{peer.node_id}"))
            peer.restore(state.get(f"mark/{peer.node_id}"))
            origin.restore(peer, state)

    def set_secrets(self, node_id: str, secrets: dict[int, bytes], signing: int) -> None:
        """New keys of a peer (rotation); nothing else about it changes.  A box's are those of the
        hop to all that it is between."""
        for peer in self.peers.values():
            if peer.node_id == node_id and peer.origin is not None:
                peer.origin.secrets, peer.origin.signing = secrets, signing
            elif node_id == (peer.via or peer.node_id):
                peer.secrets, peer.signing = secrets, signing
