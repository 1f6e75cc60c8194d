"""Names, addresses, prefixes, interfaces and NVEs as octets."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from vmmobility.errors import DecodeError
from vmmobility.wire import formats
from vmmobility.wire.cursor import Cursor
from vmmobility.wire.registry import Mobility, Phase
from vmmobility.wire.values import Interface, Nve


def cursor(data: bytes) -> Cursor:
    return Cursor(data, "test")


def reason_of(decode, data: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(cursor(data))
    return caught.value.reason


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("good", ["a", "vm-1", "x" * 64, "blå", "ю" * 32, "a:b@c.d"])
def test_a_name_comes_back(good):
    assert formats.take_name(cursor(formats.name(good))) == good


@pytest.mark.parametrize(
    "bad", ["", "x" * 65, "ю" * 33, "a b", "a/b", "a\nb", "a\x7f", "\u200b", "\u00a0", "\ud800"]
)
def test_a_bad_name_is_neither_encoded_nor_decoded(bad):
    with pytest.raises(ValueError, match="a name has"):
        formats.name(bad)
    assert reason_of(formats.take_name, bad.encode("utf-8", "surrogatepass")) == "bad-value"


@pytest.mark.parametrize("octets", [b"\xc3\x28", b"\xff", b"\xed\xa0\x80", b"\xc0\xaf"])
def test_a_name_is_utf_8(octets):
    assert reason_of(formats.take_name, octets) == "bad-value"


def test_a_node_has_a_shorter_name_than_a_vm():
    formats.check_name("n" * 64)
    with pytest.raises(ValueError, match="1 to 32 octets"):
        formats.nve(Nve("n" * 33))


# --- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "octets", "expected"),
    [
        ("all is lost", 256, b"all is lost"),
        ("abcdef", 3, b"abc"),
        ("aюю", 4, "aю".encode()),  # never half a character
        ("a\nb\ud800", 256, b"a?b?"),
        ("", 256, b"?"),
    ],
)
def test_words_are_cut_and_cleaned_when_sent(words, octets, expected):
    assert formats.clip_text(words, octets) == expected


@pytest.mark.parametrize(
    ("octets", "expected"), [(b"a\x00b", "a?b"), (b"\xff\xfe", "??"), ("ok ю".encode(), "ok ю")]
)
def test_words_never_spoil_a_message(octets, expected):
    assert formats.take_words(cursor(octets)) == expected


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "value"), [(Mobility, 0), (Mobility, 5), (Phase, 255)])
def test_a_number_outside_its_registry_is_a_bad_value(kind, value):
    with pytest.raises(DecodeError) as caught:
        formats.member(kind, value)
    assert caught.value.reason == "bad-value"


# --- addresses and prefixes -------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["10.1.0.5/32", "10.1.0.0/24", "0.0.0.0/0", "fd01::5/128", "2001:db8::/32", "::/0"],
)
def test_a_prefix_comes_back(text):
    prefix = ip_network(text)
    encoded = formats.prefix(prefix)
    assert len(encoded) == (6 if prefix.version == 4 else 18)
    taken = cursor(encoded)
    assert formats.take_prefix(taken) == prefix
    taken.finish()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x04\x18\x0a\x00\x00\x01", "bad-value"),  # host bits
        (b"\x04\x21\x0a\x00\x00\x01", "bad-value"),  # 33 bits
        (b"\x06\x81" + bytes(16), "bad-value"),  # 129 bits
        (b"\x05\x20" + bytes(16), "bad-value"),  # no such family
        (b"\x04\x20\x0a\x00\x00", "truncated"),
        (b"\x06\x80" + bytes(15), "truncated"),
        (b"\x04", "truncated"),
    ],
)
def test_a_bad_prefix(data, reason):
    assert reason_of(formats.take_prefix, data) == reason


# --- interfaces -------------------------------------------------------------------------------


@pytest.mark.parametrize("prefixes", [(), ("10.1.0.5/32",), ("fd01::5/128", "10.1.0.0/30")])
def test_an_interface_comes_back(prefixes):
    interface = Interface(bytes.fromhex("525400000001"), tuple(ip_network(p) for p in prefixes))
    assert formats.take_interface(cursor(formats.interface(interface))) == interface


@pytest.mark.parametrize("mac", [bytes(6), b"\xff" * 6, b"\x01\x00\x5e\x00\x00\x01"])
def test_a_mac_is_one_interface_s(mac):
    with pytest.raises(ValueError, match="MAC"):
        formats.interface(Interface(mac, ()))
    assert reason_of(formats.take_interface, mac) == "bad-value"


def test_a_mac_has_six_octets():
    with pytest.raises(ValueError, match="MAC"):
        formats.interface(Interface(b"\x02" * 5, ()))
    assert reason_of(formats.take_interface, b"\x02" * 5) == "truncated"


# --- NVEs -------------------------------------------------------------------------------------

V4, V6 = IPv4Address("10.0.1.2"), IPv6Address("fd00:0:1::2")


@pytest.mark.parametrize("nve", [Nve("a", V4, V6), Nve("a", V4), Nve("a", None, V6), Nve("a")])
def test_an_nve_comes_back(nve):
    assert formats.take_nve(cursor(formats.nve(nve))) == nve


def test_locators_are_taken_in_either_order():
    octets = b"\x01a" + formats.address(V6) + formats.address(V4)
    assert formats.take_nve(cursor(octets)) == Nve("a", V4, V6)


@pytest.mark.parametrize(
    "text", ["169.254.1.1", "127.0.0.1", "224.0.0.1", "0.0.0.0", "fe80::1", "::1", "ff02::1", "::"]
)
def test_some_addresses_are_never_locators(text):
    locator = ip_address(text)
    nve = Nve("a", locator) if locator.version == 4 else Nve("a", None, locator)
    with pytest.raises(ValueError, match="cannot be a locator"):
        formats.nve(nve)
    assert reason_of(formats.take_nve, b"\x01a" + formats.address(locator)) == "bad-value"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00", "bad-value"),  # no name
        (b"\x02a", "truncated"),
        (b"\x01a\x04\x0a\x00\x01", "truncated"),
        (b"\x01a\x07\x0a\x00\x01\x02", "bad-value"),
        (b"\x01a" + formats.address(V4) * 2, "bad-value"),
        (b"\x01a" + formats.address(V6) * 2, "bad-value"),
        (b"\x21" + b"n" * 33, "bad-value"),
        (b"", "truncated"),
    ],
)
def test_a_bad_nve(data, reason):
    assert reason_of(formats.take_nve, data) == reason
