"""Predicts when QEMU's migration thread wakes: its rate windows follow each other every 100 ms.

Pure arithmetic on monotonic seconds: no clock is read here.  Rests on nothing.
"""

from __future__ import annotations

import math
from collections import deque

WINDOW_S = 0.100  # QEMU: BUFFER_DELAY
WATCH_BEFORE_S = 0.004
# A window lasts up to a millisecond longer than it should (QEMU counts whole ones): older
# observations than this predict too badly.
FRESH_S = 1.0


LEAD_MARGIN_S = 0.006  # QEMU must have taken proceed()'s order before the tick
LEAD_FACTOR = 1.5
LEAD_LIMIT_S = 0.060  # a lead costs blackout in every move, a missed tick 100 ms in one
LEADS_REMEMBERED = 8


class Lead:
    """How long before a tick to say ABOUT_TO_STOP: learnt from how long redirects have taken."""

    def __init__(self, least_s: float) -> None:
        self._least_s = least_s
        self._taken: deque[float] = deque(maxlen=LEADS_REMEMBERED)

    @property
    def seconds(self) -> float:
        """The lead for the next move."""
        slowest = max(self._taken, default=0.0)
        return max(self._least_s, min(slowest * LEAD_FACTOR + LEAD_MARGIN_S, LEAD_LIMIT_S))

    def took(self, seconds: float) -> None:
        """From ABOUT_TO_STOP to proceed() it took that long."""
        self._taken.append(seconds)


class TickClock:
    """Ticks seen, and the ticks to come."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._window_s = WINDOW_S

    @property
    def known(self) -> bool:
        """Whether a tick has been seen."""
        return self._last is not None

    @property
    def watch_limit_s(self) -> float:
        """How long to watch for a tick before the watch is given up (one window and a half)."""
        return 1.5 * WINDOW_S

    def seen(self, at: float) -> None:
        """A tick was seen.  Ticks that lie whole windows apart also refine the window."""
        if self._last is not None:
            windows = round((at - self._last) / WINDOW_S)
            if windows > 0 and at - self._last < FRESH_S:
                measured = (at - self._last) / windows
                # Load delays single ticks; half the news is enough.
                measured = min(max(measured, WINDOW_S), WINDOW_S * 1.02)
                self._window_s += (measured - self._window_s) / 2
        self._last = at

    def until_watch(self, now: float) -> float:
        """Seconds until the next tick is worth watching for; 0 if none is known."""
        if self._last is None:
            return 0.0
        return self.next_after(now + WATCH_BEFORE_S) - WATCH_BEFORE_S - now

    def next_after(self, moment: float) -> float:
        """The first predicted tick after `moment`.  At least one tick must have been seen."""
        if self._last is None:
            raise ValueError("no tick has been seen yet")
        windows = max(1, math.ceil((moment - self._last) / self._window_s))
        return self._last + windows * self._window_s
