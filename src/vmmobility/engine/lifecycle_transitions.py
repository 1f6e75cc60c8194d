"""A VM's whole life as a table (Section 8.1): what each happening makes of each state.

On-boarding goes requested, offered, confirmed, provisioning, running.  From then on the state
follows what there is: bindings, moves, guests, heartbeats are looked at, never guessed.

Total: a pair that no row names changes nothing; a confirmation is then answered as before.
docs/design/lifecycle.md holds the picture.  Not here: the actions (manager_lifecycle.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class LifeState(Enum):
    """Where a VM's life stands; durable."""

    REQUESTED = "requested"
    OFFERED = "offered"
    CONFIRMED = "confirmed"
    PROVISIONING = "provisioning"
    RUNNING = "running"
    MIGRATING = "migrating"
    PROTECTED = "protected"
    SUSPENDED = "suspended"
    STOPPED = "stopped"
    DELETED = "deleted"
    FAILED = "failed"


class LifeEvent(Enum):
    """Everything that can happen to it."""

    # people, by the API
    CONFIRM = "its asker confirms it"
    DELETE = "people delete it"
    # the manager
    ADMITTED = "there is room for it"
    REJECTED = "there is none, or it may not be"
    EXPIRED = "its offer has ended"
    ORDERED = "its NVE is told to bring it up"
    REFUSED = "its NVE could not bring it up"
    # what there is
    RUNS = "it is bound, and its guest runs"
    MOVES = "a move of it is under way"
    IS_PROTECTED = "it runs, and a standby has its state"
    IS_SUSPENDED = "its guest is suspended"
    IS_STOPPED = "it is bound, and has no guest"
    IS_LOST = "its NVE is dead, or has it no more"
    GONE = "its binding has been removed"


_S, _E = LifeState, LifeEvent

# States in which the VM is, or was, bound to an NVE.
LIVE = frozenset({_S.RUNNING, _S.MIGRATING, _S.PROTECTED, _S.SUSPENDED, _S.STOPPED})
# What is looked at, and what it makes of a VM that was brought up, or may have been.
SEEN = {
    _E.RUNS: _S.RUNNING,
    _E.MOVES: _S.MIGRATING,
    _E.IS_PROTECTED: _S.PROTECTED,
    _E.IS_SUSPENDED: _S.SUSPENDED,
    _E.IS_STOPPED: _S.STOPPED,
    _E.IS_LOST: _S.FAILED,
}


@dataclass(frozen=True, slots=True)
class Row:
    """In each of these states the event leads to `becomes`."""

    states: tuple[LifeState, ...]
    event: LifeEvent
    becomes: LifeState


_FOLLOWS = (_S.PROVISIONING, *(s for s in LifeState if s in LIVE), _S.FAILED)

ROWS: tuple[Row, ...] = (
    Row((_S.REQUESTED,), _E.ADMITTED, _S.OFFERED),
    Row((_S.REQUESTED,), _E.REJECTED, _S.DELETED),
    Row((_S.OFFERED,), _E.EXPIRED, _S.DELETED),
    Row((_S.OFFERED, _S.FAILED), _E.CONFIRM, _S.CONFIRMED),
    Row((_S.CONFIRMED,), _E.ORDERED, _S.PROVISIONING),
    Row((_S.CONFIRMED, _S.PROVISIONING), _E.REFUSED, _S.FAILED),
    *(
        Row(tuple(s for s in _FOLLOWS if s is not becomes), event, becomes)
        for event, becomes in SEEN.items()
    ),
    Row(tuple(s for s in LifeState if s in LIVE), _E.GONE, _S.DELETED),
    Row(tuple(s for s in LifeState if s is not _S.DELETED), _E.DELETE, _S.DELETED),
)

TABLE: dict[tuple[LifeState, LifeEvent], LifeState] = {
    (state, row.event): row.becomes for row in ROWS for state in row.states
}


def picture() -> str:
    """The machine as a Markdown table."""
    lines = ["| In state | What happens | Then |", "|---|---|---|"]
    for row in ROWS:
        states = ", ".join(state.value for state in row.states)
        lines.append(f"| {states} | {row.event.value} | {row.becomes.value} |")
    lines.append("| any other | anything else | as it was |")
    return "\n".join(lines) + "\n"
