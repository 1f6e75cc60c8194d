"""Guests that other hands run: expected here, arrived, refused, departed (design, Moves it did not
start).

An operator moves such a guest with virsh or with QEMU itself; the hypervisor's events say so, and
never the guest's packets.  One that arrives gets no packet before the manager has granted its
attach; one that is refused, because the VM runs elsewhere, is stopped until it is granted.

Not here: looking whether events were missed (nve_checks.py), moves of the manager's (nve_moves.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vmmobility.engine.admission import too_long
from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.channel import Received
from vmmobility.engine.nve_parts import NveParts
from vmmobility.engine.nve_transitions import Trigger
from vmmobility.engine.outputs import Order
from vmmobility.wire.message import Message
from vmmobility.wire.options import Epoch, PhaseOption, ServingNve, VmId
from vmmobility.wire.registry import GuestLife, Phase, Purpose, Status
from vmmobility.wire.values import Interface, VmKey

REFUSED_RETRY_S = 5.0  # a guest that was refused asks again after so long
DEPARTED_ASK_S = 2.0  # the manager is told of a departure after so long, if nobody attached before
IDLE = (Phase.NONE, Phase.REDIRECTING)  # no guest is known here


class NveUnmanaged(NveParts):
    """Arrivals and departures; a part of NveEngine."""

    # ---- people --------------------------------------------------------------------------------

    def expect_vm(
        self,
        command: int,
        vm: VmKey,
        interfaces: Sequence[Interface],
        definition: bytes,
        now: float,
    ) -> None:
        """Plug a VM's taps and watch for guests that other hands start here, or move here.  Ends
        with CommandDone."""
        entry = self.entries.entry(vm)
        given = tuple(interfaces)
        if entry.expected and (entry.interfaces, entry.definition) == (given, definition):
            self._expectation(entry, command)
            return
        if entry.phase not in IDLE:
            self._command_failed(
                command, f"VM {vm} is {entry.phase.name.lower()} here", "stop or move it first"
            )
            return
        if entry.phase is Phase.REDIRECTING and set(entry.interfaces) != set(given):
            self._command_failed(
                command,
                f"VM {vm} has other addresses on record than its definition",
                "correct the definition: see `vmmob vm list`",
            )
            return
        long = too_long(given, definition)
        if long:
            self._command_failed(
                command, f"VM {vm}: {long}", "shorten its definition, or give it fewer addresses"
            )
            return
        entry.interfaces, entry.definition = given, definition
        self._place(entry)
        entry.expected, entry.unwatched = True, True
        entry.commands.append(command)
        self._set_data_plane(entry)
        self._plan_check(entry, now)
        self._save(entry)

    def _expectation(self, entry: Entry, command: int) -> None:
        """It is expected as it should be, or will be when its taps are plugged."""
        if entry.unwatched:
            entry.commands.append(command)
        else:
            self._command_done(command, {"vm": entry.vm.vm_id, "phase": entry.phase.name.lower()})

    def unexpect_vm(self, command: int, vm: VmKey, now: float) -> None:
        """Nothing of that VM is to come here any more.  Ends with CommandDone."""
        entry = self.entries.get(vm)
        if entry is not None and entry.expected:
            if entry.phase not in IDLE:
                here = entry.phase.name.lower()
                self._command_failed(command, f"VM {vm} is {here} here", "stop or move it first")
                return
            self._expected_no_more(entry)
        self._command_done(command, {"vm": vm.vm_id})

    def _expected_no_more(self, entry: Entry) -> None:
        entry.expected = entry.unwatched = False
        self._order(entry, Order.UNWATCH)
        self._set_data_plane(entry)
        self._save(entry)

    def _watch_done(self, entry: Entry, error: str) -> None:
        if not error:
            self._commands_done(entry, {"vm": entry.vm.vm_id, "phase": entry.phase.name.lower()})
        elif entry.phase in IDLE and entry.expected:
            self._commands_failed(entry, f"VM {entry.vm} cannot be watched: {error}", "try again")
            self._expected_no_more(entry)

    # ---- what the hypervisor reports -----------------------------------------------------------

    def _arrived(self, entry: Entry, detail: Mapping[str, Any], now: float) -> None:
        """Section 5: the destination NVE MUST register after the move, whoever started it.

        Also one that hands let go on where it had departed: a new attach, for the manager may have
        the answer under way that the guest has left the old one.
        """
        self._claim(entry, GuestLife.ARRIVED if detail.get("migrated") else GuestLife.RUNNING)
        entry.started = True
        self._set_data_plane(entry)
        self._attach(entry, now)

    def _went_on(self, entry: Entry, detail: Mapping[str, Any], now: float) -> None:
        """Hands let a guest go on that was refused: it is asked for again, and stopped again."""
        if entry.paused:
            entry.paused, entry.started, entry.refresh_at = False, True, None
            self._attach(entry, now)

    def _departed(self, entry: Entry, detail: Mapping[str, Any], now: float) -> None:
        """Its packets wait here until the manager says where it went (REDIRECT)."""
        entry.started = False
        if not entry.claiming:
            entry.target = None
        entry.claiming, entry.arrived, entry.paused = False, GuestLife.NONE, False
        entry.refresh_at = None
        self._ask_nothing(entry)
        self._set_data_plane(entry)
        entry.check_at = now + DEPARTED_ASK_S

    def _ask_nothing(self, entry: Entry) -> None:
        """What was asked of the manager for this VM has lost its sense."""
        for what in ("registration", "standing"):
            self.channel.withdraw_subject(self.manager, (entry.vm, what))

    # ---- what the manager says -----------------------------------------------------------------

    def _arrival_refused(self, entry: Entry, status: Status, now: float) -> None:
        """It is asked for again, for people may settle it; until then it does not run beside
        another (invariant 1)."""
        entry.refresh_at = now + REFUSED_RETRY_S
        if status is Status.TRY_AGAIN or entry.paused:
            return
        entry.paused = True
        self._event("guest.refused", entry, status=status.name.lower())
        self._order(entry, Order.PAUSE)

    def _redirect_claim(self, entry: Entry, received: Received, now: float) -> None:
        """Of another NVE's guest, while the one here is not granted: what led away leads there."""
        if not entry.claiming:
            self._answer(received, entry, Status.WRONG_PHASE)
            return
        serving = received.message.need(ServingNve).nve
        entry.epoch, entry.target = received.message.epoch, serving
        entry.accept = received.message.previous
        self._await_with(entry, received)
        self._set_data_plane(entry)

    def _remove_claim(self, entry: Entry, received: Received, now: float) -> None:
        """The VM is no more elsewhere; it is asked for here all the same."""
        if not entry.claiming:
            self._answer(received, entry, Status.WRONG_PHASE)
            return
        entry.epoch = max(entry.epoch, received.message.epoch)
        entry.target, entry.accept = None, ()
        self._await_with(entry, received)
        self._set_data_plane(entry)

    def _arrival_gone(self, entry: Entry, now: float) -> None:
        """Its guest ended before it was granted - unless the manager has granted and the answer is
        on its way: so its attach is deregistered, and what it is here then, the reply tells."""
        entry.paused = False
        self._stop(entry, None, now)

    # ---- does it still stand? ------------------------------------------------------------------

    def _ask_standing(self, entry: Entry, now: float) -> None:
        """REFRESH with a phase: a redirect, or a departure, that the manager may know otherwise.

        SWITCHED too: an operator may have given this node up, and nobody tells it where the VM is.
        """
        if entry.draining:
            return
        phase = Phase.DEPARTED if entry.phase is Phase.DEPARTED else Phase.REDIRECTING
        self.channel.request(
            self.manager,
            Purpose.REFRESH,
            [VmId(entry.vm), Epoch(entry.epoch), PhaseOption(phase)],
            now,
            lambda reply, at: self._standing_replied(entry, reply, at),
            subject=(entry.vm, "standing"),
        )

    def _standing_replied(self, entry: Entry, reply: Message, now: float) -> None:
        """Only the word that nobody serves the VM ends an entry; silence never does."""
        serving = reply.find(ServingNve)
        own = serving is not None and serving.nve.nve_id == self.settings.own.nve_id
        if own and entry.phase is Phase.DEPARTED and entry.target is not None:
            # It was granted, and left before it heard so: its packets wait here.
            entry.target = None
            self._set_data_plane(entry)
            self._save(entry)
        if reply.status is not Status.UNKNOWN_BINDING:
            self._hear_fabric(entry, reply, now)
            return
        here = reply.find(ServingNve) is not None  # the manager knows of no move from here
        if entry.phase is Phase.REDIRECTING and not entry.draining and not here:
            self._drift(entry, "redirect", "of a bound VM", "of none", True)
            self._fire(entry, Trigger.DRAIN_ACCEPTED, None, now)
        elif entry.phase is Phase.DEPARTED and not here:
            self._forget(entry)
        elif entry.phase is Phase.SWITCHED and entry.check is None:
            # The manager lost the VM, or this very move of it.  Whether it went wrong the
            # hypervisor says, once it has given the copy up: a guest that runs here then runs
            # nowhere else.
            entry.forgotten = True
            self._order(entry, Order.CANCEL)
            self._check(entry)
