"""Registration messages that cross a NAPT box: opened, translated, sealed for the next hop.

A request leaves when the kernel holds the mappings that it rests on; its way back is remembered,
and whoever asked is told if it cannot pass.  Only what the sender's role may ask passes.
Not here: which addresses (napt_translate.py), what the box learns thereby (napt_observe.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from vmmobility.engine.channel import Received
from vmmobility.engine.manager import RIGHTS as MANAGER_RIGHTS
from vmmobility.engine.napt_mappings import NaptRefused
from vmmobility.engine.napt_observe import BEGINNING
from vmmobility.engine.nve import RIGHTS as NVE_RIGHTS
from vmmobility.engine.origin import UNDOABLE
from vmmobility.engine.outputs import Endpoint, Event
from vmmobility.engine.peer import Arrival
from vmmobility.engine.router import RIGHTS as ROUTER_RIGHTS
from vmmobility.errors import DecodeError
from vmmobility.wire.message import Message
from vmmobility.wire.options import Reason, Translation, VmId
from vmmobility.wire.origin import translate
from vmmobility.wire.registry import Kind, Purpose, Role, Status
from vmmobility.wire.values import Address

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmobility.engine.napt_settings import NaptSettings, Neighbour
    from vmmobility.engine.napt_translate import Translator
    from vmmobility.engine.outputs import Outbox
    from vmmobility.engine.relay_channel import BoxChannel, RelayChannel

REMEMBERED = 512  # requests under way a box knows the way back of, at least
ITEMS = frozenset(("static", "port", "pool", "detour", "route", "flow"))  # of the data plane
RIGHTS = {
    Role.MANAGER: MANAGER_RIGHTS,
    Role.NVE: NVE_RIGHTS,
    Role.DEFAULT_ROUTER: ROUTER_RIGHTS,
    Role.BORDER_ROUTER: ROUTER_RIGHTS,
}


@dataclass(frozen=True, slots=True)
class Party:
    """An originator: where it is, seen from the box."""

    name: str
    role: Role
    neighbour: str
    inside: bool


@dataclass(slots=True)
class Crossing:
    """A request that was sent on: whose it is, and how often it passed."""

    sender: str
    receiver: str
    message: Message
    source: Endpoint
    local: Address | None
    times: int = 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that leaves when the kernel holds what was asked for under `tag`.

    message: as it will leave; substituted: the addresses that changed, before and after
    """

    tag: int
    received: Received
    target: Party
    message: Message
    asked: Crossing | None
    substituted: frozenset[IPv4Address]


def rests_on(failure: str, addresses: Collection[IPv4Address]) -> bool:
    """Whether what the kernel refused, in words, is about one of the addresses, or about all: what
    begins with no item's name is that nothing could be done."""
    item = failure.split(":")[0].split()
    about_all = not item or item[0] not in ITEMS
    if about_all:
        return bool(addresses)
    return any(str(address) in item for address in addresses)


