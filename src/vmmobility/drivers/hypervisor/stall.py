"""Notices when an outgoing copy gets nowhere: a path that was cut, a guest that never converges.

Not here: what follows (move.py).  Rests on the monotonic clock.
"""

from __future__ import annotations

import time


class Broken(Exception):
    """The move has failed; the text says why."""


class Progress:
    """Notices a copy that stands still (a cut path) or never converges."""

    def __init__(self, stall_limit_s: float, converge_limit_s: float) -> None:
        now = time.monotonic()
        self._stall_limit_s = stall_limit_s
        self._converge_limit_s = converge_limit_s
        self._begun, self._moved, self._sent = now, now, -1

    def seen(self, sent_bytes: int) -> None:
        """So much was sent until now.  Raises Broken."""
        now = time.monotonic()
        if sent_bytes != self._sent:
            self._moved, self._sent = now, sent_bytes
        if now - self._moved > self._stall_limit_s:
            raise Broken(f"the copy has stood still for {self._stall_limit_s:.0f} s")
        if now - self._begun > self._converge_limit_s:
            raise Broken(f"the copy has not converged within {self._converge_limit_s:.0f} s")
