"""Whatever is encoded is decoded to the same; whatever comes in raises DecodeError or nothing."""

from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmobility.errors import DecodeError
from vmmobility.wire import dissect, formats
from vmmobility.wire.authentication import TRAILER, Seal, open_sealed, seal
from vmmobility.wire.cursor import Cursor
from vmmobility.wire.message import Message, decode_part, encode_parts, join_parts
from vmmobility.wire.move_terms import MAX_BANDWIDTH_MIB_S, MAX_DOWNTIME_MS, MAX_TIMEOUT_S
from vmmobility.wire.options import (
    BY_CLASS,
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
    VmId,
    decode_options,
    encode_option,
    is_unknown,
)
from vmmobility.wire.registry import (
    MAX_DATAGRAM,
    MAX_PARTS,
    CopyStorage,
    GuestLife,
    GuestState,
    Kind,
    Mobility,
    OnTimeout,
    Phase,
    Purpose,
    RouteState,
    Status,
)
from vmmobility.wire.values import Address, Interface, Nve, VmKey

SECRET = bytes(32)


def uints(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


def names(most: int) -> st.SearchStrategy[str]:
    characters = st.characters(
        codec="utf-8", exclude_characters=" /", exclude_categories=("C", "Z")
    )
    text = st.text(characters, min_size=1, max_size=most)
    return text.filter(lambda t: t.isprintable() and len(t.encode()) <= most)


def allowed(address: Address) -> bool:
    try:
        formats.check_locator(address)
    except ValueError:
        return False
    return True


ipv4 = uints(32).map(IPv4Address).filter(allowed)
ipv6 = uints(128).map(IPv6Address).filter(allowed)
prefixes = st.one_of(
    st.tuples(uints(32).map(IPv4Address), st.integers(0, 32)),
    st.tuples(uints(128).map(IPv6Address), st.integers(0, 128)),
).map(lambda pair: ip_network(pair, strict=False))
macs = st.binary(min_size=6, max_size=6).map(lambda m: bytes([m[0] & 0xFE]) + m[1:]).filter(any)
interfaces = st.builds(Interface, macs, st.lists(prefixes, max_size=5).map(tuple))
any_ipv4 = uints(32).map(IPv4Address)
ends = st.tuples(any_ipv4, uints(16))
tcp_states = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789", max_size=20)
nves = st.builds(Nve, names(32), st.none() | ipv4, st.none() | ipv6)
words = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="\ufffd"),
    min_size=1,
    max_size=60,
).filter(str.isprintable)
unknown_types = st.integers(0, 0x7FFF).filter(is_unknown)

