"""The Authentication option: the last of every datagram, over all octets before its digest.

    0                   1                   2                   3
    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |1|         Type = 14           |          Length               |
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |                            Key-ID                             |
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |                       Boot (64 bits)                          |
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |                      Counter (64 bits)                        |
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |              Sender (32 octets, padded with zeros)            |
   |              HMAC-SHA-256 (32 octets)                         |
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

The sender is named inside the authenticated octets, so a message cannot be turned back at its
author.  Boot orders a sender's restarts; Counter orders its datagrams within one.
Rests on `hmac`; not here: replay windows (engine/replay_window.py), keys' files (daemon/keys.py).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass

from vmmobility.errors import DecodeError
from vmmobility.wire import formats
from vmmobility.wire.cursor import Cursor
from vmmobility.wire.options import AUTHENTICATION_TYPE, MUST_UNDERSTAND, OPTION_HEADER

DIGEST = 32
SENDER = 32
DATA = 4 + 8 + 8 + SENDER + DIGEST
TRAILER = OPTION_HEADER + DATA
MAX_BOOT = (1 << 63) - 1

_HEAD = (AUTHENTICATION_TYPE | MUST_UNDERSTAND).to_bytes(2, "big") + DATA.to_bytes(2, "big")


@dataclass(frozen=True, slots=True)
class Seal:
    """Who sent a datagram, under which key, and its place in the sender's order."""

    sender: str
    key_id: int
    boot: int
    counter: int


def seal(datagram: bytes, mark: Seal, secret: bytes) -> bytes:
    """The datagram (its Length already counts TRAILER) with its authentication option.

    Raises ValueError if the mark's sender is no node's name or a number does not fit.
    """
    sender = formats.name(mark.sender, SENDER)
    if not (
        0 <= mark.key_id < 1 << 32 and 1 <= mark.boot <= MAX_BOOT and 0 <= mark.counter < 1 << 64
    ):
        raise ValueError(f"the seal's numbers do not fit: {mark}")
    signed = b"".join(
        (
            datagram,
            _HEAD,
            mark.key_id.to_bytes(4, "big"),
            mark.boot.to_bytes(8, "big"),
            mark.counter.to_bytes(8, "big"),
            sender.ljust(SENDER, b"\0"),
        )
    )
    return signed + hmac.digest(secret, signed, "sha256")


def read_seal(datagram: bytes) -> Seal:
    """The claim in a datagram's last option, not yet verified.

    Raises DecodeError: truncated, unauthenticated (no such option at the end), bad-value.
    """
    if len(datagram) < TRAILER:
        raise DecodeError("truncated", f"{len(datagram)} octets hold no authentication")
    cursor = Cursor(datagram[-TRAILER:], "Authentication")
    if cursor.take(OPTION_HEADER) != _HEAD:
        raise DecodeError("unauthenticated", "the last option is not Authentication")
    key_id, boot, counter = cursor.uint(4), cursor.uint(8), cursor.uint(8)
    if not 1 <= boot <= MAX_BOOT:
        raise DecodeError("bad-value", f"boot {boot} is not 1 to 2^63 - 1")
    name = cursor.take(SENDER).rstrip(b"\0")
    try:
        sender = formats.check_name(name.decode("utf-8"), SENDER)
    except ValueError as error:  # UnicodeDecodeError is one
        raise DecodeError("bad-value", f"the sender's name: {error}") from None
    return Seal(sender, key_id, boot, counter)


def verify(datagram: bytes, secret: bytes) -> bool:
    """Whether the digest at the datagram's end is right under this secret (constant time)."""
    expected = hmac.digest(secret, datagram[:-DIGEST], "sha256")
    return hmac.compare_digest(expected, datagram[-DIGEST:])


def open_sealed(datagram: bytes, secret_of: Callable[[str, int], bytes | None]) -> Seal:
    """The verified seal.  `secret_of(sender, key_id)` gives the secret or None.

    Raises DecodeError: what read_seal raises, unknown-key, bad-digest.
    """
    mark = read_seal(datagram)
    secret = secret_of(mark.sender, mark.key_id)
    if secret is None:
        raise DecodeError("unknown-key", f"no key {mark.key_id} of sender {mark.sender!r}")
    if not verify(datagram, secret):
        raise DecodeError("bad-digest", f"wrong digest under key {mark.key_id} of {mark.sender}")
    return mark
