"""What a host tells its NVE: orders carried out, guests' events, what the kernel holds.

`NveHostReports` takes the hypervisor's and the data plane's answers and lets go on whatever waited
for them: a move's next step, a registration, a command, the manager's request.

Not here: what a move does in each phase (nve_moves.py), registration (nve_registration.py), guests
that other hands run (nve_unmanaged.py), comparisons (nve_checks.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.nve_checks import NveChecks
from vmmobility.engine.nve_guests import NveGuests
from vmmobility.engine.nve_moves import NveMoves
from vmmobility.engine.nve_parts import RETRY_S
from vmmobility.engine.nve_protection import NveProtection
from vmmobility.engine.nve_registration import NveRegistration
from vmmobility.engine.nve_restart import IDLE
from vmmobility.engine.nve_transitions import Trigger
from vmmobility.engine.outputs import CountTraffic, Event, Order
from vmmobility.wire.registry import GuestState, Phase, Purpose, Status
from vmmobility.wire.values import VmKey

# The manager's request is answered when this order is done: serve again, end the waiting guest.
LAST_ORDERS = {(Order.RESUME, Phase.SERVING), (Order.CANCEL, Phase.FAILED)}


class NveHostReports(NveMoves, NveRegistration, NveGuests, NveChecks, NveProtection):
    """The host's reports and what goes on with them; a part of NveEngine."""

    # ---- the hypervisor ------------------------------------------------------------------------

    def order_done(
        self, vm: VmKey, order: Order, result: Mapping[str, Any], error: str, now: float
    ) -> None:
        """A hypervisor order ended: `error` is empty or says why it failed.

        result of PREPARE_INCOMING: address, port.
        """
        if self._protection_order_done(vm, order, result, error, now):
            return
        entry = self.entries.get(vm)
        if entry is None:
            return
        if error:
            self._event("order.failed", entry, order=order.value, reason=error)
        if self._relocation_order_done(entry, order, result, error, now):
            return
        if order is Order.QUERY:
            self._queried(entry, result, error, now)
        elif order is Order.WATCH:
            self._watch_done(entry, error)
        elif self._changed(entry, order, error, now):
            return
        elif order is Order.START:
            self._start_done(entry, error, now)
        elif entry.leftover and order in (Order.STOP, Order.CANCEL) and entry.phase in IDLE:
            self._leftover_ended(entry, error, now)
        elif order is Order.STOP and entry.phase is Phase.REDIRECTING:
            if error:
                self._retry[vm] = now + RETRY_S  # a guest that may live keeps its taps
                return
            entry.unplugged, entry.started = True, False
            self._set_data_plane(entry)
        elif order is Order.STOP and self._comes_again(entry):
            entry.unended = bool(error)
        elif order is Order.STOP and entry.ending:
            self._stopped(entry, error, now)
        elif order is Order.PREPARE_INCOMING and entry.phase is Phase.PREPARED:
            self._prepared(entry, result, error, now)
        elif order is Order.COPY_OUT and entry.phase in (Phase.COPYING, Phase.CONVERGED):
            if error:
                self._fail_request(entry, entry.resting, Status.HYPERVISOR_FAILURE, error, now)
            else:
                self._answer_waiting(entry)
        elif error and order in (Order.SWITCH_OVER, Order.PROCEED):
            self._fire(entry, Trigger.FAILED, {"reason": error, "running": True}, now)
        elif error and order is Order.RESUME and self._resume_again(entry, now):
            return
        elif (order, entry.phase) in LAST_ORDERS:
            status = Status.HYPERVISOR_FAILURE if error else Status.ACCEPTED
            self._answer_waiting(entry, status, reason=error)
            if order is Order.RESUME and entry.paused and not error:
                entry.paused = False
                self._save(entry)
            if error and order is Order.RESUME and not entry.started:
                # Its machine died in the switch: there is no guest to serve again.
                self._fire(entry, Trigger.GONE, None, now)

    @staticmethod
    def _comes_again(entry: Entry) -> bool:
        """Whether a guest begins, or is waited for, in the place of one that was kept here."""
        claims = entry.claiming and not entry.ending
        return claims or (entry.phase is Phase.PREPARED and entry.request is not None)

    def _start_done(self, entry: Entry, error: str, now: float) -> None:
        entry.booting = False
        if entry.phase in (Phase.COPYING, Phase.CONVERGED):
            entry.started = not error  # of a VM that is stopped: if it failed, so will the copy
            return
        if entry.ending or entry.phase in (Phase.NONE, Phase.STOPPED):
            entry.started = (entry.ending or entry.phase is Phase.STOPPED) and not error
            return  # stopped meanwhile: that order follows
        if error:
            entry.kept = False  # a VM that never ran here is not to stay
            self._answer_guest(entry, Status.HYPERVISOR_FAILURE, error)
            self._commands_failed(entry, f"VM {entry.vm} did not start: {error}", "")
            self._fire(entry, Trigger.GONE, None, now)
            return
        entry.started = True
        self._commands_done(entry, {"vm": entry.vm.vm_id, "epoch": entry.granted})
        if entry.wanted is GuestState.RUNNING:
            self._answer_guest(entry, Status.ACCEPTED)
        self._order(entry, Order.ANNOUNCE)

    def guest_report(self, vm: VmKey, event: str, detail: Mapping[str, Any], now: float) -> None:
        """What a hypervisor reports: the name of a GuestEvent and its measurements."""
        if self._protection_reported(vm, event, detail, now):
            return
        entry = self.entries.get(vm)
        if entry is None:
            return
        self._event(f"guest.{event}", entry, **detail)
        if event == "progress":
            self._tell_progress(entry, detail, now)
        if event in ("stopped", "completed", "resumed"):
            entry.measured |= _figures(event, detail)
        trigger = {
            "converged": Trigger.CONVERGED,
            "about-to-stop": Trigger.ABOUT_TO_STOP,
            "resumed": Trigger.RESUMED,
            "failed": Trigger.FAILED,
            "gone": Trigger.GONE,
            "arrived": Trigger.ARRIVED,
            "departed": Trigger.DEPARTED,
        }.get(event)
        at = detail.get("server")
        if at is not None and at != entry.server and entry.phase is not Phase.RELOCATING:
            return  # of what is left at a server that it was at
        if trigger is Trigger.RESUMED and detail.get("held") and entry.phase is Phase.FAILED:
            return  # a copy that is being ended, and never runs
        unmanaged = trigger in (Trigger.ARRIVED, Trigger.DEPARTED)
        if trigger is not None and (entry.expected or not unmanaged):
            self._fire(entry, trigger, dict(detail), now)

    # ---- the data plane ------------------------------------------------------------------------

    def data_plane_applied(self, vm: VmKey, tag: int, failures: Sequence[str], now: float) -> None:
        """The kernel holds (or, with failures, does not) the state asked for under `tag`."""
        entry = self.entries.get(vm)
        if entry is None or tag != entry.tag:
            return
        self.outbox.emit(Event("forwarding", self._forwarding(entry, failures)))
        if failures and entry.phase not in (Phase.PREPARED, Phase.DELIVERING, Phase.SWITCHED):
            self._retry[vm] = now + RETRY_S
        self._applied(entry, "; ".join(failures), now)

    def _applied(self, entry: Entry, failure: str, now: float) -> None:
        """The data plane holds what the phase wants; what was waiting for it goes on."""
        entry.lingering = entry.lingering and bool(failure)
        if self._activate_if_plugged(entry, failure, now):
            self.outbox.emit(CountTraffic(entry.vm, "delivering"))
        elif failure:
            self._data_plane_failed(entry, failure, now)
        elif entry.phase is Phase.ATTACHING and not entry.started and not entry.ending:
            self._attach(entry, now)
        elif entry.phase is Phase.PREPARED and entry.relaying and not self._is_prepared_now(entry):
            self._answer_waiting(entry)
        elif entry.phase is Phase.PREPARED and entry.request is not None:
            self._order(
                entry,
                Order.PREPARE_INCOMING,
                definition=entry.definition,
                address=str(self._listen_address(entry)),
                **({} if entry.guest is GuestState.RUNNING else {"held": True}),
                **self._terms(entry.request),
            )
        elif entry.phase is Phase.DELIVERING:
            self.outbox.emit(CountTraffic(entry.vm, "delivering"))
            self._answer_waiting(entry)
        elif entry.phase is Phase.RELOCATING:
            self._relocation_applied(entry, "")
        elif entry.phase is Phase.SWITCHED:
            if entry.proceeding:
                entry.proceeding = False
                self._order(entry, Order.PROCEED)
                self._answer_waiting(entry)
        elif entry.phase is Phase.REDIRECTING:
            options = (*self._home_options(entry), *self._measured_options(entry))
            self._answer_waiting(entry, options=options)
            self._watch(entry)
            if not entry.unplugged:
                self._order(entry, Order.STOP)
        elif entry.phase is Phase.SERVING and entry.rolling_back and not entry.fenced:
            entry.rolling_back = False
            self._order(entry, Order.CANCEL)
            self._order(entry, Order.RESUME)
        elif entry.phase is Phase.STOPPED and entry.rolling_back:
            entry.rolling_back = False
            self._order(entry, Order.CANCEL)
            self._pursue(entry, entry.guest)
            self._save(entry)
        elif entry.phase in (Phase.NONE, Phase.ATTACHING):
            self._answer_waiting(entry)
            self._watch(entry)

    @staticmethod
    def _is_prepared_now(entry: Entry) -> bool:
        """Whether its waiting guest has yet to be started: also of one that relays already."""
        waits = entry.request
        return waits is not None and waits.message.purpose is Purpose.PREPARE

    def _watch(self, entry: Entry) -> None:
        """Its taps are there: guests that other hands run may come."""
        if entry.unwatched:
            entry.unwatched = False
            self._order(entry, Order.WATCH, definition=entry.definition)

    def _data_plane_failed(self, entry: Entry, failure: str, now: float) -> None:
        if entry.unwatched:
            self._watch_done(entry, failure)
        if entry.phase in (Phase.SERVING, Phase.STOPPED) and entry.rolling_back:
            return  # it is tried again: the destination must not turn before this node has
        if entry.phase is Phase.RELOCATING:
            self._relocation_applied(entry, failure)
            return
        if entry.phase is Phase.SWITCHED and entry.proceeding:
            entry.turned = entry.proceeding = False
            self._set_data_plane(entry)
            self._save(entry)
        if entry.phase is Phase.PREPARED and entry.relaying and not self._is_prepared_now(entry):
            self._relay_failed(entry, failure, now)
            return
        if entry.phase is Phase.PREPARED and entry.request is not None:
            self._fail_request(entry, entry.came_from, Status.DATA_PLANE_FAILURE, failure, now)
            return
        if entry.phase is Phase.ATTACHING and not entry.started and not entry.ending:
            self._commands_failed(entry, f"VM {entry.vm} cannot be plugged in: {failure}", "")
            self._answer_guest(entry, Status.DATA_PLANE_FAILURE, failure)
            self._claim_failed(entry)
            self._watch_traffic(entry, now)
            return
        if entry.phase in (Phase.DELIVERING, Phase.SWITCHED, Phase.REDIRECTING, Phase.NONE):
            self._answer_waiting(entry, Status.DATA_PLANE_FAILURE, reason=failure)

    def _relay_failed(self, entry: Entry, failure: str, now: float) -> None:
        if entry.request is None:  # it has relayed before: routers lead here
            self._retry[entry.vm] = now + RETRY_S
            return
        # The waiting guest is there: the manager turns back, and clears it.
        entry.relaying = False
        self._answer_waiting(entry, Status.DATA_PLANE_FAILURE, reason=failure)
        self._set_data_plane(entry)
        self._save(entry)

    def _forwarding(self, entry: Entry, failures: Sequence[str]) -> dict[str, Any]:
        wanted = entry.data_plane(self.settings.policy)
        return {
            "vm": entry.vm.vm_id,
            "vni": entry.vm.vni,
            "epoch": entry.epoch,
            "phase": entry.phase.name.lower(),
            "forwarding": wanted.forwarding.value,
            "target": wanted.target.nve_id if wanted.target else None,
            "plugged": wanted.plugged,
            **({"failures": list(failures)} if failures else {}),
        }


def _figures(event: str, detail: Mapping[str, Any]) -> dict[str, float]:
    """A report's numbers for people; the moment that it names becomes EVENT_at_ns."""
    return {
        f"{event}_{key}" if key == "at_ns" else key: value
        for key, value in detail.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
