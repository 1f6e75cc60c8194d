"""Messages that cross NAPT boxes: for whom they are, what boxes substitute, the originator's seal.

    Receiver: directly before Authentication, in every datagram of a hop that has a box at an end
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |1|         Type = 22           |          Length = 32          |
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |             Receiver (32 octets, padded with zeros)           |
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

Section 9: "Private IPv4 addresses in the VM Mobility Registration messages have to be converted
into public IPv4 addresses at the NAPT box".  A box substitutes an address everywhere in a message
and says so in a Translation option; whoever undoes these, the last first, has the message that its
originator sealed (docs/protocol.md, Section 18).
Not here: which address a box substitutes (engine/napt_translate.py).
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from vmmobility.errors import DecodeError
from vmmobility.wire import formats
from vmmobility.wire.authentication import SENDER, TRAILER
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    MUST_UNDERSTAND,
    OPTION_HEADER,
    RECEIVER_TYPE,
    Endpoint,
    InterfaceGroup,
    Option,
    OriginAuthentication,
    PreviousNve,
    ServingNve,
    Translation,
    encode_option,
)
from vmmobility.wire.registry import VERSION
from vmmobility.wire.values import Nve, Prefix

RECEIVER = OPTION_HEADER + SENDER
RELAYED_TRAILER = RECEIVER + TRAILER  # what follows the options where a box is between
_HEAD = (RECEIVER_TYPE | MUST_UNDERSTAND).to_bytes(2, "big") + SENDER.to_bytes(2, "big")


def receiver_option(node: str) -> bytes:
    """The Receiver option's octets.  Raises ValueError if that is no node's name."""
    return _HEAD + formats.name(node, SENDER).ljust(SENDER, b"\0")


def read_receiver(datagram: bytes) -> str | None:
    """For whom a datagram is, by the option before its Authentication; None if there is none.

    Raises DecodeError("bad-value") if it names no node."""
    option = datagram[-RELAYED_TRAILER:-TRAILER]
    if len(datagram) < RELAYED_TRAILER or option[:OPTION_HEADER] != _HEAD:
        return None
    try:
        return formats.check_name(option[OPTION_HEADER:].rstrip(b"\0").decode("utf-8"), SENDER)
    except ValueError as error:  # UnicodeDecodeError is one
        raise DecodeError("bad-value", f"the receiver's name: {error}") from None


# ---- addresses -----------------------------------------------------------------------------------


def alterable(options: tuple[Option, ...]) -> Iterator[IPv4Address]:
    """Every IPv4 address that a box may substitute: locators, endpoints, a VM's /32s."""
    for option in options:
        match option:
            case ServingNve(nve) | PreviousNve(nve):
                if nve.ipv4 is not None:
                    yield nve.ipv4
            case Endpoint(address) if isinstance(address, IPv4Address):
                yield address
            case InterfaceGroup(interface):
                for prefix in interface.prefixes:
                    if isinstance(prefix, IPv4Network) and prefix.prefixlen == 32:
                        yield prefix.network_address


def substituted(
    options: tuple[Option, ...], changes: Mapping[IPv4Address, IPv4Address]
) -> tuple[Option, ...]:
    """The options with these addresses in the places of those, wherever `alterable` finds them."""
    return tuple(_changed(option, changes) for option in options)


def _changed(option: Option, changes: Mapping[IPv4Address, IPv4Address]) -> Option:
    match option:
        case ServingNve(nve):
            return ServingNve(_nve(nve, changes))
        case PreviousNve(nve):
            return PreviousNve(_nve(nve, changes))
        case Endpoint(address, port) if isinstance(address, IPv4Address):
            return Endpoint(changes.get(address, address), port)
        case InterfaceGroup(interface):
            prefixes = tuple(_prefix(p, changes) for p in interface.prefixes)
            return InterfaceGroup(replace(interface, prefixes=prefixes))
        case _:
            return option


def _nve(nve: Nve, changes: Mapping[IPv4Address, IPv4Address]) -> Nve:
    return nve if nve.ipv4 is None else replace(nve, ipv4=changes.get(nve.ipv4, nve.ipv4))


def _prefix(prefix: Prefix, changes: Mapping[IPv4Address, IPv4Address]) -> Prefix:
    if isinstance(prefix, IPv4Network) and prefix.prefixlen == 32:
        return IPv4Network(changes.get(prefix.network_address, prefix.network_address))
    return prefix


def translate(message: Message, box: str, changes: Mapping[IPv4Address, IPv4Address]) -> Message:
    """The message as a box sends it on: substituted, a Translation for each address that was there.

    Raises DecodeError("bad-translation") where nobody could undo it: an address that is put in is
    there already, or two become one."""
    there = set(alterable(message.options))
    made = {a: b for a, b in changes.items() if a in there}
    if there & set(made.values()) or len(set(made.values())) < len(made):
        raise DecodeError("bad-translation", f"{box} would make two addresses one")
    notes = tuple(Translation(box, a, b) for a, b in sorted(made.items()))
    return replace(message, options=(*substituted(message.options, made), *notes))


def original(message: Message) -> Message:
    """The message as its originator made it: every Translation undone, the last first."""
    kept = tuple(o for o in message.options if not isinstance(o, Translation))
    # What each address becomes in the end: a note is undone before those that stand before it.
    before: dict[IPv4Address, IPv4Address] = {}
    for note in (o for o in message.options if isinstance(o, Translation)):
        before[note.substitute] = before.get(note.original, note.original)
    return replace(message, options=substituted(kept, before))


# ---- the originator's seal -----------------------------------------------------------------------


def sealed_octets(message: Message, sender: str, receiver: str, key_id: int, boot: int) -> bytes:
    """What Origin Authentication is over: header fields, names, key and boot, then the options of
    the original message in their order, as this edition writes them."""
    made = original(message)
    head = bytes((VERSION, made.kind, made.purpose, made.status)) + made.flags.to_bytes(2, "big")
    return b"".join(
        (
            head,
            made.sequence.to_bytes(4, "big"),
            made.lifetime.to_bytes(2, "big"),
            formats.name(sender, SENDER).ljust(SENDER, b"\0"),
            formats.name(receiver, SENDER).ljust(SENDER, b"\0"),
            key_id.to_bytes(4, "big"),
            boot.to_bytes(8, "big"),
            *(encode_option(o) for o in made.options if not isinstance(o, OriginAuthentication)),
        )
    )


def seal_origin(
    message: Message, sender: str, receiver: str, key_id: int, boot: int, secret: bytes
) -> Message:
    """The message with its originator's seal for the receiver.  Raises ValueError if a value does
    not fit its field."""
    signed = sealed_octets(message, sender, receiver, key_id, boot)
    digest = hmac.digest(secret, signed, "sha256")
    return replace(message, options=(*message.options, OriginAuthentication(key_id, boot, digest)))


def verify_origin(
    message: Message, mark: OriginAuthentication, sender: str, receiver: str, secret: bytes
) -> bool:
    """Whether the originator sealed exactly this, but for what Translations own up to."""
    try:
        signed = sealed_octets(message, sender, receiver, mark.key_id, mark.boot)
    except ValueError:  # undone, it is none that an originator could send
        return False
    return hmac.compare_digest(hmac.digest(secret, signed, "sha256"), mark.digest)
