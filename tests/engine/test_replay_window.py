"""The replay window against a plain model: the set of all counters ever accepted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmobility.engine.replay_window import WINDOW, ReplayWindow

COUNTERS = st.one_of(st.integers(1, 3000), st.integers(1, 1 << 64))


@given(st.lists(st.tuples(st.integers(1, 3), COUNTERS), max_size=60))
def test_it_takes_each_counter_of_its_boot_once(datagrams: list[tuple[int, int]]) -> None:
    window = ReplayWindow(2, 0)
    seen = {0}
    expected: str | None
    for boot, counter in datagrams:
        why = window.check(boot, counter)
        if boot != 2:
            assert why == ("old-boot" if boot < 2 else "unproven")
            continue
        if max(seen) - counter >= WINDOW:
            expected = "too-old"
        else:
            expected = "replayed" if counter in seen else None
        assert why == expected
        if why is None:
            window.accept(counter)
            seen.add(counter)


def test_one_restored_from_its_mark_takes_nothing_at_or_below_it() -> None:
    window = ReplayWindow(5, 100)
    assert window.check(5, 100) == "replayed"
    assert window.check(5, 1) == "replayed"
    assert window.check(5, 101) is None
    assert window.check(4, 1000) == "old-boot"
    assert window.check(6, 1) == "unproven"


def test_one_without_a_mark_takes_nothing() -> None:
    window = ReplayWindow()
    for mark in ((1, 1), (5, 100), ((1 << 63) - 1, (1 << 64) - 1)):
        assert window.check(*mark) == "unproven"


def test_a_leap_costs_nothing() -> None:
    window = ReplayWindow(1, 0)
    window.accept(1)
    window.accept((1 << 64) - 1)
    assert window.check(1, (1 << 64) - 1) == "replayed"
    assert window.check(1, (1 << 64) - 2) is None


@pytest.mark.parametrize(("behind", "why"), [(WINDOW - 1, None), (WINDOW, "too-old")])
def test_the_edge_of_the_window(behind: int, why: str | None) -> None:
    window = ReplayWindow(1, 0)
    window.accept(5000)
    assert window.check(1, 5000 - behind) == why
