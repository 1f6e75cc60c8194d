"""Events as JSON lines: to the daemon's log file or standard error, and to subscribers.

Engines emit events; this is their first subscriber.  `drop` events are limited in rate, for their
counters tell the rest.  A line that cannot be written (a full disk) is counted in `lost`, and
nothing else comes of it.  Not here: which events there are (docs/architecture.md).
Rests on structlog.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import structlog

from vmmobility.engine.outputs import Event
from vmmobility.errors import ConfigError

DROPS_A_SECOND = 10

Subscriber = Callable[[Event], None]


class EventLog:
    """One daemon's event log.  Raises ConfigError if the file cannot be opened."""

    def __init__(self, node: str, file: Path | None) -> None:
        self.lost = 0
        self._node = node
        self._file = file
        self._stream = self._open()
        self._logger = self._make_logger()
        self._subscribers: list[Subscriber] = []
        self._second = 0
        self._drops = 0

    def _open(self) -> TextIO:
        if self._file is None:
            return sys.stderr
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            return self._file.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise ConfigError(
                f"{self._file}: cannot be opened: {error.strerror}", "correct node.log_file"
            ) from error

    def _make_logger(self) -> Any:
        return structlog.wrap_logger(
            structlog.PrintLogger(self._stream),
            processors=[structlog.processors.JSONRenderer(default=str)],
            node=self._node,
        )

    def reopen(self) -> None:
        """Go on in the file that now has the name (log rotation).  Raises ConfigError."""
        old, self._stream = self._stream, self._open()
        self._logger = self._make_logger()
        _close(old)

    def subscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.append(subscriber)

    def write(self, event: Event) -> None:
        """Log one event and tell the subscribers."""
        if event.name != "drop" or self._may_log_drop():
            fields = {key: value for key, value in event.detail.items() if key != "event"}
            try:
                self._logger.info(event.name, ts_ns=time.time_ns(), **fields)
            except OSError:
                self.lost += 1
        for subscriber in self._subscribers:
            subscriber(event)

    def note(self, name: str, **detail: Any) -> None:
        """An event of the daemon itself (started, stopped, a lost relay)."""
        self.write(Event(name, detail))

    def _may_log_drop(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._drops = second, 0
        self._drops += 1
        return self._drops <= DROPS_A_SECOND

    def close(self) -> None:
        _close(self._stream)


def _close(stream: TextIO) -> None:
    if stream is not sys.stderr:
        with contextlib.suppress(OSError):
            stream.close()
