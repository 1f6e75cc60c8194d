"""Feeds a recording to a new engine and compares every output with what was recorded.

Not here: reading the file (reading.py), telling people (conversation.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import signature
from itertools import zip_longest
from typing import Any

from vmmobility import __version__
from vmmobility.daemon.recording import codec
from vmmobility.daemon.recording.inputs import FLUSH, INPUTS, SET_SECRETS, Engine
from vmmobility.daemon.recording.randomness import SeededRandom
from vmmobility.daemon.recording.reading import (
    Flush,
    Input,
    Recording,
    complaints,
    secrets,
)
from vmmobility.daemon.recording.recorder import told
from vmmobility.daemon.recording.sealed import BARE, LONG, RIGHT, WRONG, reseal
from vmmobility.engine.outputs import Output
from vmmobility.errors import RecordingError


@dataclass(frozen=True)
class Told:
    """An input that the engine was given.  dropped: why it dropped a datagram, if it did."""

    at: float
    name: str
    arguments: dict[str, Any]
    dropped: tuple[str, ...] = ()
    raised: str | None = None


@dataclass(frozen=True)
class Did:
    """An output that the engine made."""

    at: float
    output: Output


@dataclass(frozen=True)
class Difference:
    """Where replay and recording part: what was recorded, and what the engine does now."""

    line: int
    at: float
    after: str
    expected: str
    found: str


@dataclass
class Replay:
    """One run.  The figures are of what has been replayed so far."""

    recording: Recording
    until: float = math.inf
    inputs: int = 0
    outputs: int = 0
    cut: bool = False  # whether `until` came before the end
    difference: Difference | None = None
    at: float = 0.0  # seconds since the recording began
    _last: str = "the start"

    def run(self) -> Iterator[Told | Did]:
        """What happens, in order, up to the first difference.  Raises RecordingError."""
        origin = self.recording.header.origin
        with complaints(self.recording.path, 1):
            engine = origin.make(SeededRandom(self.recording.header.seed))
        for step in self.recording.steps():
            if isinstance(step, Input):
                if step.at is not None:
                    self.at = step.at - origin.now
                if self.at > self.until:
                    self.cut = True
                    return
                yield self._feed(engine, step)
            else:
                yield from self._flush(engine, step)
            if self.difference is not None:
                return

    def _feed(self, engine: Engine, step: Input) -> Told:
        arguments = self._arguments(engine, step)
        call = self._call(engine, step, arguments)
        self._last = step.name
        self.inputs += 1
        raised = None
        before = Counter(engine.channel.drops)
        try:
            call()
        except Exception as error:  # an engine's fault is what a recording is replayed for
            raised = told(error)
        if raised != step.raised:
            self._differ(step.line, step.raised or "no error", raised or "no error")
        dropped = tuple((engine.channel.drops - before).elements())
        return Told(self.at, step.name, arguments, dropped, raised)

    def _arguments(self, engine: Engine, step: Input) -> dict[str, Any]:
        def secret_of(sender: str, key_id: int) -> bytes | None:
            peer = engine.channel.peers.get(sender)
            return peer.secrets.get(key_id) if peer else None

        with complaints(self.recording.path, step.line):
            arguments: dict[str, Any] = {}
            for name, written in step.arguments.items():
                if isinstance(written, dict) and written.keys() & {RIGHT, WRONG, BARE, LONG}:
                    arguments[name] = reseal(written, secret_of)
                else:
                    arguments[name] = codec.value_of(
                        written,
                        lambda move: getattr(engine, "moves")[move],  # noqa: B009
                    )
            if step.name == SET_SECRETS:
                arguments["secrets"] = secrets(arguments["node_id"], arguments.pop("keys"))
            return arguments

    def _call(self, engine: Engine, step: Input, arguments: dict[str, Any]) -> Callable[[], object]:
        """The call, which can only fail by the engine's fault."""
        known = (*INPUTS[self.recording.header.origin.role], SET_SECRETS)
        holder = engine.channel if step.name == SET_SECRETS else engine
        method = getattr(holder, step.name, None) if step.name in known else None
        now = {} if step.at is None else {"now": step.at}
        try:
            if method is None:
                raise TypeError("there is no such input")
            bound = signature(method).bind(**arguments, **now)
        except TypeError as error:
            raise RecordingError(
                f"{self.recording.path}: line {step.line}: {step.name} cannot be repeated by "
                f"vmmobility {__version__}: {error}",
                f"replay it with vmmobility {self.recording.header.version}, which recorded it",
            ) from None
        return lambda: method(*bound.args, **bound.kwargs)

    def _flush(self, engine: Engine, step: Flush) -> Iterator[Did]:
        made = engine.flush()
        torn = len(step.outputs) < step.count
        self._last = f"{FLUSH} after {self._last.removeprefix(f'{FLUSH} after ')}"
        for expected, output in zip_longest(step.outputs, made):
            if expected is None and torn:
                return
            if expected is None or output is None:
                line, recorded = expected or (step.line, None)
                self._differ(line, _words(recorded), _words(output))
                return
            line, recorded = expected
            if codec.text(recorded) != codec.text(output):
                self._differ(line, codec.text(recorded), codec.text(output))
                return
            self.outputs += 1
            yield Did(self.at, output)

    def _differ(self, line: int, expected: str, found: str) -> None:
        self.difference = Difference(line, self.at, self._last, expected, found)


def _words(value: Any) -> str:
    return "nothing more" if value is None else codec.text(value)
