"""Frames between an NVE that stands apart and the agent of one of its servers (TCP).

Each is four octets of length, then so many octets.  The first of each side is its greeting, JSON in
the clear; all later ones are sealed:

    0                   1                   2                   3
    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
   |                            Length                             |
   |                      Counter (64 bits)                        |
   |                      JSON (Length - 40 octets)                |
   |                HMAC-SHA-256 (32 octets)                       |
   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

Each side seals with a key of its own, which follows from the pair's key and from both greetings,
that is from both sides' nonces: what is recorded of one connection is worth nothing in another.
Counters count by one, so that nothing is repeated, left out or turned round within a connection.

Not here: what the frames say (drivers/hypervisor/server_session.py), sockets, keys' files.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vmmobility.errors import DecodeError
from vmmobility.wire import authentication

VERSION = 1
SERVER_PORT = 8747  # TCP: where an agent listens, the protocol's number
CIRCUIT_PORT = 8748  # UDP: VXLAN between a server and its NVE
MAX_FRAME = 1 << 20  # octets
NONCE = 32  # octets
_LENGTH = 4
_COUNTER = 8
_LEAST = _COUNTER + authentication.DIGEST


@dataclass(frozen=True, slots=True)
class Greeting:
    """The first frame of a side.

    name, peer: the sender, and whom it speaks to; key: the number of the pair's key that is used
    (the NVE's choice; the agent repeats it); nonce: NONCE random octets
    instance: names this run of the sender's process; heard: the number of the last message that it
    has of the receiver's instance `of`
    """

    name: str
    peer: str
    key: int
    nonce: bytes
    instance: str
    of: str = ""
    heard: int = 0

    def encode(self) -> bytes:
        """The frame's octets, without its length."""
        document = {
            "version": VERSION,
            "name": self.name,
            "peer": self.peer,
            "key": self.key,
            "nonce": self.nonce.hex(),
            "instance": self.instance,
            "of": self.of,
            "heard": self.heard,
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, body: bytes) -> Greeting:
        """Raises DecodeError."""
        found = read_document(body)
        if found.get("version") != VERSION:
            what = f"version {found.get('version')!r} of the servers' protocol, not {VERSION}"
            raise DecodeError("unsupported-version", what)
        try:
            nonce = bytes.fromhex(found["nonce"])
            texts = [found[key] for key in ("name", "peer", "instance", "of")]
            numbers = [found[key] for key in ("key", "heard")]
        except (KeyError, TypeError, ValueError):
            raise DecodeError("bad-value", "a greeting lacks something") from None
        whole = all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)
        if len(nonce) != NONCE or not whole or not all(isinstance(t, str) for t in texts):
            raise DecodeError("bad-value", "a greeting holds what it should not")
        name, peer, instance, of = texts
        return cls(name, peer, numbers[0], nonce, instance, of, numbers[1])


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """What the two sides of one connection seal with."""

    nve: bytes
    server: bytes


def session_keys(secret: bytes, nve_greeting: bytes, server_greeting: bytes) -> SessionKeys:
    """The keys of a connection that began with these two frames."""
    both = b"".join(
        len(one).to_bytes(_LENGTH, "big") + one for one in (nve_greeting, server_greeting)
    )
    base = hmac.digest(secret, b"vmmobility server session" + both, "sha256")
    return SessionKeys(
        hmac.digest(base, b"from the NVE", "sha256"),
        hmac.digest(base, b"from the server", "sha256"),
    )


class Sealer:
    """Seals what one side sends, in order."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._counter = 0

    def seal(self, body: bytes) -> bytes:
        """The frame with its length, ready to be sent."""
        self._counter += 1
        signed = self._counter.to_bytes(_COUNTER, "big") + body
        return frame(signed + hmac.digest(self._key, signed, "sha256"))


class Opener:
    """Opens what the other side has sealed.  After an error nothing more may be opened."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._counter = 0

    def open(self, sealed: bytes) -> bytes:
        """The body.  Raises DecodeError: truncated, bad-digest, replayed (out of its order)."""
        if len(sealed) < _LEAST:
            raise DecodeError("truncated", f"{len(sealed)} octets hold no sealed frame")
        if not authentication.verify(sealed, self._key):
            raise DecodeError("bad-digest", "a frame's digest is wrong")
        counter = int.from_bytes(sealed[:_COUNTER], "big")
        if counter != self._counter + 1:
            raise DecodeError("replayed", f"frame {counter} came after frame {self._counter}")
        self._counter = counter
        return sealed[_COUNTER : -authentication.DIGEST]


def frame(octets: bytes) -> bytes:
    """The octets behind their length."""
    return len(octets).to_bytes(_LENGTH, "big") + octets


def length_of(head: bytes) -> int:
    """How many octets follow these four.  Raises DecodeError if a frame has not so many."""
    length = int.from_bytes(head, "big")
    if not 0 < length <= MAX_FRAME:
        raise DecodeError("too-long", f"a frame of {length} octets")
    return length


def read_document(body: bytes) -> Mapping[str, Any]:
    """The JSON object in a frame.  Raises DecodeError."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DecodeError("bad-value", "a frame holds no JSON object")
    return found
