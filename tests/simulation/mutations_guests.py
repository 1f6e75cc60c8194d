"""The mutations of guests' states and cold moves: what is confirmed, fenced, kept and woken.

Not here: those of everything else (mutations.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

from tests.simulation.mutations import Mutant
from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.manager_cold import ManagerCold
from vmmobility.engine.nve import NveEngine
from vmmobility.wire.registry import GuestState, Phase, Status

GUEST_MUTANTS: dict[str, Mutant] = {}


def _method(name: str, breaks: str, owner: type, method: str, new: Any) -> None:
    """The method `new` in place of the owner's."""
    GUEST_MUTANTS[name] = Mutant(breaks, partial(patch.object, owner, method, new))


def _confirm_at_once(engine: Any, entry: Entry, received: Any, state: GuestState) -> None:
    engine._take_order(entry, received)
    engine._answer(received, entry, Status.ACCEPTED)
    engine._pursue(entry, state)


def _boot_again(engine: Any, entry: Entry, running: bool | None, now: float) -> bool:
    if entry.phase is Phase.STOPPED and entry.guest is GuestState.STOPPED and running is None:
        engine._pursue(entry, GuestState.RUNNING)
        return True
    return _recover_guest(engine, entry, running, now)


_recover_guest = NveEngine._recover_guest

_method(
    "confirm before it has stopped", "an NVE says that a guest has stopped when it orders that",
    NveEngine, "_make", _confirm_at_once,
)  # fmt: skip

_method(
    "boot what was stopped", "an NVE that restarts boots the VMs that are stopped there",
    NveEngine, "_recover_guest", _boot_again,
)  # fmt: skip

_method(
    "leave it suspended", "a guest that was suspended for a move is not let go on",
    ManagerCold, "_wake", lambda engine, move, now: None,
)  # fmt: skip

_method(
    "keep nothing", "what came held is not said to be the VM's: a stray end of the move ends it",
    NveEngine, "_pursue",
    lambda engine, entry, wanted: engine._settle(entry, wanted, 0.0),
)  # fmt: skip

_method(
    "forget what it is", "a registration does not tell that the guest is held",
    NveEngine, "_guest_options", lambda engine, entry: (),
)  # fmt: skip
