"""Proof that a peer speaks now, and the numbers under which this node speaks itself.

A node that has no record of a peer, or that hears an older boot of it than the one on record, asks
it to send a fresh nonce back (docs/protocol.md, Section 6.5).  The question tells the boot on
record, so whoever lost its state learns above which boot it must speak to be heard.
Not here: which datagrams need such proof (replay.py, channel.py).  Rests on the outbox.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from vmmobility.engine.outputs import Event, Outbox
from vmmobility.errors import DecodeError
from vmmobility.wire.authentication import MAX_BOOT
from vmmobility.wire.message import Message
from vmmobility.wire.options import KnownBoot, Nonce
from vmmobility.wire.registry import Kind, Purpose

STEP_BITS = 32  # a boot is above the one before it by a random number of so many bits
HIGHEST_KNOWN = MAX_BOOT - (1 << 40)  # leaves room for the steps of later starts


def next_boot(boot: int, chance: random.Random) -> int:
    """A boot above this one.

    By a random step: a node whose state was lost or set back would else take one that it has had,
    and its datagrams would count as seen.
    """
    return min(boot + 1 + chance.getrandbits(STEP_BITS), MAX_BOOT)


class OwnMarks:
    """The boot and counter of each datagram that this node sends: no pair of them twice to a peer.

    A peer that has a higher boot on record than this start's gets boots of its own, so what one
    peer claims to remember changes nothing towards the others.
    """

    def __init__(self, boot: int, outbox: Outbox, chance: random.Random) -> None:
        self.boot = boot
        self._outbox = outbox
        self._chance = chance
        self._raised: dict[str, int] = {}
        self._counters: Counter[str] = Counter()

    def restore(self, peer: str, stored: object) -> None:
        """Take a durable boot of an earlier start ("boot/NODE")."""
        if isinstance(stored, int) and stored >= self.boot_to(peer):
            self._raise(peer, stored)

    def boot_to(self, peer: str) -> int:
        return self._raised.get(peer, self.boot)

    def next(self, peer: str) -> tuple[int, int]:
        """Boot and counter of the next datagram to a peer.

        Each peer has its own counter: what goes to others leaves no gaps in its replay window.
        """
        self._counters[peer] += 1
        return self.boot_to(peer), self._counters[peer]

    def rise_above(self, peer: str, known: int) -> None:
        """Speak to the peer under a boot above the one that it knows; nothing leaves before that
        is durable.  Raises DecodeError for one that leaves no room."""
        if known <= self.boot_to(peer):
            return
        if known > HIGHEST_KNOWN:
            raise DecodeError("bad-value", f"{peer} claims to know boot {known}")
        self._raise(peer, known)

    def _raise(self, peer: str, above: int) -> None:
        self._raised[peer] = next_boot(above, self._chance)
        del self._counters[peer]
        self._outbox.record(f"boot/{peer}", self._raised[peer])
        detail = {"peer": peer, "boot": self._raised[peer], "known": above}
        self._outbox.emit(Event("boot.raised", detail))


@dataclass(slots=True)
class _Standing:
    """What was asked of one peer, and when it was last answered.

    nonce:       outstanding, under this sequence number; empty: none
    asked:       how often, to take its endpoints in turn
    """

    nonce: bytes = b""
    sequence: int = 0
    asked: int = 0
    asked_at: float | None = None
    repeated_at: float | None = None


class Challenges:
    """The challenges of one node: those it sends, and its answers.

    gap_s: no peer is asked more often, whatever comes under its seal; so a replayed datagram is
    never worth more than one small one.
    """

    def __init__(self, own: OwnMarks, chance: random.Random, gap_s: float) -> None:
        self._own = own
        self._chance = chance
        self._gap_s = gap_s
        self._standings: dict[str, _Standing] = {}

    def question(
        self, peer: str, known: int, sequence: Callable[[], int], now: float
    ) -> tuple[Message, int] | None:
        """The CHALLENGE to send now and how many went before it; None: asked a moment ago.

        The nonce stays the same until it is answered: an answer to any of them is one."""
        standing = self._standings.setdefault(peer, _Standing())
        if standing.asked_at is not None and now - standing.asked_at < self._gap_s:
            return None
        if not standing.nonce:
            standing.nonce = self._chance.getrandbits(128).to_bytes(16, "big")
            standing.sequence = sequence()
        options = (Nonce(standing.nonce), KnownBoot(known))
        before, standing.asked, standing.asked_at = standing.asked, standing.asked + 1, now
        return Message(Kind.REQUEST, Purpose.CHALLENGE, standing.sequence, options), before

    def is_answered(self, peer: str, reply: Message) -> bool:
        """Whether the reply brings the outstanding nonce back, which is spent by that."""
        standing, found = self._standings.get(peer), reply.find(Nonce)
        if standing is None or found is None or not standing.nonce:
            return False
        if found.nonce != standing.nonce:
            return False
        standing.nonce = b""
        return True

    def answer(self, peer: str, request: Message) -> Message:
        """The reply to a peer's CHALLENGE.  The request may be a replayed one: all that follows
        from it is this, and a boot above what the peer, and nobody else, once had on record."""
        nonce = request.need(Nonce)
        self._own.rise_above(peer, request.need(KnownBoot).boot)
        return Message(Kind.REPLY, Purpose.CHALLENGE, request.sequence, (nonce,))

    def may_repeat(self, peer: str, now: float) -> bool:
        """Whether the peer's challenge is news enough to send it again what it has dropped."""
        standing = self._standings.setdefault(peer, _Standing())
        if standing.repeated_at is not None and now - standing.repeated_at < self._gap_s:
            return False
        standing.repeated_at = now
        return True
