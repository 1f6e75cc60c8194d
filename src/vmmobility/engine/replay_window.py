"""Replay protection for one peer: its one boot that counts, and a window of counters within it.

After RFC 4303, Section 3.4.3.  Not here: keys and digests.  Rests on nothing.
"""

from __future__ import annotations

WINDOW = 1024  # counters; design: "window of at least 1,024 a (sender, key, boot)"
_MASK = (1 << WINDOW) - 1


class ReplayWindow:
    """What has been received of one peer: its boot, the highest counter, and which below it.

    A window restored from its durable mark takes nothing at or below that mark: what lay in the
    window when the receiver went down counts as seen.  Of any other boot it takes nothing, nor
    does one without a mark (boot 0): what comes may have been recorded long ago.  A higher boot
    is no exception: if both ends once lost their state, it may be one of an earlier life.
    """

    __slots__ = ("_seen", "boot", "high")

    def __init__(self, boot: int = 0, high: int = 0) -> None:
        self.boot = boot
        self.high = high
        self._seen = _MASK

    def check(self, boot: int, counter: int) -> str | None:
        """Why this datagram must be dropped ("unproven", "old-boot", "replayed", "too-old"), or
        None."""
        if not self.boot or boot > self.boot:
            return "unproven"
        if boot < self.boot:
            return "old-boot"
        if counter > self.high:
            return None
        behind = self.high - counter
        if behind >= WINDOW:
            return "too-old"
        return "replayed" if self._seen >> behind & 1 else None

    def accept(self, counter: int) -> None:
        """Note an authenticated datagram that `check` let pass."""
        if counter > self.high:
            ahead = counter - self.high
            self._seen = ((self._seen << ahead) | 1) & _MASK if ahead < WINDOW else 1
            self.high = counter
        else:
            self._seen |= 1 << (self.high - counter)