class NaptCrossing:
    """A part of NaptEngine."""

    if TYPE_CHECKING:
        settings: NaptSettings
        outbox: Outbox
        neighbours: dict[str, Neighbour]
        parties: dict[str, Party]
        translator: Translator
        channel: BoxChannel
        relays: dict[str, RelayChannel]
        _tag: int
        _observe: Callable[..., None]
        _refused: Callable[[Message, bool], None]
        _settle: Callable[[], None]
        _drop: Callable[[str, str], None]

    _crossings: OrderedDict[tuple[str, str, Purpose, int], Crossing]
    _applied_tag: int
    _failed: tuple[str, ...]  # of what was applied last
    _waiting: list[Waiting]

    def _begin_crossing(self) -> None:
        self._crossings = OrderedDict()
        self._applied_tag, self._failed, self._waiting = 0, (), []

    def _kernel_answered(self, tag: int, failures: Sequence[str], now: float) -> None:
        """The data plane has tried what was asked for under `tag`: what waited for it goes on."""
        self._applied_tag, self._failed = max(self._applied_tag, tag), tuple(failures)
        ready = [w for w in self._waiting if w.tag <= self._applied_tag]
        self._waiting = [w for w in self._waiting if w.tag > self._applied_tag]
        for waiting in ready:
            self._leave_if_held(waiting, now)

    def _cross(self, received: Received, receiver: str, now: float) -> None:
        """Translate a message and send it on; refuse a request that cannot be."""
        sender, message = self.parties[received.peer.node_id], received.message
        target = self.parties[receiver]
        wrong = self._wrong_role(sender, target, message)
        if wrong:
            self._drop("wrong-role", sender.name)
            self._refuse(received, Status.ADMINISTRATIVELY_PROHIBITED, wrong)
            return
        asked = self._asked(sender, target, message)
        try:
            if sender.inside:
                manager = sender.role is Role.MANAGER
                changes = self.translator.outward(message, sender.name, now, manager)
            else:
                changes = self.translator.inward(message, receiver, now)
            made = translate(message, self.settings.box_id, changes)
            self._check_undoable(made)
        except NaptRefused as refused:
            self._refuse(received, refused.status, str(refused))
            self._refused(message, sender.inside)
            return
        except DecodeError as error:
            self._drop(error.reason, sender.name)
            self._refuse(received, Status.MALFORMED, str(error))
            return
        self._settle()
        # Of `changes`, only what stands in the message: inward they are all locators.
        notes = [o for o in made.options[len(message.options) :] if isinstance(o, Translation)]
        used = frozenset(a for note in notes for a in (note.original, note.substitute))
        waiting = Waiting(self._tag, received, target, made, asked, used)
        if changes and self._tag > self._applied_tag:
            self._waiting.append(waiting)
        elif used and message.kind is Kind.REQUEST and message.purpose in BEGINNING:
            self._leave_if_held(waiting, now)
        else:
            self._leave(waiting, now)

    def _check_undoable(self, made: Message) -> None:
        """Raises NaptRefused for a message that its receiver would not look at."""
        count = sum(isinstance(o, Translation) for o in made.options)
        if count > UNDOABLE:
            raise NaptRefused(
                Status.INSUFFICIENT_RESOURCES,
                f"{self.settings.box_id}: {count} addresses to translate in one message, and "
                f"{UNDOABLE} are allowed",
            )

    def _leave_if_held(self, waiting: Waiting, now: float) -> None:
        """Send it on unless the kernel refuses what it rests on."""
        why = self._kernel_refuses(*waiting.substituted)
        if why:
            self._refuse(waiting.received, Status.INSUFFICIENT_RESOURCES, why)
        else:
            self._leave(waiting, now)

    def _kernel_refuses(self, *addresses: IPv4Address) -> str:
        """What the kernel said against what rests on these addresses when it was last asked, in
        words; "" if nothing."""
        why = next((f for f in self._failed if rests_on(f, addresses)), "")
        return f"{self.settings.box_id}: the kernel refused: {why}" if why else ""

    def _leave(self, waiting: Waiting, now: float) -> None:
        """The kernel holds the mappings that this message rests on."""
        received, target, asked = waiting.received, waiting.target, waiting.asked
        try:
            self._send_on(received, target, waiting.message, asked)
        except ValueError as error:  # translated, it is too long
            self._refuse(received, Status.INSUFFICIENT_RESOURCES, str(error))
            return
        sender = self.parties[received.peer.node_id]
        self._observe(sender, target, received.message, asked.message if asked else None, now)
        self._settle()

    @staticmethod
    def _wrong_role(sender: Party, target: Party, message: Message) -> str:
        """Only what the sender's role may ask of the receiver's, or answer it, passes."""
        asks, asked = (sender, target) if message.kind is Kind.REQUEST else (target, sender)
        if asks.role in RIGHTS[asked.role].get(message.purpose, frozenset()):
            return ""
        return f"a {asks.role.name} may not ask a {asked.role.name} for {message.purpose.name}"

    def _asked(self, sender: Party, target: Party, message: Message) -> Crossing | None:
        """The request that a reply is to, as it crossed here; None: a request, or not known."""
        if message.kind is Kind.REQUEST:
            return None
        key = (target.name, sender.name, message.purpose, message.sequence)
        return self._crossings.get(key)

    def _send_on(
        self, received: Received, target: Party, message: Message, asked: Crossing | None
    ) -> None:
        relay = self.relays[received.peer.node_id]
        peer = relay.peers[target.name]
        if message.kind is Kind.REPLY:
            # Section 2 of the protocol: from the address asked, to where the request came from.
            to, local = (asked.source, asked.local) if asked else (peer.endpoints[0], None)
            relay.forward(peer, message, to, local)
            return
        key = (received.peer.node_id, target.name, message.purpose, message.sequence)
        crossing = self._crossings.pop(key, None)
        if crossing is None:
            crossing = Crossing(
                received.peer.node_id,
                target.name,
                received.message,
                received.source,
                received.local,
            )
        crossing.source, crossing.local = received.source, received.local
        relay.forward(peer, message, peer.endpoints[crossing.times % len(peer.endpoints)], None)
        crossing.times += 1
        self._crossings[key] = crossing
        while len(self._crossings) > max(REMEMBERED, REMEMBERED * len(self.parties)):
            self._crossings.popitem(last=False)

    def _refuse(self, received: Received, status: Status, why: str) -> None:
        """Answer a request in the box's own name; a reply that cannot pass is but counted."""
        message, sender = received.message, self.parties[received.peer.node_id]
        if message.kind is Kind.REPLY:
            self._drop("no-mapping", sender.name)
            return
        detail = {"peer": sender.name, "purpose": message.purpose.name.lower(), "reason": why}
        self.outbox.emit(Event("refused", {**detail, "status": status.name.lower()}))
        peer = self.neighbours[sender.neighbour].peer
        request = (message.purpose, message.sequence)
        self.channel.refuse(peer, request, status, why, received.source)

    def _undecodable(self, arrival: Arrival, purpose: int, sequence: int) -> None:
        sender = self.parties[arrival.peer.node_id]
        peer = self.neighbours[sender.neighbour].peer
        if purpose in set(Purpose):
            words = f"{self.settings.box_id} cannot read it"
            request = (Purpose(purpose), sequence)
            self.channel.refuse(peer, request, Status.MALFORMED, words, arrival.source)

    def _pass_refusal(self, received: Received) -> bool:
        """The next box has refused what was sent on to it: tell whoever asked."""
        message, box = received.message, received.peer.node_id
        asked = (message.purpose, message.sequence)
        found = (c for k, c in self._crossings.items() if k[2:] == asked)
        crossing = next((c for c in found if self.parties[c.receiver].neighbour == box), None)
        if crossing is None:
            return False
        peer = self.neighbours[self.parties[crossing.sender].neighbour].peer
        reason = message.find(Reason)
        words = reason.text if reason else message.status.name.lower()
        request = (message.purpose, message.sequence)
        self.channel.refuse(peer, request, message.status, words, crossing.source)
        self._refused(crossing.message, self.parties[crossing.sender].inside)
        self._settle()
        return True

    def _is_latest(self, request: Message) -> bool:
        """Whether no other one of its purpose about its VM crossed after it, or is about to."""
        purpose, vm = request.purpose, request.find(VmId)
        crossed = (c.message for c in reversed(self._crossings.values()))
        waiting = (w.received.message for w in self._waiting)
        alike = (m for m in (*waiting, *crossed) if m.purpose is purpose and m.find(VmId) == vm)
        return next((m is request for m in alike if m.kind is Kind.REQUEST), True)
