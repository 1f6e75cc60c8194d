"""Fuzz targets of what is kept on disk: the journal, and a daemon's recording.

A journal that is read at all holds exactly the records whose octets it has: none is invented.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.fuzz import seeds
from tests.fuzz.target import Target
from tests.unit.recorded_world import lossy_move_with_a_crash
from vmmobility.daemon.recording.reading import Input, open_recording
from vmmobility.errors import RecordingError, StoreError
from vmmobility.store import frames
from vmmobility.store.journal import Journal


@cache
def folder() -> Path:
    """Of this process, in memory where the machine has such a place; it goes with the process."""
    memory = Path("/dev/shm")
    holder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="fuzz-")
    _HOLDERS.append(holder)
    return Path(holder.name)


_HOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def _state(found: frames.Scan) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for frame in found.frames:
        for key, value in frames.changes_of(frame):
            state.pop(key, None) if value is None else state.update({key: json.loads(value)})
    return state


def _octets(found: frames.Scan) -> bytes:
    written = (frames.encode_frame(f.sequence, f.payload) for f in found.frames)
    return frames.encode_header(found.header) + b"".join(written)


def journal(data: bytes) -> str:
    try:
        found = frames.scan(data)
        state = _state(found)
    except frames.Damage as damage:
        return damage.what.rstrip("0123456789 ")
    assert _octets(found) == data[: found.end], "a record that was not written"
    assert found.end + found.dropped == len(data) or not data[found.end + found.dropped :].strip(
        b"\0"
    ), "octets are neither read nor dropped"
    return f"{min(len(state), 5)} keys" + (", torn" if found.dropped else "")


def journal_file(data: bytes) -> str:
    """The file itself: opened, written to, opened again."""
    place = folder() / "journal-target"
    place.mkdir(exist_ok=True)
    (place / "journal").write_bytes(data)
    try:
        store = Journal.open(place)
    except StoreError:
        return "StoreError"
    state = store.load()
    store.append([("fuzz", 1), ("gone", None)])
    store.close()
    again = Journal.open(place)
    assert again.load() == {**state, "fuzz": 1} or "gone" in state, "the state has changed"
    assert again.recovered is None, "what was cut is there again"
    again.close()
    return "opened, torn" if store.recovered else "opened"


def with_checksums(data: bytes) -> bytes:
    """The header's and every frame's checksum is right again, and sequences go on by one."""
    if len(data) < frames.HEADER_SIZE:
        return data
    _, _, sequence, snapshot = frames._HEADER.unpack_from(data)
    snapshot = min(snapshot, len(data) - frames.HEADER_SIZE)
    mended = frames.encode_header(frames.Header(sequence, snapshot))
    offset = frames.HEADER_SIZE
    while offset + frames.FRAME_SIZE < len(data) and sequence < (1 << 64) - 1:
        length = int.from_bytes(data[offset : offset + 4], "big")
        if not 0 < length <= len(data) - offset - frames.FRAME_SIZE:
            break
        sequence += 1
        start = offset + frames.FRAME_SIZE
        mended += frames.encode_frame(sequence, data[start : start + length])
        offset = start + length
    return mended + data[offset:]


def _journals() -> Iterator[bytes]:
    """What the engines have recorded, as a young journal and as one after a snapshot."""
    records = [p.changes for p in seeds.conversation()[1] if p.changes]
    for first, count, snapshot in ((0, 6, 0), (6, 12, 2), (0, 1, 1), (3, 0, 0)):
        written = [
            frames.encode_frame(number, frames.payload_of(frames.encode_changes(changes)))
            for number, changes in enumerate(records[first : first + count], first + 1)
        ]
        octets = len(b"".join(written[:snapshot]))
        yield frames.encode_header(frames.Header(first, octets)) + b"".join(written) + bytes(40)


def recording(data: bytes) -> str:
    path = folder() / "recording.jsonl"
    path.write_bytes(data)
    steps = inputs = 0
    try:
        with open_recording(path) as found:
            for step in found.steps():
                steps += 1
                inputs += isinstance(step, Input)
    except RecordingError as error:
        said = error.message.split(": ", 1)[1]
        return "".join(c for c in said if not c.isdigit())[:40]
    return f"{min(steps, 9)} steps, {found.ending[:30]}"


def _recordings() -> Iterator[bytes]:
    """The beginnings of real ones: their headers are long."""
    place = folder() / "recorded"
    place.mkdir(exist_ok=True)
    world = lossy_move_with_a_crash(place)
    for path in world.files():
        lines = path.read_bytes().splitlines(keepends=True)
        yield b"".join([*lines[:5], lines[-1]])
        yield b"".join([lines[0], *[line for line in lines if len(line) < 400][-6:]])


TARGETS = (
    Target("journal", journal, lambda: _journals(), (b"VMMOBJNL", b"[[", b"null"), with_checksums),
    Target("journal-file", journal_file, lambda: _journals(), (b"VMMOBJNL",), with_checksums,
           weight=0.2),
    Target("recording", recording, lambda: _recordings(),
           (b'{"torn":true}\n', b'"output"', b'"$VmKey"', b'"$Move"', b'{"flush":1}\n',
            b'{"end":"x"}\n', b'"raised"'), longest=8192, weight=0.4),
)  # fmt: skip
