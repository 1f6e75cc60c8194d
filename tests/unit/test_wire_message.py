"""The header, parts, and what a message says of itself."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from typing import Any

import pytest

from vmmobility.errors import DecodeError
from vmmobility.wire.authentication import TRAILER
from vmmobility.wire.message import (
    HEADER,
    Message,
    Part,
    UnsupportedVersion,
    decode_part,
    definition_options,
    encode_parts,
    join_parts,
)
from vmmobility.wire.options import (
    Definition,
    Epoch,
    InterfaceGroup,
    Option,
    PreviousNve,
    Reason,
    ServingNve,
    UnknownOption,
    VmId,
)
from vmmobility.wire.registry import MAX_DATAGRAM, MAX_DEFINITION, MAX_PARTS, Kind, Purpose, Status
from vmmobility.wire.values import Interface, Nve, VmKey

VM = VmId(VmKey(0, "vm-1"))
SEAL = bytes(TRAILER)  # its place; authentication is another module's


def ask(*options: Option, **values: Any) -> Message:
    return replace(Message(Kind.REQUEST, Purpose.ATTACH, 42, options, 30), **values)


def wire(message: Message) -> list[bytes]:
    return [part + SEAL for part in encode_parts(message, MAX_DATAGRAM, TRAILER)]


def read(datagram: bytes) -> Part:
    return decode_part(datagram, TRAILER)


def reason_of(datagram: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        read(datagram)
    return caught.value.reason


# --- the header -------------------------------------------------------------------------------


def test_the_header_has_these_octets():
    message = Message(
        Kind.REPLY, Purpose.SWITCH, 0x01020304, (), 0x0506, Status.WRONG_PHASE, flags=0x0708
    )
    (datagram,) = wire(message)
    assert datagram[:HEADER].hex(" ", 4) == "0102068d 07080068 01020304 05060101"
    assert read(datagram) == Part(1, 1, message)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("purpose", Purpose)
def test_every_kind_and_purpose_comes_back(kind, purpose):
    message = Message(kind, purpose, 2**32 - 1, (VM,), 0xFFFF)
    assert read(*wire(message)).message == message


@pytest.mark.parametrize("status", Status)
def test_every_status_comes_back_in_a_reply(status):
    message = Message(Kind.REPLY, Purpose.ATTACH, 1, status=status)
    assert read(*wire(message)).message == message
    assert status.accepted == (status < 128)


@pytest.mark.parametrize(
    ("number", "status"),
    [(127, Status.ACCEPTED), (200, Status.UNSPECIFIED), (255, Status.UNSPECIFIED)],
)
def test_an_unknown_status_counts_as_its_class(number, status):
    (datagram,) = wire(Message(Kind.REPLY, Purpose.ATTACH, 1))
    assert read(datagram[:3] + bytes([number]) + datagram[4:]).message.status is status


@pytest.mark.parametrize(
    "change",
    [
        {"sequence": 2**32},
        {"sequence": -1},
        {"lifetime": 2**16},
        {"lifetime": -1},
        {"flags": 2**16},
        {"flags": -1},
    ],
)
def test_a_header_that_does_not_fit_is_not_encoded(change):
    with pytest.raises(ValueError, match="does not fit"):
        wire(ask(**change))


def patched(at: int, *octets: int) -> bytes:
    (datagram,) = wire(ask(VM))
    return datagram[:at] + bytes(octets) + datagram[at + len(octets) :]


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_unsupported(version):
    with pytest.raises(UnsupportedVersion) as caught:
        read(patched(0, version))
    assert caught.value.reason == "unsupported-version"


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (patched(1, 0), "bad-value"),
        (patched(1, 3), "bad-value"),
        (patched(2, 0), "bad-value"),
        (patched(2, max(Purpose) + 1), "bad-value"),
        (patched(3, 1), "bad-value"),  # a request with a status
        (patched(3, 200), "bad-value"),
        (patched(6, 0, 0), "length"),
        (patched(6, 0xFF, 0xFF), "length"),
        (patched(14, 0), "parts"),
        (patched(14, 2, 1), "parts"),
        (patched(14, 1, MAX_PARTS + 1), "parts"),
        (patched(14, 1, 0), "parts"),
        (b"", "truncated"),
        (SEAL[:-1], "truncated"),
        (SEAL, "truncated"),
    ],
)
def test_a_bad_header(datagram, reason):
    assert reason_of(datagram) == reason


def test_the_length_counts_the_seal():
    (datagram,) = wire(ask(VM))
    assert int.from_bytes(datagram[6:8], "big") == len(datagram) == HEADER + 12 + TRAILER
    assert reason_of(datagram + b"\0") == "length"


# --- parts ------------------------------------------------------------------------------------


def long_message() -> Message:
    return ask(VM, *definition_options(bytes(0x30 + n % 10 for n in range(3500))))


def test_a_long_message_is_cut_between_options_and_joined():
    datagrams = wire(long_message())
    assert len(datagrams) == 4
    assert all(len(d) <= MAX_DATAGRAM for d in datagrams)
    parts = [read(d) for d in datagrams]
    assert [(p.number, p.count) for p in parts] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert join_parts(parts) == long_message()


def test_a_message_of_exactly_one_datagram_is_not_cut():
    room = MAX_DATAGRAM - HEADER - TRAILER
    options = Definition(bytes(1000)), UnknownOption(0x7000, bytes(room - 1004 - 4))
    (datagram,) = wire(ask(*options))
    assert len(datagram) == MAX_DATAGRAM
    assert len(wire(ask(*options, UnknownOption(0x7001, b"")))) == 2


def test_a_message_has_at_most_sixteen_parts():
    pieces = (Definition(bytes(1000)),) * MAX_PARTS
    assert len(wire(ask(*pieces))) == MAX_PARTS
    with pytest.raises(ValueError, match="at most 16"):
        wire(ask(*pieces, Definition(bytes(1000))))


def test_an_option_that_no_datagram_holds_is_not_encoded():
    with pytest.raises(ValueError, match="does not fit a datagram"):
        wire(ask(UnknownOption(0x7000, bytes(MAX_DATAGRAM))))


def join_reason(*parts: Part) -> str:
    with pytest.raises(DecodeError) as caught:
        join_parts(parts)
    return caught.value.reason


@pytest.mark.parametrize(
    "change",
    [
        {"kind": Kind.REPLY},
        {"purpose": Purpose.SWITCH},
        {"sequence": 43},
        {"lifetime": 31},
        {"flags": 1},
        {"status": Status.UNSPECIFIED},
    ],
)
def test_parts_have_one_header(change):
    assert join_reason(Part(1, 2, ask(VM)), Part(2, 2, replace(ask(), **change))) == "parts"


@pytest.mark.parametrize(
    "numbers", [[(2, 2), (1, 2)], [(1, 2)], [(1, 3), (2, 3)], [(1, 1), (2, 2)], [(1, 2), (1, 2)]]
)
def test_parts_are_all_there_in_order(numbers):
    assert join_reason(*(Part(n, count, ask()) for n, count in numbers)) == "parts"


def test_an_option_that_stands_once_stands_once_in_all_parts():
    assert join_reason(Part(1, 2, ask(VM)), Part(2, 2, ask(VM))) == "repeated-option"


# --- what a message says ----------------------------------------------------------------------


def test_options_are_found_by_class():
    eth0 = Interface(b"\x02\0\0\0\0\x01", (ip_network("10.1.0.5/32"),))
    a, b = Nve("a", IPv4Address("10.0.1.2")), Nve("b")
    message = ask(
        VM, Epoch(3), InterfaceGroup(eth0), PreviousNve(a), PreviousNve(b),
        Definition(b"{"), Definition(b"}"),
    )  # fmt: skip
    assert message.vm == VmKey(0, "vm-1")
    assert message.epoch == 3
    assert message.interfaces == (eth0,)
    assert message.previous == (a, b)
    assert message.definition == b"{}"
    assert message.find(Epoch) == Epoch(3)
    assert message.find(Reason) is None


def test_an_option_that_is_needed_and_missing_names_itself():
    with pytest.raises(DecodeError, match="ATTACH needs ServingNve") as caught:
        ask(VM).need(ServingNve)
    assert caught.value.reason == "missing-option"


def test_a_definition_is_cut_within_characters_and_still_utf_8():
    data = ("ю" * 1500 + "x").encode()
    assert ask(*definition_options(b"a" + data)).definition == b"a" + data
    with pytest.raises(DecodeError) as caught:
        _ = ask(Definition(data[:1])).definition
    assert caught.value.reason == "bad-value"


def test_a_definition_is_not_too_long():
    longest = b"x" * MAX_DEFINITION
    assert ask(*definition_options(longest)).definition == longest
    with pytest.raises(ValueError, match="at most 12000 octets"):
        list(definition_options(longest + b"x"))
    with pytest.raises(DecodeError, match="too long") as caught:
        _ = ask(*definition_options(longest), Definition(b"x")).definition
    assert caught.value.reason == "bad-value"
