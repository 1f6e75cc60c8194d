"""What a NAPT box learns of VMs from the registration messages that cross it.

The manager's word counts: an accepted attach, a redirect, the end of a binding.  So the box knows
on which side a VM is, how long its mapping is needed, and when another box must be told.
Not here: how messages cross (napt_crossing.py), what boxes say to each other (napt_boxes.py).
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from vmmobility.engine.napt_mappings import NaptRefused
from vmmobility.wire.message import Message
from vmmobility.wire.options import Epoch, PhaseOption, ServingNve, Ticket, VmId
from vmmobility.wire.registry import LIFETIME_UNIT_S, Kind, Phase, Purpose, Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmobility.engine.napt_crossing import Party
    from vmmobility.engine.napt_mapping import VmMapping
    from vmmobility.engine.napt_mappings import Mappings
    from vmmobility.engine.napt_settings import NaptSettings
    from vmmobility.wire.values import VmKey


# These begin something new: what they bring is nobody's by right yet, and while the kernel refuses
# they are refused; what is under way or only says "I live" goes on.
BEGINNING = frozenset((Purpose.ATTACH, Purpose.PREPARE))


class NaptObserver:
    """A part of NaptEngine."""

    if TYPE_CHECKING:
        settings: NaptSettings
        mappings: Mappings
        parties: dict[str, Party]
        _hold: Callable[..., None]
        _is_latest: Callable[[Message], bool]
        _give_back: Callable[[VmMapping], None]

    def _observe(
        self, sender: Party, target: Party, message: Message, asked: Message | None, now: float
    ) -> None:
        """A message has crossed.  asked: the request that it replies to, if that is known."""
        if asked is not None and not message.status.accepted:
            self._refused(asked, target.inside)
        if sender.role is not Role.MANAGER:
            return
        self.mappings.manager_heard(now)
        about = message.find(VmId) or (asked.find(VmId) if asked else None)
        if about is None or not self.mappings.of_vm(about.vm):
            return
        if message.kind is Kind.REPLY:
            self._answered(target, about.vm, message, asked, now)
        else:
            self._ordered(target, about.vm, message, now)

    def _answered(
        self, target: Party, vm: VmKey, reply: Message, asked: Message | None, now: float
    ) -> None:
        if not reply.status.accepted:
            return
        epoch = reply.find(Epoch)
        phase = asked.find(PhaseOption) if asked else None
        if reply.purpose in (Purpose.ATTACH, Purpose.REFRESH) and epoch is not None:
            serving = phase is None and reply.lifetime > 0
            for mapping in self.mappings.of_vm(vm):
                revived = serving and mapping.ended and self._revive(mapping, epoch.epoch, now)
                self.mappings.touch(mapping, now, 2 * reply.lifetime * LIFETIME_UNIT_S)
                if revived or (serving and reply.purpose is Purpose.ATTACH):
                    self._is_at(mapping, target.inside, epoch.epoch, now)
        drained = phase is not None and phase.phase is Phase.REDIRECTING
        if reply.purpose is Purpose.DEREGISTER and asked is not None and not drained:
            self._is_no_more(vm, target, now)

    def _refused(self, asked: Message, inside: bool) -> None:
        """A request of somebody on this side was refused, by whomever: the mappings that it brought
        and that nobody was ever granted go at once, for they bar others from their addresses."""
        about = asked.find(VmId)
        if about is None or asked.purpose not in BEGINNING or not self._is_latest(asked):
            return
        prefixes = [p for i in asked.interfaces for p in i.prefixes if p.version == 4]
        brought = {p.network_address for p in prefixes}
        for mapping in self.mappings.of_vm(about.vm):
            if mapping.owner == self.settings.box_id:
                mine = asked.purpose is Purpose.ATTACH and inside and mapping.private in brought
                never = mine and not mapping.moving
            else:
                never = mapping.public in brought and not mapping.is_translated
            unused = not (mapping.here or mapping.holder or mapping.epoch or mapping.ended)
            if never and unused:
                self.mappings.discard(mapping, "what brought it was refused")

    def _revive(self, mapping: VmMapping, epoch: int, now: float) -> bool:
        """The VM lives, and its address is still its own while that is in quarantine.  False:
        what was heard is older, or another has the private address by now."""
        if epoch >= mapping.epoch:
            with suppress(NaptRefused):
                self.mappings.address(mapping.vm, mapping.private, now)
        return not mapping.ended

    def _ordered(self, target: Party, vm: VmKey, request: Message, now: float) -> None:
        epoch, serving = request.find(Epoch), request.find(ServingNve)
        if request.purpose is Purpose.PREPARE:
            for mapping in self.mappings.of_vm(vm):
                self.mappings.note(mapping, moving=True)
        elif request.purpose is Purpose.REDIRECT and epoch and serving:
            party = self.parties.get(serving.nve.nve_id)
            for mapping in self.mappings.of_vm(vm):
                self._is_at(mapping, party is not None and party.inside, epoch.epoch, now)
        elif (
            request.purpose is Purpose.DEREGISTER
            and request.find(Ticket) is not None
            and target.inside
        ):
            self._move_is_off(vm, now)

    def _is_at(self, mapping: VmMapping, inside: bool, epoch: int, now: float) -> None:
        """The manager says on which side of this box the VM is served, under this epoch."""
        if epoch < mapping.epoch or mapping.ended:
            return
        left, mapping.stays = mapping.here and not inside, ""
        self.mappings.note(mapping, here=inside, epoch=epoch, moving=False)
        if mapping.owner == self.settings.box_id:
            if inside:  # at once, also if the other box is dead; flows come with its HANDOVER
                self.mappings.note(mapping, holder="", ours=True, lingers=0.0)
            return
        if inside:
            self._hold(mapping, now)
        elif left:
            self._give_back(mapping)

    def _is_no_more(self, vm: VmKey, target: Party, now: float) -> None:
        """Its binding has ended, at an NVE on the side of `target`."""
        for mapping in self.mappings.of_vm(vm):
            if mapping.ended or mapping.here is not target.inside:
                continue
            if mapping.owner != self.settings.box_id:
                self._hold(mapping, now, lifetime_s=0.0)
            self.mappings.end(mapping, "the VM was deregistered", now)

    def _move_is_off(self, vm: VmKey, now: float) -> None:
        """A destination here lets go: what was made for the move alone goes, too."""
        for mapping in self.mappings.of_vm(vm):
            self.mappings.note(mapping, moving=False)
            if mapping.owner != self.settings.box_id and not mapping.here and not mapping.ours:
                self.mappings.end(mapping, "the move was given up", now)
