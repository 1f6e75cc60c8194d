"""What a manager that has lost its state learns again: epochs given out, previous NVEs.

Without it the NVEs would hold all that it says for stale, and drop what previous NVEs tunnel.
Epochs it learns from whatever an NVE says; previous NVEs only from an attach of a VM that is not
bound: the manager's own record is always the better one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmmobility.engine.admission import MAX_PREVIOUS
from vmmobility.engine.binding_cache import Previous
from vmmobility.engine.outputs import Event
from vmmobility.wire.message import Message
from vmmobility.wire.options import Epoch, Guest, ServingNve, Ticket
from vmmobility.wire.registry import GuestLife, Role

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from vmmobility.engine.binding_cache import Binding, BindingCache
    from vmmobility.engine.channel import Channel
    from vmmobility.engine.manager_settings import ManagerSettings
    from vmmobility.engine.outputs import Outbox

RELEARNING = "relearning"  # the record that says so, and how that was found out
EMPTY, TOLD = "empty", "told"
LEAST_LEAP = 2**24
MAX_LEAP = 2**32  # moves that nobody here has seen; one NVE's word must not use the sequence up


class ManagerRelearning:
    """Lost state; a part of ManagerEngine."""

    if TYPE_CHECKING:
        cache: BindingCache
        channel: Channel
        outbox: Outbox
        settings: ManagerSettings
        jitter: random.Random

    _relearn_until: float | None
    _relearning_noted: str | None
    _loss_heeded: bool

    def _load_relearning(self, state: Mapping[str, Any], now: float) -> None:
        """A start in the lifetime after a loss of state: not all may have told what they hold.

        A manager without records may be new; or it has lost them all, and those that could tell
        it so are cut off."""
        self._relearning_noted = state.get(RELEARNING)
        self._loss_heeded = self._relearning_noted == TOLD
        self._relearn_until = None
        if state.keys() <= {"boot"}:
            self._relearn(EMPTY, now)
            self.outbox.emit(Event("state.empty", {"lifetime_s": self.settings.lifetime_s}))
        elif self._relearning_noted is not None:
            self._relearn(self._relearning_noted, now)

    def _relearn(self, why: str, now: float) -> None:
        self._relearn_until = now + self.settings.lifetime_s
        if self._relearning_noted != why:
            self._relearning_noted = why
            self.outbox.record(RELEARNING, why)

    def _leaps(self, message: Message) -> bool:
        epoch = self._told_epoch(message)
        return epoch - self.cache.last_epoch > MAX_LEAP

    def _heed_epoch(self, message: Message, now: float) -> None:
        """An epoch above all that were given out: this manager's state was set back.  From now on
        it gives out higher ones, so that it is heeded again."""
        epoch = self._told_epoch(message)
        if not 0 < epoch - self.cache.last_epoch <= MAX_LEAP:
            return
        detail = {"epoch": epoch, "known": self.cache.last_epoch}
        self.outbox.emit(Event("epoch.learned", detail))
        self.cache.last_epoch = epoch
        self.outbox.record("epoch", epoch)
        self._state_was_lost(now)

    def _state_was_lost(self, now: float) -> None:
        """A peer remembers this node better, or a later epoch, than it does itself.

        Heeded once: it was lost before this start, and no peer may keep a manager asking for ever.
        """
        if not self._loss_heeded:
            self._loss_heeded = True
            self._relearn(TOLD, now)
            self.outbox.emit(Event("state.lost", {"lifetime_s": self.settings.lifetime_s}))

    def _relearning(self, now: float) -> bool:
        """Whether less than a lifetime ago this manager found out that it lost its state, or
        started without any."""
        return self._relearn_until is not None and now < self._relearn_until

    def _doubt_left(self, now: float) -> float:
        """For how many more seconds a VM may run that nobody has told of: the source of a lost
        move asks about it when its lifetime is over, and attaches then."""
        if self._relearn_until is None:
            return 0.0
        return max(0.0, self._relearn_until + 2 * self.settings.check_s - now)

    def _leap(self) -> None:
        """An NVE is silent that may know epochs which this manager, before its loss, gave out: the
        next ones are, in all likelihood, above them."""
        self.cache.last_epoch += LEAST_LEAP + self.jitter.randrange(LEAST_LEAP)
        self.outbox.record("epoch", self.cache.last_epoch)

    def _relearned(self, now: float) -> None:
        """Told of time: a lifetime has gone, in which all that hold a VM have told of it."""
        if self._relearning_noted is not None and not self._doubt_left(now):
            self._relearning_noted = None
            peers = self.channel.peers.values()
            if any(p.role is Role.NVE and p.last_heard is None for p in peers):
                self._leap()
            self.outbox.record(RELEARNING, None)

    def _in_doubt(self, binding: Binding | None, message: Message, now: float) -> bool:
        """Whether a VM may run where no record says, by an NVE's word or since this manager has
        lost its state: before it is booted every NVE is asked.  Unless an operator released it."""
        doubtful = self._doubt_left(now) > 0
        if binding is None:
            return doubtful
        newer = self._told_epoch(message) > binding.epoch
        return not binding.released and (newer or doubtful)

    @staticmethod
    def _has_served(message: Message) -> bool:
        """Whether the asker's guest runs under an earlier attach, whose epoch it then tells: it is
        neither to be booted, nor was it just brought by other hands."""
        guest = message.find(Guest)
        return guest is not None and guest.life is GuestLife.RUNNING

    def _may_be_outdated(self, binding: Binding, message: Message) -> bool:
        """Whether an NVE that holds an attach which is not on record may hold a later one: this
        manager's state was set back, or its record has not been confirmed since it started.  Also
        under the same epoch, which was given out again then.

        Such an NVE is not told SUPERSEDED, which stops its guest: it attaches again, and the NVE
        on record is asked (manager_contests.py).
        """
        told = message.find(Epoch)
        return not binding.sure or (told is not None and told.epoch >= binding.epoch)

    def _learn_epoch(self, message: Message) -> None:
        """The caller takes, and records, a fresh epoch next."""
        self.cache.last_epoch = max(self.cache.last_epoch, self._told_epoch(message))

    @staticmethod
    def _told_epoch(message: Message) -> int:
        told = message.find(Epoch)
        return 0 if told is None or message.find(Ticket) is not None else told.epoch

    def _learned_previous(self, message: Message) -> dict[str, Previous]:
        """They have acknowledged nothing of the new epoch, so all are told again."""
        own = message.need(ServingNve).nve.nve_id
        peers = self.channel.peers
        known = [
            nve
            for nve in message.previous
            if nve.nve_id != own and nve.nve_id in peers and peers[nve.nve_id].role is Role.NVE
        ]
        return {nve.nve_id: Previous(nve) for nve in known[:MAX_PREVIOUS]}
