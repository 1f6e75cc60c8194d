"""Writes down what an engine is told and what it answers, as JSON lines, while it works.

    {"format": "vmmobility recording", …}      the header: all that the engine began from
    {"t": 12.5, "input": "timer", "with": {}}  an input,
    {"raised": "MoveRefused: …"}               and the error, if it raised one
    {"flush": 1}                               the engine was asked for outputs; there were so many:
    {"output": {"$Event": {…}}}
    {"end": "the daemon stopped"}

The engine is given a tee in its place.  A fault of the recorder (a full disk, its size limit, a
value that it does not know) ends the recording, never the daemon.
Not here: what the inputs are (inputs.py), reading (reading.py).
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import time
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar, cast

from vmmobility import __version__
from vmmobility.daemon.recording.codec import argument, text
from vmmobility.daemon.recording.inputs import FLUSH, INPUTS, SET_SECRETS, Engine, Origin
from vmmobility.daemon.recording.randomness import SEED, SeededRandom
from vmmobility.daemon.recording.sealed import strip
from vmmobility.engine.channel import Channel, Peer
from vmmobility.engine.outputs import Output
from vmmobility.errors import ConfigError
from vmmobility.wire.registry import Role

FORMAT = "vmmobility recording"
FORMAT_VERSION = 1
WRITE_AT = 64 * 1024  # octets that wait at most; what an event leads to is written in any case
AnyEngine = TypeVar("AnyEngine", bound=Engine)
Note = Callable[..., None]


class NotRecording:
    """In a recorder's place while nothing is recorded."""

    def __init__(self) -> None:
        self.randomness: random.Random = random.SystemRandom()

    def tee(self, engine: AnyEngine) -> AnyEngine:
        return engine

    def close(self) -> None: ...


class RecordingFile:
    """Whole groups of lines, at most so many octets, in a new file for its owner alone."""

    def __init__(self, path: Path, most_octets: int) -> None:
        self.path = path
        self._most = most_octets
        self._waiting: list[bytes] = []
        self._octets = 0  # of whole groups in the file
        self._pending = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(path, flags, 0o600)

    def add(self, *lines: str) -> bool:
        """Take lines that belong together; False if there is no room for them."""
        group = "".join(line + "\n" for line in lines).encode()
        if self._octets + self._pending + len(group) > self._most:
            return False
        self._waiting.append(group)
        self._pending += len(group)
        if self._pending >= WRITE_AT:
            self.write()
        return True

    def write(self) -> None:
        """Let nothing wait.  Raises OSError; the file then ends with its last whole group."""
        if not self._waiting:
            return
        data, self._waiting, self._pending = b"".join(self._waiting), [], 0
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._octets)
                os.lseek(self._descriptor, self._octets, os.SEEK_SET)
            raise
        self._octets += len(data)

    def end(self, reason: str) -> None:
        """The last line, and the end; without an error, whatever the disk says."""
        with contextlib.suppress(OSError):
            self.write()
        with contextlib.suppress(OSError):
            # Past the limit if need be: a line that says why it ends is worth it.
            self._waiting = [(text({"end": reason}) + "\n").encode()]
            self.write()
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
            self.path.unlink()


class Recorder:
    """One engine's recording.  note(event, **detail): tells people where it is, and why it ends."""

    def __init__(self, path: Path, most_octets: int, origin: Origin, note: Note) -> None:
        seed = secrets.token_bytes(SEED)
        self.randomness: random.Random = SeededRandom(seed)
        self._role = origin.role
        self._note = note
        self._inputs = 0
        self._file: RecordingFile | None = RecordingFile(path, most_octets)
        note("recording.started", file=str(path))
        self.write(lambda: [text(_header(origin, seed))])

    def tee(self, engine: AnyEngine) -> AnyEngine:
        """What to use in the engine's place: it records, and is the engine for all the rest."""
        return cast(AnyEngine, _EngineTee(engine, self._role, self))

    def write(self, lines: Callable[[], list[str]], *, now: bool = False) -> None:
        """Write down the lines that are made here; if that fails, the recording ends."""
        if self._file is None:
            return
        try:
            if not self._file.add(*lines()):
                self._stop("the recording has reached its size limit")
            elif now:
                self._file.write()
        except Exception as error:  # whatever it is, it is no reason to end the daemon
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._stop(f"it cannot be written: {reason or type(error).__name__}")

    def _stop(self, reason: str) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.end(reason)
            self._note("recording.stopped", file=str(file.path), reason=reason)

    def input(self, made: Callable[[], dict[str, Any]], call: Callable[[], Any]) -> Any:
        """Do one input and write it down, with the error that it raised."""
        if self._file is None:
            return call()
        try:
            line = text(made())  # now: the engine may change what it is given
        except Exception as error:
            self._stop(f"it cannot be written: {error}")
            return call()
        self._inputs += 1
        try:
            result = call()
        except Exception as error:
            raised = told(error)
            self.write(lambda: [line, text({"raised": raised})], now=True)
            raise
        self.write(lambda: [line])
        return result

    def close(self) -> None:
        """The daemon ends.  A recording of no input at all is no recording: it is removed."""
        if self._file is not None and not self._inputs:
            self._file.remove()
            self._file = None
        elif self._file is not None:
            self._file.end("the daemon stopped")
            self._file = None


