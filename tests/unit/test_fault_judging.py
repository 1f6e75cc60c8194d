"""What was seen of a cell, and the verdict on it."""

from __future__ import annotations

import pytest

from vmmobility.lab.fault_eyes import twice_ns
from vmmobility.lab.fault_judging import STATED_S, Seen, judge
from vmmobility.lab.fault_terms import Outcome, Row

HERE = {"running_at": ("a",), "said": "move aborted", "said_s": 2.0}
THERE = {"running_at": ("b",), "said": "move done", "said_s": 2.0}
LOST = {"running_at": (), "said": "alarm binding.expired", "said_s": 8.0}


def verdict(allowed=(Outcome.STAYED,), **looks):
    row = Row("hot", "link-cut", ("copying-disk",), allowed, "the guest has never stopped")
    return judge(Seen("a", "b", acknowledged=100, **looks), row)


@pytest.mark.parametrize(
    ("looks", "outcome"), [(HERE, Outcome.STAYED), (THERE, Outcome.MOVED), (LOST, Outcome.FAILED)]
)
def test_the_three_ways_to_end_well(looks, outcome):
    found = verdict((outcome,), **looks)
    assert (found.outcome, found.ok) == (outcome, True)


@pytest.mark.parametrize("looks", [THERE, LOST])
def test_another_end_than_the_table_says_is_a_failure_all_the_same(looks):
    found = verdict(**looks)
    assert not found.ok
    assert "it must come to stayed: the guest has never stopped" in found.problem


@pytest.mark.parametrize(
    ("looks", "outcome", "problem"),
    [
        (HERE | {"running_at": ("a", "b")}, Outcome.TWICE, "runs twice: at a, b"),
        (HERE | {"running_at": ("a", "a")}, Outcome.TWICE, "runs twice: at a, a"),
        (HERE | {"twice_ms": 0.4}, Outcome.TWICE, "together for 0.4 ms"),
        (LOST | {"twice_ms": 0.4}, Outcome.TWICE, "together for 0.4 ms"),
        (HERE | {"lost": 1}, Outcome.LOST_WRITES, "1 of 100 acknowledged writes lost"),
        (LOST | {"lost": 7}, Outcome.LOST_WRITES, "7 of 100"),
        ({}, Outcome.NOWHERE, "does not say so"),
        (LOST | {"said_s": STATED_S + 1}, Outcome.NOWHERE, "does not say so for 31 s"),
        (HERE | {"said_s": None}, Outcome.UNSETTLED, "has not said within"),
        (HERE | {"running_at": ("c",)}, Outcome.UNSETTLED, "runs at c"),
        (HERE | {"unsettled": "the move is clearing"}, Outcome.UNSETTLED, "the move is clearing"),
        (HERE | {"leftovers": ("b: vm1.img",)}, Outcome.UNSETTLED, "left over: b: vm1.img"),
        (HERE | {"drift": ("a: routes",)}, Outcome.UNSETTLED, "drift: a: routes"),
        (HERE | {"answers": False, "answers_not": "3 pages"}, Outcome.UNSETTLED, "3 pages"),
        (LOST | {"leftovers": ("b: vm1.img",)}, Outcome.FAILED, "left over"),
    ],
)
def test_what_must_never_be(looks, outcome, problem):
    found = verdict((Outcome.STAYED, Outcome.MOVED, Outcome.FAILED), **looks)
    assert found.outcome is outcome
    assert problem in found.problem


def test_two_that_run_one_after_another_do_not_run_twice():
    assert twice_ns([(0, 100, 1), (100, 200, 2)]) == 0
    assert twice_ns([(0, 100, 1), (90, 200, 2), (95, 97, 3)]) == 10
    assert twice_ns([(0, 100, 1), (50, 200, 1)]) == 0  # one QEMU, stopped and let go on
    assert twice_ns([]) == 0
