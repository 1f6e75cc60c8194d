"""The fault matrix's table is whole, and docs/design/faults.md shows it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from vmmobility.errors import LabError
from vmmobility.lab.fault_holds import APPROACHES
from vmmobility.lab.fault_matrix import check_settings
from vmmobility.lab.fault_table import MODES, QUICK, ROWS, all_cells, picture
from vmmobility.lab.fault_terms import FAULTS, Outcome
from vmmobility.lab.fault_warm import WARM

PAGE = Path(__file__).parents[2] / "docs" / "design" / "faults.md"
ENDS = (Outcome.MOVED, Outcome.STAYED, Outcome.FAILED)


def test_every_fault_in_every_phase_of_every_mode_has_one_row():
    placed = Counter((row.mode, phase, row.fault) for row in ROWS for phase in row.phases)
    every = {(mode.name, phase, fault)
             for mode in MODES.values() for phase in mode.phases for fault in FAULTS}  # fmt: skip
    assert {(cell.mode, cell.phase, cell.fault) for cell in all_cells()} == every
    assert placed == Counter(place for place in every)


def test_rows_say_why_and_allow_an_end_or_nothing():
    for row in ROWS:
        assert row.why
        assert row.allowed == (Outcome.NOT_APPLICABLE,) or set(row.allowed) <= set(ENDS)


def test_every_phase_can_be_reached():
    played = [mode for mode in MODES.values() if mode is not WARM]  # it has a player of its own
    assert set(APPROACHES) == {(mode.name, phase) for mode in played for phase in mode.phases}


def test_the_page_shows_the_table():
    text = PAGE.read_text()
    for mode in MODES:
        assert picture(mode) in text
    for fault in FAULTS.values():
        assert f"| {fault.name} | {fault.words} |" in text


def test_the_quick_cells_have_each_mode_and_each_fault():
    assert {mode for mode, _, _ in QUICK} == set(MODES)
    assert {fault for _, _, fault in QUICK} == set(FAULTS)


def test_settings_choose_cells():
    assert len(check_settings({})) == len(list(all_cells()))
    assert len(check_settings({"quick": "true"})) == len(QUICK)
    chosen = check_settings({"mode": "hot", "fault": "manager-killed"})
    assert {cell.fault for cell in chosen} == {"manager-killed"}
    assert [cell.phase for cell in chosen] == list(MODES["hot"].phases)
    two = check_settings({"mode": "hot", "phase": "preparing,resting", "fault": "link-cut"})
    assert [cell.phase for cell in two] == ["preparing", "resting"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "tepid"}, "no mode 'tepid'"),
        ({"phase": "new-moon"}, "no phase 'new-moon'"),
        ({"fault": "comet"}, "no fault 'comet'"),
        ({"quick": "yes"}, "quick cannot be 'yes'"),
        ({"step_s": "4"}, "no setting 'step_s'"),
    ],
)
def test_a_setting_that_names_nothing_is_refused(settings, words):
    with pytest.raises(LabError, match=words):
        check_settings(settings)