def told(error: Exception) -> str:
    """An error that an input raised, as recordings name it."""
    return f"{type(error).__name__}: {error}"


def _header(origin: Origin, seed: bytes) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "role": origin.role.name,
        "node": origin.node_id,
        "time_ns": time.time_ns(),
        "now": origin.now,
        "boot": origin.boot,
        "seed": seed.hex(),
        "settings": origin.settings,
        "peers": [_peer(peer) for peer in origin.peers],
        "state": dict(origin.state),
    }


def _peer(peer: Peer) -> dict[str, Any]:
    return {
        "id": peer.node_id,
        "role": peer.role.name,
        "endpoints": [[str(e.address), e.port] for e in peer.endpoints],
        "keys": list(peer.secrets),
        "signing": peer.signing,
    }


class _EngineTee:
    """An engine whose inputs are recorded."""

    def __init__(self, engine: Engine, role: Role, recorder: Recorder) -> None:
        self._engine = engine
        self._recorder = recorder
        self.channel = _ChannelTee(engine.channel, recorder)
        for name in INPUTS[role]:
            method = getattr(engine, name, None)
            if method is not None:
                setattr(self, name, self._recorded(name, method))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def _recorded(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        names = tuple(signature(method).parameters)
        recorder, peers = self._recorder, self._engine.channel.peers

        def secret_of(sender: str, key_id: int) -> bytes | None:
            peer = peers.get(sender)
            return peer.secrets.get(key_id) if peer else None

        def recorded(*values: Any, **more: Any) -> Any:
            def made() -> dict[str, Any]:
                given = {**dict(zip(names, values, strict=False)), **more}
                if len(given) < len(values) + len(more):
                    raise TypeError(f"{name} has arguments without a name")
                now = given.pop("now", None)
                with_ = {key: argument(value) for key, value in given.items() if key != "data"}
                if "data" in given:
                    with_["data"] = strip(given["data"], secret_of)
                return {"t": now, "input": name, "with": with_}

            return recorder.input(made, lambda: method(*values, **more))

        return recorded

    def flush(self) -> list[Output]:
        """The outputs are what the engine answers; that it was asked matters to it, too."""
        outputs = self._engine.flush()

        def lines() -> list[str]:
            count = f'{{"{FLUSH}":{len(outputs)}}}'
            return [count, *(text({"output": output}) for output in outputs)]

        # Nothing more comes of it: what this event has led to may be written down.
        self._recorder.write(lines, now=not outputs)
        return outputs


class _ChannelTee:
    """An engine's channel whose keys' turnover is recorded: their numbers, not the secrets."""

    def __init__(self, channel: Channel, recorder: Recorder) -> None:
        self._channel = channel
        self._recorder = recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def set_secrets(self, node_id: str, secrets: dict[int, bytes], signing: int) -> None:
        given = {"node_id": node_id, "keys": list(secrets), "signing": signing}
        self._recorder.input(
            lambda: {"t": None, "input": SET_SECRETS, "with": given},
            lambda: self._channel.set_secrets(node_id, secrets, signing),
        )


def open_recorder(
    place: Path | None, most_octets: int, origin: Origin, note: Note
) -> Recorder | NotRecording:
    """A recorder to this file, or into this folder as NODE-BOOT.jsonl; none without a place.

    Raises ConfigError if the file is there already or cannot be made.
    """
    if place is None:
        return NotRecording()
    path = place / f"{origin.node_id}-{origin.boot}.jsonl" if place.is_dir() else place
    try:
        return Recorder(path, most_octets, origin, note)
    except FileExistsError:
        raise ConfigError(
            f"{path}: exists already, and a recording never overwrites a file",
            "move it away, or name another file, or a folder (then each start gets its own)",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path}: the recording cannot be made: {error.strerror}",
            "correct node.record or --record",
        ) from error
