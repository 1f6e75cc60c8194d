"""The fault matrix's report, from cells as they are played: figures, table, page."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from vmmobility.lab.fault_cells import Played
from vmmobility.lab.fault_judging import Seen, Verdict
from vmmobility.lab.fault_report import FaultReport, faults_html, print_faults
from vmmobility.lab.fault_table import all_cells
from vmmobility.lab.fault_terms import Outcome

SEEN = Seen("a", "b", ("a",), said="move aborted", said_s=1.25, acknowledged=70)


def played(outcome: Outcome, problem: str = "", seen: Seen | None = SEEN, place: int = 0):
    cell = list(all_cells())[place]
    return Played(cell, Verdict(outcome, problem), seen, seconds=3.0).as_json()


def report(*cells) -> FaultReport:
    return FaultReport("fault-matrix", "Every fault", {}, 0, list(cells), duration_s=12.0)


def test_a_cell_has_what_programs_read():
    cell = played(Outcome.STAYED)
    assert (cell["mode"], cell["phase"], cell["fault"]) == ("hot", "preparing", "source-killed")
    assert (cell["expected"], cell["outcome"], cell["ok"]) == ("failed", "stayed", True)
    assert (cell["running_at"], cell["leftovers"]) == (["a"], [])
    assert (cell["acknowledged_writes"], cell["acknowledged_writes_lost"]) == (70, 0)
    assert (cell["said"], cell["said_after_s"]) == ("move aborted", 1.25)


def test_figures_leave_out_what_was_not_struck():
    none = [played(Outcome.NOT_APPLICABLE, seen=None) for _ in range(2)]
    found = report(played(Outcome.STAYED), *none).summary()
    figures = ("cells", "played", "as_expected", "acknowledged_writes_lost")
    assert [found[name] for name in figures] == [3, 1, 1, 0]


@pytest.mark.parametrize(
    ("made", "ok"),
    [
        (report(played(Outcome.STAYED)), True),
        (report(played(Outcome.NOT_APPLICABLE, seen=None)), True),
        (report(), False),
        (report(played(Outcome.TWICE, "it runs twice")), False),
        (report(played(Outcome.MISSED, "the phase did not come", None)), False),
    ],
)
def test_one_cell_that_is_not_as_it_must_be_spoils_it(made, ok):
    assert made.ok is ok
    assert made.as_json()["ok"] is ok


def test_table_and_page_show_every_cell_and_what_is_wrong():
    made = report(played(Outcome.STAYED), played(Outcome.TWICE, "it runs <twice>", place=1))
    text = io.StringIO()
    print_faults(made, Console(file=text, width=120, highlight=False))
    page = faults_html(made)
    for words in (text.getvalue(), page):
        assert "source-killed" in words
        assert "source-daemon-killed" in words
        assert "1 of 2 cells as expected" in words
    assert "it runs <twice>" in text.getvalue()
    assert "it runs &lt;twice&gt;" in page
