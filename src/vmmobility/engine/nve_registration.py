"""An NVE's registration with the manager: attach, refresh, yield, deregister (draft Section 5).

Not here: moves (nve_moves.py), redirects (nve_redirects.py).
"""

from __future__ import annotations

from typing import Any

from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.nve_parts import RETRY_S, NveParts
from vmmobility.engine.nve_transitions import Trigger
from vmmobility.engine.outputs import (
    Order,
)
from vmmobility.wire.definition_keys import member_of
from vmmobility.wire.message import Message, definition_options
from vmmobility.wire.options import (
    AttachId,
    Epoch,
    Guest,
    GuestStateOption,
    InterfaceGroup,
    MobilityKind,
    Option,
    PreviousNve,
    Reason,
    ServingNve,
    Ticket,
    VmId,
)
from vmmobility.wire.registry import (
    LIFETIME_UNIT_S,
    GuestLife,
    GuestState,
    Mobility,
    Phase,
    Purpose,
    Status,
)

REMEDIES = {
    Status.BOUND_ELSEWHERE: "move it with `vmmob move`, or stop it there first",
    Status.ADDRESS_IN_USE: "stop the other VM, or give this one addresses of its own",
    Status.ADMINISTRATIVELY_PROHIBITED: "see `vmmob show onboarded`, if strict mode is on",
    Status.FROZEN: "end the copy that should not run, then `vmmob vm release` at the manager",
    Status.TRY_AGAIN: "if it names an NVE, start that; if its host is dead, fence it, then `vmmob "
    "vm release --fenced` at the manager; else try again soon",
}


