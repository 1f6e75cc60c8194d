"""The other end of HANDOVER: a NAPT box takes over what another one hands to it.

It is answered when the kernel holds it; what that refuses stays the other box's.
Not here: what is handed over, and when (napt_handover.py, napt_boxes.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from vmmobility.engine.napt_mapping import VmMapping
from vmmobility.engine.napt_mappings import Mappings, NaptRefused
from vmmobility.engine.napt_plane import Flow
from vmmobility.engine.napt_settings import NaptPolicy, NaptSettings
from vmmobility.engine.napt_told import flow_of
from vmmobility.engine.outputs import Event, ImportFlows, Outbox
from vmmobility.errors import DecodeError
from vmmobility.wire.message import Message
from vmmobility.wire.options import FlowOption, Mapping
from vmmobility.wire.registry import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmobility.engine.napt_handover import Handing
    from vmmobility.engine.peer import Received
    from vmmobility.engine.relay_channel import BoxChannel


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


class NaptTaking:
    """A part of NaptEngine."""

    if TYPE_CHECKING:
        settings: NaptSettings
        mappings: Mappings
        outbox: Outbox
        channel: BoxChannel
        _tag: int
        _applied_tag: int
        _numbers: int
        _handing: dict[str, Handing]
        _settle: Callable[[], None]
        _asked_for: Callable[[Received, float], VmMapping | None]
        _kernel_refuses: Callable[..., str]
        _hand_over: Callable[[VmMapping, str], None]
        _give_back: Callable[[VmMapping], None]
        _pass_on: Callable[..., bool]

    _takings: dict[int, Taking]

    def _begin_taking(self) -> None:
        self._takings = {}

    def _handover_asked(self, received: Received, now: float) -> None:
        """A mapping, or the flows that come before it, are this box's from now on."""
        message, box = received.message, received.peer.node_id
        flows = tuple(flow_of(o) for o in message.options if isinstance(o, FlowOption))
        mapping = None
        if message.find(Mapping) is not None:
            mapping = self._asked_for(received, now)
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
        if mapping is None and self._pass_on(message, box, flows, now):
            self.channel.reply(received, Status.ACCEPTED)
            return
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
            self._are_more(taking)
            if taking.mapping is None:
                self.channel.reply(taking.received, Status.ACCEPTED, reason=taking.flows or "")
            else:
                self._is_taken(taking, taking.mapping, now)
        if ready:
            self._settle()

    def _are_more(self, taking: Taking) -> None:
        """Flows have come in: whoever the mapping is on its way to gets them, too."""
        message, box = taking.received.message, taking.received.peer.node_id
        brought = {o.private[0] for o in message.options if isinstance(o, FlowOption)}
        for handing in self._handing.values():
            mapping = handing.mapping
            if mapping.vm == message.vm and mapping.private in brought and handing.to != box:
                handing.again = True

    def _is_taken(self, taking: Taking, mapping: VmMapping, now: float) -> None:
        """From now on it is this box's; or, where its kernel refuses it, the other's still."""
        received, box = taking.received, taking.received.peer.node_id
        self.mappings.try_out(mapping, any(t.mapping is mapping for t in self._takings.values()))
        if mapping.ended:
            self.channel.reply(received, Status.UNKNOWN_BINDING, reason="it has ended meanwhile")
            return
        why = self._kernel_refuses(mapping.private, mapping.public)
        if why:
            self.mappings.over.append((mapping.private, mapping.public))  # what came along
            self.channel.reply(received, Status.INSUFFICIENT_RESOURCES, reason=why)
            return
        epoch = max(mapping.epoch, received.message.epoch)
        self.mappings.note(mapping, ours=True, lingers=0.0, epoch=epoch)
        self.mappings.touch(mapping, now)
        self.channel.reply(received, Status.ACCEPTED, reason=taking.flows or "")
        if mapping.owner != self.settings.box_id:
            if not mapping.here:  # it has left meanwhile
                self._give_back(mapping)
        elif mapping.holder not in ("", box) and self.settings.policy is NaptPolicy.HAND_OVER:
            self._hand_over(mapping, mapping.holder)  # it went on to a third
