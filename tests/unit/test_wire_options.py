"""Every option of the table: its octets, its bounds, and how it fails."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from vmmobility.errors import DecodeError
from vmmobility.wire.cursor import Cursor
from vmmobility.wire.options import (
    AUTHENTICATION_TYPE,
    BY_CLASS,
    BY_TYPE,
    MUST_UNDERSTAND,
    OPTIONS,
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
    MoveTerms,
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
    UnsupportedOption,
    VmId,
    decode_options,
    encode_option,
)
from vmmobility.wire.registry import (
    CopyStorage,
    GuestLife,
    GuestState,
    Mobility,
    OnTimeout,
    Phase,
    RouteState,
)
from vmmobility.wire.values import Interface, Nve, VmKey

NVE = Nve("nve-a", IPv4Address("10.0.1.2"), IPv6Address("fd00:0:1::2"))
MAC = bytes.fromhex("525400000001")
ETH0 = Interface(MAC, (ip_network("10.1.0.5/32"), ip_network("fd01::5/128")))

# One line an option: its value, then its octets, header included.
EXAMPLES: list[tuple[Option, str]] = [
    (VmId(VmKey(7, "vm-1")), "8001 0008 00000007 766d2d31"),
    (
        InterfaceGroup(ETH0),
        "8002 001e 525400000001 0420 0a010005 0680 fd010000000000000000000000000005",
    ),
    (
        ServingNve(NVE),
        "8003 001c 05 6e76652d61 04 0a000102 06 fd000000000100000000000000000002",
    ),
    (
        PreviousNve(NVE),
        "8004 001c 05 6e76652d61 04 0a000102 06 fd000000000100000000000000000002",
    ),
    (Epoch(2**64 - 2), "8005 0008 fffffffffffffffe"),
    (Ticket(bytes(range(16))), "8006 0010 000102030405060708090a0b0c0d0e0f"),
    (AttachId(258), "8007 0008 0000000000000102"),
    (MobilityKind(Mobility.STANDBY, 515), "8008 0003 04 0203"),
    (PhaseOption(Phase.REDIRECTING), "8009 0001 08"),
    (Timestamp(1), "000a 0008 0000000000000001"),
    (Definition(b"{}"), "800b 0002 7b7d"),
    (Endpoint(ip_address("10.0.2.2"), 49152), "800c 0007 c000 04 0a000202"),
    (Endpoint(ip_address("fd00::2"), 1), "800c 0013 0001 06 fd000000000000000000000000000002"),
    (Measurements(b'{"a":1}'), "000d 0007 7b2261223a317d"),
    (Supported((1, 513)), "000f 0004 0001 0201"),
    (Reason("no"), "0010 0002 6e6f"),
    (Nonce(bytes(range(16, 32))), "8011 0010 101112131415161718191a1b1c1d1e1f"),
    (KnownBoot(2**64 - 1), "8012 0008 ffffffffffffffff"),
    (Guest(GuestLife.DEPARTED), "8013 0001 03"),
    (
        GuestStateOption(GuestState.STOPPED, True, 60, 7),
        "801d 000c 03 01 003c 0000000000000007",
    ),
    (Route(RouteState.KEEP), "8014 0001 02"),
    (Sight(True, False), "8015 0001 01"),
    (Sight(False, True), "8015 0001 02"),
    (
        OriginAuthentication(2, 513, bytes(range(32))),
        "8017 002c 00000002 0000000000000201"
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
    ),
    (
        Translation("x", IPv4Address("10.1.0.5"), IPv4Address("192.0.2.1")),
        "0018 000a 01 78 0a010005 c0000201",
    ),
    (
        Mapping("xy", IPv4Address("10.1.0.5"), IPv4Address("192.0.2.1")),
        "0019 000b 02 7879 0a010005 c0000201",
    ),
    (
        FlowOption(
            6,
            True,
            (IPv4Address("10.1.0.5"), 80),
            (IPv4Address("192.0.2.1"), 81),
            (IPv4Address("192.0.2.9"), 82),
            300,
            "SYN_SENT",
        ),
        "801a 0020 06 01 0a010005 0050 c0000201 0051 c0000209 0052 0000012c 53594e5f53454e54",
    ),
    (
        MoveTerms(300, OnTimeout.FORCE, 100, 50, CopyStorage.NONE),
        "801b 000e 0000012c 00000064 00000032 01 02",
    ),
    (
        Capacity(1000, 16, 12, 8192, 4096, 2**32 - 1, 0),
        "001c 001c 000003e8 00000010 0000000c 00002000 00001000 ffffffff 00000000",
    ),
    (GroupOption(258, 2, "web"), "8020 000d 0000000000000102 0002 776562"),
    (
        GroupMember(2, Nve("b", IPv4Address("10.0.2.2"))),
        "8021 0009 0002 01 62 04 0a000202",
    ),
    (Protection(True, 5000, 10000, "ab"), "801e 000b 01 00001388 00002710 6162"),
    (Checkpoint(258, 1000), "001f 000c 0000000000000102 000003e8"),
    (UnknownOption(0x7ABC, b"\x00\xff"), "7abc 0002 00ff"),
    (UnknownOption(0x7ABC, b""), "7abc 0000"),
]


def decode(data: bytes) -> tuple[Option, ...]:
    return decode_options(Cursor(data, "message"))


def tlv(wire_type: int, data: bytes) -> bytes:
    return wire_type.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data


def reason_of(data: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(data)
    return caught.value.reason


# --- the table --------------------------------------------------------------------------------


def test_numbers_and_classes_are_declared_once():
    assert len(BY_TYPE) == len(BY_CLASS) == len(OPTIONS)
    assert [d.number for d in OPTIONS] == sorted(BY_TYPE)
    assert AUTHENTICATION_TYPE not in BY_TYPE


def test_every_option_has_an_example():
    assert {type(option) for option, _ in EXAMPLES} == {*BY_CLASS, UnknownOption}


# --- octets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "octets"), EXAMPLES)
def test_an_option_has_these_octets(option, octets):
    assert encode_option(option) == bytes.fromhex(octets)
    assert decode(bytes.fromhex(octets)) == (option,)


def test_options_keep_their_order_and_unknown_ones_survive():
    twice = (Endpoint, Sight)  # each has two examples, and stands once
    every = tuple(option for option, _ in EXAMPLES if not isinstance(option, twice))
    octets = b"".join(map(encode_option, every))
    assert decode(octets) == every
    assert b"".join(map(encode_option, decode(octets))) == octets


@pytest.mark.parametrize("declaration", OPTIONS, ids=lambda d: d.name)
def test_the_u_bit_of_a_known_type_is_ignored(declaration):
    octets = next(bytes.fromhex(o) for v, o in EXAMPLES if type(v) is declaration.option)
    flipped = bytes([octets[0] ^ 0x80]) + octets[1:]
    assert decode(flipped) == decode(octets)


# --- lengths ----------------------------------------------------------------------------------


@pytest.mark.parametrize("declaration", OPTIONS, ids=lambda d: d.name)
def test_too_short_and_too_long_are_refused(declaration):
    least, most = declaration.octets
    assert reason_of(tlv(declaration.wire_type, bytes(least - 1))) == "option-length"
    assert reason_of(tlv(declaration.wire_type, bytes(most + 1))) == "option-length"


@pytest.mark.parametrize(
    "option",
    [
        Epoch(2**64),
        Epoch(-1),
        AttachId(2**64),
        Timestamp(-1),
        VmId(VmKey(2**32, "a")),
        VmId(VmKey(-1, "a")),
        VmId(VmKey(0, "")),
        VmId(VmKey(0, "x" * 65)),
        Ticket(bytes(15)),
        Ticket(bytes(17)),
        Nonce(bytes(15)),
        Nonce(bytes(17)),
        KnownBoot(-1),
        KnownBoot(2**64),
        MobilityKind(Mobility.HOT, 65536),
        Definition(b""),
        Definition(bytes(1025)),
        Measurements(b"{"),
        Measurements(bytes(1025)),
        Endpoint(ip_address("10.0.2.2"), 0),
        Endpoint(ip_address("10.0.2.2"), 65536),
        Endpoint(ip_address("fe80::1"), 1),
        Supported(()),
        Supported((65536,)),
        Supported((1,) * 33),
        ServingNve(Nve("a b")),
        PreviousNve(Nve("a", IPv4Address("127.0.0.1"))),
        InterfaceGroup(Interface(MAC, (ip_network("fd01::/64"),) * 57)),
        UnknownOption(0x8001, b""),
        UnknownOption(1, b""),
        UnknownOption(AUTHENTICATION_TYPE, bytes(84)),
        UnknownOption(0x10000, b""),
        UnknownOption(0x7ABC, bytes(65536)),
    ],
    ids=lambda option: str(option)[:60],
)
def test_what_does_not_fit_is_not_encoded(option):
    with pytest.raises(ValueError, match=r"."):
        encode_option(option)


def test_an_interface_group_may_have_56_ipv6_prefixes():
    option = InterfaceGroup(Interface(MAC, (ip_network("fd01::/64"),) * 56))
    assert decode(encode_option(option)) == (option,)


# --- failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"\x80", b"\x80\x05", b"\x80\x05\x00", b"\x80\x05\x00\x08", tlv(0x8005, bytes(8))[:-1]]
)
def test_an_option_cut_short_is_truncated(data):
    assert reason_of(data) == "truncated"


@pytest.mark.parametrize("declaration", OPTIONS, ids=lambda d: d.name)
def test_only_repeatable_options_stand_twice(declaration):
    octets = next(bytes.fromhex(o) for v, o in EXAMPLES if type(v) is declaration.option)
    if declaration.repeatable:
        assert len(decode(octets * 2)) == 2
    else:
        assert reason_of(octets * 2) == "repeated-option"


def test_unknown_options_may_stand_twice():
    assert decode(tlv(0x7ABC, b"a") * 2) == (UnknownOption(0x7ABC, b"a"),) * 2


def test_an_unknown_option_that_must_be_understood_names_its_type():
    with pytest.raises(UnsupportedOption) as caught:
        decode(tlv(0x7ABC | MUST_UNDERSTAND, b"a"))
    assert caught.value.reason == "unsupported-option"
    assert caught.value.number == 0x7ABC


@pytest.mark.parametrize("bit", [0, MUST_UNDERSTAND])
def test_authentication_stands_only_at_the_end(bit):
    assert reason_of(tlv(AUTHENTICATION_TYPE | bit, bytes(84))) == "repeated-option"


@pytest.mark.parametrize(
    ("wire_type", "data", "reason"),
    [
        (0x8001, b"\0\0\0\0a b", "bad-value"),
        (0x8002, bytes(6), "bad-value"),
        (0x8003, b"\0\0", "bad-value"),
        (0x8004, b"\x01n\x04\xe0\0\0\x01", "bad-value"),
        (0x8008, b"\0\0\0", "bad-value"),
        (0x8009, b"\xff", "bad-value"),
        (0x8013, b"\xff", "bad-value"),
        (0x8014, b"\x05", "bad-value"),
        (0x8015, b"\x04", "bad-value"),
        (0x800C, b"\0\0\x04\x0a\0\0\x01", "bad-value"),
        (0x800C, b"\0\x01\x05\x0a\0\0\x01", "bad-value"),
        (0x800C, b"\0\x01\x04\x0a\0\0\x01\0", "trailing"),
        (0x800C, b"\0\x01\x06\x0a\0\0\x01", "truncated"),
        (0x000F, b"\0\x01\0", "truncated"),
    ],
)
def test_a_bad_value(wire_type, data, reason):
    assert reason_of(tlv(wire_type, data)) == reason


def test_words_for_people_never_spoil_a_message():
    (option,) = decode(tlv(0x0010, b"a\x00\xff"))
    assert isinstance(option, Reason)
    assert option.text.startswith("a?")


def test_a_protection_at_a_time_of_day():
    daily = Protection(False, 86_400_000, 10_000, "ab", 180)
    data = bytes.fromhex("801e 000d 02 05265c00 00002710 00b4 6162".replace(" ", ""))
    assert decode(data) == (daily,)
    assert encode_option(daily) == data
    late = data.replace(b"\x00\xb4", b"\x05\xa0")  # 24:00
    assert reason_of(late) == "bad-value"
    often = data.replace(b"\x05\x26\x5c\x00", b"\x00\x00\x13\x88")  # daily, and every 5 s
    assert reason_of(often) == "bad-value"
    assert reason_of(data.replace(b"\x02\x05", b"\x04\x05")) == "bad-value"
