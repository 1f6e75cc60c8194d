"""Everything that an engine knows, as plain comparable values: two portraits show what has changed.

It walks the object's attributes, whatever they are, so that state which is added to an engine later
is looked at without a word here.  Not here: which changes are allowed (campaign.py).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

Portrait = dict[str, object]

# "Class.attribute".  Drop counters and how lately somebody was heard are no state.  What waits in
# the outbox, or is written there (boots, the counters of what is sent) is watched message by
# message.  A challenge, even a replayed one, may lead to questions and repetitions in return, and
# tell a manager that lost its state that it did.
BOOKKEEPING = frozenset(
    {
        "Channel.drops", "Channel._outbox", "Channel._own", "Channel._challenges",
        "Channel._sequence", "Outstanding.due", "Outstanding.attempts", "Peer.last_heard",
        "Told.heard",
        "ManagerEngine.outbox", "ManagerEngine.counts", "ManagerEngine._relearn_until",
        "ManagerEngine._relearning_noted", "ManagerEngine._loss_heeded",
        "NveEngine.outbox", "NveEngine.counts", "RouterEngine.outbox",
    }
)  # fmt: skip
# What an authentic message of a peer leaves behind in the channel, whatever is then refused; the
# manager also notes, a peer apart, which attaches that peer has itself ended.
OF_A_PEER = frozenset({"Peer.window", "Peer.replies", "Peer.assemblies", "ManagerEngine._ended"})
# What a router that tells of a VM unasked brings about: it is told, under a fresh epoch, what it
# should do.  What others are told is looked at apart (insiders.py).
OF_A_ROUTER = frozenset(
    {
        "ManagerEngine._fabric", "BindingCache.last_epoch", "Channel._outstanding",
        "Channel._by_subject",
    }
)  # fmt: skip


def portrait(engine: object, ignored: frozenset[str] = BOOKKEEPING) -> Portrait:
    """Path of attributes -> value."""
    found: Portrait = {}
    _look("", engine, found, {}, ignored)
    return found


def difference(before: Portrait, after: Portrait, most: int = 8) -> list[str]:
    """The paths that differ, with both values."""
    missing = "(absent)"
    paths = [
        p for p in {**before, **after} if before.get(p, missing) != after.get(p, missing)
    ]  # fmt: skip
    return [f"{p}: {before.get(p, missing)!r} -> {after.get(p, missing)!r}" for p in paths[:most]]


def _look(
    path: str, value: Any, found: Portrait, seen: dict[int, str], ignored: frozenset[str]
) -> None:
    kind = type(value)
    if kind not in _TRAITS:
        _TRAITS[kind] = _traits(kind)
    plain, slots = _TRAITS[kind]
    if plain:
        found[path] = value
    elif id(value) in seen:
        found[path] = f"the same as {seen[id(value)]}"
    elif not isinstance(value, random.Random):  # a draw of chance is no state
        seen[id(value)] = path
        for name, part in _parts(value, slots):
            if f"{kind.__name__}.{name}" not in ignored:
                _look(f"{path}.{name}", part, found, seen, ignored)


_TRAITS: dict[type, tuple[bool, tuple[str, ...]]] = {}


def _traits(kind: type) -> tuple[bool, tuple[str, ...]]:
    """Whether its values are compared as a whole, for no attribute of them ever changes; slots."""
    slots = tuple(s for base in kind.__mro__ for s in getattr(base, "__slots__", ()))
    parameters = getattr(kind, "__dataclass_params__", None)
    if parameters is not None:
        return parameters.frozen, slots
    if issubclass(kind, Mapping | list | set | deque):
        return False, slots
    return not kind.__module__.startswith("vmmobility") or issubclass(kind, Enum | tuple), slots


def _parts(value: Any, slots: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield "(keys)", " ".join(map(str, value))
        yield from ((str(k), v) for k, v in value.items())
    elif isinstance(value, list | deque):
        yield "(length)", len(value)
        yield from ((str(i), v) for i, v in enumerate(value))
    elif isinstance(value, set):
        yield "(set)", " ".join(sorted(map(str, value)))
    yield from vars(value).items() if hasattr(value, "__dict__") else ()
    yield from ((name, getattr(value, name)) for name in slots if hasattr(value, name))
