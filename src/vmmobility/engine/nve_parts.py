"""What the parts of NveEngine share: declarations, and the manager's request that waits.

Not here: the actions (nve_registration.py, nve_moves.py, nve_redirects.py, nve_unmanaged.py), the
machine (nve.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.channel import Received
from vmmobility.engine.nve_transitions import Trigger
from vmmobility.engine.outputs import Order
from vmmobility.wire.options import (
    Measurements,
    Option,
    PhaseOption,
    Sight,
)
from vmmobility.wire.registry import GuestLife, GuestState, Phase, Status
from vmmobility.wire.values import Prefix, VmKey

if TYPE_CHECKING:
    import random
    from collections import Counter
    from collections.abc import Callable

    from vmmobility.engine.binding_update_list import BindingUpdateList, Check
    from vmmobility.engine.channel import Channel, Peer
    from vmmobility.engine.nve import NveSettings
    from vmmobility.engine.outputs import Outbox
    from vmmobility.engine.protection_record import Guarded
    from vmmobility.wire.message import Message

RETRY_S = 1.0  # what failed in the kernel or at the hypervisor is tried again after so long
RESUMES = 3  # a guest that is to serve again is let go on so often once more, if that fails


def _lies_in(prefix: Prefix, home: Prefix) -> bool:
    return prefix.prefixlen >= home.prefixlen and prefix.overlaps(home)


def in_use_by(sharer: Entry) -> str:
    return f"VM {sharer.vm}, {sharer.phase.name.lower()} here, has an address of it"


class NveParts:
    """Base of the mixins that make up NveEngine."""

    if TYPE_CHECKING:
        settings: NveSettings
        entries: BindingUpdateList
        guarded: dict[VmKey, Guarded]
        channel: Channel
        manager: Peer
        outbox: Outbox
        jitter: random.Random
        counts: Counter[str]
        _retry: dict[VmKey, float]
        _fire: Callable[[Entry, Trigger, Any, float], None]
        _save: Callable[[Entry], None]
        _answer: Callable[..., None]
        _set_data_plane: Callable[[Entry], None]
        _order: Callable[..., None]
        _event: Callable[..., None]
        _place: Callable[..., None]
        _not_a_server: Callable[[str], str]
        _server_options: Callable[[Entry], tuple[Option, ...]]
        _relocation_order_done: Callable[[Entry, Order, Mapping[str, Any], str, float], bool]
        _end_relocation: Callable[[Entry], None]
        _relocation_applied: Callable[[Entry, str], None]
        _recover_relocation: Callable[[Entry, bool | None, float], bool]
        _attach: Callable[[Entry, float], None]
        _refresh: Callable[[Entry, float], None]
        _forget: Callable[[Entry], None]
        _end_leftover: Callable[[Entry], None]
        _stop: Callable[[Entry, None, float], None]
        _stopped: Callable[[Entry, str, float], None]
        _deregister: Callable[[Entry, float], None]
        _commands_done: Callable[[Entry, dict[str, Any]], None]
        _commands_failed: Callable[[Entry, str, str], None]
        _report: Callable[[Entry, Phase, float, str], None]
        _ask_for_move: Callable[[Entry, float], None]
        _watch_traffic: Callable[[Entry, float], None]
        _fall_back: Callable[[Entry, Received | None, float], None]
        _hear_fabric: Callable[[Entry, Message, float], None]
        _incoming_failed: Callable[[Entry, Mapping[str, Any], float], None]
        _command_done: Callable[[int, dict[str, Any]], None]
        _command_failed: Callable[[int, str, str], None]
        _expected_no_more: Callable[[Entry], None]
        _watch_done: Callable[[Entry, str], None]
        _arrival_refused: Callable[[Entry, Status, float], None]
        _arrival_gone: Callable[[Entry, float], None]
        _ask_nothing: Callable[[Entry], None]
        _claim: Callable[[Entry, GuestLife], None]
        _claim_failed: Callable[[Entry], None]
        _start: Callable[[Entry, None, float], None]
        _guest_options: Callable[[Entry], tuple[Option, ...]]
        _answer_guest: Callable[..., None]
        _guest_waits: Callable[[Entry], bool]
        _copy_failed: Callable[[Entry, Mapping[str, Any], float], None]
        _held_copy_gone: Callable[[Entry, float], bool]
        _held_gone: Callable[[Entry, Any, float], None]
        _ended_as_wished: Callable[..., bool]
        _guard_crashed: Callable[[Entry, float], bool]
        _reset_guest: Callable[[Entry], None]
        _pursue: Callable[[Entry, GuestState], None]
        _recover_guest: Callable[[Entry, bool | None, float], bool]
        _queried: Callable[[Entry, Mapping[str, Any], str, float], None]
        _check: Callable[[Entry], Check]
        _takes_over: Callable[[Entry], bool]
        _lease_options: Callable[[Entry, float], tuple[Option, ...]]
        _refresh_interval: Callable[[Entry, float], float]
        _lease_extended: Callable[[Entry, float, float], None]
        _plan_check: Callable[[Entry, float], None]
        _drift: Callable[[Entry, str, str, str, bool], dict[str, Any]]

    def _retire(self, entry: Entry) -> None:
        """It is served elsewhere, and if no process of it lives here what it has left is old."""
        if entry.definition and not entry.expected:
            self._order(entry, Order.RETIRE, definition=entry.definition)

    def _answer_waiting(
        self,
        entry: Entry,
        status: Status = Status.ACCEPTED,
        options: Iterable[Option] = (),
        reason: str = "",
    ) -> None:
        request, entry.request = entry.request, None
        if request is not None:
            self._answer(request, entry, status, options, reason)

    def _await_with(self, entry: Entry, received: Received) -> None:
        """This request waits now; one of another kind that waited is overtaken, and hears it."""
        self._answer_waiting(entry, Status.WRONG_PHASE, reason="overtaken by a later request")
        entry.request = received

    def _home_options(self, entry: Entry) -> tuple[Option, ...]:
        """Whether the VM is at home here: the fabric's covering prefixes lead all its addresses to
        this node without a host route."""
        covered = all(
            any(h.version == p.version and _lies_in(p, h) for h in self.settings.home_prefixes)
            for p in entry.prefixes
        )
        return (Sight(direct=False, covered=True),) if covered else ()

    def _measured_options(self, entry: Entry) -> tuple[Option, ...]:
        """Figures for people, if there are any."""
        if not entry.measured:
            return ()
        numbers = {k[:30]: round(v, 3) for k, v in list(entry.measured.items())[:16]}
        return (Measurements(json.dumps(numbers, separators=(",", ":")).encode()),)

    def _acknowledge_again(self, entry: Entry, received: Received, now: float) -> None:
        """A repeated step: it is done, or under way and then the newest request is answered."""
        waiting = entry.request.message if entry.request is not None else None
        message = received.message
        same = waiting is not None and (
            (waiting.purpose, waiting.find(PhaseOption), waiting.epoch)
            == (message.purpose, message.find(PhaseOption), message.epoch)
        )
        if same:
            entry.request = received
        else:
            self._answer(received, entry)

    def _off_already(self, entry: Entry, received: Received, now: float) -> None:
        """Nothing to end here - and nothing older may begin it later: the tombstone rises."""
        entry.epoch = max(entry.epoch, received.message.epoch)
        self._answer(received, entry)
