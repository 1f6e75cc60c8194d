"""The terms of a move: how long, how fast, how dark, and what of its storage is copied.

    0                   1                   2                   3
    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |                      Timeout, in seconds                      |
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |                 Bandwidth, in MiB for a second                |
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |                   Downtime, in milliseconds                   |
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |  On Timeout   |  Copy Storage |
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

The same value is the option on the wire, part of a move's record, and the API's JSON.
Not here: what follows from them (engine/, drivers/hypervisor).  Rests on registry and cursor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vmmobility.errors import DecodeError
from vmmobility.wire.cursor import Cursor
from vmmobility.wire.registry import CopyStorage, OnTimeout

OCTETS = 14
MAX_TIMEOUT_S = 7 * 86400
MAX_BANDWIDTH_MIB_S = 1_000_000
MAX_DOWNTIME_MS = 60_000
_NUMBERS = {
    "timeout_s": (MAX_TIMEOUT_S, "seconds"),
    "bandwidth_mib_s": (MAX_BANDWIDTH_MIB_S, "MiB for a second"),
    "downtime_ms": (MAX_DOWNTIME_MS, "milliseconds"),
}
_WORDS: dict[str, type[OnTimeout] | type[CopyStorage]] = {
    "on_timeout": OnTimeout,
    "copy_storage": CopyStorage,
}
MOST = {key: most for key, (most, _) in _NUMBERS.items()}
KEYS = (*_NUMBERS, *_WORDS)


@dataclass(frozen=True, slots=True)
class MoveTerms:
    """What whoever asked for a move has asked besides.  0: nothing said, the nodes' settings hold.

    timeout_s:       the copy must have converged so long after it began
    on_timeout:      what follows if it has not
    bandwidth_mib_s: pace of the copies, of memory and of each disk, in MiB for a second
    downtime_ms:     how long the guest may stand still: the copy is held when less remains than
                     passes within that time
    copy_storage:    which disks are copied
    """

    timeout_s: int = 0
    on_timeout: OnTimeout = OnTimeout.ABORT
    bandwidth_mib_s: int = 0
    downtime_ms: int = 0
    copy_storage: CopyStorage = CopyStorage.AUTO

    def __post_init__(self) -> None:
        # Plain numbers, as JSON has them, are as good.
        object.__setattr__(self, "on_timeout", OnTimeout(self.on_timeout))
        object.__setattr__(self, "copy_storage", CopyStorage(self.copy_storage))

    @property
    def forces(self) -> bool:
        """Whether the guest is moved at the time-out although its copy has not converged."""
        return self.on_timeout is OnTimeout.FORCE


NO_TERMS = MoveTerms()


def check(terms: MoveTerms) -> MoveTerms:
    """The terms, if they make sense.  Raises ValueError."""
    for key, (most, unit) in _NUMBERS.items():
        if not 0 <= getattr(terms, key) <= most:
            raise ValueError(f"{key} is 1 to {most} {unit}, not {getattr(terms, key)}")
    if terms.forces and not terms.timeout_s:
        raise ValueError("on_timeout says force, but there is no timeout_s")
    return terms


def terms_octets(terms: MoveTerms) -> bytes:
    check(terms)
    numbers = b"".join(getattr(terms, key).to_bytes(4, "big") for key in _NUMBERS)
    return numbers + bytes([terms.on_timeout, terms.copy_storage])


def take_terms(cursor: Cursor) -> MoveTerms:
    """Raises DecodeError("bad-value")."""
    timeout_s, bandwidth, downtime_ms = cursor.uint(4), cursor.uint(4), cursor.uint(4)
    policy, storage = cursor.uint(1), cursor.uint(1)
    try:
        return check(
            MoveTerms(timeout_s, OnTimeout(policy), bandwidth, downtime_ms, CopyStorage(storage))
        )
    except ValueError as error:
        raise DecodeError("bad-value", str(error)) from None


def terms_to_json(terms: MoveTerms) -> dict[str, Any]:
    """What is said, by name; {} if nothing is."""
    said: dict[str, Any] = {key: n for key in _NUMBERS if (n := getattr(terms, key))}
    for key in _WORDS:
        word = getattr(terms, key)
        if word != getattr(NO_TERMS, key):
            said[key] = word.name.lower()
    return said


def terms_from_json(value: Mapping[str, Any]) -> MoveTerms:
    """Of the keys KEYS; those that are absent or null are not said.  Raises ValueError, which names
    the key."""
    found: dict[str, Any] = {}
    for key, (most, unit) in _NUMBERS.items():
        number = value.get(key)
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most:
            raise ValueError(f"{key} is a whole number of {unit}, 1 to {most}, not {number!r}")
        found[key] = number
    for key, kind in _WORDS.items():
        word = value.get(key)
        if word is None:
            continue
        words = {member.name.lower(): member for member in kind}
        if not isinstance(word, str) or word not in words:
            raise ValueError(f"{key} is {' or '.join(words)}, not {word!r}")
        found[key] = words[word]
    return check(MoveTerms(**found))
