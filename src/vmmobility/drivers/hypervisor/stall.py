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


class Answers:
    """Notices that what was sent is not taken: the other end lives, and its storage hangs."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._done, self._since = -1, 0.0

    def seen(self, done: int, total: int) -> None:
        """So many of so many octets are done.  Raises Broken."""
        now = time.monotonic()
        if done >= total:
            self._done = -1  # nothing is waited for
        elif done != self._done:
            self._done, self._since = done, now
        elif now - self._since > self._limit_s:
            raise Broken(
                f"no octet of the disks was taken for {self._limit_s:.0f} s, and the guest's "
                "writes wait: the storage of an end hangs"
            )
