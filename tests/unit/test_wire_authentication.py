"""The seal: what it covers, how it is read, and every way in which it fails."""

import hashlib
import hmac
import struct

import pytest

from vmmobility.errors import DecodeError
from vmmobility.wire.authentication import (
    DATA,
    DIGEST,
    TRAILER,
    Seal,
    open_sealed,
    read_seal,
    seal,
    verify,
)

SECRET = bytes(range(32))
MARK = Seal("nve-a", 7, 2**63 - 1, 2**64 - 1)
BODY = b"sixteen octets.."


def secrets(sender: str, key_id: int) -> bytes | None:
    return SECRET if (sender, key_id) == ("nve-a", 7) else None


def reason_of(datagram: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        open_sealed(datagram, secrets)
    return caught.value.reason


def test_a_seal_is_the_last_88_octets():
    sealed = seal(BODY, MARK, SECRET)
    signed = BODY + struct.pack("!HHIQQ32s", 0x800E, 84, 7, 2**63 - 1, 2**64 - 1, b"nve-a")
    assert sealed == signed + hmac.new(SECRET, signed, hashlib.sha256).digest()
    assert len(sealed) - len(BODY) == TRAILER == 88
    assert DATA == 84


def test_a_seal_opens_under_its_key():
    sealed = seal(BODY, MARK, SECRET)
    assert read_seal(sealed) == open_sealed(sealed, secrets) == MARK
    assert verify(sealed, SECRET)
    assert not verify(sealed, SECRET[::-1])


def test_every_bit_counts():
    sealed = seal(BODY, MARK, SECRET)
    for at in range(len(sealed)):
        for bit in (0x01, 0x80):
            changed = sealed[:at] + bytes([sealed[at] ^ bit]) + sealed[at + 1 :]
            assert reason_of(changed) in {
                "bad-digest", "bad-value", "unauthenticated", "unknown-key",
            }  # fmt: skip


def test_a_digest_that_is_cut_or_moved_fails():
    sealed = seal(BODY, MARK, SECRET)
    assert reason_of(sealed[1:]) == "bad-digest"
    assert reason_of(sealed[:-1]) == "unauthenticated"
    assert reason_of(sealed + b"\0") == "unauthenticated"
    assert reason_of(sealed[-TRAILER + 1 :]) == "truncated"
    assert reason_of(b"") == "truncated"


@pytest.mark.parametrize("mark", [Seal("nve-b", 7, 1, 1), Seal("nve-a", 8, 1, 1)])
def test_a_key_belongs_to_a_pair_and_has_a_number(mark):
    assert reason_of(seal(BODY, mark, SECRET)) == "unknown-key"


def test_a_message_cannot_be_turned_back_at_its_author():
    """The receiver knows no key of its own name: the same bytes come from no peer."""
    ours = seal(BODY, Seal("manager", 7, 1, 1), SECRET)
    assert reason_of(ours) == "unknown-key"


def resigned(sender: bytes) -> bytes:
    signed = seal(BODY, MARK, SECRET)[: -DIGEST - 32] + sender.ljust(32, b"\0")
    return signed + hmac.digest(SECRET, signed, "sha256")


@pytest.mark.parametrize("sender", [b"", b"a b", b"a/b", b"\xff", b"a\0b", b"a\n"])
def test_a_sender_has_a_node_s_name(sender):
    assert reason_of(resigned(sender)) == "bad-value"


@pytest.mark.parametrize(
    "mark",
    [
        Seal("", 1, 1, 1),
        Seal("n" * 33, 1, 1, 1),
        Seal("a b", 1, 1, 1),
        Seal("a", 2**32, 1, 1),
        Seal("a", -1, 1, 1),
        Seal("a", 1, 0, 1),
        Seal("a", 1, 2**63, 1),
        Seal("a", 1, 1, 2**64),
    ],
)
def test_a_mark_that_does_not_fit_is_not_sealed(mark):
    with pytest.raises(ValueError, match=r"."):
        seal(BODY, mark, SECRET)


@pytest.mark.parametrize("boot", [0, 2**63, 2**64 - 1])
def test_a_boot_is_from_1_to_2_63_less_1(boot):
    signed = seal(BODY, MARK, SECRET)[:-DIGEST]
    at = len(BODY) + 8
    signed = signed[:at] + boot.to_bytes(8, "big") + signed[at + 8 :]
    assert reason_of(signed + hmac.digest(SECRET, signed, "sha256")) == "bad-value"


def test_a_sender_may_have_32_octets():
    mark = Seal("n" * 32, 7, 1, 1)
    assert read_seal(seal(BODY, mark, SECRET)) == mark
