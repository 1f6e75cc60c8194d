"""HOLD, by which NAPT boxes tell each other whose VM is behind whom.

A box that has another's VM behind it says so to the mapping's owner, again and again: that keeps
the mapping.  By its policy the owner keeps translating, and the VM's traffic to the outside takes
the detour by it; or it hands mapping and flows over.
Not here: the handing over (napt_handover.py), registration messages (napt_crossing.py).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vmmobility.engine.napt_handover import NaptHandover
from vmmobility.engine.napt_mapping import VmMapping
from vmmobility.engine.napt_settings import NaptPolicy
from vmmobility.engine.napt_told import told
from vmmobility.engine.outputs import Event
from vmmobility.wire.message import Message
from vmmobility.wire.options import Epoch, Mapping, Option, PhaseOption, VmId
from vmmobility.wire.registry import (
    LIFETIME_UNIT_S,
    MAX_LIFETIME_UNITS,
    Phase,
    Purpose,
    Role,
    Status,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmobility.engine.peer import Peer, Received


class NaptBoxes(NaptHandover):
    """HOLD; a part of NaptEngine."""

    if TYPE_CHECKING:
        _kernel_refuses: Callable[..., str]

    _hold_at: float | None

    def _begin_boxes(self) -> None:
        self._begin_handover()
        self._hold_at = None

    # ---- a VM of another box's is here -----------------------------------------------------------

    def _hold(self, mapping: VmMapping, now: float, lifetime_s: float | None = None) -> None:
        """Tell the mapping's owner that the VM is behind this box; lifetime 0: it is no more."""
        owner = self.neighbours.get(mapping.owner)
        if owner is None:
            return
        kept = self.settings.mapping_s if lifetime_s is None else lifetime_s
        options: list[Option] = [VmId(mapping.vm), Epoch(mapping.epoch), told(mapping)]
        serving = mapping.ours and not self._kernel_refuses(mapping.private, mapping.public)
        options += [PhaseOption(Phase.SERVING)] if serving else []
        self.channel.request(
            owner.peer,
            Purpose.HOLD,
            options,
            now,
            partial(self._held, mapping),
            lifetime=min(int(kept // LIFETIME_UNIT_S), MAX_LIFETIME_UNITS),
            subject=(mapping.vm, mapping.private),
        )

    def _held(self, mapping: VmMapping, reply: Message, now: float) -> None:
        if reply.status.accepted:
            self.mappings.touch(mapping, now)
            return
        detail = {"vm": mapping.vm.vm_id, "vni": mapping.vm.vni, "box": mapping.owner}
        status = reply.status.name.lower().replace("_", "-")
        self.outbox.emit(Event("mapping.refused", {**detail, "reason": status}))

    def _hold_all(self, now: float) -> None:
        """Every so often: all that is here and another box's."""
        self._hold_at = now + self.settings.hold_s
        for mapping in self.mappings.vms.values():
            if mapping.owner != self.settings.box_id and not mapping.ended:
                if mapping.here:
                    self._hold(mapping, now)
                else:
                    self._give_back(mapping)

    # ---- a mapping of ours is behind another box -------------------------------------------------

    def _hold_asked(self, received: Received, now: float) -> None:
        message, box = received.message, received.peer.node_id
        mapping = self._asked_for(received, now)
        if mapping is None:
            return
        if mapping.owner != self.settings.box_id:
            self.channel.reply(received, Status.NOT_OWNER, reason=f"{mapping.owner} has mapped it")
            return
        epoch = max(mapping.epoch, message.epoch)
        if message.lifetime == 0:
            if mapping.holder == box:
                self.mappings.end(mapping, f"{box}: the VM is no more", now)
            self.channel.reply(received, Status.ACCEPTED)
            return
        if not self._lives(received, mapping, now):
            return
        before = mapping.holder
        self.mappings.note(mapping, here=False, holder=box, epoch=epoch, moving=False)
        self.mappings.touch(mapping, now, message.lifetime * LIFETIME_UNIT_S)
        self.channel.reply(received, Status.ACCEPTED, lifetime=message.lifetime)
        phase = message.find(PhaseOption)
        self._hand_on(mapping, before, phase is not None and phase.phase is Phase.SERVING, now)

    def _hand_on(self, mapping: VmMapping, before: str, serving: bool, now: float) -> None:
        """Its holder has asked, and translates it or does not; `before` was the one before."""
        box, handing = mapping.holder, self._handing.get(mapping.key)
        if handing is not None and handing.to != box:
            self._give_up(handing)
        if self.settings.policy is not NaptPolicy.HAND_OVER:
            return  # nobody else has it, whoever says so
        if mapping.ours:  # also if it serves: the reply to its HANDOVER was lost
            self._hand_over(mapping, box)
        elif serving:
            self._awaited.pop(mapping.key, None)
        elif before not in ("", box):
            self._await(mapping, now)
        elif mapping.key not in self._awaited:
            self._hand_over(mapping, box)  # it has lost what it was given

    def _asked_for(self, received: Received, now: float) -> VmMapping | None:
        """The mapping that a box's request is about; None: it is answered."""
        message = received.message
        option, epoch = message.need(Mapping), message.epoch
        mapping = self.mappings.vms.get((message.vm, option.private))
        if mapping is None and option.box == self.settings.box_id:
            mapping = self._taken_up(received, option, now)
        if mapping is None or mapping.public != option.public or mapping.owner != option.box:
            words = f"{self.settings.box_id} has no mapping of {option.private} to {option.public}"
            self.channel.reply(received, Status.UNKNOWN_BINDING, reason=words)
            return None
        if epoch < mapping.epoch:
            self.channel.reply(received, Status.STALE_EPOCH, (Epoch(mapping.epoch),))
            return None
        return mapping

    def _taken_up(self, received: Received, option: Mapping, now: float) -> VmMapping | None:
        """A mapping of this box's own that another one has or holds, and that went with a disk."""
        message, phase = received.message, received.message.find(PhaseOption)
        held = message.purpose is Purpose.HOLD
        if held and message.lifetime == 0:
            return None
        made = VmMapping(
            message.vm,
            option.private,
            option.public,
            self.settings.box_id,
            ours=held and (phase is None or phase.phase is not Phase.SERVING),
            holder=received.peer.node_id if held else "",
            epoch=message.epoch,
        )
        return made if self.mappings.take_up(made, now) else None

    def _neighbour_lost_state(self, peer: Peer, now: float) -> None:
        """Another box knows no more what it gave out: it hears at once what is held here."""
        if peer.role is Role.NAPT:
            self._hold_all(now)
