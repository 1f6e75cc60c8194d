"""HANDOVER, by which a mapping and its flows pass from one NAPT box to another.

The owner hands over what is behind another box, and gets it back when the VM has left there.  It is
the other's when that one's kernel holds it; whoever hands over goes on translating for a while,
until routes have turned.
Not here: when that is to be (napt_boxes.py), the flows themselves (drivers/napt_plane.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from vmmobility.engine.napt_mapping import VmMapping
from vmmobility.engine.napt_mappings import Mappings, NaptRefused
from vmmobility.engine.napt_plane import Flow
from vmmobility.engine.napt_settings import NaptSettings, Neighbour
from vmmobility.engine.outputs import DropFlows, Event, ExportFlows, ImportFlows, Outbox
from vmmobility.errors import DecodeError
from vmmobility.wire.message import Message
from vmmobility.wire.options import Epoch, FlowOption, Mapping, Option, Reason, VmId
from vmmobility.wire.registry import Purpose, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmobility.engine.peer import Received
    from vmmobility.engine.relay_channel import BoxChannel

FLOWS = 256  # of one HANDOVER: they fit a message


@dataclass(slots=True)
class Handing:
    """A mapping that is being handed over.  flows: those that have not been sent yet."""

    mapping: VmMapping
    to: str
    flows: list[Flow] = field(default_factory=list)


@dataclass(slots=True)
class Taking:
    """What another box hands over: it is answered when the kernel holds it.

    mapping: None: flows that come before it
    tag:     of the state of the data plane that has the mapping
    flows:   what to say of them; None: they are being imported
    """

    received: Received
    mapping: VmMapping | None
    tag: int = 0
    flows: str | None = None


class NaptHandover:
    """A part of NaptEngine."""

    if TYPE_CHECKING:
        settings: NaptSettings
        mappings: Mappings
        outbox: Outbox
        channel: BoxChannel
        neighbours: dict[str, Neighbour]
        _tag: int
        _applied_tag: int
        _settle: Callable[[], None]
        _asked_for: Callable[[Received], VmMapping | None]
        _kernel_refuses: Callable[..., str]

    _numbers: int
    _exports: dict[int, Handing]
    _handing: dict[str, Handing]
    _takings: dict[int, Taking]

    def _begin_handover(self) -> None:
        self._numbers, self._exports, self._handing, self._takings = 0, {}, {}, {}

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
            why = reply.find(Reason)
            status = reply.status.name.lower().replace("_", "-")
            words = f"{status}: {why.text}" if why and why.text else status
            self.outbox.emit(Event("handover.failed", {**detail, "reason": words}))
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

    # ---- taking over ---------------------------------------------------------------------------

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
        if mapping is not None and not self._lives(received, mapping, now):
            return
        self._numbers += 1
        self._takings[self._numbers] = taking = Taking(received, mapping)
        self.outbox.emit(ImportFlows(self._numbers, flows))
        if mapping is not None:
            self.mappings.try_out(mapping, True)
            self._settle()
        taking.tag = self._tag

    def _lives(self, received: Received, mapping: VmMapping, now: float) -> bool:
        """Whether a mapping of which a box says that it is needed lives, again if it had ended.
        False: it cannot, and that is answered."""
        try:
            self.mappings.address(mapping.vm, mapping.private, now)
        except NaptRefused as refused:
            self.channel.reply(received, refused.status, reason=str(refused))
            return False
        return True

    def _may_have(self, message: Message, flow: Flow) -> bool:
        found: list[tuple[IPv4Address, IPv4Address]] = [
            (m.private, m.public) for m in self.mappings.of_vm(message.vm)
        ]
        return (flow.private[0], flow.public[0]) in found

    def flows_imported(self, number: int, failures: Sequence[str], now: float) -> None:
        """The kernel continues the flows that were handed over, but for these."""
        taking = self._takings.get(number)
        if taking is None:
            return
        for failure in failures:
            self.outbox.emit(Event("flow.refused", {"reason": failure}))
        taking.flows = f"{len(failures)} flows not: {failures[0]}" if failures else ""
        self._take(now)

    def _take(self, now: float) -> None:
        """Answer what the kernel holds by now, or refuses."""
        ready = [
            n
            for n, t in self._takings.items()
            if t.flows is not None and (t.mapping is None or t.tag <= self._applied_tag)
        ]
        for taking in [self._takings.pop(n) for n in ready]:
            if taking.mapping is None:
                self.channel.reply(taking.received, Status.ACCEPTED, reason=taking.flows or "")
            else:
                self._is_taken(taking, taking.mapping, now)
        self._settle()

    def _is_taken(self, taking: Taking, mapping: VmMapping, now: float) -> None:
        """From now on it is this box's; or, where its kernel refuses it, the other's still."""
        received, box = taking.received, taking.received.peer.node_id
        self.mappings.try_out(mapping, any(t.mapping is mapping for t in self._takings.values()))
        if mapping.ended:
            self.channel.reply(received, Status.UNKNOWN_BINDING, reason="it has ended meanwhile")
            return
        why = self._kernel_refuses(mapping.private, mapping.public)
        if why:
            self.mappings.over.append(mapping.private)  # the flows that came along
            self.channel.reply(received, Status.INSUFFICIENT_RESOURCES, reason=why)
            return
        epoch = max(mapping.epoch, received.message.epoch)
        self.mappings.note(mapping, ours=True, lingers=0.0, epoch=epoch)
        self.mappings.touch(mapping, now)
        self.channel.reply(received, Status.ACCEPTED, reason=taking.flows or "")
        if mapping.owner != self.settings.box_id:
            if not mapping.here:  # it has left meanwhile
                self._give_back(mapping)
        elif mapping.holder not in ("", box):
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
