"""A lab command a test, in a folder of its own that must be empty afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab_command import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="vml") as folder:
        found = Lab(Path(folder), tmp_path)
        yield found
        for path in Path(folder).glob("vmmobility-lab/vml*"):  # of a test that failed
            found.start("down", path.name).communicate(timeout=30)
        assert list(Path(folder).iterdir()) == []
