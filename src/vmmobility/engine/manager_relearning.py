"""What a manager that has lost its state learns from an attach: epochs given out, previous NVEs.

Without it the NVEs would hold all that it says for stale, and drop what previous NVEs tunnel.
Only an attach of a VM that is not bound teaches: the manager's own record is always the better one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmobility.engine.admission import MAX_PREVIOUS
from vmmobility.engine.binding_cache import Previous
from vmmobility.wire.message import Message
from vmmobility.wire.options import Epoch, ServingNve, Ticket
from vmmobility.wire.registry import Role

if TYPE_CHECKING:
    from vmmobility.engine.binding_cache import BindingCache
    from vmmobility.engine.channel import Channel

MAX_LEAP = 2**40  # one NVE's word must not use the sequence up


class ManagerRelearning:
    """Lost state; a part of ManagerEngine."""

    if TYPE_CHECKING:
        cache: BindingCache
        channel: Channel

    def _leaps(self, message: Message) -> bool:
        epoch = self._told_epoch(message)
        return epoch - self.cache.last_epoch > MAX_LEAP

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
