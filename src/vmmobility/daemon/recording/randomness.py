"""Randomness that one seed repeats, as hard to guess as the system's for whoever lacks the seed.

`random.Random` alone would not do: whoever sees some 600 of its numbers (tickets, nonces) knows the
next ones.  Not here: who seeds it (recorder.py).  Rests on hmac.
"""

from __future__ import annotations

import hmac
import random
from typing import Any

SEED = 32  # octets: 256 bits


class SeededRandom(random.Random):
    """HMAC-SHA-256 of a counter under the seed, taken in order."""

    def __init__(self, seed: bytes) -> None:
        self._key = seed
        self._count = 0
        super().__init__(0)

    def _octets(self, count: int) -> bytes:
        blocks = []
        for _ in range(0, count, 32):
            self._count += 1
            blocks.append(hmac.digest(self._key, self._count.to_bytes(16, "big"), "sha256"))
        return b"".join(blocks)[:count]

    def getrandbits(self, k: int, /) -> int:
        octets = (k + 7) // 8
        return int.from_bytes(self._octets(octets), "big") >> (octets * 8 - k)

    def random(self) -> float:
        return self.getrandbits(53) / (1 << 53)

    def seed(self, *_: Any, **__: Any) -> None:
        """There is one seed, given at the beginning."""

    def getstate(self) -> tuple[Any, ...]:
        raise NotImplementedError("its state is its seed and its count")

    def setstate(self, state: tuple[Any, ...]) -> None:
        raise NotImplementedError("its state is its seed and its count")
