"""The daemon's events for those who follow them live: the latest ones kept, each reader bounded.

Every kept event has an id, BOOT-NUMBER, in order; who was away asks for what came after the last
one that it has seen, and is told (`events.lost`) where that is no more, or was before a restart.
What is only of the moment (`move.progress`) has no id and is not kept.  A reader that does not keep
up is cut off: nobody waits for it.
Not here: HTTP (api/event_routes.py), which events there are (docs/architecture.md).
Rests on asyncio.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from vmmobility.engine.outputs import Event
from vmmobility.errors import Unavailable

Row = dict[str, Any]

KEPT = 4096  # events that one who was away can still have
MOST_WAITING = 1024  # events that wait for one reader
MOST_READERS = 64  # at this machine, and as many off it;
MOST_OF_ASKER = 16  # of these, of one token
LOOK_S = 1.0  # what is no event of an engine (alarms, progress) is looked for so often
NOT_FED = frozenset({"drop"})
LOST = "events.lost"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events: of these kinds (the part of the name before the dot, or all of it), this VM,
    this move; an empty one is any.  audit: also who asks the API."""

    kinds: frozenset[str] = frozenset()
    vm: tuple[int, str] | None = None
    move: str = ""
    audit: bool = False

    def takes(self, row: Row) -> bool:
        name = str(row["event"])
        kind = name.partition(".")[0]
        if name == LOST:
            return True
        if kind == "api" and not self.audit:
            return False
        if self.kinds and kind not in self.kinds and name not in self.kinds:
            return False
        if self.vm is not None and (row.get("vni", 0), row.get("vm")) != self.vm:
            return False
        return not self.move or row.get("move") == self.move


class Reader:
    """One who follows.  Use as `async for`, or next(); close() when it is gone."""

    def __init__(
        self, feed: EventFeed, wanted: Wanted, missed: Iterable[Row], afar: str | None
    ) -> None:
        """afar: whose token it has; None: it is on this machine"""
        self._feed = feed
        self.afar = afar
        self._wanted = wanted
        self._missed = deque(row for row in missed if wanted.takes(row))
        self._rows: asyncio.Queue[Row | None] = asyncio.Queue(MOST_WAITING)
        self.is_cut_off = False
        self.is_closed = False

    def offer(self, row: Row) -> None:
        if self.is_closed or not self._wanted.takes(row):
            return
        try:
            self._rows.put_nowait(row)
        except asyncio.QueueFull:
            self.is_cut_off = True
            self.close()

    async def next(self, patience_s: float) -> Row | None:
        """The next one; None if none came in so many seconds, or it is closed."""
        deadline = time.monotonic() + patience_s
        while not self.is_closed:
            if self._missed:
                return self._missed.popleft()
            self._feed.look()
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            try:
                async with asyncio.timeout(min(left, LOOK_S)):
                    return await self._rows.get()
            except TimeoutError:
                continue
        return None

    def waiting(self) -> Iterator[Row]:
        """What is there already."""
        yield from self._missed
        self._missed.clear()

    def close(self) -> None:
        self.is_closed = True
        self._feed.leave(self)
        while not self._rows.empty():
            self._rows.get_nowait()
        self._rows.put_nowait(None)  # wakes who waits in next()


class EventFeed:
    """One daemon's.  boot: of this start; look: what has changed that is no engine's event, as
    (name, detail, whether it is kept), asked only while somebody follows."""

    def __init__(
        self, boot: int, look: Callable[[], Iterable[tuple[str, Row, bool]]] = tuple
    ) -> None:
        self._boot = boot
        self._look = look
        self._looked_at = 0.0
        self._number = 0
        self._kept: deque[tuple[int, Row]] = deque(maxlen=KEPT)
        self._readers: set[Reader] = set()
        self.cut_off = 0

    def on_event(self, event: Event) -> None:
        """A subscriber of the event log."""
        if event.name not in NOT_FED:
            self.add(event.name, event.detail)

    def add(self, name: str, detail: Row, *, keep: bool = True) -> None:
        row: Row = {**detail, "event": name, "ts_ns": time.time_ns()}
        if keep:
            self._number += 1
            row["id"] = f"{self._boot}-{self._number}"
            self._kept.append((self._number, row))
        for reader in list(self._readers):
            reader.offer(row)
            self.cut_off += reader.is_cut_off

    def follow(self, after: str, wanted: Wanted, afar: str | None = None) -> Reader:
        """after: the last id that was seen, "" for from now on, "0" for all that is kept; afar:
        whose token asks, None on this machine.

        Raises Unavailable if too many follow already.
        """
        remedy = "end one of them, or ask for the state"
        others = [each.afar for each in self._readers if (each.afar is None) is (afar is None)]
        if len(others) >= MOST_READERS:
            raise Unavailable(f"{MOST_READERS} follow events already", remedy)
        if afar is not None and others.count(afar) >= MOST_OF_ASKER:
            raise Unavailable(f"{MOST_OF_ASKER} follow events with this token already", remedy)
        reader = Reader(self, wanted, self._after(after), afar)
        self._readers.add(reader)
        return reader

    def _after(self, after: str) -> list[Row]:
        if not after:
            return []
        if after == "0":
            return [row for _, row in self._kept]
        boot, _, number = after.partition("-")
        known = number.isascii() and number.isdecimal() and len(number) < 20
        seen = int(number) if known and boot == str(self._boot) else None
        oldest = self._kept[0][0] if self._kept else self._number + 1
        if seen is None or seen > self._number or seen < oldest - 1:
            lost: Row = {"event": LOST, "ts_ns": time.time_ns(), "after": after}
            return [lost, *(row for _, row in self._kept)]
        return [row for number, row in self._kept if number > seen]

    def leave(self, reader: Reader) -> None:
        self._readers.discard(reader)

    def look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            for name, detail, keep in self._look():
                self.add(name, detail, keep=keep)
