"""The NVE's actions in a move: the destination's and the source's.

`NveMoves` is the half of NveEngine that nve_transitions.py's move rules name.  The order of a hot
move is design's "How a hot move goes": destination prepares and relays, source copies, destination
delivers locally, source redirects and only then lets the guest stop, destination attaches.

Not here: registration (nve.py), redirects (nve_redirects.py), restarts (nve_restart.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from vmmobility.engine.admission import too_long
from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.channel import Received
from vmmobility.engine.nve_parts import RETRY_S
from vmmobility.engine.nve_redirects import NveRedirects
from vmmobility.engine.nve_restart import NveRestart
from vmmobility.engine.nve_transitions import Trigger
from vmmobility.engine.outputs import CountTraffic, Order
from vmmobility.errors import DecodeError
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    Endpoint,
    Epoch,
    Option,
    PhaseOption,
    Reason,
    ServingNve,
    Ticket,
    VmId,
)
from vmmobility.wire.registry import Phase, Purpose, Status
from vmmobility.wire.values import VmKey

# The manager's request is answered when this order is done: serve again, end the waiting guest.
LAST_ORDERS = {(Order.RESUME, Phase.SERVING), (Order.CANCEL, Phase.FAILED)}
RESUMES = 3  # a guest that is to serve again is let go on so often once more, if that fails


class NveMoves(NveRedirects, NveRestart):
    """Actions of the move rules; a part of NveEngine, which has the machine and registration."""

    # ---- hypervisor and data plane inputs ------------------------------------------------------

    def order_done(
        self, vm: VmKey, order: Order, result: Mapping[str, Any], error: str, now: float
    ) -> None:
        """A hypervisor order ended: `error` is empty or says why it failed.

        result of PREPARE_INCOMING: address, port.
        """
        entry = self.entries.get(vm)
        if entry is None:
            return
        if error:
            self._event("order.failed", entry, order=order.value, reason=error)
        if order is Order.QUERY:
            self._queried(entry, result, error, now)
        elif order is Order.WATCH:
            self._watch_done(entry, error)
        elif order is Order.START:
            self._start_done(entry, error, now)
        elif entry.leftover and order in (Order.STOP, Order.CANCEL) and not entry.phase:
            self._leftover_ended(entry, error, now)
        elif order is Order.STOP and entry.phase is Phase.REDIRECTING:
            if error:
                self._retry[vm] = now + RETRY_S  # a guest that may live keeps its taps
                return
            entry.unplugged, entry.started = True, False
            self._set_data_plane(entry)
        elif order is Order.STOP and entry.ending:
            self._stopped(entry, error, now)
        elif order is Order.PREPARE_INCOMING and entry.phase is Phase.PREPARED:
            self._prepared(entry, result, error, now)
        elif order is Order.COPY_OUT and entry.phase in (Phase.COPYING, Phase.CONVERGED):
            if error:
                self._fail_request(entry, Phase.SERVING, Status.HYPERVISOR_FAILURE, error, now)
            else:
                self._answer_waiting(entry)
        elif error and order in (Order.SWITCH_OVER, Order.PROCEED):
            self._fire(entry, Trigger.FAILED, {"reason": error, "running": True}, now)
        elif error and order is Order.RESUME and self._resume_again(entry, now):
            return
        elif (order, entry.phase) in LAST_ORDERS:
            status = Status.HYPERVISOR_FAILURE if error else Status.ACCEPTED
            self._answer_waiting(entry, status, reason=error)
            if error and order is Order.RESUME and not entry.started:
                # Its machine died in the switch: there is no guest to serve again.
                self._fire(entry, Trigger.GONE, None, now)

    def guest_report(self, vm: VmKey, event: str, detail: Mapping[str, Any], now: float) -> None:
        """What a hypervisor reports: the name of a GuestEvent and its measurements."""
        entry = self.entries.get(vm)
        if entry is None:
            return
        self._event(f"guest.{event}", entry, **detail)
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
        unmanaged = trigger in (Trigger.ARRIVED, Trigger.DEPARTED)
        if trigger is not None and (entry.expected or not unmanaged):
            self._fire(entry, trigger, dict(detail), now)

    def _applied(self, entry: Entry, failure: str, now: float) -> None:
        """The data plane holds what the phase wants; what was waiting for it goes on."""
        if failure:
            self._data_plane_failed(entry, failure, now)
        elif entry.phase is Phase.ATTACHING and not entry.started and not entry.ending:
            self._attach(entry, now)
        elif entry.phase is Phase.PREPARED and entry.request is not None:
            self._order(
                entry,
                Order.PREPARE_INCOMING,
                definition=entry.definition,
                address=str(self._listen_address(entry)),
            )
        elif entry.phase is Phase.DELIVERING:
            self.outbox.emit(CountTraffic(entry.vm, "delivering"))
            self._answer_waiting(entry)
        elif entry.phase is Phase.SWITCHED:
            if entry.proceeding:
                entry.proceeding = False
                self._order(entry, Order.PROCEED)
                self._answer_waiting(entry)
        elif entry.phase is Phase.REDIRECTING:
            self._answer_waiting(entry, options=self._measured_options(entry))
            self._watch(entry)
            if not entry.unplugged:
                self._order(entry, Order.STOP)
        elif entry.phase is Phase.SERVING and entry.rolling_back:
            entry.rolling_back = False
            self._order(entry, Order.CANCEL)
            self._order(entry, Order.RESUME)
        elif entry.phase in (Phase.NONE, Phase.ATTACHING):
            self._answer_waiting(entry)
            self._watch(entry)

    def _watch(self, entry: Entry) -> None:
        """Its taps are there: guests that other hands run may come."""
        if entry.unwatched:
            entry.unwatched = False
            self._order(entry, Order.WATCH, definition=entry.definition)

    def _data_plane_failed(self, entry: Entry, failure: str, now: float) -> None:
        if entry.unwatched:
            self._watch_done(entry, failure)
        if entry.phase is Phase.SERVING and entry.rolling_back:
            return  # it is tried again: the destination must not turn before this node has
        if entry.phase is Phase.SWITCHED and entry.proceeding:
            entry.turned = entry.proceeding = False
            self._set_data_plane(entry)
            self._save(entry)
        if entry.phase is Phase.PREPARED and entry.request is not None:
            self._fail_request(entry, entry.came_from, Status.DATA_PLANE_FAILURE, failure, now)
            return
        if entry.phase is Phase.ATTACHING and not entry.started and not entry.ending:
            self._commands_failed(entry, f"VM {entry.vm} cannot be plugged in: {failure}", "")
            self._forget(entry)
            return
        if entry.phase in (Phase.DELIVERING, Phase.SWITCHED, Phase.REDIRECTING, Phase.NONE):
            self._answer_waiting(entry, Status.DATA_PLANE_FAILURE, reason=failure)

    def _fail_request(
        self, entry: Entry, phase: Phase, status: Status, reason: str, now: float
    ) -> None:
        """Back to `phase`, as if the request had not come; tell the manager why."""
        entry.phase = phase
        self._answer_waiting(entry, status, reason=reason)
        if phase is Phase.NONE:
            self._forget(entry)
            return
        entry.unplugged = phase is Phase.REDIRECTING
        self._set_data_plane(entry)
        self._watch_traffic(entry, now)
        self._save(entry)

    def _listen_address(self, entry: Entry) -> Any:
        """Own locator of a family that the source has, too."""
        own = self.settings.own
        source = entry.target
        for family in (4, 6):
            mine = own.locator(family)
            if mine is not None and (source is None or source.locator(family) is not None):
                return mine
        return own.locators[0]

    # ---- destination ---------------------------------------------------------------------------

    def _prepare_in(self, entry: Entry, received: Received, now: float) -> None:
        came_from = Phase.REDIRECTING if entry.target is not None else Phase.NONE
        self._prepare(entry, received, came_from)

    def _prepare(self, entry: Entry, received: Received, came_from: Phase) -> None:
        """Plug the taps, relay to the source, start a waiting guest, and say where."""
        message = received.message
        ticket, definition, source = message.need(Ticket), message.definition, message.previous[:1]
        if not source or not message.interfaces:
            raise DecodeError("missing-option", "PREPARE needs the source and an interface")
        long = too_long(message.interfaces, definition)
        if long:
            raise DecodeError("bad-value", long)
        if entry.started:
            self._order(entry, Order.STOP)  # a superseded guest that was kept
        self._end_leftover(entry)
        entry.came_from = came_from
        entry.interfaces, entry.definition = message.interfaces, definition
        entry.ticket, entry.move_epoch, entry.attach_id = ticket.ticket, message.epoch, 0
        entry.target, entry.accept = source[0], message.previous
        entry.quiet_since, entry.draining = None, False
        entry.started = entry.unplugged = entry.turned = False
        entry.measured = {}
        self._await_with(entry, received)
        self.channel.withdraw_subject(self.manager, (entry.vm, "registration"))
        self._set_data_plane(entry)

    def _prepare_in_again(self, entry: Entry, received: Received, now: float) -> None:
        """The manager restarted, or this is what an earlier move left: prepare anew from here."""
        if entry.request is not None and received.message.epoch == entry.move_epoch:
            entry.request = received
            return
        self._prepare(entry, received, entry.came_from)
        self._order(entry, Order.CANCEL)

    def _prepared(self, entry: Entry, result: Mapping[str, Any], error: str, now: float) -> None:
        if error:
            self._fail_request(entry, entry.came_from, Status.HYPERVISOR_FAILURE, error, now)
            return
        endpoint = Endpoint(ip_address(result["address"]), result["port"])
        self._answer_waiting(entry, options=(endpoint,))

    def _deliver(self, entry: Entry, received: Received, now: float) -> None:
        """From here on packets wait in the tap's queue; the relay to the source ends first."""
        entry.epoch = received.message.epoch
        self._await_with(entry, received)
        self._set_data_plane(entry)

    def _resumed(self, entry: Entry, detail: Mapping[str, Any], now: float) -> None:
        """Section 5: registration MUST be conducted after the move."""
        self.outbox.emit(CountTraffic(entry.vm, "resumed"))
        self._answer_waiting(entry, Status.WRONG_PHASE, reason="the guest runs here")
        self.channel.withdraw_subject(self.manager, (entry.vm, "move"))
        entry.started = True
        entry.attach_id = self.jitter.getrandbits(63) + 1
        entry.refresh_at = None
        self._set_data_plane(entry)
        self._attach(entry, now)
        # Section 5: "The virtual machine after the move sends IPv4 gratuitous Address Resolution
        # Protocol or IPv6 unsolicited Neighbor Advertisement message upstream."
        self._order(entry, Order.ANNOUNCE)

    def _incoming_failed(self, entry: Entry, detail: Mapping[str, Any], now: float) -> None:
        """The waiting guest is dead and never ran; packets wait until the manager turns back."""
        reason = str(detail.get("reason", "the waiting guest ended"))
        self.channel.withdraw_subject(self.manager, (entry.vm, "registration"))
        if entry.request is not None:
            self._answer_waiting(entry, Status.HYPERVISOR_FAILURE, reason=reason)
        self._order(entry, Order.CANCEL)
        self._report(entry, Phase.FAILED, now, reason)

    def _give_up(self, entry: Entry, received: Received, now: float) -> None:
        """End the waiting guest for certain, then answer - unless it runs already (_resumed).
        Forwarding stays until the source has turned."""
        entry.epoch = max(entry.epoch, received.message.epoch)
        self._await_with(entry, received)
        self._order(entry, Order.CANCEL)

    def _fall_back(self, entry: Entry, received: Received, now: float) -> None:
        """The move is off: what this node was before it."""
        entry.epoch = max(entry.epoch, received.message.epoch)
        entry.ticket, entry.move_epoch = b"", 0
        self._await_with(entry, received)
        self.channel.withdraw_subject(self.manager, (entry.vm, "move"))
        self._order(entry, Order.CANCEL)
        if entry.came_from is Phase.REDIRECTING and entry.target is not None:
            entry.phase, entry.accept, entry.unplugged = Phase.REDIRECTING, (), True
            self._set_data_plane(entry)
            self._watch_traffic(entry, now)
        else:
            entry.phase, entry.leftover = Phase.NONE, True
            self._forget(entry)

    # ---- source --------------------------------------------------------------------------------

    def _prepare_out(self, entry: Entry, received: Received, now: float) -> None:
        """Section 6: "Source Hypervisor opens a TCP connection with destination Hypervisor over
        which VM's memory state is transferred." """
        message = received.message
        endpoint, ticket = message.need(Endpoint), message.need(Ticket)
        entry.target = message.need(ServingNve).nve
        entry.ticket, entry.move_epoch = ticket.ticket, message.epoch
        entry.measured, entry.turned = {}, False
        self._await_with(entry, received)
        self._order(entry, Order.COPY_OUT, address=str(endpoint.address), port=endpoint.port)

    def _converged(self, entry: Entry, detail: Mapping[str, Any], now: float) -> None:
        self._report(entry, Phase.CONVERGED, now, "")

    def _turn(self, entry: Entry, received: Received, now: float) -> None:
        """The destination delivers.  The hypervisor says when to redirect (_redirect_now)."""
        entry.epoch = received.message.epoch
        entry.turned, entry.proceeding = False, False
        self._await_with(entry, received)
        self._order(entry, Order.SWITCH_OVER)

    def _redirect_now(self, entry: Entry, detail: Mapping[str, Any], now: float) -> None:
        entry.turned = entry.proceeding = True
        self._set_data_plane(entry)

    def _copy_failed(self, entry: Entry, detail: Mapping[str, Any], now: float) -> None:
        reason = str(detail.get("reason", "the copy broke"))
        self._order(entry, Order.CANCEL)
        if entry.request is not None:
            self._answer_waiting(entry, Status.HYPERVISOR_FAILURE, reason=reason)
        self._report(entry, Phase.FAILED, now, reason)

    def _switch_failed(self, entry: Entry, detail: Mapping[str, Any], now: float) -> None:
        """Too late to turn back alone: the manager asks the destination first."""
        reason = str(detail.get("reason", "the switch broke"))
        if entry.request is not None:
            self._answer_waiting(entry, Status.HYPERVISOR_FAILURE, reason=reason)
        self._report(entry, Phase.FAILED, now, reason)

    def _roll_back(self, entry: Entry, received: Received, now: float) -> None:
        """Serve again: under a fresh epoch, before the destination turns (invariant 3)."""
        entry.epoch = received.message.epoch
        entry.granted = received.message.epoch
        entry.ticket, entry.turned, entry.target, entry.move_epoch = b"", False, None, 0
        entry.rolling_back, entry.resumes = True, 0
        self._await_with(entry, received)
        self.channel.withdraw_subject(self.manager, (entry.vm, "move"))
        self._set_data_plane(entry)

    def _resume_again(self, entry: Entry, now: float) -> bool:
        """A whole copy is here and its hypervisor would not let it go on: it is asked again,
        before the manager hears that nobody serves the VM (invariant 6)."""
        if entry.phase is not Phase.SERVING or not entry.started or entry.resumes >= RESUMES:
            return False
        entry.rolling_back, entry.resumes = True, entry.resumes + 1
        self._retry[entry.vm] = now + RETRY_S
        return True

    # ---- reports to the manager ----------------------------------------------------------------

    def _report(self, entry: Entry, phase: Phase, now: float, reason: str) -> None:
        """SWITCH to the manager: the copy has converged, or this side of the move failed."""
        options: list[Option] = [
            VmId(entry.vm),
            Epoch(entry.move_epoch or entry.epoch),
            PhaseOption(phase),
        ]
        if entry.ticket:
            options.append(Ticket(entry.ticket))
        options.extend(self._measured_options(entry))
        if reason:
            options.append(Reason(reason))
        self.channel.request(
            self.manager,
            Purpose.SWITCH,
            options,
            now,
            lambda reply, at: self._report_replied(entry, reply, at),
            subject=(entry.vm, "move"),
        )

    def _report_replied(self, entry: Entry, reply: Message, now: float) -> None:
        """The manager knows no such move (any more): the copy is given up; a guest that moved in,
        and whose attach had been accepted before it died, is deregistered."""
        if reply.status.accepted:
            return
        if entry.phase is Phase.CONVERGED:
            self._fire(entry, Trigger.FAILED, {"reason": "the manager knows no such move"}, now)
        elif entry.phase is Phase.FAILED and entry.attach_id:
            self._deregister(entry, now)

    def _start_done(self, entry: Entry, error: str, now: float) -> None:
        if entry.ending or entry.phase is Phase.NONE:
            entry.started = entry.ending and not error
            return  # stopped meanwhile: that order follows
        if error:
            self._commands_failed(entry, f"VM {entry.vm} did not start: {error}", "")
            self._fire(entry, Trigger.GONE, None, now)
            return
        entry.started = True
        self._commands_done(entry, {"vm": entry.vm.vm_id, "epoch": entry.granted})
        self._order(entry, Order.ANNOUNCE)


def _figures(event: str, detail: Mapping[str, Any]) -> dict[str, float]:
    """A report's numbers for people; the moment that it names becomes EVENT_at_ns."""
    return {
        f"{event}_{key}" if key == "at_ns" else key: value
        for key, value in detail.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
