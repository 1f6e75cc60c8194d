"""The journal's bytes: file header, frames, and telling a torn end from damage in the middle.

    File header, 32 octets
     0        8          12                 20                 28        32
    +--------+----------+------------------+------------------+---------+
    | magic  | version  | sequence before  | snapshot octets  | CRC-32  |
    +--------+----------+------------------+------------------+---------+

    Frame, 16 octets and its payload; a length of zero is the end of the journal
     0        4        8                  16
    +--------+--------+------------------+----------------------------+
    | length | CRC-32 |     sequence     | payload: [[key, value], …] |
    +--------+--------+------------------+----------------------------+

Numbers are big endian.  A frame's CRC covers length, sequence and payload.  The payload is ASCII
JSON; a header always holds a zero octet, which ASCII JSON never does, so no frame can be hidden in
another's payload.  The first `snapshot octets` after the header were synced before the file got
its name: damage there is never a torn write.

Not here: files, syncs, locks (journal.py).  Rests on `zlib` and `json`.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vmmobility.errors import StoreError
from vmmobility.store.interface import Change

MAGIC = b"VMMOBJNL"
VERSION = 1
MAX_PAYLOAD = (1 << 24) - 1  # octets; keeps the first octet of every frame zero
_HEADER = struct.Struct(">8sIQQ")
_CRC = struct.Struct(">I")
HEADER_SIZE = _HEADER.size + _CRC.size
_FRAME = struct.Struct(">IIQ")
_COVERED = struct.Struct(">IQ")
FRAME_SIZE = _FRAME.size

EncodedChange = tuple[str, str | None]
"""A key and its value as compact JSON text; None deletes."""


class Damage(Exception):
    """The file is damaged at `offset`; the caller knows its name and the remedy."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(what)
        self.offset = offset
        self.what = what


@dataclass(frozen=True, slots=True)
class Header:
    """sequence: of the last frame before this file's first; snapshot: octets of synced frames."""

    sequence: int
    snapshot: int


@dataclass(frozen=True, slots=True)
class Frame:
    offset: int
    sequence: int
    payload: bytes

    @property
    def end(self) -> int:
        return self.offset + FRAME_SIZE + len(self.payload)


@dataclass(frozen=True, slots=True)
class Scan:
    """end: where the next frame goes; dropped: octets of a torn frame that stood there."""

    header: Header
    frames: tuple[Frame, ...]
    end: int
    dropped: int


def json_text(value: object) -> str:
    """Compact ASCII JSON.  Raises TypeError or ValueError if the value has none."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def encode_changes(changes: Sequence[Change]) -> list[EncodedChange]:
    """Raises TypeError or ValueError if a key is no string or a value is no JSON."""
    encoded: list[EncodedChange] = []
    for key, value in changes:
        if not isinstance(key, str):
            raise TypeError(f"a key is a string, not {key!r}")
        encoded.append((key, None if value is None else json_text(value)))
    return encoded


def payload_of(changes: Iterable[EncodedChange]) -> bytes:
    pairs = (f"[{json_text(key)},{value or 'null'}]" for key, value in changes)
    return f"[{','.join(pairs)}]".encode("ascii")


def changes_of(frame: Frame) -> list[EncodedChange]:
    """Raises Damage if the payload is no list of pairs (its CRC held: a foreign writer)."""
    try:
        pairs = json.loads(frame.payload)
        if isinstance(pairs, list):
            return encode_changes([(key, value) for key, value in pairs])
    except (TypeError, ValueError, RecursionError):
        pass
    raise Damage(frame.offset, "its checksum holds but it is no list of changes")


def encode_frame(sequence: int, payload: bytes) -> bytes:
    """Raises StoreError if the payload is longer than MAX_PAYLOAD octets."""
    if len(payload) > MAX_PAYLOAD:
        raise StoreError(
            f"a batch of {len(payload)} octets is more than a frame holds ({MAX_PAYLOAD})",
            "write it as several batches",
        )
    return _FRAME.pack(len(payload), _checksum(sequence, payload), sequence) + payload


def _checksum(sequence: int, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(_COVERED.pack(len(payload), sequence)))


def encode_header(header: Header) -> bytes:
    head = _HEADER.pack(MAGIC, VERSION, header.sequence, header.snapshot)
    return head + _CRC.pack(zlib.crc32(head))


def decode_header(data: bytes) -> Header:
    """Raises Damage if it is no header of ours or of another version."""
    if len(data) < HEADER_SIZE:
        raise Damage(0, "its header is cut off")
    magic, version, sequence, snapshot = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise Damage(0, "it is no journal of vmmobility")
    if _CRC.unpack_from(data, _HEADER.size)[0] != zlib.crc32(data[: _HEADER.size]):
        raise Damage(0, "its header has a bad checksum")
    if version != VERSION:
        raise Damage(8, f"it has version {version}, this program knows {VERSION}")
    return Header(sequence, snapshot)


def _frame_at(data: bytes, offset: int, lowest: int, highest: int) -> Frame | None:
    """The valid frame at this offset, if its sequence is in lowest..highest."""
    if offset + FRAME_SIZE > len(data):
        return None
    length, crc, sequence = _FRAME.unpack_from(data, offset)
    start = offset + FRAME_SIZE
    # The cheap tests come first: a search for later frames asks at every octet.
    if not (lowest <= sequence <= highest and 0 < length <= min(MAX_PAYLOAD, len(data) - start)):
        return None
    payload = memoryview(data)[start : start + length]
    return Frame(offset, sequence, bytes(payload)) if _checksum(sequence, payload) == crc else None


def scan(data: bytes) -> Scan:
    """Read a whole journal.

    A bad frame with nothing valid after it is a write that a crash tore: it is dropped.  Raises
    Damage if valid frames follow a bad one, or if the damage is in the snapshot or the header.
    """
    header = decode_header(data)
    frames: list[Frame] = []
    offset, sequence = HEADER_SIZE, header.sequence
    while frame := _frame_at(data, offset, sequence + 1, sequence + 1):
        frames.append(frame)
        offset, sequence = frame.end, frame.sequence
    if offset < HEADER_SIZE + header.snapshot:
        raise Damage(offset, "its snapshot is damaged")
    written = len(data.rstrip(b"\0"))
    if written > offset and (later := _later_frame(data[:written], offset, sequence)):
        raise Damage(offset, f"a frame is damaged, but a valid one stands at {later.offset}")
    return Scan(header, tuple(frames), offset, max(0, written - offset))


def _later_frame(data: bytes, start: int, sequence: int) -> Frame | None:
    """The first valid frame at any octet from `start`, of a sequence that could have followed."""
    highest = sequence + 2 + len(data) // FRAME_SIZE
    candidates = (_frame_at(data, at, sequence + 1, highest) for at in range(start, len(data)))
    return next(filter(None, candidates), None)
