"""What an NVE's restart finds: each entry's phase, and whether its guest is still there.

docs/design/nve.md has the table.  Not here: loading entries (binding_update_list.py).
"""

from __future__ import annotations

from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.nve_parts import RETRY_S, NveParts
from vmmobility.engine.nve_transitions import Trigger
from vmmobility.engine.outputs import Order
from vmmobility.wire.registry import GuestState, Phase

IDLE = (Phase.NONE, Phase.REDIRECTING)
DEPARTED = Phase.DEPARTED


class NveRestart(NveParts):
    """Recovery of entries; a part of NveEngine."""

    def _recover_stopped(self, entry: Entry, running: bool | None, now: float) -> None:
        """A VM that does not run, of which a copy was being made."""
        entry.refresh_at = now
        if running is None and entry.guest is GuestState.SUSPENDED:
            self._held_gone(entry, None, now)

    def _recover(self, entry: Entry, running: bool | None, now: float) -> None:
        """After a restart.  running: True runs, False is held (waiting, paused, moved out), None
        is gone.  Whatever was half done is finished or reported, never guessed."""
        entry.started = running is not None
        phase = entry.phase
        if self._recover_relocation(entry, running, now):
            return
        if entry.expected and self._recover_expected(entry, running, now):
            return
        if phase is Phase.NONE:
            if entry.leftover:
                self._recover_leftover(entry, running)
            return
        if entry.ending:
            entry.ending = False
            if entry.expected:
                entry.started = False  # what runs here now may have been brought since
            self._stop(entry, None, now)
            return
        if self._recover_guest(entry, running, now):
            return
        if phase in (Phase.COPYING, Phase.CONVERGED):
            self._order(entry, Order.CANCEL)
            self._fire(entry, Trigger.FAILED, {"reason": "the NVE restarted"}, now)
            phase = entry.phase
        if entry.fenced and running:
            self._order(entry, Order.PAUSE)  # before anything else: its lease is not known
        if phase is Phase.STOPPED:  # its copy was being made
            self._recover_stopped(entry, running, now)
            return
        if phase in (Phase.ATTACHING, Phase.SERVING):
            if entry.claiming and running is not None:
                # Its own guest is booted once that is granted: what is here is what `_start` was
                # about to end.
                self._order(entry, Order.STOP)
                entry.started, running = False, None
            elif running is None:
                self._fire(entry, Trigger.GONE, None, now)
                return
            entry.refresh_at = now
            if phase is Phase.SERVING and not running and not entry.fenced:
                entry.rolling_back = True  # it was told to serve again and did not get so far
                self._set_data_plane(entry)
        elif phase is Phase.PREPARED:
            self._fire(entry, Trigger.FAILED, {"reason": "the NVE restarted"}, now)
        elif phase is Phase.DELIVERING:
            if running:
                self._fire(entry, Trigger.RESUMED, {}, now)
            elif running is None and not self._takes_over(entry):
                self._fire(entry, Trigger.FAILED, {"reason": "the waiting guest is gone"}, now)
        elif phase is Phase.FAILED:
            # Not yet answered that the waiting guest has ended, if it runs (_give_up).
            if running:
                self._fire(entry, Trigger.RESUMED, {}, now)
            else:
                self._incoming_failed(entry, {"reason": "the NVE restarted"}, now)
        elif phase is Phase.SWITCHED:
            self._recover_switched(entry, running, now)
        elif phase is Phase.REDIRECTING:
            self._recover_redirecting(entry, running, now)

    def _recover_redirecting(self, entry: Entry, running: bool | None, now: float) -> None:
        entry.unplugged = running is None
        self._set_data_plane(entry)
        self._watch_traffic(entry, now)
        if entry.unplugged:
            self._retire(entry)

    def _recover_leftover(self, entry: Entry, running: bool | None) -> None:
        """The order to end a guest may have been lost in a crash, its record not."""
        if running is None:
            entry.leftover = False
            self._save(entry)
        elif not running:
            self._order(entry, Order.STOP)

    def _leftover_ended(self, entry: Entry, error: str, now: float) -> None:
        """STOP or CANCEL of a guest of which there is no entry any more has ended."""
        if error:
            self._retry[entry.vm] = now + RETRY_S
            return
        entry.leftover = False
        self._save(entry)

    def _end_leftover(self, entry: Entry) -> None:
        """The VM comes here again: what may be left of it goes first."""
        if entry.leftover:
            entry.leftover = False
            self._order(entry, Order.STOP)

    def _recover_expected(self, entry: Entry, running: bool | None, now: float) -> bool:
        """Guests that other hands run: what they did meanwhile is asked, and nothing undone."""
        if entry.ending or entry.phase not in (*IDLE, Phase.ATTACHING, Phase.SERVING, DEPARTED):
            return False
        if entry.phase in (*IDLE, DEPARTED):
            entry.started = False
            if running:
                self._fire(entry, Trigger.ARRIVED, {}, now)
            elif entry.phase is Phase.REDIRECTING:
                self._watch_traffic(entry, now)
        elif running is None:
            entry.started = True
            self._fire(entry, Trigger.GONE, None, now)
        else:
            entry.refresh_at = now
            entry.paused = entry.paused and not running
            if entry.paused and entry.phase is Phase.SERVING:
                self._order(entry, Order.RESUME)  # it was granted, and not let go on yet
            elif not running and not entry.paused:
                self._check(entry)  # has it departed?
        return True

    def _recover_switched(self, entry: Entry, running: bool | None, now: float) -> None:
        """A guest that still runs here has not been handed over; one that stopped has, or will be
        found missing by the manager."""
        entry.turned = not running
        self._set_data_plane(entry)
        if running:
            self._order(entry, Order.CANCEL)
            self._fire(entry, Trigger.FAILED, {"reason": "the NVE restarted"}, now)
