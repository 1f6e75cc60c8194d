"""Options: type-length-value items, declared once in the table OPTIONS.

    0                   1                   2                   3
    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |U|        Option Type          |         Option Length         |
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |   Option Data ...
   +-+-+-+-+-+-+-+-

U: must be understood.  A receiver that does not know a type with U set rejects the message with
UNSUPPORTED_OPTION; one with U clear is kept as it is (`UnknownOption`) and survives a round trip.

Not here: what options say (option_values.py, exported here, too), and the authentication option,
which is over the whole message (authentication.py).  Rests on those, registry, cursor, formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

from vmmobility.errors import DecodeError
from vmmobility.wire import formats
from vmmobility.wire.cursor import Cursor
from vmmobility.wire.move_terms import OCTETS, MoveTerms, take_terms, terms_octets
from vmmobility.wire.option_values import (
    AttachId,
    Capacity,
    Checkpoint,
    Definition,
    Endpoint,
    Epoch,
    FlowOption,
    GroupMember,
    GroupOption,
    Guest,
    GuestStateOption,
    InterfaceGroup,
    KnownBoot,
    Mapping,
    Measurements,
    MobilityKind,
    Nonce,
    Option,
    OriginAuthentication,
    PhaseOption,
    PreviousNve,
    Protection,
    Reason,
    Route,
    ServingNve,
    Sight,
    Supported,
    Ticket,
    Timestamp,
    Translation,
    UnknownOption,
    VmId,
)
from vmmobility.wire.registry import GuestLife, GuestState, Mobility, Phase, RouteState
from vmmobility.wire.values import VmKey

__all__ = [
    "AUTHENTICATION_TYPE",
    "BY_CLASS",
    "BY_TYPE",
    "MUST_UNDERSTAND",
    "OPTIONS",
    "OPTION_HEADER",
    "RECEIVER_TYPE",
    "AttachId",
    "Capacity",
    "Checkpoint",
    "Declaration",
    "Definition",
    "Endpoint",
    "Epoch",
    "FlowOption",
    "GroupMember",
    "GroupOption",
    "Guest",
    "GuestStateOption",
    "InterfaceGroup",
    "KnownBoot",
    "Mapping",
    "Measurements",
    "MobilityKind",
    "MoveTerms",
    "Nonce",
    "Option",
    "OriginAuthentication",
    "PhaseOption",
    "PreviousNve",
    "Protection",
    "Reason",
    "Route",
    "ServingNve",
    "Sight",
    "Supported",
    "Ticket",
    "Timestamp",
    "Translation",
    "UnknownOption",
    "UnsupportedOption",
    "VmId",
    "check_repeats",
    "decode_options",
    "encode_option",
    "is_unknown",
]

MUST_UNDERSTAND = 0x8000
OPTION_HEADER = 4
AUTHENTICATION_TYPE = 14
RECEIVER_TYPE = 22
TRAILERS = {AUTHENTICATION_TYPE: "Authentication", RECEIVER_TYPE: "Receiver"}  # at the end alone


@dataclass(frozen=True, slots=True)
class Declaration:
    """One row of the table: everything that encoder, decoder, documents and tests need to know.

    octets: smallest and largest length of the data
    """

    number: int
    name: str
    must_understand: bool
    repeatable: bool
    octets: tuple[int, int]
    option: type
    encode: Callable[[Any], bytes]
    decode: Callable[[Cursor], Any]

    @property
    def wire_type(self) -> int:
        return self.number | (MUST_UNDERSTAND if self.must_understand else 0)


def _mobility(cursor: Cursor) -> MobilityKind:
    return MobilityKind(formats.member(Mobility, cursor.uint(1)), cursor.uint(2))


def _sight(cursor: Cursor) -> Sight:
    flags = cursor.uint(1)
    if flags > 3:
        raise DecodeError("bad-value", f"sight {flags}")
    return Sight(bool(flags & 1), bool(flags & 2))


_DAILY, _DAY_MIN = 2, 1440


def _protection(cursor: Cursor) -> Protection:
    flags, interval_ms, lease_ms = cursor.uint(1), cursor.uint(4), cursor.uint(4)
    at_min = cursor.uint(2) if flags & _DAILY else None
    token = cursor.rest()
    if at_min is not None and not (at_min < _DAY_MIN and interval_ms == _DAY_MIN * 60_000):
        raise DecodeError("bad-value", "a protection's time of day, or its interval beside that")
    if flags > 3 or not interval_ms or not lease_ms:
        raise DecodeError("bad-value", "a protection's flags, interval or lease")
    if not token.isalnum() and token:
        raise DecodeError("bad-value", "a protection's token is letters and digits")
    return Protection(bool(flags & 1), interval_ms, lease_ms, token.decode("ascii"), at_min)


def _protection_octets(option: Protection) -> bytes:
    at_min = option.at_min
    flags = option.fail_over | (0 if at_min is None else _DAILY)
    return (
        bytes([flags])
        + option.interval_ms.to_bytes(4, "big")
        + option.lease_ms.to_bytes(4, "big")
        + (b"" if at_min is None else at_min.to_bytes(2, "big"))
        + option.token.encode()
    )


def _endpoint_octets(option: Endpoint) -> bytes:
    if not option.port:
        raise ValueError("an endpoint's port is not zero")
    return option.port.to_bytes(2, "big") + formats.address(formats.check_locator(option.address))


def _endpoint(cursor: Cursor) -> Endpoint:
    port = cursor.uint(2)
    if not port:
        raise DecodeError("bad-value", "an endpoint's port is zero")
    return Endpoint(formats.take_locator(cursor, cursor.uint(1)), port)


CAPACITY_FIELDS = tuple(field.name for field in fields(Capacity))  # four octets each


def _capacity_octets(option: Capacity) -> bytes:
    if not option.interval_ms:
        raise ValueError("heartbeats have an interval")
    return b"".join(getattr(option, name).to_bytes(4, "big") for name in CAPACITY_FIELDS)


def _take_capacity(cursor: Cursor) -> Capacity:
    made = Capacity(*(cursor.uint(4) for _ in CAPACITY_FIELDS))
    if not made.interval_ms:
        raise DecodeError("bad-value", "heartbeats have an interval")
    return made


def _guest_state(cursor: Cursor) -> GuestStateOption:
    state, kept = formats.member(GuestState, cursor.uint(1)), cursor.uint(1)
    if kept > 1:
        raise DecodeError("bad-value", f"a guest is kept or not, 0 or 1, not {kept}")
    return GuestStateOption(state, bool(kept), cursor.uint(2), cursor.uint(8))


def _take_flow(cursor: Cursor) -> FlowOption:
    protocol, outgoing = cursor.uint(1), cursor.uint(1)
    if outgoing > 1:
        raise DecodeError("bad-value", f"a flow's direction is 0 or 1, not {outgoing}")
    ends = [(formats.take_ipv4(cursor), cursor.uint(2)) for _ in range(3)]
    timeout_s, state = cursor.uint(4), cursor.rest()
    if state and not (state.isascii() and state.replace(b"_", b"A").isalnum()):
        raise DecodeError("bad-value", "a flow's TCP state is letters, digits and '_'")
    return FlowOption(
        protocol, bool(outgoing), ends[0], ends[1], ends[2], timeout_s, state.decode("ascii")
    )


OPTIONS: tuple[Declaration, ...] = (
    Declaration(
        1, "VM-ID", True, False, (5, 68), VmId,
        lambda o: o.vm.vni.to_bytes(4, "big") + formats.name(o.vm.vm_id),
        lambda c: VmId(VmKey(c.uint(4), formats.take_name(c))),
    ),
    Declaration(
        2, "Interface Group", True, True, (6, 1024), InterfaceGroup,
        lambda o: formats.interface(o.interface),
        lambda c: InterfaceGroup(formats.take_interface(c)),
    ),
    Declaration(
        3, "Serving NVE", True, False, (2, 55), ServingNve,
        lambda o: formats.nve(o.nve),
        lambda c: ServingNve(formats.take_nve(c)),
    ),
    Declaration(
        4, "Previous NVE", True, True, (2, 55), PreviousNve,
        lambda o: formats.nve(o.nve),
        lambda c: PreviousNve(formats.take_nve(c)),
    ),
    Declaration(
        5, "Epoch", True, False, (8, 8), Epoch,
        lambda o: o.epoch.to_bytes(8, "big"),
        lambda c: Epoch(c.uint(8)),
    ),
    Declaration(
        6, "Ticket", True, False, (16, 16), Ticket,
        lambda o: o.ticket,
        lambda c: Ticket(c.take(16)),
    ),
    Declaration(
        7, "Attach-ID", True, False, (8, 8), AttachId,
        lambda o: o.attach_id.to_bytes(8, "big"),
        lambda c: AttachId(c.uint(8)),
    ),
    Declaration(
        8, "Mobility Kind", True, False, (3, 3), MobilityKind,
        lambda o: bytes([o.mobility]) + o.member.to_bytes(2, "big"),
        _mobility,
    ),
    Declaration(
        9, "Phase", True, False, (1, 1), PhaseOption,
        lambda o: bytes([o.phase]),
        lambda c: PhaseOption(formats.member(Phase, c.uint(1))),
    ),
    Declaration(
        10, "Timestamp", False, False, (8, 8), Timestamp,
        lambda o: o.time_ns.to_bytes(8, "big"),
        lambda c: Timestamp(c.uint(8)),
    ),
    Declaration(
        11, "Definition", True, True, (1, 1024), Definition,
        lambda o: o.data,
        lambda c: Definition(c.rest()),
    ),
    Declaration(
        12, "Endpoint", True, False, (7, 19), Endpoint,
        _endpoint_octets,
        _endpoint,
    ),
    Declaration(
        13, "Measurements", False, False, (2, 1024), Measurements,
        lambda o: o.data,
        lambda c: Measurements(c.rest()),
    ),
    Declaration(
        15, "Supported", False, False, (2, 64), Supported,
        lambda o: b"".join(v.to_bytes(2, "big") for v in o.values),
        lambda c: Supported(tuple(c.uint(2) for _ in range((c.left + 1) // 2))),
    ),
    Declaration(
        16, "Reason", False, False, (1, 256), Reason,
        lambda o: formats.clip_text(o.text, 256),
        lambda c: Reason(formats.take_words(c)),
    ),
    Declaration(
        17, "Nonce", True, False, (16, 16), Nonce,
        lambda o: o.nonce,
        lambda c: Nonce(c.take(16)),
    ),
    Declaration(
        18, "Known Boot", True, False, (8, 8), KnownBoot,
        lambda o: o.boot.to_bytes(8, "big"),
        lambda c: KnownBoot(c.uint(8)),
    ),
    Declaration(
        19, "Guest", True, False, (1, 1), Guest,
        lambda o: bytes([o.life]),
        lambda c: Guest(formats.member(GuestLife, c.uint(1))),
    ),
    Declaration(
        20, "Route", True, False, (1, 1), Route,
        lambda o: bytes([o.state]),
        lambda c: Route(formats.member(RouteState, c.uint(1))),
    ),
    Declaration(
        21, "Sight", True, False, (1, 1), Sight,
        lambda o: bytes([o.direct | o.covered << 1]),
        _sight,
    ),
    Declaration(
        23, "Origin Authentication", True, False, (44, 44), OriginAuthentication,
        lambda o: o.key_id.to_bytes(4, "big") + o.boot.to_bytes(8, "big") + o.digest,
        lambda c: OriginAuthentication(c.uint(4), c.uint(8), c.take(32)),
    ),
    Declaration(
        24, "Translation", False, True, (10, 41), Translation,
        lambda o: formats.node_name(o.box) + o.original.packed + o.substitute.packed,
        lambda c: Translation(
            formats.take_node_name(c), formats.take_ipv4(c), formats.take_ipv4(c)
        ),
    ),
    Declaration(
        25, "Mapping", False, True, (10, 41), Mapping,
        lambda o: formats.node_name(o.box) + o.private.packed + o.public.packed,
        lambda c: Mapping(formats.take_node_name(c), formats.take_ipv4(c), formats.take_ipv4(c)),
    ),
    Declaration(
        26, "Flow", True, True, (24, 56), FlowOption,
        lambda o: bytes([o.protocol, o.outgoing])
        + b"".join(a.packed + p.to_bytes(2, "big") for a, p in (o.private, o.public, o.remote))
        + o.timeout_s.to_bytes(4, "big")
        + o.tcp_state.encode("ascii"),
        _take_flow,
    ),
    Declaration(
        27, "Move Terms", True, False, (OCTETS, OCTETS), MoveTerms,
        terms_octets,
        take_terms,
    ),
    Declaration(
        28, "Capacity", False, False, (28, 28), Capacity,
        _capacity_octets,
        _take_capacity,
    ),
    Declaration(
        29, "Guest State", True, False, (12, 12), GuestStateOption,
        lambda o: bytes([o.state, o.kept]) + o.grace_s.to_bytes(2, "big")
        + o.ordered.to_bytes(8, "big"),
        _guest_state,
    ),
    Declaration(
        30, "Protection", True, False, (9, 75), Protection,
        _protection_octets,
        _protection,
    ),
    Declaration(
        31, "Checkpoint", False, False, (12, 12), Checkpoint,
        lambda o: o.number.to_bytes(8, "big") + o.age_ms.to_bytes(4, "big"),
        lambda c: Checkpoint(c.uint(8), c.uint(4)),
    ),
    Declaration(
        32, "Group", True, False, (11, 74), GroupOption,
        lambda o: o.epoch.to_bytes(8, "big") + o.member.to_bytes(2, "big") + formats.name(o.name),
        lambda c: GroupOption(c.uint(8), c.uint(2), formats.take_name(c)),
    ),
    Declaration(
        33, "Group Member", True, True, (4, 57), GroupMember,
        lambda o: o.member.to_bytes(2, "big") + formats.nve(o.nve),
        lambda c: GroupMember(c.uint(2), formats.take_nve(c)),
    ),
)  # fmt: skip

BY_TYPE = {d.number: d for d in OPTIONS}
BY_CLASS = {d.option: d for d in OPTIONS}


class UnsupportedOption(DecodeError):
    """An option with the U bit is of an unknown type; `number` is it, without the bit."""

    def __init__(self, option_type: int) -> None:
        super().__init__("unsupported-option", f"option type {option_type} must be understood")
        self.number = option_type


def encode_option(option: Option) -> bytes:
    """One option as octets.  Raises ValueError if its value does not fit its declaration."""
    if isinstance(option, UnknownOption):
        if not is_unknown(option.type) or len(option.data) > 0xFFFF:
            raise ValueError(f"option type {option.type:#06x} with {len(option.data)} octets")
        return option.type.to_bytes(2, "big") + len(option.data).to_bytes(2, "big") + option.data
    declaration = BY_CLASS[type(option)]
    try:
        data = declaration.encode(option)
    except OverflowError as error:
        raise ValueError(f"{declaration.name}: {error}") from None
    least, most = declaration.octets
    if not least <= len(data) <= most:
        raise ValueError(f"{declaration.name}: {len(data)} octets, not {least} to {most}")
    return declaration.wire_type.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data


def is_unknown(wire_type: int) -> bool:
    """Whether a type, with or without the U bit, is none that this node knows."""
    number = wire_type & ~MUST_UNDERSTAND
    return 0 <= wire_type <= 0xFFFF and number not in BY_TYPE and number not in TRAILERS


def check_repeats(options: Iterable[Option]) -> None:
    """DecodeError("repeated-option") if an option that may stand once stands twice."""
    seen: set[type] = set()
    for option in options:
        if isinstance(option, UnknownOption) or BY_CLASS[type(option)].repeatable:
            continue
        if type(option) in seen:
            raise DecodeError("repeated-option", f"{BY_CLASS[type(option)].name} stands twice")
        seen.add(type(option))


def decode_options(cursor: Cursor) -> tuple[Option, ...]:
    """All options up to the cursor's end.

    Raises DecodeError (truncated, trailing, option-length, repeated-option, bad-value) or
    UnsupportedOption.
    """
    found: list[Option] = []
    while cursor.left:
        wire_type = cursor.uint(2)
        data = cursor.take(cursor.uint(2))
        number = wire_type & ~MUST_UNDERSTAND
        if number in TRAILERS:
            raise DecodeError("repeated-option", f"{TRAILERS[number]} stands before the end")
        declaration = BY_TYPE.get(number)
        if declaration is None:
            if wire_type & MUST_UNDERSTAND:
                raise UnsupportedOption(number)
            found.append(UnknownOption(wire_type, data))
            continue
        least, most = declaration.octets
        if not least <= len(data) <= most:
            raise DecodeError("option-length", f"{declaration.name}: {len(data)} octets")
        inner = Cursor(data, declaration.name)
        found.append(declaration.decode(inner))
        inner.finish()
    check_repeats(found)
    return tuple(found)
