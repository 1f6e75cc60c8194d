"""The mutations of mutants.py: each replaces one method, constant or rule of an engine.

Not here: which schedule kills which (mutants.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from vmmobility.engine import binding_update_list, manager_transitions
from vmmobility.engine.binding_cache import Binding
from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.channel import Channel
from vmmobility.engine.dataplane import Forwarding
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.manager_transitions import Happening, MoveState, Step
from vmmobility.engine.nve import NveEngine
from vmmobility.engine.outputs import Order, Outbox
from vmmobility.engine.replay_window import ReplayWindow
from vmmobility.wire.registry import Phase


@dataclass(frozen=True, slots=True)
class Mutant:
    """breaks: what is wrong with it, in a line."""

    breaks: str
    make: Callable[[], AbstractContextManager[object]]


MUTANTS: dict[str, Mutant] = {}


def _mutant(name: str, breaks: str, make: Callable[[], AbstractContextManager[object]]) -> None:
    MUTANTS[name] = Mutant(breaks, make)


def _method(name: str, breaks: str, owner: type, method: str, new: Any) -> None:
    """The method `new` in place of the owner's."""
    _mutant(name, breaks, lambda: patch.object(owner, method, new))


def _around(name: str, breaks: str, owner: type, method: str, new: Callable[[Any], Any]) -> None:
    """new(original) in place of the owner's method."""
    _mutant(name, breaks, lambda: patch.object(owner, method, new(getattr(owner, method))))


def _rules(name: str, breaks: str, changed: dict[tuple[MoveState, Happening], MoveState]) -> None:
    """Other next states in the manager's table."""
    steps = {pair: Step(state, "mutant") for pair, state in changed.items()}
    _mutant(name, breaks, lambda: patch.dict(manager_transitions.TABLE, steps))


# ---- fencing: epochs, tombstones, tickets ------------------------------------------------------

_method(
    "skip the epoch check", "an NVE acts on any epoch",
    NveEngine, "_stale", staticmethod(lambda entry, trigger, message: False),
)  # fmt: skip


def _forget_tombstone(original: Callable[[NveEngine, Entry], None]) -> Any:
    def forget(engine: NveEngine, entry: Entry) -> None:
        entry.epoch = 0
        original(engine, entry)

    return forget


_around(
    "forget the tombstone", "an entry's highest epoch goes with it",
    NveEngine, "_forget", _forget_tombstone,
)  # fmt: skip

_method(
    "forget the epoch sequence", "the manager does not record the epochs it gives",
    ManagerEngine, "_new_epoch", lambda engine: engine.cache.next_epoch(),
)  # fmt: skip


# ---- records -----------------------------------------------------------------------------------


def _say_at_once(original: Any) -> Any:
    def flush(outbox: Outbox) -> list[Any]:
        ready: list[Any] = original(outbox)
        for _, outputs in outbox._held:
            ready.extend(outputs)
            outputs.clear()
        return ready

    return flush


_around(
    "redirect before persist", "outputs do not wait for their records",
    Outbox, "flush", _say_at_once,
)  # fmt: skip

_method(
    "go on with a full disk", "a failed record stops nothing",
    Outbox, "persist_failed", lambda outbox, reason: outbox.persisted(1 << 60),
)  # fmt: skip

_method(
    "forget moves at a restart", "a restarted manager knows no move",
    ManagerEngine, "_load_moves",
    lambda engine, state, now: engine.__dict__.update(moves={}, _current={}, _warm={}),
)  # fmt: skip

_method(
    "leave moves at a restart", "a restarted manager asks nobody to go on",
    ManagerEngine, "_resume_moves", lambda engine, now: None,
)  # fmt: skip


def _forget_phase(original: Any) -> Any:
    def to_json(entry: Entry) -> dict[str, Any]:
        value: dict[str, Any] = original(entry)
        if entry.phase is Phase.SWITCHED:
            value["phase"] = int(Phase.CONVERGED)
        return value

    return to_json


_mutant(
    "forget the turn at a restart", "an NVE's record does not say that it was turned",
    lambda: patch.object(
        binding_update_list, "entry_to_json", _forget_phase(binding_update_list.entry_to_json)
    ),
)  # fmt: skip


# ---- the order of a move -----------------------------------------------------------------------


def _relaying(original: Any) -> Any:
    def data_plane(entry: Entry, policy: Any) -> Any:
        state = original(entry, policy)
        if entry.phase is Phase.DELIVERING and entry.target is not None:
            fields = {"forwarding": Forwarding.REDIRECT, "target": entry.target}
            return _replaced(state, **fields)
        return state

    return data_plane


def _replaced(state: Any, **changes: Any) -> Any:
    return replace(state, **changes)


_around(
    "relay a relayed packet", "the destination relays on to the source that redirects to it",
    Entry, "data_plane", _relaying,
)  # fmt: skip

_rules(
    "switch before it delivers", "the source turns before the destination delivers",
    {(MoveState.COPYING, Happening.CONVERGED): MoveState.SWITCHING},
)  # fmt: skip


