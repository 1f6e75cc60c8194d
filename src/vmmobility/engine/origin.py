"""Peers behind a NAPT box: the originator's own seal, and what boxes may have put in its place.

A box speaks under the originator's name with the key of the hop.  So the originator seals each
message for its receiver, too, and the receiver undoes what the box owns up to before it looks.
Not here: hops, which are any pair's (channel.py); octets (wire/origin.py).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping as Mapping_
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from vmmobility.engine.peer import Peer, Received
from vmmobility.errors import DecodeError
from vmmobility.wire.message import Message
from vmmobility.wire.options import Mapping, OriginAuthentication, ServingNve, Translation
from vmmobility.wire.origin import seal_origin, verify_origin
from vmmobility.wire.registry import Purpose, Role, Status
from vmmobility.wire.values import Nve

# What a box may answer in its own name; all else is the receiver's to say (SUPERSEDED ends guests).
REFUSALS = frozenset(
    (
        Status.ADMINISTRATIVELY_PROHIBITED,
        Status.INSUFFICIENT_RESOURCES,
        Status.MALFORMED,
        Status.ADDRESS_IN_USE,
        Status.TRY_AGAIN,
    )
)
REFUSABLE = frozenset(  # what carries addresses; the rest passes any box
    (
        Purpose.ATTACH,
        Purpose.PREPARE,
        Purpose.REDIRECT,
        Purpose.CHECK,
        Purpose.ROUTE,
        Purpose.SIGHT,
    )
)
UNDOABLE = 512  # translations of one message that are looked at; a box sends on no more


@dataclass(frozen=True, slots=True)
class Boxes:
    """The NAPT boxes that a node knows: their public addresses, by the box's name."""

    pools: dict[str, tuple[IPv4Network, ...]]

    def is_public(self, address: IPv4Address) -> bool:
        return any(address in pool for pools in self.pools.values() for pool in pools)

    def owner(self, address: IPv4Address) -> str:
        """The box in whose pool it is, "" for none."""
        return next((box for box, pools in self.pools.items() for p in pools if address in p), "")

    def check(self, message: Message) -> None:
        """Raises DecodeError("bad-translation") unless each Translation is by a box known here, and
        between a public address and one that is in no box's pool."""
        notes = [o for o in message.options if isinstance(o, Translation)]
        if len(notes) > UNDOABLE:
            raise DecodeError("bad-translation", f"{len(notes)} translations in one message")
        for note in notes:
            if note.box not in self.pools:
                raise DecodeError("bad-translation", f"{note.box} is no NAPT box known here")
            if self.is_public(note.original) is self.is_public(note.substitute):
                raise DecodeError(
                    "bad-translation",
                    f"{note.box}: one of {note.original} and {note.substitute} must be public",
                )


NO_BOXES = Boxes({})
Napts = tuple[tuple[str, tuple[IPv4Network, ...]], ...]
Record = Callable[[str, Any], None]
State = Mapping_[str, object]


def may_answer(received: Received, asked: Peer) -> bool:
    """Whether a reply is of whoever was asked; or of the box on the way to it, which can but
    refuse."""
    box, reply = received.peer, received.message
    if box is asked:
        return True
    refusal = reply.status in REFUSALS and reply.purpose in REFUSABLE
    return refusal and box.role is Role.NAPT and box.node_id == asked.via


def mappings_told(message: Message, boxes: Boxes) -> tuple[Mapping, ...]:
    """What Translations say of the VM's own addresses: public ones here, private where it is.

    The box is the one that owns the public address: the VM may be behind another."""
    own = {p.network_address for i in message.interfaces for p in i.prefixes if p.version == 4}
    return tuple(
        Mapping(boxes.owner(note.substitute), note.original, note.substitute)
        for note in message.options
        if isinstance(note, Translation)
        and note.substitute in own
        and boxes.is_public(note.substitute)
    )


def locators_behind(received: Received) -> Nve:
    """The sender's own locators, as far as this side can reach them.  A datagram that came by a box
    has the box's source address, which is no NVE's.  Raises DecodeError."""
    declared = received.message.need(ServingNve).nve
    if not declared.locators:
        raise DecodeError(
            "missing-option", f"{declared.nve_id} is behind a box: it needs a locator"
        )
    return declared


def sealed(message: Message, node: str, peer: Peer, boot: int) -> Message:
    """A message to a peer behind a box, as its originator `node` sends it."""
    if peer.origin is None:
        return message
    key_id = peer.origin.signing
    return seal_origin(message, node, peer.node_id, key_id, boot, peer.origin.secrets[key_id])


def opened(message: Message, node: str, peer: Peer, boxes: Boxes) -> int:
    """The boot under which a peer behind a box sealed this for `node`.

    Raises DecodeError: bad-origin, old-origin, bad-translation.
    """
    assert peer.origin is not None
    mark = message.find(OriginAuthentication)
    secret = peer.origin.secrets.get(mark.key_id) if mark else None
    if mark is None or secret is None:
        raise DecodeError("bad-origin", f"no seal of {peer.node_id} under a key that is shared")
    if not verify_origin(message, mark, peer.node_id, node, secret):
        raise DecodeError("bad-origin", f"not what {peer.node_id} sent")
    boxes.check(message)
    if mark.boot < peer.origin.boot:
        raise DecodeError("old-origin", f"boot {mark.boot} of {peer.node_id}")
    return mark.boot


def trusted(received: Received, node: str, boxes: Boxes, record: Record) -> Received:
    """From behind a box: under the boot that the originator itself sealed it with, which is durable
    before anything that follows from it.  Raises what `opened` raises."""
    peer = received.peer
    assert peer.origin is not None
    boot = opened(received.message, node, peer, boxes)
    if boot > peer.origin.boot:
        peer.origin.boot = boot
        record(f"origin/{peer.node_id}", boot)
    return replace(received, boot=boot)


def begin_anew(peer: Peer, record: Record) -> None:
    """It lost its state, or a box between did: its boots begin anew."""
    if peer.origin is not None:
        peer.origin.boot = 0
        record(f"origin/{peer.node_id}", None)


def restore(peer: Peer, state: State) -> None:
    """Take the durable boot of an earlier start ("origin/NODE")."""
    known = state.get(f"origin/{peer.node_id}")
    if peer.origin is not None and isinstance(known, int):
        peer.origin.boot = known