OPTION_VALUES: dict[type, st.SearchStrategy[Option]] = {
    VmId: st.builds(VmId, st.builds(VmKey, uints(32), names(64))),
    InterfaceGroup: st.builds(InterfaceGroup, interfaces),
    ServingNve: st.builds(ServingNve, nves),
    PreviousNve: st.builds(PreviousNve, nves),
    Epoch: st.builds(Epoch, uints(64)),
    Ticket: st.builds(Ticket, st.binary(min_size=16, max_size=16)),
    AttachId: st.builds(AttachId, uints(64)),
    MobilityKind: st.builds(MobilityKind, st.sampled_from(Mobility), uints(16)),
    PhaseOption: st.builds(PhaseOption, st.sampled_from(Phase)),
    Timestamp: st.builds(Timestamp, uints(64)),
    Definition: st.builds(Definition, st.binary(min_size=1, max_size=1024)),
    Endpoint: st.builds(Endpoint, ipv4 | ipv6, st.integers(1, 65535)),
    Measurements: st.builds(Measurements, st.binary(min_size=2, max_size=1024)),
    Supported: st.builds(Supported, st.lists(uints(16), min_size=1, max_size=32).map(tuple)),
    Reason: st.builds(Reason, words),
    Nonce: st.builds(Nonce, st.binary(min_size=16, max_size=16)),
    KnownBoot: st.builds(KnownBoot, uints(64)),
    Guest: st.builds(Guest, st.sampled_from(GuestLife)),
    GuestStateOption: st.builds(
        GuestStateOption, st.sampled_from(GuestState), st.booleans(), uints(16), uints(64)
    ),
    Route: st.builds(Route, st.sampled_from(RouteState)),
    Sight: st.builds(Sight, st.booleans(), st.booleans()),
    OriginAuthentication: st.builds(
        OriginAuthentication, uints(32), uints(64), st.binary(min_size=32, max_size=32)
    ),
    Translation: st.builds(Translation, names(32), any_ipv4, any_ipv4),
    Mapping: st.builds(Mapping, names(32), any_ipv4, any_ipv4),
    Protection: st.one_of(
        st.builds(
            Protection,
            st.booleans(),
            st.integers(1, 2**32 - 1),
            st.integers(1, 2**32 - 1),
            st.text("0123456789abcdef", max_size=64),
        ),
        st.builds(
            Protection,
            st.booleans(),
            st.just(86_400_000),
            st.integers(1, 2**32 - 1),
            st.text("0123456789abcdef", max_size=64),
            st.integers(0, 1439),
        ),
    ),
    GroupOption: st.builds(GroupOption, uints(64), st.integers(1, 2**16 - 1), names(64)),
    GroupMember: st.builds(GroupMember, st.integers(1, 2**16 - 1), nves),
    Checkpoint: st.builds(Checkpoint, uints(64), uints(32)),
    Capacity: st.builds(Capacity, st.integers(1, 2**32 - 1), *[uints(32)] * 6),
    FlowOption: st.builds(
        FlowOption, uints(8), st.booleans(), ends, ends, ends, uints(32), tcp_states
    ),
    MoveTerms: st.builds(
        MoveTerms,
        st.integers(1, MAX_TIMEOUT_S),
        st.sampled_from(OnTimeout),
        st.integers(0, MAX_BANDWIDTH_MIB_S),
        st.integers(0, MAX_DOWNTIME_MS),
        st.sampled_from(CopyStorage),
    ),
}
unknown_options = st.builds(UnknownOption, unknown_types, st.binary(max_size=200))
options = st.one_of(*OPTION_VALUES.values(), unknown_options)


def stands_once(found: list[Option]) -> tuple[Option, ...]:
    """The list without second ones of what may stand once."""
    kept: list[Option] = []
    for option in found:
        once = type(option) in BY_CLASS and not BY_CLASS[type(option)].repeatable
        if not (once and any(type(k) is type(option) for k in kept)):
            kept.append(option)
    return tuple(kept)


def some_options(most: int) -> st.SearchStrategy[tuple[Option, ...]]:
    return st.lists(options, max_size=most).map(stands_once)


def messages(most: int = 12) -> st.SearchStrategy[Message]:
    requests = st.builds(
        Message, st.just(Kind.REQUEST), st.sampled_from(Purpose), uints(32), some_options(most),
        uints(16), flags=uints(16),
    )  # fmt: skip
    replies = st.builds(
        Message, st.just(Kind.REPLY), st.sampled_from(Purpose), uints(32), some_options(most),
        uints(16), st.sampled_from(Status), uints(16),
    )  # fmt: skip
    return requests | replies


def sealed(message: Message, room: int = MAX_DATAGRAM) -> list[bytes]:
    return [
        seal(part, Seal("nve-a", 1, 5, counter), SECRET)
        for counter, part in enumerate(encode_parts(message, room, TRAILER), 1)
    ]


def read(datagrams: list[bytes]) -> Message:
    for datagram in datagrams:
        open_sealed(datagram, lambda *_: SECRET)
    return join_parts([decode_part(d, TRAILER) for d in datagrams])


def test_every_option_has_a_strategy():
    assert set(OPTION_VALUES) == {d.option for d in OPTIONS}


