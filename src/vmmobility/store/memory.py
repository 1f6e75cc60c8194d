"""The journal's in-memory twin: same contract, and failures when a test asks for them.

A MemoryDisk outlives the stores opened on it, as a directory outlives processes.
Not here: bytes, files.  Rests on frames.py for what is JSON and what is too long.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vmmobility.errors import StoreError
from vmmobility.store import frames
from vmmobility.store.interface import Change, Recovery


@dataclass
class MemoryDisk:
    """What survives a store, and the failures that are due.

    fail_write: the next append fails, its batch is lost (a full disk)
    fail_sync:  the next append fails, its batch is found after a restart (a failed sync)
    torn:       octets of a torn write that the next opening reports as dropped
    """

    live: dict[str, str] = field(default_factory=dict)
    fail_write: bool = False
    fail_sync: bool = False
    torn: int = 0
    appends: int = 0
    holder: MemoryStore | None = None


class MemoryStore:
    """A store.interface.Store on a MemoryDisk."""

    def __init__(self, disk: MemoryDisk, recovered: Recovery | None) -> None:
        """Use open()."""
        self._disk = disk
        self._recovered = recovered
        self._refusal = ""

    @classmethod
    def open(cls, disk: MemoryDisk | None = None) -> MemoryStore:
        """Raises StoreError if another store holds the disk."""
        disk = disk or MemoryDisk()
        if disk.holder is not None:
            raise StoreError("memory: another store holds this disk", "close it first")
        recovered = Recovery("memory", 0, disk.torn) if disk.torn else None
        disk.torn = 0
        disk.holder = cls(disk, recovered)
        return disk.holder

    @property
    def recovered(self) -> Recovery | None:
        return self._recovered

    def load(self) -> dict[str, Any]:
        return {key: json.loads(value) for key, value in self._disk.live.items()}

    def append(self, changes: Sequence[Change]) -> None:
        if self._refusal:
            raise StoreError(f"memory: refuses to write: {self._refusal}", "open it again")
        encoded = frames.encode_changes(changes)
        if not encoded:
            return
        frames.encode_frame(1, frames.payload_of(encoded))
        disk = self._disk
        if disk.fail_write:
            disk.fail_write = False
            self._fail("No space left on device")
        disk.appends += 1
        for key, value in encoded:
            if value is None:
                disk.live.pop(key, None)
            else:
                disk.live[key] = value
        if disk.fail_sync:
            disk.fail_sync = False
            self._fail("Input/output error")

    def close(self) -> None:
        if self._disk.holder is self:
            self._disk.holder = None
        self._refusal = self._refusal or "it is closed"

    def _fail(self, reason: str) -> None:
        self._refusal = f"an earlier write failed ({reason})"
        raise StoreError(f"memory: cannot be written: {reason}", "make room or check the disk")
