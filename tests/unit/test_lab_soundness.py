"""A guest that comes back unsound fails the run, whatever the network felt."""

from __future__ import annotations

import os

from vmmobility.lab.lab_run import MoveRecord
from vmmobility.lab.runner import unsound_guests
from vmmobility.lab.soundness import Soundness, command_line, spins


def record(number: int, verdict: Soundness | None) -> MoveRecord:
    return MoveRecord(number, "vm1", "nve-a", "nve-b", "ok", 0, 0.0, ok=True, soundness=verdict)


def test_torn_memory_fails_the_run() -> None:
    torn = Soundness(False, 3, 64, 0.2, "3 of 64 pages are bad")
    whole = Soundness(True, 0, 64, 0.2, "")
    found = unsound_guests([record(1, whole), record(2, torn), record(3, None)], 1)
    assert found == ["run 1: move 2: vm1 is not sound: 3 of 64 pages are bad"]


def test_a_whole_cpu_more_than_before_is_spinning() -> None:
    assert spins(1.0, 0.2)
    assert not spins(0.5, 0.2)
    assert not spins(None, 0.2)


def test_a_command_line_is_read_or_empty() -> None:
    assert "python" in command_line(os.getpid())
    assert command_line(2**22 + 1) == ""
