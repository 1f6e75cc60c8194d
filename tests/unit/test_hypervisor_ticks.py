from __future__ import annotations

import pytest

from vmmobility.drivers.hypervisor.ticks import LEAD_LIMIT_S, WINDOW_S, Lead, TickClock


def test_nothing_is_predicted_before_a_tick_was_seen() -> None:
    ticks = TickClock()
    assert not ticks.known
    assert ticks.until_watch(5.0) == 0.0
    with pytest.raises(ValueError, match="no tick"):
        ticks.next_after(5.0)


def test_ticks_follow_each_other_by_windows() -> None:
    ticks = TickClock()
    ticks.seen(10.0)
    assert ticks.next_after(10.01) == pytest.approx(10.0 + WINDOW_S)
    assert ticks.next_after(10.0 + 2.5 * WINDOW_S) == pytest.approx(10.0 + 3 * WINDOW_S)


def test_the_window_is_learnt_but_never_shorter_than_qemu_s() -> None:
    ticks = TickClock()
    for n in range(20):
        ticks.seen(10.0 + n * 0.101)
    assert ticks.next_after(10.0 + 19 * 0.101 + 0.01) == pytest.approx(10.0 + 20 * 0.101, abs=1e-4)
    fast = TickClock()
    for n in range(20):
        fast.seen(10.0 + n * 0.098)
    assert fast.next_after(10.0 + 19 * 0.098 + 0.01) == pytest.approx(10.0 + 19 * 0.098 + WINDOW_S)


def test_a_watch_begins_shortly_before_a_tick_and_never_in_the_past() -> None:
    ticks = TickClock()
    ticks.seen(10.0)
    for step in range(300):
        now = 10.0 + step * 0.001
        wait = ticks.until_watch(now)
        assert 0 <= wait <= WINDOW_S


def test_the_lead_follows_the_slowest_of_the_last_redirects() -> None:
    lead = Lead(0.012)
    assert lead.seconds == 0.012
    lead.took(0.003)
    assert lead.seconds == 0.012
    lead.took(0.020)
    assert lead.seconds == pytest.approx(0.036)
    lead.took(3.0)
    assert lead.seconds == LEAD_LIMIT_S
    for _ in range(8):
        lead.took(0.003)
    assert lead.seconds == 0.012
