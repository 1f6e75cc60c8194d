"""Datagrams in a recording: without digests, and yet the replayed engine decides as the first did.

The recorder writes a datagram without its digest and whether that was right; replay seals it again
under stand-in secrets, rightly or wrongly.  So neither secrets nor digests are in the file.

Rests on wire.authentication.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Any

from vmmobility.errors import DecodeError
from vmmobility.wire.authentication import DIGEST, read_seal, verify
from vmmobility.wire.registry import MAX_DATAGRAM

SecretOf = Callable[[str, int], bytes | None]

RIGHT = "$sealed"  # the digest was right
WRONG = "$missealed"  # it was wrong, or there is no such key
BARE = "$octets"  # no seal could be read at all
LONG = "$long"  # too long to be read: its length alone


def stand_in(peer: str, key_id: int) -> bytes:
    """The secret that replay uses in the place of that key's."""
    return hashlib.sha256(f"stand-in {key_id} {peer}".encode()).digest()


def strip(datagram: bytes, secret_of: SecretOf) -> dict[str, Any]:
    """A received datagram as it is written.  secret_of: what the engine knows at this moment."""
    if len(datagram) > MAX_DATAGRAM:
        return {LONG: len(datagram)}
    try:
        mark = read_seal(datagram)
    except DecodeError:
        return {BARE: datagram.hex()}
    secret = secret_of(mark.sender, mark.key_id)
    right = secret is not None and verify(datagram, secret)
    return {RIGHT if right else WRONG: datagram[:-DIGEST].hex()}


def sent(datagram: bytes) -> str:
    """A datagram of our own as it is written: its seal is right, its digest left out."""
    return datagram[:-DIGEST].hex()


def reseal(written: Mapping[str, Any], secret_of: SecretOf) -> bytes:
    """The datagram that the replayed engine is given.  Raises KeyError, ValueError or TypeError."""
    if LONG in written:
        return bytes(int(written[LONG]))
    if BARE in written:
        return bytes.fromhex(written[BARE])
    signed = bytes.fromhex(written[RIGHT] if RIGHT in written else written[WRONG])
    try:
        mark = read_seal(signed + bytes(DIGEST))
    except DecodeError as error:
        raise ValueError(f"a datagram without a seal: {error}") from None
    secret = secret_of(mark.sender, mark.key_id) or bytes(DIGEST)
    digest = hmac.digest(secret, signed, "sha256")
    return signed + (digest if RIGHT in written else bytes(octet ^ 0xFF for octet in digest))


def decodable(written: str) -> bytes:
    """A datagram of `sent`, long enough again for wire.message.decode_part."""
    return bytes.fromhex(written) + bytes(DIGEST)
