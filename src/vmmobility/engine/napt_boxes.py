"""What NAPT boxes tell each other, HOLD and HANDOVER: whose VM is behind whom, who translates it.

A box that has another's VM behind it says so to the mapping's owner, again and again (HOLD): that
keeps the mapping.  By its policy the owner keeps translating, and the VM's traffic to the outside
takes the detour by it; or it hands mapping and flows over (HANDOVER), and gets them back when the
VM has left.  Whoever hands over goes on translating for a while, until routes have turned.
Not here: registration messages (napt_crossing.py), the flows themselves (drivers/napt_plane.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from vmmobility.engine.napt_mappings import NaptRefused
from vmmobility.engine.napt_plane import Flow
from vmmobility.engine.napt_settings import NaptPolicy, Neighbour
from vmmobility.engine.outputs import DropFlows, Event, ExportFlows, ImportFlows
from vmmobility.errors import DecodeError
from vmmobility.wire.message import Message
from vmmobility.wire.options import Epoch, FlowOption, Mapping, Option, PhaseOption, VmId
from vmmobility.wire.registry import (
    LIFETIME_UNIT_S,
    MAX_LIFETIME_UNITS,
    Phase,
    Purpose,
    Status,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmobility.engine.napt_mapping import VmMapping
    from vmmobility.engine.napt_mappings import Mappings
    from vmmobility.engine.napt_settings import NaptSettings
    from vmmobility.engine.outputs import Outbox
    from vmmobility.engine.peer import Received
    from vmmobility.engine.relay_channel import BoxChannel

FLOWS = 256  # of one HANDOVER: they fit a message


@dataclass(slots=True)
class Handing:
    """A mapping that is being handed over.  flows: those that have not been sent yet."""

    mapping: VmMapping
    to: str
    flows: list[Flow] = field(default_factory=list)


class NaptBoxes:
    """HOLD and HANDOVER; a part of NaptEngine."""

    if TYPE_CHECKING:
        settings: NaptSettings
        mappings: Mappings
        outbox: Outbox
        channel: BoxChannel
        neighbours: dict[str, Neighbour]
        _settle: Callable[[], None]

    _numbers: int
    _exports: dict[int, Handing]
    _imports: dict[int, Received]
    _handing: dict[str, Handing]
    _hold_at: float | None

    def _begin_boxes(self) -> None:
        self._numbers, self._exports, self._imports, self._handing = 0, {}, {}, {}
        self._hold_at = None

    # ---- a VM of another box's is here -----------------------------------------------------------

    def _hold(self, mapping: VmMapping, now: float, lifetime_s: float | None = None) -> None:
        """Tell the mapping's owner that the VM is behind this box; lifetime 0: it is no more."""
        owner = self.neighbours.get(mapping.owner)
        if owner is None:
            return
        kept = self.settings.mapping_s if lifetime_s is None else lifetime_s
        options: list[Option] = [VmId(mapping.vm), Epoch(mapping.epoch), told(mapping)]
        options += [PhaseOption(Phase.SERVING)] if mapping.ours else []
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
        mapping = self._asked_for(received)
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
        if mapping.ended:
            try:
                mapping = self.mappings.address(mapping.vm, mapping.private, now)
            except NaptRefused as refused:
                self.channel.reply(received, refused.status, reason=str(refused))
                return
        self.mappings.note(mapping, here=False, holder=box, epoch=epoch, moving=False)
        self.mappings.touch(mapping, now, message.lifetime * LIFETIME_UNIT_S)
        self.channel.reply(received, Status.ACCEPTED, lifetime=message.lifetime)
        if mapping.key in self._handing:
            return  # it is on its way, and its reply tells
        phase, hands_over = message.find(PhaseOption), self.settings.policy is NaptPolicy.HAND_OVER
        if phase is not None and phase.phase is Phase.SERVING:
            if mapping.ours and hands_over:  # by `keep` nobody else has it, whoever says so
                self.mappings.let_go(mapping, now)  # the reply to its HANDOVER was lost
        elif hands_over:
            self._hand_over(mapping, box)

    def _asked_for(self, received: Received) -> VmMapping | None:
        """The mapping that a box's request is about; None: it is answered."""
        message = received.message
        option, epoch = message.need(Mapping), message.epoch
        mapping = self.mappings.vms.get((message.vm, option.private))
        if mapping is None or mapping.public != option.public or mapping.owner != option.box:
            words = f"{self.settings.box_id} has no mapping of {option.private} to {option.public}"
            self.channel.reply(received, Status.UNKNOWN_BINDING, reason=words)
            return None
        if epoch < mapping.epoch:
            self.channel.reply(received, Status.STALE_EPOCH, (Epoch(mapping.epoch),))
            return None
        return mapping

    # ---- handing over ----------------------------------------------------------------------------

    def _hand_over(self, mapping: VmMapping, box: str) -> None:
        """Mapping and flows go to `box`: first the flows are read."""
        if box not in self.neighbours or mapping.key in self._handing:
            return
        self._numbers += 1
        handing = self._handing[mapping.key] = Handing(mapping, box)
        self._exports[self._numbers] = handing
        self.outbox.emit(ExportFlows(self._numbers, mapping.private))

    def flows_exported(self, number: int, flows: Sequence[Flow], error: str, now: float) -> None:
        """The flows of the address that is handed over; with an error none could be read."""
        handing = self._exports.pop(number, None)
        if handing is None:
            return
        if error:
            self._handing.pop(handing.mapping.key, None)
            self.outbox.emit(Event("handover.failed", {"reason": error}))
            return
        # What went out by a mapped port or from `ports_pool` is this box's, and stays.
        own = handing.mapping.public
        handing.flows = [flow for flow in flows if flow.public[0] == own]
        self._send_flows(handing, now)

    def _send_flows(self, handing: Handing, now: float) -> None:
        """So many a message; the last brings the mapping, and with its reply it is the other's."""
        mapping, some = handing.mapping, handing.flows[:FLOWS]
        del handing.flows[:FLOWS]
        options: list[Option] = [VmId(mapping.vm), Epoch(mapping.epoch)]
        options += [told(mapping)] if not handing.flows else []
        options += [flow_option(flow) for flow in some]
        self.channel.request(
            self.neighbours[handing.to].peer,
            Purpose.HANDOVER,
            options,
            now,
            partial(self._handed, handing),
            subject=(mapping.vm, mapping.private, "handover"),
        )

    def _handed(self, handing: Handing, reply: Message, now: float) -> None:
        mapping = handing.mapping
        detail = {"vm": mapping.vm.vm_id, "vni": mapping.vm.vni, "box": handing.to}
        if not reply.status.accepted:
            self._handing.pop(mapping.key, None)
            status = reply.status.name.lower().replace("_", "-")
            self.outbox.emit(Event("handover.failed", {**detail, "reason": status}))
            return
        if handing.flows:
            self._send_flows(handing, now)
            return
        self._handing.pop(mapping.key, None)
        own = mapping.owner == self.settings.box_id
        if own and (mapping.here or mapping.holder != handing.to):
            words = "the VM is no more behind it"  # nor does this box let go
            self.outbox.emit(Event("handover.failed", {**detail, "reason": words}))
            return
        self.mappings.let_go(mapping, now)
        self.outbox.emit(Event("handover.done", detail))

    def _handover_asked(self, received: Received, now: float) -> None:
        """A mapping, or the flows that come before it, are this box's from now on."""
        message, box = received.message, received.peer.node_id
        flows = tuple(flow_of(o) for o in message.options if isinstance(o, FlowOption))
        mapping = None
        if message.find(Mapping) is not None:
            mapping = self._asked_for(received)
            if mapping is None:
                return
            if mapping.owner not in (box, self.settings.box_id):
                self.channel.reply(received, Status.NOT_OWNER, reason=f"not {box}'s to hand over")
                return
        elif not any(m.vm == message.vm and not m.ended for m in self.mappings.vms.values()):
            self.channel.reply(received, Status.UNKNOWN_BINDING)
            return
        if any(not self._may_have(message, flow) for flow in flows):
            raise DecodeError("bad-value", "a flow of another address than the mapping's")
        if mapping is not None:
            mapping.lingers = 0.0
            self.mappings.note(mapping, ours=True, epoch=message.epoch)
            self.mappings.touch(mapping, now)
        self._numbers += 1
        self._imports[self._numbers] = received
        self.outbox.emit(ImportFlows(self._numbers, flows))

    def _may_have(self, message: Message, flow: Flow) -> bool:
        found: list[tuple[IPv4Address, IPv4Address]] = [
            (m.private, m.public) for m in self.mappings.of_vm(message.vm)
        ]
        return (flow.private[0], flow.public[0]) in found

    def flows_imported(self, number: int, failures: Sequence[str], now: float) -> None:
        """The kernel continues the flows that were handed over, but for these."""
        received = self._imports.pop(number, None)
        if received is None:
            return
        for failure in failures:
            self.outbox.emit(Event("flow.refused", {"reason": failure}))
        words = f"{len(failures)} flows not: {failures[0]}" if failures else ""
        self.channel.reply(received, Status.ACCEPTED, reason=words)
        option = received.message.find(Mapping)
        mapping = self.mappings.vms.get((received.message.vm, option.private)) if option else None
        if mapping is None or mapping.owner != self.settings.box_id:
            return
        if mapping.holder not in ("", received.peer.node_id):
            self._hand_over(mapping, mapping.holder)  # it went on to a third

    def _forget_flows(self, now: float) -> None:
        """Of what was handed over a while ago: its public address leads to the other by now."""
        gone = self.mappings.lingered(now)
        self._settle()  # first: what comes meanwhile would begin the flow anew
        for mapping in gone:
            self.outbox.emit(DropFlows(mapping.private))

    def _give_back(self, mapping: VmMapping) -> None:
        """The VM has left for elsewhere: what was handed over goes back to its owner."""
        if mapping.ours and mapping.owner != self.settings.box_id:
            self._hand_over(mapping, mapping.owner)


def told(mapping: VmMapping) -> Mapping:
    return Mapping(mapping.owner, mapping.private, mapping.public)


def flow_option(flow: Flow) -> FlowOption:
    return FlowOption(
        flow.protocol,
        flow.outgoing,
        flow.private,
        flow.public,
        flow.remote,
        flow.timeout_s,
        flow.tcp_state,
    )


def flow_of(option: FlowOption) -> Flow:
    return Flow(
        option.protocol,
        option.private,
        option.public,
        option.remote,
        option.outgoing,
        option.timeout_s,
        option.tcp_state,
    )
