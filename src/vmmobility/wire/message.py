"""VM Mobility Registration Request and Reply: the header and its options, bytes <-> values.

    0                   1                   2                   3
    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |    Version    |     Kind      |    Purpose    |    Status     |
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |             Flags             |            Length             |
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |                        Sequence Number                        |
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |           Lifetime            |     Part      |     Parts     |
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |   Options ...                                                 |
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

Length counts the whole datagram, the Authentication option included.  A message is cut into parts
between options; each part is a datagram of its own with the same header but for Part (1, 2, …).

Not here: authentication and replay (authentication.py, engine/channel.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from vmmobility.errors import DecodeError
from vmmobility.wire import formats
from vmmobility.wire.cursor import Cursor
from vmmobility.wire.options import (
    Definition,
    Epoch,
    InterfaceGroup,
    Option,
    PreviousNve,
    VmId,
    check_repeats,
    decode_options,
    encode_option,
)
from vmmobility.wire.registry import (
    MAX_DEFINITION,
    MAX_LIFETIME_UNITS,
    MAX_PARTS,
    VERSION,
    Kind,
    Purpose,
    Status,
)
from vmmobility.wire.values import Interface, Nve, VmKey

HEADER = 16
AnyOption = TypeVar("AnyOption")


@dataclass(frozen=True, slots=True)
class Message:
    """One registration message, whole (all parts joined).

    lifetime: in units of 4 s; 0 deregisters
    sequence: 32 bits; a reply carries its request's
    flags:    none are defined; sent as 0, ignored on receipt
    """

    kind: Kind
    purpose: Purpose
    sequence: int
    options: tuple[Option, ...] = ()
    lifetime: int = 0
    status: Status = Status.ACCEPTED
    flags: int = 0

    def find(self, option: type[AnyOption]) -> AnyOption | None:
        """The first option of that class, or None."""
        for candidate in self.options:
            if isinstance(candidate, option):
                return candidate
        return None

    def need(self, option: type[AnyOption]) -> AnyOption:
        """The first option of that class; DecodeError("missing-option") if there is none."""
        found = self.find(option)
        if found is None:
            raise DecodeError("missing-option", f"{self.purpose.name} needs {option.__name__}")
        return found

    @property
    def vm(self) -> VmKey:
        return self.need(VmId).vm

    @property
    def epoch(self) -> int:
        return self.need(Epoch).epoch

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        return tuple(o.interface for o in self.options if isinstance(o, InterfaceGroup))

    @property
    def previous(self) -> tuple[Nve, ...]:
        return tuple(o.nve for o in self.options if isinstance(o, PreviousNve))

    @property
    def definition(self) -> bytes:
        """All Definition options joined.

        Raises DecodeError("bad-value") if that is not UTF-8 or longer than MAX_DEFINITION.
        """
        joined = b"".join(o.data for o in self.options if isinstance(o, Definition))
        if len(joined) > MAX_DEFINITION:
            raise DecodeError("bad-value", f"a definition of {len(joined)} octets is too long")
        try:
            joined.decode("utf-8")
        except UnicodeDecodeError:
            raise DecodeError("bad-value", "the definition is not UTF-8") from None
        return joined


@dataclass(frozen=True, slots=True)
class Part:
    """One datagram's share of a message, authenticated apart (number and count from 1)."""

    number: int
    count: int
    message: Message


class UnsupportedVersion(DecodeError):
    """A message of another protocol version."""

    def __init__(self, version: int) -> None:
        super().__init__("unsupported-version", f"version {version} is not spoken here")


def _header(message: Message, part: int, parts: int, length: int) -> bytes:
    if not (
        0 <= message.flags <= 0xFFFF
        and 0 <= message.sequence <= 0xFFFF_FFFF
        and 0 <= message.lifetime <= MAX_LIFETIME_UNITS
    ):
        raise ValueError("flags, sequence or lifetime does not fit its field")
    return b"".join(
        (
            bytes((VERSION, message.kind, message.purpose, message.status)),
            message.flags.to_bytes(2, "big"),
            length.to_bytes(2, "big"),
            message.sequence.to_bytes(4, "big"),
            message.lifetime.to_bytes(2, "big"),
            bytes((part, parts)),
        )
    )


