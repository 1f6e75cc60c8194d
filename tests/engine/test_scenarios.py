"""Scenarios read as conversations: each file under scenarios/ must replay to itself.

REWRITE_TRACES=1 pytest tests/engine/test_scenarios.py writes the traces anew (then read the diff).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.engine import conversation

FOLDER = Path(__file__).parent / "scenarios"
FILES = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_scenario_replays_to_its_trace(path: Path) -> None:
    expected = path.read_text()
    found = conversation.run(expected)
    if os.environ.get("REWRITE_TRACES"):
        path.write_text(found)
    else:
        assert found == expected
