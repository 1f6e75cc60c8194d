"""Recordings of a whole domain, for the tests of recording, of its files and of `vmmob replay`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.recorded_world import RecordedWorld, lossy_move_with_a_crash


@pytest.fixture(scope="session")
def moved(tmp_path_factory: pytest.TempPathFactory) -> RecordedWorld:
    """Recordings that tests may read, not write."""
    return lossy_move_with_a_crash(tmp_path_factory.mktemp("moved"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[RecordedWorld]:
    made = RecordedWorld(tmp_path)
    made.run(1)
    yield made
    made.close()
