"""Events as JSON lines: to the daemon's log file or standard error, and to subscribers.

Engines emit events; this is their first subscriber.  `drop` events are limited in rate, for their
counters tell the rest.  Not here: which events there are (docs/architecture.md).
Rests on structlog.
"""

from __future__ import annotations

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
        self._stream: TextIO = sys.stderr
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                self._stream = file.open("a", encoding="utf-8", buffering=1)
            except OSError as error:
                raise ConfigError(
                    f"{file}: cannot be opened: {error.strerror}", "correct node.log_file"
                ) from error
        self._logger = structlog.wrap_logger(
            structlog.PrintLogger(self._stream),
            processors=[structlog.processors.JSONRenderer(default=str)],
            node=node,
        )
        self._subscribers: list[Subscriber] = []
        self._second = 0
        self._drops = 0

    def subscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.append(subscriber)

    def write(self, event: Event) -> None:
        """Log one event and tell the subscribers."""
        if event.name != "drop" or self._may_log_drop():
            fields = {key: value for key, value in event.detail.items() if key != "event"}
            self._logger.info(event.name, ts_ns=time.time_ns(), **fields)
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
        if self._stream is not sys.stderr:
            self._stream.close()