@given(messages())
def test_a_message_comes_back(message):
    datagrams = sealed(message)
    assert all(len(d) <= MAX_DATAGRAM for d in datagrams)
    assert read(datagrams) == message


@given(messages())
def test_encoding_what_was_decoded_gives_the_same_octets(message):
    datagrams = sealed(message)
    assert sealed(read(datagrams)) == datagrams


@given(messages())
def test_a_message_comes_back_from_json(message):
    assert dissect.message_of(dissect.readable(message)) == message


@given(st.lists(unknown_options, min_size=1, max_size=40), st.integers(308, 700))
def test_a_message_is_cut_to_any_room_and_joined(found, room):
    message = Message(Kind.REQUEST, Purpose.PREPARE, 7, tuple(found))
    try:
        datagrams = sealed(message, room)
    except ValueError:
        assert sum(len(o.data) + 4 for o in found) > MAX_PARTS * (room - 308)
        return
    assert all(len(d) <= room for d in datagrams)
    assert read(datagrams) == message
    for datagram, following in pairwise(datagrams):
        head = int.from_bytes(following[18:20], "big") + 4  # cut as late as possible
        assert len(datagram) + head > room


@given(options)
def test_an_option_keeps_within_its_declaration(option):
    octets = encode_option(option)
    assert decode_options(Cursor(octets, "message")) == (option,)
    if not isinstance(option, UnknownOption):
        least, most = BY_CLASS[type(option)].octets
        assert least <= len(octets) - 4 <= most


# --- whatever comes in ------------------------------------------------------------------------


def must_stand(datagram: bytes) -> None:
    """Decoding raises DecodeError or gives a message that encodes, and decodes to itself."""
    try:
        part = decode_part(datagram, TRAILER)
        message = join_parts([part]) if part.count == 1 else part.message
    except DecodeError:
        return
    again = sealed(message)
    assert len(again) == 1
    assert decode_part(again[0], TRAILER).message == message
    dissect.readable(message)


@given(st.binary(max_size=300))
def test_arbitrary_octets_raise_nothing_but_decode_error(data):
    with pytest.raises(DecodeError):
        open_sealed(data, lambda *_: SECRET)
    must_stand(data)


@given(st.binary(max_size=200), st.sampled_from(Kind), st.sampled_from(Purpose))
def test_arbitrary_options_under_a_good_header(body, kind, purpose):
    head = bytes((1, kind, purpose, 0, 0, 0)) + (16 + len(body) + TRAILER).to_bytes(2, "big")
    must_stand(head + bytes(6) + b"\1\1" + body + bytes(TRAILER))


@given(st.sampled_from(OPTIONS), st.data())
def test_arbitrary_data_in_a_known_option(declaration, data):
    least, most = declaration.octets
    inner = data.draw(st.binary(min_size=least, max_size=min(most, 80)))
    body = declaration.wire_type.to_bytes(2, "big") + len(inner).to_bytes(2, "big") + inner
    head = b"\1\1\1\0\0\0" + (16 + len(body) + TRAILER).to_bytes(2, "big")
    must_stand(head + bytes(6) + b"\1\1" + body + bytes(TRAILER))


@given(messages(6), st.data())
def test_a_mutated_datagram(message, data):
    datagram = bytearray(sealed(message)[0])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(datagram) - TRAILER - 1))
        change = data.draw(st.sampled_from(("set", "cut", "insert")))
        if change == "set":
            datagram[at] = data.draw(uints(8))
        elif change == "cut":
            del datagram[at : at + data.draw(st.integers(1, 4))]
        else:
            datagram[at:at] = data.draw(st.binary(min_size=1, max_size=4))
        if len(datagram) <= TRAILER:
            break
    if bytes(datagram) != sealed(message)[0]:
        with pytest.raises(DecodeError):
            open_sealed(bytes(datagram), lambda *_: SECRET)
    datagram[6:8] = len(datagram).to_bytes(2, "big")
    must_stand(bytes(datagram))
