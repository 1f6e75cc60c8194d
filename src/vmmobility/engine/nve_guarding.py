"""The primary of a warm standby: its checkpoints, and its lease.

Section 2: "In warm mobility the VM states are mirrored at regular and configurable intervals".
A primary whose VM may fail over pauses its guest, and takes it out of the data plane, before its
lease ends: counted from the *sending* of the last refresh that was accepted, on its own monotonic
clock.  The manager waits longer than that before it lets the standby take over
(manager_protection.py), so the two never run at once, whoever is cut off from whom.  After a
restart the lease is not known any more: the guest is paused at once, until a refresh is accepted.

Not here: how a checkpoint is taken (drivers/hypervisor), records (protection_record.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.channel import Received
from vmmobility.engine.checkpoint_schedule import RETRY_S, until_next_s
from vmmobility.engine.nve_parts import NveParts
from vmmobility.engine.nve_transitions import Trigger
from vmmobility.engine.outputs import HypervisorOrder, Order
from vmmobility.engine.protection_record import (
    Guarded,
    guarded_to_json,
    record_key,
)
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    Checkpoint,
    Endpoint,
    Option,
    Protection,
    Reason,
    ServingNve,
)
from vmmobility.wire.registry import Phase, Status
from vmmobility.wire.values import VmKey

FENCED_RETRY_S = 1.0  # a fenced primary asks so often whether it may serve again
CHECKPOINT_RETRY_S = 1.0  # the least time between two attempts


class NveGuarding(NveParts):
    """Protected VMs that run here; a part of NveEngine."""

    guarded: dict[VmKey, Guarded]
    _told_time: tuple[float, float] | None

    def _be_guarded(self, entry: Entry, received: Received, now: float) -> None:
        """The guest here has a standby from now on.  Idempotent; also: go on, after a last
        checkpoint that led to nothing."""
        message = received.message
        terms, door = message.need(Protection), message.need(Endpoint)
        standby, epoch = message.need(ServingNve).nve, message.epoch
        if entry.phase is not Phase.SERVING or entry.expected or entry.ending:
            self._answer(received, entry, Status.WRONG_PHASE)
            return
        if epoch != entry.granted:
            self._answer(received, entry, Status.STALE_EPOCH)
            return
        if terms.fail_over and entry.server:
            why = "a server apart has no guard of a lease: protect it with --no-fail-over"
            self._answer(received, entry, Status.ADMINISTRATIVELY_PROHIBITED, reason=why)
            return
        before = self.guarded.get(entry.vm)
        guarded = Guarded(entry.vm, standby, door, terms, epoch, due_at=now)
        if before is not None:
            if before.standby.nve_id == standby.nve_id and before.terms.token == terms.token:
                # Another store has none of them yet.
                guarded.number, guarded.taken_at = before.number, before.taken_at
                guarded.taken_wall_s = before.taken_wall_s
            guarded.unguarded = before.unguarded
            guarded.taking = before.taking
            if before.door == door or terms.at_min is not None:
                guarded.due_at, guarded.trouble = before.due_at, before.trouble
        guarded.lease_until = self._lease_at_first(entry, guarded, before, now)
        self.guarded[entry.vm] = guarded
        self._save_guarded(guarded)
        self._arm(guarded)
        self._answer(received, entry)
        if before is not None and before.handed:
            self._go_on(entry, guarded, now)
        self._refresh(entry, now)

    @staticmethod
    def _lease_at_first(
        entry: Entry, guarded: Guarded, before: Guarded | None, now: float
    ) -> float | None:
        """Until when it may run under these terms without a refresh."""
        known = before.lease_until if before is not None else None
        if not guarded.terms.fail_over:
            return None
        if entry.fenced:
            return known  # of one that was handed over; else there is none
        # The manager counts its lease from this reply at the earliest.
        longest = now + guarded.lease_s
        return longest if known is None else min(known, longest)

    def _hand_over(self, entry: Entry, received: Received, now: float) -> None:
        """A planned move to the standby: one last checkpoint, with the guest stopped."""
        guarded = self.guarded.get(entry.vm)
        begun = guarded is not None and guarded.handed and (guarded.taking or guarded.whole)
        if guarded is None or entry.phase is not Phase.SERVING or (entry.fenced and not begun):
            self._answer(received, entry, Status.WRONG_PHASE, reason="not protected, or fenced")
            return
        if received.message.epoch != entry.granted:
            self._answer(received, entry, Status.STALE_EPOCH)
            return
        if guarded.whole:  # it was taken for a manager that has restarted
            self._answer(received, entry, options=(Checkpoint(guarded.number),))
            return
        guarded.request = received
        if not guarded.handed:
            guarded.handed = True
            self._save_guarded(guarded)
            if not guarded.taking:
                self._take_checkpoint(guarded, now)

    def _lease_options(self, entry: Entry, now: float) -> tuple[Option, ...]:
        """What a refresh of a protected VM tells besides."""
        guarded = self.guarded.get(entry.vm)
        if guarded is None:
            return ()
        options: list[Option] = [guarded.terms]
        if guarded.taken_at is not None:
            age_ms = min(round((now - guarded.taken_at) * 1000), 0xFFFF_FFFF)
            options.append(Checkpoint(guarded.number, max(0, age_ms)))
        trouble = guarded.unguarded or guarded.trouble
        if trouble:
            options.append(Reason(trouble[:200]))
        return tuple(options)

    def _refresh_interval(self, entry: Entry, usual: float) -> float:
        guarded = self.guarded.get(entry.vm)
        if guarded is None or not guarded.terms.fail_over:
            return usual
        return min(usual, FENCED_RETRY_S if entry.fenced else guarded.lease_s / 3)

    def _lease_extended(self, entry: Entry, sent: float, now: float) -> None:
        """A refresh that was sent at `sent` was accepted."""
        guarded = self.guarded.get(entry.vm)
        if guarded is None or not guarded.terms.fail_over:
            return
        if guarded.fence_at is not None and guarded.fence_at <= now:
            self._fence(guarded, now)  # its timer is late; who outlives this daemon was not
        guarded.lease_until = max(guarded.lease_until or 0.0, sent + guarded.lease_s)
        self._arm(guarded)
        fence_at = guarded.fence_at
        if entry.fenced and not guarded.handed and fence_at is not None and fence_at > now:
            self._let_go_on(entry)

    def _go_on(self, entry: Entry, guarded: Guarded, now: float) -> None:
        """The last checkpoint led to nothing.  Its guest serves again, while its lease lasts; else
        as soon as a refresh is accepted: its standby may run meanwhile."""
        fence_at = guarded.fence_at
        if not guarded.terms.fail_over or (fence_at is not None and fence_at > now):
            self._let_go_on(entry)
            return
        self._fence(guarded, now)
        entry.refresh_at = now

    def _let_go_on(self, entry: Entry) -> None:
        """The guest that was paused here serves again: first its packets, then it."""
        entry.fenced = False
        entry.rolling_back = True
        self._event("guest.unfenced", entry)
        self._set_data_plane(entry)
        self._save(entry)

    def _fence(self, guarded: Guarded, now: float) -> None:
        """design, invariant 9: "its NVE pauses and withdraws it before its lease ends"."""
        entry = self.entries.entry(guarded.vm)
        guarded.lease_until = None
        if entry.fenced or entry.ending or entry.phase is not Phase.SERVING:
            return
        entry.fenced, entry.rolling_back, entry.resumes = True, False, 0
        self._retry.pop(entry.vm, None)
        guarded.fenced_at = now
        self._order(entry, Order.PAUSE)
        self._event("guest.fenced", entry, standby=guarded.standby.nve_id)
        self._set_data_plane(entry)
        self._save(entry)
        entry.refresh_at = now

    def _take_checkpoint(self, guarded: Guarded, now: float) -> None:
        guarded.taking = True
        guarded.due_at = now + self._interval_s(guarded, now)
        self._order_of(
            guarded.vm,
            Order.CHECKPOINT,
            address=str(guarded.door.address),
            port=guarded.door.port,
            token=guarded.terms.token,
            final=guarded.handed,
        )

    # ---- when ------------------------------------------------------------------------------------

    def tell_time(self, wall_ns: int, now: float) -> None:
        """CLOCK_REALTIME, by which checkpoints at a time of day are taken; told at the start, and
        again and again: clocks are set."""
        first, self._told_time = self._told_time is None, (wall_ns / 1e9, now)
        for guarded in self.guarded.values():
            at_rest = not (first or guarded.taking or guarded.trouble)
            if at_rest and guarded.terms.at_min is not None:
                self._plan(guarded, now)

    def _wall_s(self, now: float) -> float | None:
        if self._told_time is None:
            return None
        wall_s, then = self._told_time
        return wall_s + now - then

    def _plan(self, guarded: Guarded, now: float) -> None:
        """By when the last complete one was, also before a restart."""
        wall_s, guarded.due_at = self._wall_s(now), now
        if wall_s is not None:
            guarded.due_at = now + until_next_s(guarded.terms, guarded.taken_wall_s, wall_s)

    def _interval_s(self, guarded: Guarded, now: float) -> float:
        """From one that begins now to the next."""
        wall_s = self._wall_s(now)
        if guarded.terms.at_min is None or wall_s is None:
            return guarded.terms.interval_ms / 1000
        return until_next_s(guarded.terms, wall_s, wall_s)

    def _recover_guarded(self, guarded: Guarded, now: float) -> None:
        """After a restart: what was taken before counts."""
        self._plan(guarded, now)
        wall_s, taken_s = self._wall_s(now), guarded.taken_wall_s
        if wall_s is not None and taken_s is not None:
            guarded.taken_at = now - max(0.0, wall_s - taken_s)

    def _checkpoint_ended(self, guarded: Guarded, detail: Mapping[str, Any], now: float) -> None:
        """CHECKPOINT, or the order's refusal (then without `ok`)."""
        guarded.taking = False
        entry = self.entries.entry(guarded.vm)
        ok = bool(detail.get("ok"))
        guarded.due_at = max(guarded.due_at, now + CHECKPOINT_RETRY_S)
        if ok:
            guarded.number, guarded.trouble = int(detail["number"]), ""
            guarded.taken_at = now - float(detail.get("age_ms", 0)) / 1000
            wall_s = self._wall_s(now)
            guarded.taken_wall_s = None if wall_s is None else wall_s - now + guarded.taken_at
            self._save_guarded(guarded)
        else:
            guarded.trouble = str(detail.get("reason", "no reason given"))
            guarded.due_at = min(guarded.due_at, now + RETRY_S)
        if guarded.handed:
            self._last_checkpoint_ended(entry, guarded, ok, bool(detail.get("final")), now)
        if entry.phase is Phase.SERVING and not (guarded.handed or entry.ending):
            self._refresh(entry, now)

    def _last_checkpoint_ended(
        self, entry: Entry, guarded: Guarded, ok: bool, final: bool, now: float
    ) -> None:
        if not final:
            self._take_checkpoint(guarded, now)  # one was under way when the last was asked for
            return
        received, guarded.request = guarded.request, None
        if ok:
            entry.fenced = guarded.whole = True  # its packets wait for nobody here
            self._set_data_plane(entry)
            self._save(entry)
            if received is not None:
                age_ms = round((now - (guarded.taken_at or now)) * 1000)
                self._answer(received, entry, options=(Checkpoint(guarded.number, age_ms),))
            return
        guarded.handed = False
        self._save_guarded(guarded)
        self._go_on(entry, guarded, now)
        if received is not None:
            self._answer(received, entry, Status.HYPERVISOR_FAILURE, reason=guarded.trouble[:200])

    def _yield_if_fenced(self, entry: Entry, trigger: Trigger, message: Message) -> None:
        """A guest that is paused here for its standby's sake does not run, so it yields to the
        manager's word that another serves the VM, or that it is no more: as one that has switched.
        """
        later = trigger in (Trigger.REDIRECT, Trigger.REMOVE) and message.epoch > entry.granted
        crashed = entry.crashed and entry.phase is Phase.STOPPED
        if later and (crashed or (entry.fenced and entry.phase is Phase.SERVING)):
            if trigger is Trigger.REDIRECT:
                message.need(ServingNve)
            entry.phase, entry.turned = Phase.SWITCHED, True

    def _overtaken(self, entry: Entry, guarded: Guarded) -> None:
        """Its standby serves: the paused guest here ends, its images stay as they are.  What it
        has written since the last checkpoint is told as lost, for how long that was."""
        since = guarded.fenced_at, guarded.taken_at
        lost_ms = None
        if guarded.handed:
            lost_ms = 0
        elif since[0] is not None and since[1] is not None:
            lost_ms = round((since[0] - since[1]) * 1000)
        self._event("guest.overtaken", entry, checkpoint=guarded.number, writes_lost_ms=lost_ms)
        self._order(entry, Order.STOP)
        entry.started = False

    def _guard_crashed(self, entry: Entry, now: float) -> bool:
        """Its guest has ended by itself.  Whether the manager is to hear of that as a crash, which
        its standby takes over; a lease has no object any more."""
        guarded = self.guarded.get(entry.vm)
        if guarded is None:
            return False
        guarded.fenced_at = guarded.fenced_at if entry.fenced else now
        if entry.fenced:
            entry.fenced = False
            self._set_data_plane(entry)
        return True

    def _end_guard(self, guarded: Guarded) -> None:
        """Nobody protects the guest here any more; it, or what is left of it, stays as it is."""
        del self.guarded[guarded.vm]
        self.outbox.record(record_key("guarded", guarded.vm), None)
        self._order_of(guarded.vm, Order.ARM, until=None)
        self._order_of(guarded.vm, Order.UNPROTECT)

    def _arm(self, guarded: Guarded) -> None:
        """Have somebody who outlives this daemon pause the guest when its lease ends."""
        runs = self.entries.entry(guarded.vm).started
        if runs and guarded.terms.fail_over and guarded.lease_until is not None:
            until = guarded.lease_until - guarded.slack_s / 2
            self._order_of(guarded.vm, Order.ARM, until=until)

    def _protection_timers(self) -> list[float | None]:
        due: list[float | None] = []
        for guarded in self.guarded.values():
            due.append(guarded.fence_at)
            if self._may_checkpoint(guarded):
                due.append(guarded.due_at)
        return due

    def _may_checkpoint(self, guarded: Guarded) -> bool:
        entry = self.entries.entry(guarded.vm)
        at_rest = not (guarded.taking or guarded.handed or entry.fenced or entry.rolling_back)
        return at_rest and entry.phase is Phase.SERVING and entry.started

    def _protection_timer(self, now: float) -> None:
        for guarded in list(self.guarded.values()):
            fence_at = guarded.fence_at
            if fence_at is not None and fence_at <= now:
                self._fence(guarded, now)
            if guarded.due_at <= now and self._may_checkpoint(guarded):
                self._take_checkpoint(guarded, now)

    def _fence_at_start(self) -> None:
        """Before anything else after a restart: no guest runs whose lease is not known."""
        for guarded in self.guarded.values():
            entry = self.entries.entry(guarded.vm)
            stopped = entry.phase is Phase.STOPPED
            entry.fenced = (guarded.terms.fail_over or guarded.handed) and not stopped

    def _save_guarded(self, guarded: Guarded) -> None:
        self.outbox.record(record_key("guarded", guarded.vm), guarded_to_json(guarded))

    def _order_of(self, vm: VmKey, order: Order, **arguments: Any) -> None:
        self.outbox.emit(HypervisorOrder(order, vm, arguments))
