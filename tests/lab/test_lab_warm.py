"""Warm standbys in a fabric with router agents: the primary's host dies, or is cut off.

Not here: the scenarios' own judgements (protection_assertions.py); the engines
(tests/engine/test_protection.py).
"""

from __future__ import annotations

import pytest

from tests.lab.lab_command import Lab

pytestmark = [pytest.mark.netns, pytest.mark.lab, pytest.mark.timeout(180)]

STREAMS = {f"{name} {family}" for name in ("near", "side", "far", "outside")
           for family in ("ipv4", "ipv6")}  # fmt: skip


def fail_over_of(report):
    """The report's one fail-over: everybody reaches the VM again, and it never ran twice."""
    (row,) = report["protections"]
    over = row["fail_over"]
    assert over["both_ms"] == 0
    assert over["primary_last_ms"] < over["standby_first_ms"]
    assert set(over["serving_ms"]) == STREAMS
    assert all(over["standby_first_ms"] <= ms < 30_000 for ms in over["serving_ms"].values())
    assert over["staleness_ms"] is not None
    return row, over


def test_a_standby_serves_when_its_primarys_host_has_died(lab: Lab) -> None:
    row, over = fail_over_of(lab.run("warm-failover-light"))
    assert over["fenced_ms"] is None
    assert over["standby_first_ms"] > 1000 * row["lease_s"]  # it could not know, and has waited


@pytest.mark.slow
def test_a_primary_that_is_cut_off_pauses_before_its_standby_serves(lab: Lab) -> None:
    row, over = fail_over_of(lab.run("warm-partition-light"))
    assert over["fenced_ms"] <= 1000 * row["lease_s"] < over["standby_first_ms"]


@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["warm-failover", "warm-partition"])
def test_a_guest_goes_on_with_memory_and_disk_of_one_moment(lab: Lab, name: str) -> None:
    row, over = fail_over_of(lab.run(name))
    assert over["records"]["missing"] == 0
    assert over["records"]["of_one_moment"] is True
    assert 0 < over["records"]["in_checkpoint"] <= over["records"]["at_strike"]
    assert row["checkpoints"] >= 3
    assert 0 < row["pause_ms"]["least"] <= row["pause_ms"]["most"]
    assert (over["fenced_ms"] is None) is (name == "warm-failover")