def _stop_first(engine: NveEngine, entry: Entry, detail: Any, now: float) -> None:
    entry.turned = True
    engine._order(entry, Order.PROCEED)
    engine._set_data_plane(entry)


_method(
    "stop before the redirect", "the guest is let stop before packets are redirected",
    NveEngine, "_redirect_now", _stop_first,
)  # fmt: skip

_rules(
    "turn back at once", "the source serves again before the destination's guest is ended",
    {
        (MoveState.SWITCHING, happening): MoveState.TURNING_BACK
        for happening in (Happening.TIMEOUT, Happening.SOURCE_FAILED, Happening.ABORT)
    },
)  # fmt: skip

_rules(
    "turn back though it runs", "the source serves again though the guest runs at the other end",
    {(MoveState.ENDING_GUEST, Happening.REFUSED): MoveState.TURNING_BACK},
)  # fmt: skip

_method(
    "turn back though it has switched", "a restarted manager does not ask the destination first",
    ManagerEngine, "_turned", staticmethod(lambda move, becomes: becomes),
)  # fmt: skip


def _given_up(engine: NveEngine, entry: Entry, received: Any, now: float) -> None:
    entry.epoch = max(entry.epoch, received.message.epoch)
    engine._answer(received, entry)
    engine._order(entry, Order.CANCEL)


_method(
    "give up before it has ended", "the waiting guest is said to be ended when it may yet run",
    NveEngine, "_give_up", _given_up,
)  # fmt: skip


# ---- who may have a VM -------------------------------------------------------------------------


def _boot_first(original: Any) -> Any:
    def start(engine: NveEngine, entry: Entry, cause: None, now: float) -> None:
        original(engine, entry, cause, now)
        engine._order(entry, Order.START, definition=entry.definition)

    return start


_around(
    "boot before it is accepted", "a guest is started before its attach is accepted",
    NveEngine, "_start", _boot_first,
)  # fmt: skip

_method(
    "grant without asking", "a conflicting attach is granted and the incumbent not asked",
    ManagerEngine, "_contest",
    lambda engine, received, binding, now: engine._take_over(received, binding, now),
)  # fmt: skip


def _silence_is_death(original: Any) -> Any:
    def answered(engine: ManagerEngine, received: Any, epoch: int, reply: Any, now: float) -> None:
        binding = engine.cache.bindings.get(received.message.vm)
        if reply is None and binding is not None:
            engine._take_over(received, binding, now)
            return
        original(engine, received, epoch, reply, now)

    return answered


_around(
    "take silence for death", "a conflicting attach is granted when the incumbent does not answer",
    ManagerEngine, "_contest_answered", _silence_is_death,
)  # fmt: skip

_method(
    "ask nobody after a loss", "a manager that lost its records has any VM booted",
    ManagerEngine, "_doubt_left", lambda engine, now: 0.0,
)  # fmt: skip

_method(
    "take replayed datagrams", "the replay window lets everything pass",
    ReplayWindow, "check", lambda window, boot, counter: None,
)  # fmt: skip


# ---- previous NVEs -----------------------------------------------------------------------------


def _let_go_first(original: Any) -> Any:
    def try_removal(engine: ManagerEngine, binding: Binding, now: float) -> None:
        kept, binding.previous = binding.previous, {}
        try:
            original(engine, binding, now)
        finally:
            binding.previous = kept

    return try_removal


_around(
    "serving NVE lets go first", "a VM is forgotten while others redirect to its NVE",
    ManagerEngine, "_try_removal", _let_go_first,
)  # fmt: skip

_method(
    "let any previous NVE go", "a redirect ends though another one leads to it",
    Binding, "free_to_go", lambda binding: list(binding.previous),
)  # fmt: skip


def _chain(original: Any) -> Any:
    def redirect(engine: ManagerEngine, binding: Binding, now: float) -> None:
        kept = binding.previous
        binding.previous = dict(list(kept.items())[-1:])
        try:
            original(engine, binding, now)
        finally:
            binding.previous = kept

    return redirect


_around(
    "a chain, not a star", "only the last previous NVE is redirected to the newest",
    ManagerEngine, "_redirect_previous", _chain,
)  # fmt: skip


def _drain_alone(engine: NveEngine, entry: Entry, cause: None, now: float) -> None:
    engine._remove(entry, None, now)


_method(
    "drain alone", "a previous NVE ends its redirect without asking the manager",
    NveEngine, "_drained", _drain_alone,
)  # fmt: skip


def _uncovered(original: Any) -> Any:
    def watch(engine: NveEngine, entry: Entry, now: float) -> None:
        original(engine, entry, now)
        if entry.phase is Phase.REDIRECTING:
            entry.quiet_since = now

    return watch


_around(
    "drain on silence alone", "a redirect ends though the covering prefix leads to it",
    NveEngine, "_watch_traffic", _uncovered,
)  # fmt: skip

# ---- messages ----------------------------------------------------------------------------------


def _once(channel: Channel, now: float) -> None:
    for outstanding in channel._outstanding.values():
        outstanding.due = float("inf")


_method(
    "say it once", "a request is not repeated",
    Channel, "timer", _once,
)  # fmt: skip
