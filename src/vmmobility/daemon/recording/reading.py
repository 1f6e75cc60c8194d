"""A recording's file -> its header and its steps, line by line.

What is no recording, or is damaged in the middle, is a RecordingError; a torn end is only noted.
Not here: writing (recorder.py), what the steps do (replay.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, BinaryIO

from vmmobility.daemon.recording.codec import value_of
from vmmobility.daemon.recording.inputs import ENGINES, FLUSH, Origin
from vmmobility.daemon.recording.recorder import FORMAT, FORMAT_VERSION, told
from vmmobility.daemon.recording.sealed import stand_in
from vmmobility.engine.channel import Peer
from vmmobility.engine.outputs import Endpoint
from vmmobility.errors import RecordingError
from vmmobility.wire.registry import Role

NO_END = "it has no last line: the daemon was killed, or still runs"
TORN = "its last line is torn: the daemon was killed, or still runs"


@dataclass(frozen=True)
class Header:
    """version: of the vmmobility that recorded; time_ns: the clock when it began, for people."""

    origin: Origin
    seed: bytes
    version: str
    time_ns: int


@dataclass(frozen=True)
class Input:
    """line: its number in the file; at: monotonic seconds, None if the input takes no time."""

    line: int
    at: float | None
    name: str
    arguments: Mapping[str, Any]
    raised: str | None = None


@dataclass
class Flush:
    """count: outputs that were answered; fewer are here where the file is torn."""

    line: int
    count: int
    outputs: list[tuple[int, dict[str, Any]]] = field(default_factory=list)


@dataclass
class Recording:
    """An open file.  ending: why it ends, once that was read."""

    path: Path
    header: Header
    lines: Iterator[tuple[int, dict[str, Any]]]
    ending: str = ""

    def steps(self) -> Iterator[Input | Flush]:
        """Inputs and flushes in order.  Raises RecordingError."""
        step: Input | Flush | None = None
        for number, line in self.lines:
            if self.ending:
                raise damaged(self.path, number, "lines follow the last one")
            if "output" in line:
                if not isinstance(step, Flush) or len(step.outputs) >= step.count:
                    raise damaged(self.path, number, "an output that no flush announces")
                step.outputs.append((number, _table(self.path, number, line["output"])))
                continue
            if "raised" in line:
                if not isinstance(step, Input) or step.raised is not None:
                    raise damaged(self.path, number, "an error of no input")
                step = Input(step.line, step.at, step.name, step.arguments, str(line["raised"]))
                continue
            missing = isinstance(step, Flush) and len(step.outputs) < step.count
            if missing and "torn" not in line:
                raise damaged(self.path, number, "outputs are missing before it")
            if step is not None:
                yield step
            step = self._begin(number, line)
        self.ending = self.ending or NO_END
        if step is not None:
            yield step

    def _begin(self, number: int, line: dict[str, Any]) -> Input | Flush | None:
        with complaints(self.path, number):
            if "torn" in line:
                self.ending = TORN
            elif "end" in line:
                self.ending = str(line["end"]) or "it says nothing"
            elif FLUSH in line:
                return Flush(number, int(line[FLUSH]))
            else:
                at = line["t"]
                arguments = _table(self.path, number, line["with"])
                return Input(number, None if at is None else float(at), line["input"], arguments)
        return None


def damaged(path: Path, line: int, what: str) -> RecordingError:
    return RecordingError(
        f"{path}: line {line}: {what}", "take the file anew from where it was recorded"
    )


@contextmanager
def complaints(path: Path, line: int) -> Iterator[None]:
    """Whatever a wrong value leads to while it is read is that line's fault."""
    try:
        yield
    except RecordingError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise damaged(path, line, f"is no line of a recording ({told(error)})") from None


def _table(path: Path, number: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise damaged(path, number, "has no object where one belongs")
    return value


@contextmanager
def open_recording(path: Path) -> Iterator[Recording]:
    """Raises RecordingError, also from the steps."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise RecordingError(
            f"{path}: cannot be read: {error.strerror}", "name a file that a daemon has recorded"
        ) from None
    with file:
        lines = _lines(path, file)
        try:
            number, first = next(lines, (1, {}))
        except RecordingError:
            raise _foreign(path) from None
        if first.get("format") != FORMAT:
            raise _foreign(path)
        if first.get("format_version") != FORMAT_VERSION:
            raise RecordingError(
                f"{path}: recorded by vmmobility {first.get('version')} in another format",
                "replay it with that version",
            )
        with complaints(path, number):
            yield_header = _header(first)
        yield Recording(path, yield_header, lines)


def _foreign(path: Path) -> RecordingError:
    return RecordingError(
        f"{path}: is no recording of vmmobility",
        "name a file made by node.record or `vmmob manager|nve run --record`",
    )


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered lines; {"torn": …} in the place of a last one that is not whole."""
    try:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                yield number, {"torn": True}
                return
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise damaged(path, number, f"is no JSON: {error}") from None
            yield number, _table(path, number, value)
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read: {error.strerror}", "see to it") from None


def _header(line: Mapping[str, Any]) -> Header:
    role = Role[line["role"]]
    if role not in ENGINES:
        raise ValueError(f"no engine of role {role.name}")
    peers = [_peer(peer) for peer in line["peers"]]
    origin = Origin(
        role, value_of(line["settings"]), peers, line["state"], int(line["boot"]), line["now"]
    )
    return Header(origin, bytes.fromhex(line["seed"]), str(line["version"]), int(line["time_ns"]))


def _peer(entry: Mapping[str, Any]) -> Peer:
    name = str(entry["id"])
    endpoints = tuple(Endpoint(ip_address(address), port) for address, port in entry["endpoints"])
    return Peer(
        name, Role[entry["role"]], endpoints, secrets(name, entry["keys"]), entry["signing"]
    )


def secrets(peer: str, keys: list[int]) -> dict[int, bytes]:
    """What replay uses in the place of that peer's secrets."""
    return {key: stand_in(peer, key) for key in keys}
