"""What has changed since the last look: alarms that came and went, and how far moves have copied.

Alarms are conditions (alarms.py); who follows events hears of their beginning and end.
Not here: the events' feed (event_feed.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from vmmobility.daemon.alarms import manager_alarms
from vmmobility.engine.manager import ManagerEngine

Row = dict[str, Any]


class Watch:
    """Of one manager."""

    def __init__(self, engine: ManagerEngine) -> None:
        self._engine = engine
        self._alarms: dict[tuple[Any, ...], Row] | None = None
        self._progress: dict[str, Row] = {}

    def look(self) -> Iterator[tuple[str, Row, bool]]:
        """(name, detail, whether it is to be kept)."""
        rows = manager_alarms(self._engine, time.monotonic())
        found: dict[tuple[Any, ...], Row] = {
            (row["alarm"], row["vni"], row["vm"], row["nve"]): row for row in rows
        }
        known = found if self._alarms is None else self._alarms
        self._alarms = found
        for key in found.keys() - known.keys():
            yield "alarm.raised", found[key], True
        for key in known.keys() - found.keys():
            yield "alarm.cleared", {**known[key], "for_s": None}, True
        before, self._progress = self._progress, {}
        for move in self._engine.moves.values():
            if move.ok is None and move.progress:
                now = self._progress[move.move_id] = dict(move.progress)
                if before.get(move.move_id) != now:
                    who = {"vni": move.vm.vni, "vm": move.vm.vm_id, "move": move.move_id}
                    yield "move.progress", {**who, **now}, False
