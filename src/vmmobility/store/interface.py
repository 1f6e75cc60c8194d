"""What a daemon needs of a durable store: keys, JSON values, atomic batches.

Not here: what the records mean (the engines), how they reach the disk (journal.py).
Rests on nothing but the error tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Change = tuple[str, Any | None]
"""A key and its new JSON value; None deletes the key."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What opening found at the journal's end and dropped: a write that was never acknowledged."""

    where: str  # the file
    offset: int  # octets from its start
    dropped: int  # octets


class Store(Protocol):
    """One writer's durable map of keys to JSON values.  One call at a time (no locking inside)."""

    @property
    def recovered(self) -> Recovery | None:
        """What recovery dropped when the store was opened; None after a clean end."""

    def load(self) -> dict[str, Any]:
        """The live state: a fresh copy, keys in the order in which they first came."""

    def append(self, changes: Sequence[Change]) -> None:
        """Apply one batch, all of it or nothing; it is durable when this returns.

        Raises StoreError if it could not be written.  Whether such a batch is there after a
        restart is then unknown, and every further append is refused: the process must stop.
        Raises TypeError or ValueError, and stays usable, if a value is no JSON.
        """

    def close(self) -> None:
        """Let go of the store.  Idempotent; appending afterwards raises StoreError."""
