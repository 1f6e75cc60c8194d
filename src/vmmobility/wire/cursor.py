"""A bounded reader over bytes that fails on reading past the end and on octets left unread.

Rests on errors alone.
"""

from __future__ import annotations

from vmmobility.errors import DecodeError


class Cursor:
    """Reads big-endian values from `data`; every failure is a DecodeError("truncated")."""

    __slots__ = ("_data", "_position", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._position = 0
        self._what = what

    @property
    def left(self) -> int:
        return len(self._data) - self._position

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise DecodeError("truncated", f"{self._what}: {count} octets wanted, {self.left} left")
        start = self._position
        self._position = start + count
        return self._data[start : self._position]

    def uint(self, octets: int) -> int:
        return int.from_bytes(self.take(octets), "big")

    def rest(self) -> bytes:
        return self.take(self.left)

    def finish(self) -> None:
        if self.left:
            raise DecodeError("trailing", f"{self._what}: {self.left} octets more than it may have")
