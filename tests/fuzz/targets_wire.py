"""Fuzz targets of the wire: a datagram's part, parts joined, options, the seal."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator

from tests.fuzz import seeds
from tests.fuzz.target import Target
from vmmobility.errors import DecodeError
from vmmobility.wire import dissect
from vmmobility.wire.authentication import DIGEST, TRAILER, open_sealed, read_seal, seal
from vmmobility.wire.cursor import Cursor
from vmmobility.wire.message import HEADER, Part, decode_part, encode_parts, join_parts
from vmmobility.wire.options import OPTIONS, decode_options, encode_option
from vmmobility.wire.registry import MAX_DATAGRAM

SECRET = bytes(32)
WORDS = tuple(d.wire_type.to_bytes(2, "big") + size.to_bytes(2, "big")
              for d in OPTIONS for size in {*d.octets})  # fmt: skip


def with_length(data: bytes) -> bytes:
    """Length is right again."""
    return data[:6] + len(data).to_bytes(2, "big") + data[8:] if 8 <= len(data) < 65536 else data


def part(data: bytes) -> str:
    try:
        found = decode_part(data, TRAILER)
        message = join_parts([found]) if found.count == 1 else found.message
    except DecodeError as error:
        return error.reason
    [again] = encode_parts(message, 1 << 16, TRAILER)
    assert decode_part(again + bytes(TRAILER), TRAILER).message == message, "it changed"
    written = json.loads(json.dumps(dissect.readable(message)))
    assert dissect.message_of(written) == message, "it is another one when written out"
    return " ".join(("value", *sorted({type(o).__name__ for o in message.options})))


def split(data: bytes) -> Iterator[bytes]:
    """The datagrams of an input: each after its length in two octets."""
    while data:
        size = int.from_bytes(data[:2], "big")
        yield data[2 : 2 + size]
        data = data[2 + size :]


def joined(datagrams: tuple[bytes, ...]) -> bytes:
    return b"".join(len(d).to_bytes(2, "big") + d for d in datagrams)


def parts(data: bytes) -> str:
    try:
        found: list[Part] = [decode_part(with_length(d), TRAILER) for d in split(data)]
        message = join_parts(found) if found else None
    except DecodeError as error:
        return error.reason
    if message is None:
        return "nothing"
    assert len(message.options) == sum(len(p.message.options) for p in found)
    try:
        definition = len(message.definition)
    except DecodeError as error:
        return f"value of {len(found)}, definition {error.reason}"
    return f"value of {len(found)}" + (" with a definition" if definition else "")


def options(data: bytes) -> str:
    try:
        found = decode_options(Cursor(data, "message"))
    except DecodeError as error:
        return error.reason
    again = b"".join(map(encode_option, found))
    assert decode_options(Cursor(again, "message")) == found, "they changed"
    return f"value of {min(len(found), 20)}"


def sealed(data: bytes) -> str:
    try:
        mark = open_sealed(data, lambda sender, key: SECRET if key < 1 << 31 else None)
    except DecodeError as error:
        return error.reason
    assert seal(data[:-TRAILER], mark, SECRET) == data, "another seal says the same"
    return "value"


def with_seal(data: bytes) -> bytes:
    """The digest is right again, under whatever the seal claims."""
    try:
        read_seal(data)
    except DecodeError:
        return data
    return data[:-DIGEST] + hmac.digest(SECRET, data[:-DIGEST], "sha256")


def _messages_in_parts() -> Iterator[bytes]:
    whole: list[bytes] = []
    for datagram in seeds.datagrams():
        try:
            found = decode_part(datagram, TRAILER)
        except DecodeError:
            continue
        whole = [datagram] if found.number == 1 else [*whole, datagram]
        if found.number == found.count == len(whole):
            yield joined(tuple(whole))


TARGETS = (
    Target("wire-part", part, seeds.datagrams, WORDS, with_length, MAX_DATAGRAM + 8, 3.0),
    Target("wire-parts", parts, lambda: _messages_in_parts(), WORDS, longest=8192),
    Target("wire-options", options,
           lambda: [d[HEADER:-TRAILER] for d in seeds.datagrams() if len(d) > HEADER + TRAILER],
           WORDS, longest=MAX_DATAGRAM, weight=2.0),
    Target("wire-seal", sealed, seeds.datagrams, (b"\x80\x0e\0\x54",), with_seal, MAX_DATAGRAM + 8),
)  # fmt: skip
