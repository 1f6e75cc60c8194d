"""The fault matrix with real guests: quick cells with every run, the whole with the slow tests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.lab.lab_command import Lab
from vmmobility.lab.fault_table import MODES, QUICK, all_cells

pytestmark = [pytest.mark.netns, pytest.mark.lab, pytest.mark.qemu]

FIELDS = {
    "mode", "phase", "fault", "expected", "outcome", "running_at", "acknowledged_writes_lost",
    "leftovers",
}  # fmt: skip


def play(lab: Lab, *words: str, within_s: float = 300) -> dict[str, Any]:
    files = ("--json", str(lab.out / "r.json"), "--html", str(lab.out / "r.html"))
    output = lab.call("run", "fault-matrix", *words, *files, within_s=within_s)
    report: dict[str, Any] = json.loads((lab.out / "r.json").read_text())
    assert (report["ok"], report["failures"], report["leftovers"]) == (True, [], []), output
    assert report["summary"]["ran_twice"] == 0
    assert report["summary"]["acknowledged_writes_lost"] == 0
    assert "<table>" in (lab.out / "r.html").read_text()
    return report


def places(report: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(cell["mode"], cell["phase"], cell["fault"]) for cell in report["cells"]}


@pytest.mark.timeout(320)
def test_quick_cells_come_to_what_they_must(lab: Lab) -> None:
    report = play(lab, "--set", "quick=true")
    assert places(report) == set(QUICK)
    for cell in report["cells"]:
        assert cell.keys() >= FIELDS
        assert cell["acknowledged_writes"] > 0
        assert cell["ok"]
        assert len(cell["running_at"]) == (0 if cell["outcome"] == "failed" else 1)


@pytest.mark.slow
@pytest.mark.timeout(3660)
@pytest.mark.parametrize("mode", MODES)
def test_every_cell_comes_to_what_it_must(lab: Lab, mode: str) -> None:
    report = play(lab, "--set", f"mode={mode}", within_s=3600)
    every = {(cell.mode, cell.phase, cell.fault) for cell in all_cells()}
    assert places(report) == {place for place in every if place[0] == mode}
    assert set(report["summary"]["outcomes"]) <= {"moved", "stayed", "failed", "not-applicable"}