def encode_parts(message: Message, room: int, trailer: int) -> list[bytes]:
    """The message as datagrams without their authentication option.

    room:    octets that a datagram may have in all
    trailer: octets that the authentication option will add (counted in Length)
    Raises ValueError if a value does not fit its field, or the message MAX_PARTS parts.
    """
    bodies: list[list[bytes]] = [[]]
    size = HEADER + trailer
    for option in message.options:
        encoded = encode_option(option)
        if size + len(encoded) > room and bodies[-1]:
            bodies.append([])
            size = HEADER + trailer
        if size + len(encoded) > room:
            raise ValueError(f"an option of {len(encoded)} octets does not fit a datagram")
        bodies[-1].append(encoded)
        size += len(encoded)
    if len(bodies) > MAX_PARTS:
        raise ValueError(f"{len(bodies)} parts; at most {MAX_PARTS} are allowed")
    datagrams = []
    for number, body in enumerate(bodies, 1):
        data = b"".join(body)
        length = HEADER + len(data) + trailer
        datagrams.append(_header(message, number, len(bodies), length) + data)
    return datagrams


def _status(value: int) -> Status:
    """A status number that is not known here counts as the plain one of its class."""
    try:
        return Status(value)
    except ValueError:
        return Status.ACCEPTED if value < Status.UNSPECIFIED else Status.UNSPECIFIED


def decode_part(datagram: bytes, trailer: int) -> Part:
    """The part in a datagram whose last `trailer` octets, the authentication, were checked.

    Raises DecodeError: truncated, length, bad-value, parts, UnsupportedVersion, and what
    decode_options raises.
    """
    cursor = Cursor(datagram[: max(len(datagram) - trailer, 0)], "message")
    version = cursor.uint(1)
    if version != VERSION:
        raise UnsupportedVersion(version)
    kind = formats.member(Kind, cursor.uint(1))
    purpose = formats.member(Purpose, cursor.uint(1))
    status = _status(cursor.uint(1))
    flags, length, sequence, lifetime = (
        cursor.uint(2), cursor.uint(2), cursor.uint(4), cursor.uint(2),
    )  # fmt: skip
    if length != len(datagram):
        raise DecodeError("length", f"Length says {length}, the datagram has {len(datagram)}")
    number, count = cursor.uint(1), cursor.uint(1)
    if not 1 <= number <= count <= MAX_PARTS:
        raise DecodeError("parts", f"part {number} of {count}")
    if kind is Kind.REQUEST and status is not Status.ACCEPTED:
        raise DecodeError("bad-value", "a request's Status is zero")
    options = decode_options(cursor)
    return Part(number, count, Message(kind, purpose, sequence, options, lifetime, status, flags))


def join_parts(parts: Sequence[Part]) -> Message:
    """The whole message of parts 1..n in order.

    Raises DecodeError: parts (not 1..n, or their headers differ), repeated-option.
    """
    if [(p.number, p.count) for p in parts] != [(n, len(parts)) for n in range(1, len(parts) + 1)]:
        raise DecodeError("parts", "a message's parts are not 1 to their count")
    first = parts[0].message
    if any(replace(p.message, options=()) != replace(first, options=()) for p in parts):
        raise DecodeError("parts", "the parts of a message differ in their headers")
    options = tuple(o for p in parts for o in p.message.options)
    check_repeats(options)
    return replace(first, options=options)


def definition_options(data: bytes) -> Iterator[Definition]:
    """A definition cut into options that each fit a datagram.

    Raises ValueError if it is longer than MAX_DEFINITION.
    """
    if len(data) > MAX_DEFINITION:
        raise ValueError(f"a definition has at most {MAX_DEFINITION} octets, not {len(data)}")
    step = 1000
    for start in range(0, len(data), step):
        yield Definition(data[start : start + step])
