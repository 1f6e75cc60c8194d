"""The mutations of warm standbys: how a lease is counted, who waits for it, what is complete.

Not here: those of everything else (mutations.py); a lease that counts from the coming of the reply:
a refresh is soon followed by the next, so a late reply counts for no more than the margin is for
(tests/engine/test_protection.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

from tests.engine.fake_checkpoints import FakeCheckpoints
from tests.simulation.mutations import Mutant
from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.manager_protection_record import GUARDED
from vmmobility.engine.nve import NveEngine
from vmmobility.engine.outputs import Order
from vmmobility.engine.protection_record import Guarded
from vmmobility.wire.options import Checkpoint

PROTECTION_MUTANTS: dict[str, Mutant] = {}


def _method(name: str, breaks: str, owner: type, method: str, new: Any) -> None:
    """The method `new` in place of the owner's."""
    PROTECTION_MUTANTS[name] = Mutant(breaks, partial(patch.object, owner, method, new))


_hand_over = NveEngine._hand_over
_fence = NveEngine._fence


def _at_once(engine: Any, protected: Any) -> float | None:
    waits = protected.fencing and protected.state in GUARDED
    return protected.lease_at + protected.lease_s / 2 if waits else None


def _answer_early(engine: Any, entry: Entry, received: Any, now: float) -> None:
    _hand_over(engine, entry, received, now)
    guarded = engine.guarded.get(entry.vm)
    if guarded is not None and guarded.request is received:
        guarded.request = None
        engine._answer(received, entry, options=(Checkpoint(guarded.number),))


def _withdraw_alone(engine: Any, guarded: Guarded, now: float) -> None:
    order = engine._order

    def but_pause(entry: Entry, what: Order, **arguments: Any) -> None:
        if what is not Order.PAUSE:
            order(entry, what, **arguments)

    with patch.object(engine, "_order", but_pause):
        _fence(engine, guarded, now)
    engine._order_of(guarded.vm, Order.ARM, until=None)


_method(
    "take over at once", "a standby takes over before its primary's lease is certainly over",
    ManagerEngine, "_fails_over_at", _at_once,
)  # fmt: skip

_method(
    "no guard of the lease", "nobody who outlives the daemon pauses the guest",
    NveEngine, "_arm", lambda engine, guarded: None,
)  # fmt: skip

_method(
    "run on after a restart", "a primary that restarts goes on though it does not know its lease",
    NveEngine, "_fence_at_start", lambda engine: None,
)  # fmt: skip

_method(
    "withdraw it and let it run", "a primary whose lease ends withdraws the VM, but does not pause",
    NveEngine, "_fence", _withdraw_alone,
)  # fmt: skip

_method(
    "hear the primary while its standby starts", "a refresh counts while the standby takes over",
    ManagerEngine, "_takes_over", lambda engine, vm: False,
)  # fmt: skip

_method(
    "answer before the last checkpoint", "the primary says that it is complete as it begins it",
    NveEngine, "_hand_over", _answer_early,
)  # fmt: skip

_method(
    "use what is not complete", "a standby runs from a checkpoint that is still on its way",
    FakeCheckpoints, "_content", staticmethod(lambda store: max(store.complete, store.staged)[1]),
)  # fmt: skip
