"""What the daemons say: their JSON logs followed while the lab runs, as typed events.

Not here: what is made of it (measures.py, narrator.py).  Rests on the daemons' log files.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmmobility.lab.inside import yield_the_cpu

_EVERY_S = 0.05  # for people to follow; figures come from the times in the lines


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One line of a daemon's log."""

    ts_ns: int
    node: str
    name: str
    vm: str
    move: str
    fields: Mapping[str, Any]

    @property
    def at_ns(self) -> int:
        """When it happened: the hypervisor's own time where there is one, else when logged."""
        at = self.fields.get("at_ns")
        return at if isinstance(at, int) and at > 0 else self.ts_ns

    def number(self, key: str) -> float | None:
        """A field that is a number, or None."""
        value = self.fields.get(key)
        return float(value) if isinstance(value, int | float) else None


class Logbook:
    """Follows log files in a thread; listeners hear each event once."""

    def __init__(self, logs: Mapping[str, Path], listener: Callable[[LogEvent], None]) -> None:
        self._logs = dict(logs)
        self._offsets = dict.fromkeys(logs, 0)
        self._listener = listener
        self._events: list[LogEvent] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="logbook", daemon=True)

    @property
    def started(self) -> bool:
        """Whether it follows."""
        return self._thread.ident is not None

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Read what is left and end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.read()

    def events(self) -> list[LogEvent]:
        """All events so far, in order of time."""
        self.read()
        with self._lock:
            return sorted(self._events, key=lambda event: event.ts_ns)

    def read(self) -> None:
        """Read all complete new lines."""
        fresh: list[LogEvent] = []
        with self._lock:
            for node, path in self._logs.items():
                fresh += self._read_one(node, path)
            self._events += fresh
        for event in sorted(fresh, key=lambda event: event.ts_ns):
            self._listener(event)

    def _read_one(self, node: str, path: Path) -> list[LogEvent]:
        try:
            with path.open("rb") as file:
                file.seek(self._offsets[node])
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offsets[node] += len(whole)
        return [e for line in whole.splitlines() if (e := parse(line, node)) is not None]

    def _follow(self) -> None:
        yield_the_cpu()
        while not self._stop.wait(_EVERY_S):
            self.read()


def parse(line: bytes, node: str) -> LogEvent | None:
    """One log line as an event; None if it is none."""
    try:
        data = json.loads(line)
        return LogEvent(
            int(data["ts_ns"]), str(data.get("node") or node), str(data["event"]),
            str(data.get("vm") or ""), str(data.get("move") or ""), data,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
