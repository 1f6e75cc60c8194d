"""The manager's orders about guests: run, be suspended, stop, be no more (Sections 2 and 8.1).

Serving, a guest runs; in phase STOPPED it is suspended (in memory, its CPUs stopped) or stopped (no
process; definition and disks stay), and the VM stays bound here, its address with it.  An order is
durable before the hypervisor hears of it, and answered when the hypervisor has done it.

A restart finishes what stops a guest; it never boots one: whether the VM is still this node's, the
manager's repeated order says.  Not here: registration (nve_registration.py), moves (nve_moves.py).
"""

from __future__ import annotations

from typing import Any

from vmmobility.engine.admission import too_long
from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.channel import Received
from vmmobility.engine.nve_parts import RESUMES, RETRY_S, NveParts
from vmmobility.engine.outputs import Order
from vmmobility.errors import DecodeError
from vmmobility.wire.options import GuestStateOption, Option, ServerOption, Ticket
from vmmobility.wire.registry import GuestState, Phase, Purpose, Status

_S = GuestState

# What the hypervisor is told, to make of a guest that is held (or runs) what is wanted.
# (KEEP: what is here is the VM's, whatever a copy was to become.  Of one that is stopped STOP comes
# after it: its process was lent for a copy.)
ORDERS = {
    (_S.RUNNING, _S.SUSPENDED): Order.PAUSE,
    (_S.SUSPENDED, _S.SUSPENDED): Order.KEEP,
    (_S.RUNNING, _S.STOPPED): Order.STOP,
    (_S.SUSPENDED, _S.STOPPED): Order.STOP,
    (_S.STOPPED, _S.STOPPED): Order.KEEP,
    (_S.SUSPENDED, _S.RUNNING): Order.RESUME,
    (_S.STOPPED, _S.RUNNING): Order.START,
}


