"""The NVE's actions in a move: the destination's and the source's.

`NveMoves` is the half of NveEngine that nve_transitions.py's move rules name.  The order of a hot
move is design's "How a hot move goes": destination prepares and relays, source copies, destination
delivers locally, source redirects and only then lets the guest stop, destination attaches.

Not here: what the hypervisor and the kernel report meanwhile (nve_host_reports.py), registration
(nve_registration.py), redirects (nve_redirects.py), restarts (nve_restart.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from ipaddress import ip_address
from typing import Any

from vmmobility.engine.admission import too_long
from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.channel import Received
from vmmobility.engine.nve_parts import RESUMES, RETRY_S
from vmmobility.engine.nve_progress import NveProgress
from vmmobility.engine.nve_redirects import NveRedirects
from vmmobility.engine.nve_restart import NveRestart
from vmmobility.engine.nve_transitions import Trigger
from vmmobility.engine.outputs import CountTraffic, Order
from vmmobility.errors import DecodeError
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    Endpoint,
    Epoch,
    GuestStateOption,
    MobilityKind,
    MoveTerms,
    Option,
    PhaseOption,
    Reason,
    ServerOption,
    ServingNve,
    Ticket,
    VmId,
)
from vmmobility.wire.registry import GuestState, Mobility, Phase, Purpose, Status


class NveMoves(NveRedirects, NveRestart, NveProgress):
    """Actions of the move rules; a part of NveEngine, which has the machine and registration."""

    def _fail_request(
        self, entry: Entry, phase: Phase, status: Status, reason: str, now: float
    ) -> None:
        """Back to `phase`, as if the request had not come; tell the manager why."""
        entry.phase = phase
        kept, entry.unended = entry.unended, False
        self._answer_waiting(entry, status, reason=reason)
        if phase is Phase.NONE:
            self._forget(entry)
            return
        if phase is Phase.STOPPED:
            self._pursue(entry, entry.guest)
        entry.started = entry.started or kept
        entry.unplugged = phase is Phase.REDIRECTING and not kept
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

    def _prepare(
        self, entry: Entry, received: Received, came_from: Phase, *, relaying: bool = False
    ) -> None:
        """Plug the taps, relay to the source, start a waiting guest, and say where."""
        message = received.message
        ticket, definition, source = message.need(Ticket), message.definition, message.previous[:1]
        if not source or not message.interfaces:
            raise DecodeError("missing-option", "PREPARE needs the source and an interface")
        long = too_long(message.interfaces, definition)
        if long:
            raise DecodeError("bad-value", long)
        named = message.find(ServerOption)
        self._place(entry, named.name if named else "")
        if entry.started:
            self._order(entry, Order.STOP)  # a superseded guest that was kept
        self._end_leftover(entry)
        entry.came_from = came_from
        entry.interfaces, entry.definition = message.interfaces, definition
        entry.ticket, entry.move_epoch, entry.attach_id = ticket.ticket, message.epoch, 0
        entry.relaying = relaying
        entry.target, entry.accept = source[0], message.previous
        entry.quiet_since, entry.draining = None, False
        entry.started = entry.unplugged = entry.turned = False
        entry.unended = False
        entry.measured = {}
        self._reset_guest(entry)
        told = message.find(GuestStateOption)
        if told is not None and told.state is not GuestState.NONE:
            entry.guest = entry.wanted = told.state
            entry.kept = told.kept
        kind = message.find(MobilityKind)
        entry.mobility = kind.mobility if kind else Mobility.HOT
        self._await_with(entry, received)
        self.channel.withdraw_subject(self.manager, (entry.vm, "registration"))
        self._set_data_plane(entry)

    def _prepare_in_again(self, entry: Entry, received: Received, now: float) -> None:
        """The manager restarted, or this is what an earlier move left: prepare anew from here."""
        if entry.request is not None and received.message.epoch == entry.move_epoch:
            entry.request = received
            return
        relaying = entry.relaying and self._still_relays(entry, received)
        self._prepare(entry, received, entry.came_from, relaying=relaying)
        self._order(entry, Order.CANCEL)

    @staticmethod
    def _still_relays(entry: Entry, received: Received) -> bool:
        """Whether what relays goes on with it: routers may lead here, of which a manager that has
        lost its records knows nothing yet."""
        source, delivered = received.message.previous[:1], entry.epoch >= entry.move_epoch
        if delivered or entry.target is None or not source:
            return False
        return entry.target.nve_id == source[0].nve_id

    def _prepared(self, entry: Entry, result: Mapping[str, Any], error: str, now: float) -> None:
        if error:
            self._fail_request(entry, entry.came_from, Status.HYPERVISOR_FAILURE, error, now)
            return
        endpoint = Endpoint(ip_address(result["address"]), result["port"])
        own = (ServingNve(self.settings.own),) if self.manager.via else ()
        self._answer_waiting(entry, options=(endpoint, *own, *self._home_options(entry)))

    def _relay(self, entry: Entry, received: Received, now: float) -> None:
        """The fabric is about to lead the VM's packets here, while the source still serves it."""
        again = entry.relaying and entry.request is None
        entry.relaying = True
        self._await_with(entry, received)
        if again:
            self._answer_waiting(entry)
        else:
            self._set_data_plane(entry)

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
        if entry.guest is GuestState.RUNNING:
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

    def _fall_back(self, entry: Entry, received: Received | None, now: float) -> None:
        """The move is off: what this node was before it."""
        entry.ticket, entry.move_epoch = b"", 0
        if received is not None:
            entry.epoch = max(entry.epoch, received.message.epoch)
            self._await_with(entry, received)
        self.channel.withdraw_subject(self.manager, (entry.vm, "move"))
        self._order(entry, Order.CANCEL)
        if received is not None:
            self._retire(entry)  # the VM is served elsewhere: a whole copy, too, is old
        entry.leftover = True
        if entry.came_from is Phase.REDIRECTING and entry.target is not None:
            entry.phase, entry.accept, entry.unplugged = Phase.REDIRECTING, (), True
            self._set_data_plane(entry)
            self._watch_traffic(entry, now)
        else:
            entry.phase = Phase.NONE
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
        self._set_data_plane(entry)
        if entry.guest is GuestState.STOPPED:  # a process that never runs lends its copying
            self._order(entry, Order.START, definition=entry.definition, held=True)
        at: dict[str, Any] = {"address": str(endpoint.address), "port": endpoint.port}
        self._order(entry, Order.COPY_OUT, **at, **self._terms(received))

    @staticmethod
    def _terms(received: Received | None) -> dict[str, MoveTerms | str]:
        """An order's arguments, if anything is asked.  A guest that is fetched by post-copy depends
        on what its source says: both ends know this move's ticket, and nobody else does."""
        terms = received.message.find(MoveTerms) if received is not None else None
        if received is None or terms is None:
            return {}
        ticket = received.message.find(Ticket)
        if ticket is None or not terms.forces:
            return {"terms": terms}
        return {"terms": terms, "secret": sha256(b"door" + ticket.ticket).hexdigest()[:32]}

    def _converged(self, entry: Entry, detail: Mapping[str, Any], now: float) -> None:
        self._report(entry, Phase.CONVERGED, now, "")

    def _turn(self, entry: Entry, received: Received, now: float) -> None:
        """The destination delivers.  The hypervisor says when to redirect (_redirect_now)."""
        entry.epoch = received.message.epoch
        self._end_progress(entry)
        entry.turned, entry.proceeding = False, False
        self._await_with(entry, received)
        self._order(entry, Order.SWITCH_OVER)

    def _redirect_now(self, entry: Entry, detail: Mapping[str, Any], now: float) -> None:
        entry.turned = entry.proceeding = True
        self._set_data_plane(entry)

    def _copy_failed(self, entry: Entry, detail: Mapping[str, Any], now: float) -> None:
        reason = str(detail.get("reason", "the copy broke"))
        self._end_progress(entry)
        entry.phase = entry.resting
        self._set_data_plane(entry)
        self._order(entry, Order.CANCEL)
        if entry.phase is Phase.STOPPED:
            self._pursue(entry, entry.guest)
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
        self._end_progress(entry)
        entry.phase = entry.resting
        entry.epoch = received.message.epoch
        entry.granted = received.message.epoch
        sends = received.message.previous  # routers may still lead to the destination
        entry.accept = tuple(dict.fromkeys((*entry.accept, *sends)))
        entry.ticket, entry.turned, entry.target, entry.move_epoch = b"", False, None, 0
        entry.rolling_back, entry.resumes = True, 0
        if entry.refresh_at is None and not entry.ending:
            entry.refresh_at = now  # this node has restarted in between
        self._await_with(entry, received)
        self.channel.withdraw_subject(self.manager, (entry.vm, "move"))
        self._set_data_plane(entry)

    def _resume_again(self, entry: Entry, now: float) -> bool:
        """A whole copy is here and its hypervisor would not let it go on: it is asked again,
        before the manager hears that nobody serves the VM (invariant 6)."""
        if entry.phase is not Phase.SERVING or not entry.started:
            return False
        if entry.fenced:
            return True  # its lease has ended meanwhile: it goes on with the next
        if entry.resumes >= RESUMES:
            return False
        entry.rolling_back, entry.resumes = True, entry.resumes + 1
        self._retry[entry.vm] = now + RETRY_S
        return True

    def _serve_on(self, entry: Entry, _: None, now: float) -> None:
        """Nobody knows the move any more: packets come here again, and the next refresh makes this
        node attach anew."""
        entry.phase = entry.resting
        entry.ticket, entry.turned, entry.target, entry.move_epoch = b"", False, None, 0
        entry.refresh_at = now
        self.channel.withdraw_subject(self.manager, (entry.vm, "move"))
        self._set_data_plane(entry)

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
        """The manager knows no such move (any more): the copy, or the preparation, is given up; a
        guest that moved in, and whose attach had been accepted before it died, is deregistered."""
        if reply.status.accepted or reply.status is Status.TRY_AGAIN:
            return  # what is not settled there yet is asked again at the next comparison
        if entry.phase is Phase.CONVERGED:
            self._fire(entry, Trigger.FAILED, {"reason": "the manager knows no such move"}, now)
        elif entry.phase is Phase.FAILED and entry.attach_id:
            self._deregister(entry, now)
        elif entry.phase is Phase.DELIVERING:
            # The waiting guest is ended first; if it runs before that, it attaches.  The next
            # comparison asks again, and then nothing is left here that could run.
            entry.phase = Phase.FAILED
            self._order(entry, Order.CANCEL)
            self._save(entry)
        elif entry.phase in (Phase.PREPARED, Phase.FAILED):
            self._fall_back(entry, None, now)
            self._save(entry)

    def _ask_for_move(self, entry: Entry, now: float) -> None:
        """Whether the manager still knows the move: it may have lost its state."""
        if not self.channel.is_asking(self.manager, (entry.vm, "move")):
            self._report(entry, entry.phase, now, "")
