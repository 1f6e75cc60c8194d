"""Mutated inputs from a seed: flipped bits, splices, words of the format, attacks on lengths.

Blind to coverage, and so the same everywhere for one seed (docs/design/fuzzing.md says why).
Rests on nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

NUMBERS = (0, 1, 2, 3, 4, 15, 16, 17, 127, 128, 255, 256, 1231, 1232, 1233, 0x7FFF, 0x8000, 0xFFFF)
LARGE = (0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
WORDS = (b"\0", b"\xff\xff\xff\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xef\xbf\xbd", b"\n", b"%s")
TEXT = (
    b"-1", b"1e999", b"NaN", b"null", b"true", b"1" * 400, b"1" * 5000, b"[]", b"{}", b'""',
    b"[" * 3000, b'{"a":' * 2000, b"0.5", b"\\u0000", b"\\ud800", b'"', b"\\", b"'''",
    b"1979-05-27",     b"::ffff:1.2.3.4", b"fe80::1%eth0", b"0.0.0.0/0", b"10.0.0.1/33",
)  # fmt: skip
_DIGITS = re.compile(rb"\d+")


class Mutator:
    """Inputs for one target.  Every choice comes from `chance`."""

    def __init__(
        self, chance: random.Random, pool: Sequence[bytes], words: Sequence[bytes], longest: int
    ) -> None:
        self._chance, self._pool, self._longest = chance, list(pool) or [b""], longest
        self._words = [*words, *WORDS]
        textual = sum(32 <= c < 127 or c == 10 for p in self._pool for c in p)
        if textual * 10 > 9 * sum(map(len, self._pool)):
            self._words += TEXT
            self._ways: tuple[Way, ...] = (*BINARY, *TEXTUAL)
        else:
            self._ways = BINARY

    def one(self) -> bytes:
        data = bytearray(self._chance.choice(self._pool))
        for _ in range(self._chance.choice((1, 1, 1, 2, 2, 3, 5, 8))):
            self._chance.choice(self._ways)(self, data)
        return bytes(data[: self._longest])

    def _place(self, data: bytearray) -> int:
        return self._chance.randrange(len(data) + 1)

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._chance.randrange(len(data))] ^= 1 << self._chance.randrange(8)

    def _set(self, data: bytearray) -> None:
        if data:
            data[self._chance.randrange(len(data))] = self._chance.choice(NUMBERS) & 0xFF

    def _word(self, data: bytearray) -> None:
        place, word = self._place(data), self._chance.choice(self._words)
        data[place : place + self._chance.choice((0, len(word)))] = word

    def _cut(self, data: bytearray) -> None:
        place = self._place(data)
        del data[place : place + self._chance.choice((1, 2, 4, 16, 64, len(data)))]

    def _twice(self, data: bytearray) -> None:
        place = self._place(data)
        part = data[place : place + self._chance.choice((1, 4, 16, 64, 256))]
        data[place:place] = part * self._chance.choice((1, 1, 2, 40))

    def _splice(self, data: bytearray) -> None:
        other = self._chance.choice(self._pool)
        start = self._chance.randrange(len(other) + 1)
        place = self._place(data)
        data[place : place + self._chance.choice((0, 8, 64, len(data)))] = other[start:][:512]

    def _number(self, data: bytearray) -> None:
        """A length, or what may be one."""
        size = self._chance.choice((1, 2, 2, 4, 8))
        if len(data) < size:
            return
        place = self._chance.randrange(len(data) - size + 1)
        number = self._chance.choice((*NUMBERS, *LARGE, len(data), len(data) - place))
        if self._chance.random() < 0.5:
            number = int.from_bytes(data[place : place + size], "big") + self._chance.randint(-2, 2)
        octets = (number % (1 << 8 * size)).to_bytes(size, "big")
        data[place : place + size] = octets if self._chance.random() < 0.7 else octets[::-1]

    def _digits(self, data: bytearray) -> None:
        found = list(_DIGITS.finditer(data))
        if found:
            start, end = self._chance.choice(found).span()
            number = self._chance.choice((*NUMBERS, *LARGE, -1, 10**30))
            data[start:end] = str(number).encode()

    def _lines(self, data: bytearray) -> None:
        """Lines exchanged, left out, or taken from another seed."""
        mark = self._chance.choice((b"\n", b","))
        lines = bytes(data).split(mark)
        one, other = (self._chance.randrange(len(lines)) for _ in "ab")
        way = self._chance.randrange(3)
        if way == 0:
            lines[one], lines[other] = lines[other], lines[one]
        elif way == 1:
            del lines[one]
        else:
            lines.insert(one, self._chance.choice(self._chance.choice(self._pool).split(mark)))
        data[:] = mark.join(lines)


Way = Callable[[Mutator, bytearray], None]
BINARY: tuple[Way, ...] = (Mutator._flip, Mutator._set, Mutator._word, Mutator._cut, Mutator._twice,
          Mutator._splice, Mutator._number)  # fmt: skip
TEXTUAL: tuple[Way, ...] = (Mutator._digits, Mutator._lines, Mutator._word, Mutator._lines)
