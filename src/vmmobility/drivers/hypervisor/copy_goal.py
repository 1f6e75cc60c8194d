"""When a copy has done enough, and when its time is up: settings and a move's terms as one.

Not here: the copies (move.py, disk_copy.py), a copy that stands still (stall.py).
Rests on the monotonic clock.
"""

from __future__ import annotations

import math
import time

from vmmobility.drivers.hypervisor.settings import MIB, QemuSettings
from vmmobility.drivers.hypervisor.stall import Broken
from vmmobility.wire.move_terms import MoveTerms

LEAST_MARK_BYTES = 64 * 1024  # less passes while nobody looks


class CopyGoal:
    """One move's; its time begins at once.

    pace_bytes_per_s: of the memory's copy, and of each disk's
    """

    def __init__(self, settings: QemuSettings, terms: MoveTerms) -> None:
        self.terms = terms
        self.pace_bytes_per_s = terms.bandwidth_mib_s * MIB or settings.copy_bytes_per_s
        # A time-out that was asked for takes the place of ours.
        self.converge_limit_s = math.inf if terms.timeout_s else settings.converge_limit_s
        self._mark = settings.hold_remaining_bytes
        self._begun = time.monotonic()
        self._memory_begun = 0.0

    def begin_memory(self) -> None:
        """From now on memory is sent."""
        self._memory_begun = time.monotonic()

    def mark_bytes(self, sent_bytes: int) -> int:
        """The copy is held once less than this remains.

        With a budget for the blackout: what passes within it at the rate that was measured so far,
        of `sent_bytes`: that is the pace asked for, or what the path bears if that is less; in the
        blackout there is no pace, so that it takes at most as long.
        """
        if not self.terms.downtime_ms:
            return self._mark
        elapsed_s = time.monotonic() - self._memory_begun
        if elapsed_s <= 0:
            return LEAST_MARK_BYTES
        rate = sent_bytes / elapsed_s
        return max(LEAST_MARK_BYTES, int(rate * self.terms.downtime_ms / 1000))

    def check_time(self) -> bool:
        """Whether the time is up and the move is to be forced.  Raises Broken if it is given up."""
        timeout_s = self.terms.timeout_s
        if not timeout_s or time.monotonic() - self._begun < timeout_s:
            return False
        if not self.terms.forces:
            raise Broken(f"the copy has not converged within the {timeout_s} s asked for")
        return True
