"""Warm standbys at an NVE: the manager's requests, and what the hypervisor says of checkpoints.

Not here: the primary (nve_guarding.py), the standby (nve_standby.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.channel import Received
from vmmobility.engine.nve_guarding import NveGuarding
from vmmobility.engine.nve_standby import NveStandby
from vmmobility.engine.nve_transitions import Trigger
from vmmobility.engine.outputs import Event, Order
from vmmobility.errors import DecodeError
from vmmobility.wire.options import (
    PhaseOption,
)
from vmmobility.wire.registry import Phase, Status
from vmmobility.wire.values import VmKey

IDLE = (Phase.NONE, Phase.REDIRECTING)


class NveProtection(NveGuarding, NveStandby):
    """Protected VMs here; a part of NveEngine."""

    def _protect_requested(self, received: Received, now: float) -> None:
        """PROTECT: the Phase option says what to be."""
        message = received.message
        phase = message.need(PhaseOption).phase
        entry = self.entries.entry(message.vm)
        handler = {
            Phase.STANDBY: self._be_standby,
            Phase.SERVING: self._be_guarded,
            Phase.SWITCHED: self._hand_over,
            Phase.ATTACHING: self._take_over,
            Phase.NONE: self._protect_no_more,
        }.get(phase)
        if handler is None:
            raise DecodeError("bad-value", f"PROTECT to phase {phase.name}")
        handler(entry, received, now)

    def _protect_no_more(self, entry: Entry, received: Received, now: float) -> None:
        """Neither primary nor standby of this VM any more."""
        guarded, standby = self.guarded.get(entry.vm), self.standbys.get(entry.vm)
        if standby is not None and standby.ticket:
            self._answer(received, entry, Status.WRONG_PHASE, reason="it is taking over")
            return
        if guarded is not None:
            go_on = entry.fenced or guarded.handed
            self._end_guard(guarded)
            if go_on and entry.phase is Phase.SERVING:
                self._let_go_on(entry)
        if standby is None:
            self._answer(received, entry)
        else:
            standby.request = received
            self._order_of(standby.vm, Order.DROP_STANDBY, definition=standby.definition)

    def _look_at_guard(self, entry: Entry) -> None:
        """Whenever an entry has changed: one that serves no more is nobody's primary."""
        guarded = self.guarded.get(entry.vm)
        if guarded is not None and entry.phase in (Phase.NONE, Phase.REDIRECTING):
            entry.fenced = False
            self._end_guard(guarded)
            if entry.phase is Phase.REDIRECTING and entry.started:
                self._overtaken(entry, guarded)
        standby = self.standbys.get(entry.vm)
        if standby is None or not standby.ticket:
            return
        if entry.phase is Phase.SERVING:
            self._forget_standby(standby)
        elif entry.phase in (*IDLE, Phase.FAILED):
            # It ran for a moment, and ended before it was registered.
            received, standby.request, standby.ticket = standby.request, None, b""
            self._save_standby(standby)
            if received is not None:
                why = "the guest has ended"
                self._answer(received, entry, Status.HYPERVISOR_FAILURE, reason=why)

    def _protection_order_done(
        self, vm: VmKey, order: Order, result: Mapping[str, Any], error: str, now: float
    ) -> bool:
        """Whether it was an order of this part."""
        guarded, standby = self.guarded.get(vm), self.standbys.get(vm)
        entry = self.entries.entry(vm)
        if order is Order.RECEIVE:
            if standby is not None and not standby.ticket:
                self._door_opened(standby, result, error, now)
        elif order is Order.CHECKPOINT:
            if error and guarded is not None:
                detail = {"reason": error, "final": guarded.handed}
                self._checkpoint_ended(guarded, detail, now)
        elif order is Order.ACTIVATE:
            if standby is None or entry.phase is not Phase.DELIVERING:
                return True
            if error:
                self._activation_failed(entry, standby, Status.HYPERVISOR_FAILURE, error)
            elif standby.failed is None:
                self._fire(entry, Trigger.RESUMED, {}, now)
        elif order is Order.STOP and standby is not None and standby.failed is not None:
            self._activation_ended(entry, standby, error, now)
        elif order is Order.DROP_STANDBY:
            if standby is not None and not error:
                received = standby.request
                self._forget_standby(standby)
                if received is not None:
                    self._answer(received, entry)
            elif standby is not None and standby.request is not None:
                received, standby.request = standby.request, None
                self._answer(received, entry, Status.HYPERVISOR_FAILURE, reason=error[:200])
        elif order is Order.PAUSE and error and entry.fenced and entry.started:
            # It may run, and may not: then it ends.  Its images stay.
            self._event("guest.unfenceable", entry, reason=error)
            self._order(entry, Order.STOP)
        elif order not in (Order.ARM, Order.UNPROTECT):
            return False
        elif order is Order.ARM and guarded is not None:
            if error:
                self._event("order.failed", entry, order=order.value, reason=error)
            guarded.unguarded = error
        return True

    def _protection_reported(
        self, vm: VmKey, event: str, detail: Mapping[str, Any], now: float
    ) -> bool:
        """Whether the guest's event was one of this part."""
        guarded, standby = self.guarded.get(vm), self.standbys.get(vm)
        where = {"vm": vm.vm_id, "vni": vm.vni}
        if event == "checkpoint":
            self.outbox.emit(Event("guest.checkpoint", {**where, **detail}))
            if guarded is not None and guarded.taking:
                self._checkpoint_ended(guarded, detail, now)
            return True
        if event == "checkpoint-held":
            self.outbox.emit(Event("guest.checkpoint-held", {**where, **detail}))
            if standby is not None:
                standby.number = int(detail["number"])
            return True
        taking_over = standby is not None and bool(standby.ticket)
        entry = self.entries.get(vm)
        waits = entry is not None and entry.phase is Phase.DELIVERING
        # Of a guest that is being activated the order's own answer tells, and of one that could not
        # be, that of its end.
        ending = standby is not None and standby.failed is not None
        return taking_over and waits and (event in ("failed", "gone") or ending)

    def _protection_timers(self) -> list[float | None]:
        return [*super()._protection_timers(), *(s.door_at for s in self.standbys.values())]

    def _protection_timer(self, now: float) -> None:
        super()._protection_timer(now)
        self._open_doors_again(now)

    def _recover_protection(self, now: float) -> None:
        """After the entries: doors open again, and one that was about to take over goes on."""
        for standby in list(self.standbys.values()):
            entry = self.entries.entry(standby.vm)
            if standby.ticket and entry.phase is Phase.DELIVERING:
                self._set_data_plane(entry)
            elif not standby.ticket:
                self._open_door(standby)
        for guarded in self.guarded.values():
            self._recover_guarded(guarded, now)
