"""HANDOVER, by which a mapping and its flows pass from one NAPT box to another.

The owner hands over what is behind another box, and gets it back when the VM has left there.  It is
the other's when that one's kernel holds it; whoever hands over goes on translating for a while,
until routes have turned.
Not here: when that is to be (napt_boxes.py), the other end of it (napt_taking.py), the flows
themselves (drivers/napt_plane.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from vmmobility.engine.napt_mapping import VmMapping
from vmmobility.engine.napt_plane import Flow
from vmmobility.engine.napt_settings import Neighbour
from vmmobility.engine.napt_taking import NaptTaking
from vmmobility.engine.napt_told import FlowKey, flow_option, key_of, told
from vmmobility.engine.outputs import DropFlows, Event, ExportFlows
from vmmobility.wire.message import Message
from vmmobility.wire.options import Epoch, Option, Reason, VmId
from vmmobility.wire.registry import Purpose, Status

if TYPE_CHECKING:
    from collections.abc import Callable

FLOWS = 256  # of one HANDOVER: they fit a message


@dataclass(slots=True)
class Handing:
    """A mapping that is being handed over, or flows that began after it was.

    flows: those that have not been sent yet; sent: those that have
    begun: the other box is being told
    again: flows came meanwhile: the kernel is to be asked for them once more before the last
    late:  the other has the mapping already: these are flows alone
    """

    mapping: VmMapping
    to: str
    flows: list[Flow] = field(default_factory=list)
    sent: set[FlowKey] = field(default_factory=set)
    begun: bool = False
    again: bool = False
    late: bool = False


class NaptHandover(NaptTaking):
    """A part of NaptEngine."""

    if TYPE_CHECKING:
        neighbours: dict[str, Neighbour]
        _settle: Callable[[], None]

    _numbers: int
    _exports: dict[int, Handing]
    _handing: dict[str, Handing]
    _late: dict[str, Handing]
    _sent: dict[str, set[FlowKey]]  # with what was handed over, while it lingers here
    _awaited: dict[str, tuple[VmMapping, float]]  # until when

    def _begin_handover(self) -> None:
        self._numbers, self._exports, self._handing = 0, {}, {}
        self._late, self._sent, self._awaited = {}, {}, {}
        self._begin_taking()

    # ---- handing over ----------------------------------------------------------------------------

    def _hand_over(self, mapping: VmMapping, box: str) -> None:
        """Mapping and flows go to `box`: first the flows are read."""
        if box not in self.neighbours or mapping.key in self._handing:
            return
        self._awaited.pop(mapping.key, None)
        handing = self._handing[mapping.key] = Handing(mapping, box)
        self._export(handing)

    def _export(self, handing: Handing) -> None:
        self._numbers += 1
        self._exports[self._numbers] = handing
        self.outbox.emit(ExportFlows(self._numbers, handing.mapping.private))

    def _give_up(self, handing: Handing) -> None:
        """The VM has gone on: what the other box makes of it, that one gives back."""
        mapping = handing.mapping
        del self._handing[mapping.key]
        peer = self.neighbours[handing.to].peer
        self.channel.withdraw_subject(peer, (mapping.vm, mapping.private, "handover"))

    def flows_exported(self, number: int, flows: Sequence[Flow], error: str, now: float) -> None:
        """The flows of the address that is handed over; with an error none could be read."""
        handing = self._exports.pop(number, None)
        if handing is None:
            return
        mapping = handing.mapping
        if handing.late:
            self._end_lingering(handing, flows, error, now)
        elif self._handing.get(mapping.key) is not handing:
            return  # it was given up
        elif error:
            del self._handing[mapping.key]
            self.outbox.emit(Event("handover.failed", {"reason": error}))
        elif not handing.begun and self._stays(mapping, flows):
            del self._handing[mapping.key]
        else:
            handing.begun = True
            self._add(handing, flows)
            self._send_flows(handing, now)

    def _stays(self, mapping: VmMapping, flows: Sequence[Flow]) -> bool:
        """Whether something leads to the VM by this box's other addresses: its answers would leave
        by the other box, with another source.  The next HOLD asks again."""
        why = ""
        if mapping.ours and mapping.owner == self.settings.box_id:
            others = [f.public[0] for f in flows if f.public[0] != mapping.public]
            if any(port.private == mapping.private for port in self.settings.ports):
                why = "a mapped port leads to it"
            elif others:
                why = f"flows by {others[0]} are alive"
        if why and why != mapping.stays:
            detail = {"vm": mapping.vm.vm_id, "vni": mapping.vm.vni, "box": mapping.holder}
            self.outbox.emit(Event("handover.failed", {**detail, "reason": why}))
        mapping.stays = why
        return bool(why)

    @staticmethod
    def _add(handing: Handing, flows: Sequence[Flow]) -> None:
        """Those that the other box has not been sent.  What has another public address is this
        box's, and stays."""
        own = handing.mapping.public
        new = [f for f in flows if f.public[0] == own and key_of(f) not in handing.sent]
        handing.flows += new
        handing.sent |= {key_of(f) for f in new}

    def _send_flows(self, handing: Handing, now: float) -> None:
        """So many a message; the last brings the mapping, and with its reply it is the other's."""
        mapping, some = handing.mapping, handing.flows[:FLOWS]
        del handing.flows[:FLOWS]
        options: list[Option] = [VmId(mapping.vm), Epoch(mapping.epoch)]
        options += [told(mapping)] if not (handing.flows or handing.late) else []
        options += [flow_option(flow) for flow in some]
        self.channel.request(
            self.neighbours[handing.to].peer,
            Purpose.HANDOVER,
            options,
            now,
            partial(self._handed, handing),
            subject=(mapping.vm, mapping.private, "flows" if handing.late else "handover"),
        )

    def _handed(self, handing: Handing, reply: Message, now: float) -> None:
        mapping = handing.mapping
        under_way = self._late if handing.late else self._handing
        detail = {"vm": mapping.vm.vm_id, "vni": mapping.vm.vni, "box": handing.to}
        if reply.status is Status.UNKNOWN_BINDING and handing.flows and not handing.late:
            # Its owner has lost its record: the mapping first, and flows when routes have turned.
            handing.flows, handing.sent = [], set()
            self._send_flows(handing, now)
            return
        if not reply.status.accepted:
            under_way.pop(mapping.key, None)
            why = reply.find(Reason)
            status = reply.status.name.lower().replace("_", "-")
            words = f"{status}: {why.text}" if why and why.text else status
            self.outbox.emit(Event("handover.failed", {**detail, "reason": words}))
            return
        if handing.flows:
            self._send_flows(handing, now)
            return
        if handing.again:
            handing.again = False
            self._export(handing)
            return
        under_way.pop(mapping.key, None)
        if handing.late or mapping.ended:
            return
        own = mapping.owner == self.settings.box_id
        if own and (mapping.here or mapping.holder != handing.to):
            words = "the VM is no more behind it"  # nor does this box let go
            self.outbox.emit(Event("handover.failed", {**detail, "reason": words}))
            return
        self._sent[mapping.key] = handing.sent
        self.mappings.let_go(mapping, now)
        self.outbox.emit(Event("handover.done", detail))

    def _give_back(self, mapping: VmMapping) -> None:
        """The VM has left for elsewhere: what was handed over goes back to its owner."""
        if mapping.ours and mapping.owner != self.settings.box_id:
            self._hand_over(mapping, mapping.owner)

    # ---- when routes have turned -----------------------------------------------------------------

    def _forget_flows(self, now: float) -> None:
        """Of what was handed over a while ago: its public address leads to the other by now.  What
        has begun here since then goes there first."""
        gone = self.mappings.lingered(now)
        self._settle()  # first: what comes meanwhile would begin the flow anew
        for mapping in gone:
            own = mapping.owner == self.settings.box_id
            sent = self._sent.pop(mapping.key, set())
            to = mapping.holder if own else mapping.owner
            self._export(Handing(mapping, to, sent=sent, late=True))

    def _end_lingering(
        self, handing: Handing, flows: Sequence[Flow], error: str, now: float
    ) -> None:
        mapping = handing.mapping
        if error:
            self.outbox.emit(Event("handover.failed", {"reason": error}))
        self.mappings.forgotten(mapping)
        if mapping.is_translated and not mapping.ended:
            self._settle()
            return  # it is this box's again
        self.outbox.emit(DropFlows(mapping.private, mapping.public))
        self._settle()
        self._add(handing, flows)
        if not mapping.ended:
            self._send_late(handing, now)

    def _send_late(self, handing: Handing, now: float) -> None:
        """Flows alone, one message after the other."""
        mapping, under_way = handing.mapping, self._late.get(handing.mapping.key)
        if not handing.flows or handing.to not in self.neighbours:
            return
        if under_way is not None and under_way.to == handing.to:
            under_way.flows += handing.flows
            return
        if under_way is not None:
            peer = self.neighbours[under_way.to].peer
            self.channel.withdraw_subject(peer, (mapping.vm, mapping.private, "flows"))
        self._late[mapping.key] = handing
        self._send_flows(handing, now)

    def _pass_on(self, message: Message, box: str, flows: Sequence[Flow], now: float) -> bool:
        """Whether a box that has handed back what went on to a third sends what began late: it goes
        where the mapping is."""
        went_on = {
            m.private: m
            for m in self.mappings.of_vm(message.vm)
            if m.owner == self.settings.box_id
            and m.holder not in ("", box)
            and not (m.is_translated or m.key in self._awaited or m.key in self._handing)
        }
        if not flows or any(flow.private[0] not in went_on for flow in flows):
            return False
        for private, mapping in went_on.items():
            some = [flow for flow in flows if flow.private[0] == private]
            self._send_late(Handing(mapping, mapping.holder, some, late=True), now)
        return True

    # ---- awaiting --------------------------------------------------------------------------------

    def _await(self, mapping: VmMapping, now: float) -> None:
        """The VM has gone on to a third box; the second one gives mapping and flows back first.  If
        it does not, the third gets what there is."""
        self._awaited.setdefault(mapping.key, (mapping, now + self.settings.hold_s))

    def _end_awaiting(self, now: float) -> None:
        for mapping, due in list(self._awaited.values()):
            if due <= now:
                del self._awaited[mapping.key]
                if mapping.holder and not mapping.ended:
                    self._hand_over(mapping, mapping.holder)
