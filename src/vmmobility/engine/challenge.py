"""Proof that a peer speaks now, and the numbers under which this node speaks itself.

A node that has no record of a peer, or that hears another boot of it than the one on record, asks
it to send a fresh nonce back (docs/protocol.md, Section 6.5).  Question and answer tell the boot on
record, so whoever lost its state learns of that, and above which boot it must speak to be heard.
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
FLOOR = 1 << STEP_BITS  # a first boot is not above it, one that a peer has on record always is
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
    peer claims to remember changes nothing towards the others.  Whoever asks gets one above FLOOR:
    so a node that lost its state is always below what its peers have on record, and hears of it.
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
            self._take_above(peer, stored)

    def boot_to(self, peer: str) -> int:
        return self._raised.get(peer, self.boot)

    def next(self, peer: str) -> tuple[int, int]:
        """Boot and counter of the next datagram to a peer.

        Each peer has its own counter: what goes to others leaves no gaps in its replay window.
        """
        self._counters[peer] += 1
        return self.boot_to(peer), self._counters[peer]

    def rise_above(self, peer: str, known: int) -> bool:
        """Speak to the peer under a boot that it will hear; nothing leaves before that is durable.

        True if the peer remembers more of this node than it does itself.  Raises DecodeError for a
        boot that leaves no room."""
        if known > HIGHEST_KNOWN:
            raise DecodeError("bad-value", f"{peer} claims to know boot {known}")
        own = self.boot_to(peer)
        if max(known, FLOOR) < own or known == own:
            return False
        self._take_above(peer, max(known, FLOOR))
        if known < own:
            return False
        detail = {"peer": peer, "boot": self.boot_to(peer), "known": known}
        self._outbox.emit(Event("boot.raised", detail))
        return True

    def fall(self, peer: str) -> None:
        """Speak to the peer as one that has lost its state does, until it has asked."""
        self._raised[peer] = 1 + self._chance.getrandbits(STEP_BITS - 1)
        del self._counters[peer]

    def _take_above(self, peer: str, boot: int) -> None:
        self._raised[peer] = next_boot(boot, self._chance)
        del self._counters[peer]
        self._outbox.record(f"boot/{peer}", self._raised[peer])


@dataclass(slots=True)
class _Standing:
    """What was asked of one peer, and when it was last answered.

    nonce:  outstanding, under this sequence number; empty: none
    below:  it was heard below this boot, that on record, and has not proven itself since; 0: it was
            not
    asked:  how often, to take its endpoints in turn
    """

    nonce: bytes = b""
    below: int = 0
    sequence: int = 0
    asked: int = 0
    asked_at: float | None = None
    repeated_at: float | None = None


class Challenges:
    """The challenges of one node: those it sends, and its answers.

    gap_s: no peer is asked more often, whatever comes under its seal; so a replayed datagram is
    never worth more than one small one.
    """

    def __init__(self, chance: random.Random, gap_s: float) -> None:
        self._chance = chance
        self._gap_s = gap_s
        self._standings: dict[str, _Standing] = {}

    def question(
        self, peer: str, known: int, sequence: Callable[[], int], now: float, *, below: bool
    ) -> tuple[Message, int] | None:
        """The CHALLENGE to send now and how many went before it; None: asked a moment ago.

        The nonce stays the same until it is answered: an answer to any of them is one.
        below: whether the peer was heard below the boot that is known."""
        standing = self._standings.setdefault(peer, _Standing())
        if below:
            standing.below = known
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
        standing, nonce = self._standings.get(peer), reply.need(Nonce).nonce
        if standing is None or not standing.nonce or standing.nonce != nonce:
            return False
        standing.nonce = b""
        return True

    def came_back(self, peer: str, boot: int) -> bool:
        """Whether a peer that was heard below its boot on record proves itself above it: it had
        lost its state, or somebody replayed old datagrams before it started anew."""
        standing = self._standings[peer]
        below, standing.below = standing.below, 0
        return 0 < below < boot

    def answer(self, request: Message, known: int) -> Message:
        """The reply to a CHALLENGE of a peer's of which this boot is on record.  The request may
        be a replayed one: nothing but this, and a boot of our own, may follow from it."""
        options = (request.need(Nonce), KnownBoot(known))
        return Message(Kind.REPLY, Purpose.CHALLENGE, request.sequence, options)

    def may_repeat(self, peer: str, now: float) -> bool:
        """Whether the peer's challenge is news enough to send it again what it has dropped."""
        standing = self._standings.setdefault(peer, _Standing())
        if standing.repeated_at is not None and now - standing.repeated_at < self._gap_s:
            return False
        standing.repeated_at = now
        return True
