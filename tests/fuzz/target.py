"""What a fuzz target is: a decoder, what it may raise, seeds, and how a mutated input is mended.

A check gives the name of its outcome ("value", or the reason of a documented error); whatever it
raises is a failure.  Not here: the decoders (targets_*.py), mutations (mutation.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


def as_it_is(data: bytes) -> bytes:
    return data


@dataclass(frozen=True)
class Target:
    """repair: makes lengths and checksums right again, so that mutations get past them
    words:   octets that mean something to the decoder
    longest: octets of an input
    weight:  its share of a campaign's inputs (a slow one has less)
    """

    name: str
    check: Callable[[bytes], str]
    seeds: Callable[[], Iterable[bytes]]
    words: tuple[bytes, ...] = ()
    repair: Callable[[bytes], bytes] = as_it_is
    longest: int = 4096
    weight: float = 1.0