class NveRegistration(NveParts):
    """Actions of registration; a part of NveEngine."""

    def _start(self, entry: Entry, _: None, now: float) -> None:
        """A VM that is no more, or was lost, where it is now: what led there before still does
        until the attach is accepted."""
        if entry.started:
            self._order(entry, Order.STOP)  # a superseded guest that was kept
        entry.started = entry.unplugged = False
        self._claim(entry, GuestLife.NONE)
        self._end_leftover(entry)
        self._set_data_plane(entry)

    def _claim(self, entry: Entry, arrived: GuestLife) -> None:
        """An attach without a move of the manager's begins."""
        entry.attach_id = self.jitter.getrandbits(63) + 1
        entry.claiming, entry.arrived, entry.paused = True, arrived, False
        entry.ticket, entry.granted, entry.came_from = b"", 0, Phase.NONE
        self._reset_guest(entry)
        entry.quiet_since, entry.draining, entry.refresh_at = None, False, None
        self._ask_nothing(entry)

    def _claim_failed(self, entry: Entry) -> None:
        """What this node was before: a previous NVE, or nothing of the VM."""
        kept, entry.unended = entry.unended, False
        if entry.target is None:
            entry.leftover = entry.leftover or kept
            self._forget(entry)
            return
        entry.phase, entry.unplugged, entry.granted = Phase.REDIRECTING, not kept, 0
        entry.claiming, entry.arrived, entry.paused = False, GuestLife.NONE, False
        entry.ending, entry.started = False, entry.started or kept
        self._set_data_plane(entry)
        self._save(entry)

    def _attach(self, entry: Entry, now: float) -> None:
        """Section 5: "The destination NVE MUST send a VM Mobility Registration Request message to
        the management node" - and so does the source NVE when the VM is created."""
        options: list[Option] = [
            VmId(entry.vm),
            *(InterfaceGroup(i) for i in entry.interfaces),
            ServingNve(self.settings.own),
            AttachId(entry.attach_id),
            _kind(entry),
            *self._home_options(entry),
            *self._guest_options(entry),
            *self._server_options(entry),
        ]
        ticketed = entry.ticket and entry.phase is Phase.ATTACHING
        if ticketed:
            options.append(Ticket(entry.ticket))
        if not ticketed or entry.claiming:
            options.extend(definition_options(entry.definition))
            # What a manager that has lost its state must know again.
            options.extend([Epoch(entry.heeded)] if entry.heeded else [])
            options.extend(PreviousNve(nve) for nve in entry.accept)
            if entry.arrived or (entry.started and entry.guest is GuestState.RUNNING):
                options.append(Guest(entry.arrived or GuestLife.RUNNING))
        options.extend(self._measured_options(entry))
        self.channel.request(
            self.manager,
            Purpose.ATTACH,
            options,
            now,
            lambda reply, at: self._attach_replied(entry, reply, at),
            lifetime=self._units(self.settings.lifetime_s),
            subject=(entry.vm, "registration"),
        )

    def _attach_replied(self, entry: Entry, reply: Message, now: float) -> None:
        if reply.status.accepted:
            self._fire(entry, Trigger.ACCEPTED, reply, now)
        elif reply.status is Status.SUPERSEDED:
            self._yield(entry, reply, now)
        else:
            self._fire(entry, Trigger.REFUSED, reply, now)

    def _accepted(self, entry: Entry, reply: Message, now: float) -> None:
        arrived, entry.arrived, entry.claiming = entry.arrived, GuestLife.NONE, False
        if not self._guest_waits(entry):  # its guest is to be booted now: then that is answered
            self._answer_waiting(entry, Status.WRONG_PHASE, reason="it is served here")
        self._reattached(entry, reply, now)
        entry.ticket, entry.target, entry.move_epoch = b"", None, 0
        self._event("registered", entry, previous=[n.nve_id for n in entry.accept])
        if entry.ending:
            entry.refresh_at = None
            if not entry.started:
                self._deregister(entry, now)
        elif entry.guest is not GuestState.RUNNING:
            entry.phase = Phase.STOPPED  # a VM that came suspended, or stopped, stays so
            self._pursue(entry, entry.guest)
        elif entry.paused:
            self._order(
                entry, Order.RESUME
            )  # it is paused until that is done: a crash may be first
        elif arrived:
            self._order(entry, Order.ANNOUNCE)
        elif not entry.started:
            entry.booting = True
            self._order(entry, Order.START, definition=entry.definition)

    def _reattached(self, entry: Entry, reply: Message, now: float) -> None:
        entry.granted = entry.epoch = max(reply.epoch, entry.epoch)
        entry.accept = reply.previous
        self._granted(entry, reply, now)
        self._set_data_plane(entry)

    def _granted(self, entry: Entry, reply: Message, now: float) -> None:
        """Section 5: the manager's final value is equal to or less than the suggested one."""
        granted = min(reply.lifetime * LIFETIME_UNIT_S, self.settings.lifetime_s)
        entry.lifetime_s = max(granted, LIFETIME_UNIT_S)
        usual = entry.lifetime_s / 2 * self.jitter.uniform(0.9, 1.0)
        entry.refresh_at = now + self._refresh_interval(entry, usual)

    def _refused(self, entry: Entry, reply: Message, now: float) -> None:
        """The attach of a guest not yet booted is given up; a guest that runs is never given up
        for a refusal (only for `superseded`): it is asked for again."""
        words = reply.find(Reason)
        why = reply.status.name.lower().replace("_", "-") + (f": {words.text}" if words else "")
        self._event("registration.refused", entry, reason=why)
        if entry.ending and not entry.started:
            if reply.status is Status.TRY_AGAIN:
                entry.refresh_at = now + RETRY_S
            else:
                self._deregister(entry, now)
            return
        if entry.started or entry.phase is not Phase.ATTACHING:
            if reply.status is Status.INVALID_TICKET:
                entry.ticket = b""
            elif reply.status is Status.OUT_OF_SEQUENCE:
                # The manager knows that attach as ended, and yet the guest runs: a new one.
                entry.attach_id = self.jitter.getrandbits(63) + 1
            entry.refresh_at = now + RETRY_S
            if entry.arrived:
                self._arrival_refused(entry, reply.status, now)
            return
        self._answer_guest(entry, reply.status, why)
        self._commands_failed(
            entry,
            f"the manager refused VM {entry.vm}: {why}",
            REMEDIES.get(reply.status, "see `vmmob show bindings`"),
        )
        self._claim_failed(entry)
        self._watch_traffic(entry, now)

    def _refresh(self, entry: Entry, now: float) -> None:
        """Section 5: "In order to extend a binding that is expiring, the Hypervisor sends periodic
        reregistration messages"."""
        if entry.phase is Phase.ATTACHING:
            entry.refresh_at = None  # it is repeated until it is answered
            self._attach(entry, now)
            return
        usual = max(entry.lifetime_s, LIFETIME_UNIT_S) / 2
        entry.refresh_at = now + self._refresh_interval(entry, usual)
        self.channel.request(
            self.manager,
            Purpose.REFRESH,
            [
                VmId(entry.vm),
                AttachId(entry.attach_id),
                Epoch(entry.granted),
                *self._guest_options(entry),
                *self._server_options(entry),
                *self._lease_options(entry, now),
            ],
            now,
            lambda reply, at: self._refresh_replied(entry, reply, now, at),
            lifetime=self._units(self.settings.lifetime_s),
            subject=(entry.vm, "registration"),
        )

    def _refresh_replied(self, entry: Entry, reply: Message, sent: float, now: float) -> None:
        """sent: when the request first left, in monotonic seconds; a lease counts from there."""
        if reply.status.accepted:
            if entry.refresh_at is not None:
                self._granted(entry, reply, now)
                self._raised(entry, reply)
                self._lease_extended(entry, sent, now)
        elif reply.status is Status.SUPERSEDED:
            self._yield(entry, reply, now)
        elif reply.status is Status.UNKNOWN_BINDING:
            self._fire(entry, Trigger.UNKNOWN, reply, now)

    def _raised(self, entry: Entry, reply: Message) -> None:
        """A manager that had lost epochs gave the binding a fresh one; or a previous NVE has come
        back that it had been told to wait for no more."""
        if entry.phase not in (Phase.SERVING, Phase.STOPPED):
            return
        told = reply.find(Epoch)
        if told is not None and told.epoch > entry.granted:
            entry.granted, entry.epoch = told.epoch, max(entry.epoch, told.epoch)
            self._save(entry)
        if not set(reply.previous) <= set(entry.accept):
            entry.accept = reply.previous
            self._set_data_plane(entry)
            self._save(entry)

    def _attach_again(self, entry: Entry, _: Message, now: float) -> None:
        self._attach(entry, now)

    def _yield(self, entry: Entry, reply: Message, now: float) -> None:
        """design, Fencing: a running local guest yields only to a `superseded` that answers its
        own current attach (the channel matched it to our outstanding request)."""
        if reply.epoch > entry.epoch:
            self._fire(entry, Trigger.SUPERSEDED, reply, now)
        elif entry.phase is Phase.ATTACHING:
            entry.refresh_at = now + RETRY_S  # an older answer than what is known here

    def _superseded(self, entry: Entry, reply: Message, now: float) -> None:
        serving = reply.need(ServingNve).nve
        entry.epoch, entry.granted = reply.epoch, 0
        entry.target, entry.accept = serving, ()
        entry.refresh_at, entry.unplugged, entry.ticket = None, True, b""
        entry.claiming, entry.arrived, entry.paused = False, GuestLife.NONE, False
        self._event("superseded", entry, serving=entry.target.nve_id)
        self._commands_failed(entry, f"{serving.nve_id} serves VM {entry.vm}", "move it from there")
        if entry.move_epoch:
            # A copy of it may be under way: nobody waits for that any more.
            self._order(entry, Order.CANCEL)
            self.channel.withdraw_subject(self.manager, (entry.vm, "move"))
            self._answer_waiting(entry, Status.WRONG_PHASE, reason="superseded")
            entry.move_epoch = 0
        self._reset_guest(entry)
        self._order(entry, Order.PAUSE)
        self._set_data_plane(entry)
        self._watch_traffic(entry, now)
        if entry.expected and entry.started:
            # Hands may have brought it here while this node was away: stopped, it asks once more.
            self._fire(entry, Trigger.ARRIVED, {}, now)
            entry.paused = True

    def _superseded_relocating(self, entry: Entry, reply: Message, now: float) -> None:
        """Another NVE serves it: what waits at the other server ends, and the guest here stops."""
        self._end_relocation(entry)
        self._order(entry, Order.CANCEL)
        self._order(entry, Order.STOP, at=entry.server_to)
        self._answer_waiting(entry, Status.WRONG_PHASE, reason="superseded")
        entry.turned = False
        self._superseded(entry, reply, now)

    def _units(self, seconds: float) -> int:
        return max(1, min(int(seconds // LIFETIME_UNIT_S), 0xFFFF))

    # ---- end of a guest ------------------------------------------------------------------------

    def _stop(self, entry: Entry, _: None, now: float) -> None:
        """The guest ends first, then its binding: until then nobody else may start the VM."""
        if entry.ending:
            return
        entry.ending, entry.refresh_at = True, None
        if not self._is_moving_in(entry):
            self.channel.withdraw_subject(self.manager, (entry.vm, "registration"))
        if entry.expected and not entry.started:
            # It is gone, and the next one there may be one that other hands are bringing already.
            self._deregister(entry, now)
            return
        self._order(entry, Order.STOP)

    def _stopped(self, entry: Entry, error: str, now: float) -> None:
        if error and entry.started:
            entry.ending, entry.refresh_at = False, now
            self._commands_failed(entry, f"VM {entry.vm} did not end: {error}", "try again")
            self._answer_guest(entry, Status.HYPERVISOR_FAILURE, error)
            self._save(entry)
            return
        entry.started = False
        if self._is_moving_in(entry):
            self._attach(entry, now)  # else its source, which still has a copy, would serve again
        else:
            self._deregister(entry, now)

    @staticmethod
    def _is_moving_in(entry: Entry) -> bool:
        """Whether its guest has run here, and the manager has not said so yet."""
        return entry.phase is Phase.ATTACHING and bool(entry.ticket) and not entry.claiming

    def _guest_gone(self, entry: Entry, detail: Any, now: float) -> None:
        """clean: it has shut itself down.  What nobody has seen, as across a restart, was not."""
        clean = isinstance(detail, dict) and bool(detail.get("clean"))
        entry.started = False
        if entry.ending or self._ended_as_wished(entry, now, clean=clean):
            return
        if self._held_copy_gone(entry, now):
            return
        self._event("guest.lost", entry)
        if entry.arrived:
            self._arrival_gone(entry, now)
            return
        reason = "the guest is gone"
        self._answer_waiting(entry, Status.HYPERVISOR_FAILURE, reason=reason)
        self._commands_failed(entry, f"VM {entry.vm}: {reason}", "start it again")
        if entry.phase is Phase.ATTACHING and not entry.claiming:
            # It moved in and is not bound to here yet: the source has a complete copy.
            entry.phase = Phase.FAILED
            self._incoming_failed(entry, {"reason": "the guest ended"}, now)
        else:
            entry.crashed = not clean and self._guard_crashed(entry, now)
            self._stop(entry, None, now)

    def _deregister(self, entry: Entry, now: float) -> None:
        """Lifetime 0: the VM is no more; the manager tells the previous NVEs."""
        entry.refresh_at = None
        self.channel.request(
            self.manager,
            Purpose.DEREGISTER,
            [
                *(VmId(entry.vm), AttachId(entry.attach_id), Epoch(entry.granted)),
                *((GuestStateOption(GuestState.STOPPED, crashed=True),) if entry.crashed else ()),
            ],
            now,
            lambda reply, at: self._deregistered(entry, reply, at),
            subject=(entry.vm, "registration"),
        )

    def _deregistered(self, entry: Entry, reply: Message, now: float) -> None:
        entry.ending = False
        self._commands_done(entry, {"vm": entry.vm.vm_id, "status": reply.status.name.lower()})
        if entry.claiming and not reply.status.accepted:
            self._claim_failed(entry)
            self._watch_traffic(entry, now)
            return
        if entry.phase is Phase.FAILED and not reply.status.accepted:
            # A copy that failed here, of a move that the manager does not know.
            self._fall_back(entry, None, now)
            self._save(entry)
        else:
            self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        """Nothing stays of the VM here but its epoch (the tombstone)."""
        entry.phase, entry.target, entry.accept = Phase.NONE, None, ()
        entry.refresh_at = entry.quiet_since = None
        entry.granted, entry.draining, entry.started, entry.turned = 0, False, False, False
        entry.attach_id, entry.ticket, entry.move_epoch = 0, b"", 0
        entry.ending, entry.rolling_back = False, False
        entry.claiming, entry.arrived, entry.paused = False, GuestLife.NONE, False
        entry.redirecting_since, entry.alarmed = None, False
        entry.fabric_direct = entry.relaying = False
        self._reset_guest(entry)
        self._event("entry.removed", entry, redirected=entry.redirected)
        self._set_data_plane(entry)
        self._save(entry)


def _kind(entry: Entry) -> MobilityKind:
    """Section 7: a VM whose definition says so is a member of a load-shared group."""
    member = member_of(entry.definition)
    return MobilityKind(Mobility.STANDBY, member) if member else MobilityKind(entry.mobility)
