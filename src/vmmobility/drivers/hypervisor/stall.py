"""Notices when an outgoing copy gets nowhere: a path that was cut, a guest that never converges.

Not here: what follows (move.py).  Rests on the monotonic clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from vmmobility.drivers.hypervisor.settings import QemuSettings

PATH_LOOK_S = 1.0


class Broken(Exception):
    """The move has failed; the text says why."""


class Path:
    """Notices a path that was cut while the copy is held: almost nothing is sent then."""

    def __init__(self, is_deaf: Callable[[], bool], limit_s: float) -> None:
        self._is_deaf = is_deaf
        self._limit_s = limit_s
        self._heard = self._looked = time.monotonic()

    def look(self) -> None:
        """Ask now and then.  Raises Broken."""
        now = time.monotonic()
        if now - self._looked < min(PATH_LOOK_S, self._limit_s / 2):
            return
        self._looked = now
        if not self._is_deaf():
            self._heard = now
        elif now - self._heard > self._limit_s:
            raise Broken(f"nothing has been acknowledged for {self._limit_s:.0f} s")


class Progress:
    """Notices a copy that stands still (a cut path) or never converges."""

    def __init__(self, settings: QemuSettings) -> None:
        now = time.monotonic()
        self._stall_limit_s = settings.stall_limit_s
        self._converge_limit_s = settings.converge_limit_s
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
