"""What somebody without a peer's key, or with old datagrams alone, can send: never to be accepted.

Each kind is a method of Arsenal that makes one datagram for one node, or None where there is
nothing yet to make it of.  Not here: peers who hold their keys and overstep their rights
(insiders.py), what is then looked at (campaign.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.engine.network import a_secret
from tests.forge.domain import ATTACKER, TAKEN, Domain, Heard
from vmmobility.engine.outputs import Endpoint
from vmmobility.wire.authentication import DIGEST, TRAILER, Seal, seal
from vmmobility.wire.options import AUTHENTICATION_TYPE, MUST_UNDERSTAND
from vmmobility.wire.registry import MAX_DATAGRAM
from vmmobility.wire.values import Address

_SEAL_HEAD = (AUTHENTICATION_TYPE | MUST_UNDERSTAND).to_bytes(2, "big") + b"\0\x54"


@dataclass(frozen=True, slots=True)
class Shot:
    """One datagram, and where it seems to come from."""

    kind: str
    data: bytes
    source: Endpoint
    local: Address | None = None


class Arsenal:
    """Shots at the nodes of one domain."""

    def __init__(self, domain: Domain, chance: random.Random) -> None:
        self._domain, self._chance = domain, chance
        self._own: dict[str, list[Heard]] = {}
        self._kinds: dict[str, tuple[int, Callable[[str], bytes | Heard | None]]] = {
            "bit-flipped": (26, self._flipped),
            "replayed": (22, self._replayed),
            "truncated": (12, self._truncated),
            "spliced": (8, self._spliced),
            "wrong key": (10, self._wrong_key),
            "other peer's key": (6, self._other_key),
            "renumbered": (6, self._renumbered),
            "unknown sender or key": (3, self._unknown),
            "noise": (3, self._noise),
            "misdelivered": (3, self._misdelivered),
            "turned back": (2, self._turned_back),
            "longer": (2, self._longer),
        }
        self._names = list(self._kinds)
        self._weights = [weight for weight, _ in self._kinds.values()]

    @property
    def kinds(self) -> list[str]:
        return self._names

    def look(self) -> None:
        """Take note of what has been delivered since; before each volley."""
        self._own = {}
        for heard in self._domain.heard:
            self._own.setdefault(heard.receiver, []).append(heard)

    def shot(self, target: str) -> Shot | None:
        chance = self._chance
        [kind] = chance.choices(self._names, self._weights)
        made = self._kinds[kind][1](target)
        if made is None:
            return None
        if isinstance(made, Heard):
            return Shot(kind, made.data, made.source, made.local)
        known = self._own.get(target)
        model = chance.choice(known) if known else None
        if model is None or chance.random() < 0.1:
            return Shot(kind, made, ATTACKER)
        return Shot(kind, made, model.source, model.local)

    def _some(self, target: str) -> Heard | None:
        own = self._own.get(target)
        return self._chance.choice(own) if own else None

    def _any(self) -> Heard | None:
        heard = self._domain.heard
        return heard[self._chance.randrange(len(heard))] if heard else None

    # ---- kinds ---------------------------------------------------------------------------------

    def _replayed(self, target: str) -> Heard | None:
        return self._some(target)

    def _flipped(self, target: str) -> bytes | None:
        """One to three bits of a genuine datagram."""
        model = self._some(target)
        if model is None:
            return None
        data = bytearray(model.data)
        for place in self._chance.sample(range(len(data) * 8), self._chance.choice((1, 1, 2, 3))):
            data[place // 8] ^= 1 << place % 8
        return bytes(data)

    def _truncated(self, target: str) -> bytes | None:
        model = self._some(target)
        if model is None:
            return None
        cut = self._chance.randrange(len(model.data))
        way = self._chance.randrange(3)
        if way == 0:
            return model.data[:cut]
        if way == 1:
            return model.data[len(model.data) - cut :]
        # The middle is gone, the seal is whole, and Length says so.
        data = bytearray(model.data[: min(cut, len(model.data) - TRAILER - 1)])
        data += model.data[-TRAILER:]
        if len(data) >= 8:
            data[6:8] = len(data).to_bytes(2, "big")
        return bytes(data)

    def _longer(self, target: str) -> bytes | None:
        model = self._some(target)
        if model is None:
            return None
        more = self._chance.randbytes(self._chance.randint(1, MAX_DATAGRAM))
        place = self._chance.choice((0, 16, len(model.data) - TRAILER, len(model.data)))
        return model.data[:place] + more + model.data[place:]

    def _spliced(self, target: str) -> bytes | None:
        """The head of one datagram, the seal (or the digest alone) of another."""
        one, other = self._some(target), self._any()
        if one is None or other is None:
            return None
        size = self._chance.choice((TRAILER, DIGEST))
        data = bytearray(one.data[:-size] + other.data[-size:])
        return None if bytes(data) in (one.data, other.data) else bytes(data)

    def _wrong_key(self, target: str) -> bytes | None:
        """The right sender, key-ID and a fresh counter; a digest under another key."""
        model = self._some(target)
        if model is None:
            return None
        mark = Seal(model.sender, 1, model.mark.boot, model.mark.counter + 1000)
        if self._chance.random() < 0.5:
            mark = Seal(model.sender, 1, model.mark.boot + self._chance.getrandbits(20) + 1, 1)
        return seal(model.data[:-TRAILER], mark, self._chance.randbytes(32))

    def _other_key(self, target: str) -> bytes | None:
        """The name of one peer, sealed with the key that another one shares with the target."""
        model = self._some(target)
        holders = [n for n in (*self._domain.nodes, *TAKEN) if n != target]
        if model is None:
            return None
        names = [n for n in holders if n != model.sender]
        secret = a_secret(self._chance.choice(names), target, 1)
        mark = Seal(model.sender, 1, model.mark.boot, model.mark.counter + 1000)
        return seal(model.data[:-TRAILER], mark, secret)

    def _renumbered(self, target: str) -> bytes | None:
        """A later boot or counter written into a genuine datagram."""
        model = self._some(target)
        if model is None:
            return None
        data = bytearray(model.data)
        field = -TRAILER + 8 + self._chance.choice((0, 8))
        number = int.from_bytes(data[field : field + 8], "big") + self._chance.randint(1, 5000)
        data[field : field + 8] = (number % (1 << 64)).to_bytes(8, "big")
        return bytes(data)

    def _unknown(self, target: str) -> bytes | None:
        """A name that nobody has, the target's own, or a key-ID that is not in use."""
        model = self._some(target)
        if model is None:
            return None
        sender, key = self._chance.choice((("mallory", 1), (target, 1), (model.sender, 2)))
        mark = Seal(sender, key, model.mark.boot, model.mark.counter + 1000)
        return seal(model.data[:-TRAILER], mark, a_secret(target, model.sender, 1))

    def _noise(self, target: str) -> bytes:
        data = self._chance.randbytes(self._chance.randint(0, 400))
        if self._chance.random() < 0.5:
            sender = self._chance.choice([*self._domain.nodes, *TAKEN]).encode()
            data += _SEAL_HEAD + b"\0\0\0\1" + self._chance.randbytes(16)
            data += sender.ljust(32, b"\0") + self._chance.randbytes(32)
        return data

    def _misdelivered(self, target: str) -> Heard | None:
        """A genuine datagram that is another node's."""
        found = self._any()
        return found if found is not None and found.receiver != target else None

    def _turned_back(self, target: str) -> Heard | None:
        """What the target itself has sent."""
        found = self._any()
        return found if found is not None and found.sender == target else None