class NveGuests(NveParts):
    """Actions of guests' orders; a part of NveEngine."""

    # ---- the manager's orders ------------------------------------------------------------------

    def _put_off(self, entry: Entry, received: Received) -> bool:
        """Whether an order is not for now: the VM is about to be served here, or to be no more."""
        message = received.message
        if entry.phase is Phase.ATTACHING:
            if self._guest_waits(entry) and message.epoch == entry.guest_epoch:
                entry.request = received  # of a manager that has restarted
            else:
                self.channel.disregard(received)
            return True
        if entry.ending and message.need(GuestStateOption).state is not GuestState.NONE:
            self.channel.disregard(received)
            return True
        return False

    def _run_guest(self, entry: Entry, received: Received, now: float) -> None:
        if entry.phase is Phase.SERVING:
            if entry.wanted is GuestState.SUSPENDED:
                # A move for which it was to be suspended was given up: it is let go on as soon as
                # it is held; until then the manager says so again.
                self.channel.disregard(received)
            elif entry.wanted is not GuestState.RUNNING:
                self._refuse_guest(entry, received, "another order is being carried out")
            elif entry.booting:
                self._await_with(entry, received)
            else:
                self._take_order(entry, received)
                self._answer_guest_with(entry, received)
            return
        repeated = not entry.settled and entry.wanted is GuestState.RUNNING
        self._take_order(entry, received)
        self._await_with(entry, received)
        if not repeated:
            self._pursue(entry, GuestState.RUNNING)

    def _suspend_guest(self, entry: Entry, received: Received, now: float) -> None:
        if entry.guest is GuestState.STOPPED or entry.wanted is GuestState.STOPPED:
            self._refuse_guest(entry, received, "it is stopped, or is being stopped")
            return
        self._make(entry, received, GuestState.SUSPENDED)

    def _stop_guest(self, entry: Entry, received: Received, now: float) -> None:
        """One that is suspended cannot shut itself down: it is ended at once."""
        self._make(entry, received, GuestState.STOPPED)

    def _make(self, entry: Entry, received: Received, state: GuestState) -> None:
        again = entry.wanted is state and received.message.epoch == entry.guest_epoch
        if entry.wanted is entry.guest is state and entry.settled:
            self._take_order(entry, received)
            self._answer_guest_with(entry, received)
            return
        grace_s = received.message.need(GuestStateOption).grace_s
        self._take_order(entry, received)
        entry.grace_s = grace_s if entry.guest is GuestState.RUNNING else 0
        self._await_with(entry, received)
        if not again:
            self._pursue(entry, state)

    def _delete_guest(self, entry: Entry, received: Received, now: float) -> None:
        """Answered when its binding has gone, and with it what previous NVEs redirect."""
        self._take_order(entry, received)
        self._await_with(entry, received)
        self._stop(entry, None, now)

    def _provision(self, entry: Entry, received: Received, now: float) -> None:
        """A VM of which nothing is here, with all that is to be known of it, and the manager's
        leave to register it: registered first, booted after."""
        message = received.message
        ticket, interfaces, definition = (
            message.find(Ticket),
            message.interfaces,
            message.definition,
        )
        if ticket is None:
            self._answer(received, entry, Status.WRONG_PHASE)
            return
        if not interfaces:
            raise DecodeError("missing-option", "GUEST of a new VM needs an interface")
        long = too_long(interfaces, definition)
        if long:
            raise DecodeError("bad-value", long)
        if entry.leftover:
            why = "a guest of it is still being ended here"
            self._answer(received, entry, Status.TRY_AGAIN, reason=why)
            return
        if entry.phase is Phase.REDIRECTING and set(entry.interfaces) != set(interfaces):
            why = "it has other addresses on record here"
            self._answer(received, entry, Status.ADMINISTRATIVELY_PROHIBITED, reason=why)
            return
        entry.phase = Phase.ATTACHING
        named = message.find(ServerOption)
        self._place(entry, named.name if named else "")
        entry.interfaces, entry.definition = interfaces, definition
        self._start(entry, None, now)
        self._await_with(entry, received)
        self._take_order(entry, received)
        entry.ticket = ticket.ticket

    def _take_order(self, entry: Entry, received: Received) -> None:
        entry.epoch = entry.guest_epoch = max(entry.epoch, received.message.epoch)
        entry.kept = received.message.need(GuestStateOption).kept

    def _refuse_guest(self, entry: Entry, received: Received, why: str) -> None:
        self._answer(received, entry, Status.WRONG_PHASE, self._guest_options(entry), why)

    def _answer_guest_with(self, entry: Entry, received: Received) -> None:
        self._answer(received, entry, Status.ACCEPTED, self._guest_options(entry))

    def _guest_options(self, entry: Entry) -> tuple[Option, ...]:
        """What the guest is; nothing of one that runs, and of which nothing was ever ordered."""
        if entry.guest is GuestState.RUNNING and not entry.guest_epoch and not entry.kept:
            return ()
        told = GuestStateOption(entry.guest, entry.kept, 0, entry.guest_epoch, entry.crashed)
        return (told,)

    @staticmethod
    def _guest_waits(entry: Entry) -> bool:
        waits = entry.request
        return waits is not None and waits.message.purpose is Purpose.GUEST

    def _answer_guest(self, entry: Entry, status: Status, why: str = "") -> None:
        """The order that waits, if one does."""
        waits, held = entry.request, entry.phase is Phase.STOPPED
        turns_back = held and waits is not None and waits.message.purpose is Purpose.SWITCH
        if turns_back or self._guest_waits(entry):
            self._answer_waiting(entry, status, self._guest_options(entry), why)

    # ---- carrying them out ---------------------------------------------------------------------

    def _pursue(self, entry: Entry, wanted: GuestState) -> None:
        """Durable, then ordered: a restart finds what is wanted (_recover_guest)."""
        entry.wanted, entry.settled = wanted, False
        order = ORDERS[entry.guest, wanted]
        if order in (Order.START, Order.KEEP):
            self._order(entry, order, definition=entry.definition)
        elif order is Order.STOP and entry.grace_s:
            self._order(entry, order, grace_s=entry.grace_s)
        else:
            self._order(entry, order)

    def _settle(
        self, entry: Entry, state: GuestState, now: float, *, crashed: bool = False
    ) -> None:
        """The guest is so, and that is durable before anybody hears of it."""
        entry.crashed = crashed or (entry.crashed and state is GuestState.STOPPED)
        changed, entry.guest = entry.guest is not state, state
        entry.wanted, entry.settled, entry.grace_s = state, True, 0
        entry.rolling_back, entry.resumes = False, 0
        entry.started = state is not GuestState.STOPPED
        entry.phase = Phase.SERVING if state is GuestState.RUNNING else Phase.STOPPED
        if entry.request is None:
            entry.refresh_at = now  # else the answer says so
        self._answer_guest(entry, Status.ACCEPTED)
        self._save(entry)
        if changed:
            self._event("guest.state", entry, state=state.name.lower())

    def _changed(self, entry: Entry, order: Order, error: str, now: float) -> bool:
        """An order to the hypervisor has ended; whether it was one of these."""
        if entry.settled or entry.ending or entry.phase not in (Phase.SERVING, Phase.STOPPED):
            return False
        expected = ORDERS[entry.guest, entry.wanted]
        lent = expected is Order.KEEP and entry.wanted is GuestState.STOPPED
        if order is not expected and not (lent and order is Order.STOP):
            return False  # of an earlier one, which this one has overtaken
        if order is Order.KEEP and lent and not error:
            self._order(entry, Order.STOP)
            return True
        if not error:
            wanted = entry.wanted
            if wanted is GuestState.SUSPENDED and not entry.started:
                self._memory_lost(entry)  # it went while its copy was on its way
                wanted = GuestState.STOPPED
            self._settle(entry, wanted, now)
            if order is Order.START:
                self._order(entry, Order.ANNOUNCE)
            return True
        entry.wanted, entry.settled, entry.grace_s = entry.guest, True, 0
        self._save(entry)
        if order is Order.KEEP and entry.resumes < RESUMES:
            # A whole copy is here: it is asked again before the manager hears that none is.
            entry.rolling_back, entry.resumes = True, entry.resumes + 1
            self._retry[entry.vm] = now + RETRY_S
            return True
        self._answer_guest(entry, Status.HYPERVISOR_FAILURE, error)
        return True

    def _ended_as_wished(self, entry: Entry, now: float, *, clean: bool) -> bool:
        """A guest that runs here has ended: as it was told to, or by itself, and its VM is kept."""
        if entry.phase is not Phase.SERVING or entry.booting:
            return False
        told = not entry.settled and entry.wanted is GuestState.STOPPED
        if not (told or (entry.kept and entry.settled)):
            return False
        if not told:
            self._event("guest.ended", entry, **({} if clean else {"crashed": True}))
        crashed = not (told or clean) and self._guard_crashed(entry, now)
        self._settle(entry, GuestState.STOPPED, now, crashed=crashed)
        return True

    def _held_gone(self, entry: Entry, _: Any, now: float) -> None:
        """A guest that was held is gone, and its memory with it; definition and disks are here."""
        if entry.ending or (entry.guest is GuestState.STOPPED and entry.settled):
            return
        if entry.wanted is not GuestState.STOPPED:
            if entry.guest is GuestState.STOPPED:
                return  # it is being booted: the order's end says how that went
            self._memory_lost(entry)
        self._settle(entry, GuestState.STOPPED, now)

    def _held_copy_gone(self, entry: Entry, now: float) -> bool:
        """The process of a VM that does not run, or is kept, is gone while it is copied: the copy
        is over, and the VM stopped."""
        copying = entry.phase in (Phase.COPYING, Phase.CONVERGED)
        if not copying or (entry.guest is GuestState.RUNNING and not entry.kept):
            return False
        if entry.guest is not GuestState.STOPPED:
            lost = entry.guest is GuestState.SUSPENDED
            self._event("guest.memory-lost" if lost else "guest.ended", entry)
        self._copy_failed(entry, {"reason": "the guest is gone"}, now)
        self._settle(entry, GuestState.STOPPED, now)
        return True

    def _memory_lost(self, entry: Entry) -> None:
        self._answer_guest(entry, Status.HYPERVISOR_FAILURE, "the suspended guest is gone")
        self._event("guest.memory-lost", entry)

    def _reset_guest(self, entry: Entry) -> None:
        """It is served by this node no more, or anew."""
        waits = entry.request.message.find(GuestStateOption) if entry.request else None
        if entry.phase is not Phase.NONE or not waits or waits.state is not GuestState.NONE:
            self._answer_guest(entry, Status.WRONG_PHASE, "it is served here no more")
        entry.guest = entry.wanted = GuestState.RUNNING
        entry.settled, entry.guest_epoch, entry.grace_s, entry.kept = True, 0, 0, False
        entry.crashed = False
        entry.ending = False  # what was ending is not what comes

    # ---- after a restart -----------------------------------------------------------------------

    def _recover_guest(self, entry: Entry, running: bool | None, now: float) -> bool:
        """Whether that was all: the guest was, or was to be, something else than running.

        running: as _recover's.  What cannot be asked counts as held, so it is told once more.
        """
        if entry.phase not in (Phase.SERVING, Phase.STOPPED):
            return False
        if entry.phase is Phase.SERVING and (entry.settled or entry.ending):
            return False
        entry.refresh_at = now
        if entry.wanted is GuestState.RUNNING:
            # It is let go on, or booted, when the manager says so again.
            held = GuestState.STOPPED if running is None else GuestState.SUSPENDED
            if entry.guest is GuestState.SUSPENDED and running is None:
                self._memory_lost(entry)
            self._settle(entry, GuestState.RUNNING if running else held, now)
        elif running is None and entry.phase is Phase.SERVING:
            if entry.wanted is not GuestState.STOPPED:
                entry.wanted, entry.settled = GuestState.RUNNING, True
                return False
            self._settle(entry, GuestState.STOPPED, now)
        elif running is None and entry.wanted is not GuestState.STOPPED:
            self._held_gone(entry, None, now)
        else:
            entry.grace_s = entry.grace_s if running else 0
            self._pursue(entry, entry.wanted)
            self._save(entry)
        return True
