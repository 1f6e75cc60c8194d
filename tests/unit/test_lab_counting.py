"""Windows, losses, duplicates, gaps and stalls."""

from __future__ import annotations

import csv
import time

from vmmobility.lab.counting import (
    TcpRecord,
    UdpRecord,
    Window,
    count_outside,
    count_tcp,
    count_udp,
    longest_gap,
    read_tcp,
    read_udp,
    windows,
    write_raw,
)

MS = 1_000_000


def stream(count, lost=(), echo_ms=1):
    record = UdpRecord({n: n * 5 * MS for n in range(count)})
    record.received = {
        n: [t + echo_ms * MS] for n, t in record.sent.items() if n not in lost
    }  # fmt: skip
    return record


def test_every_probe_is_counted_in_exactly_one_window():
    record = stream(100, lost={10, 60, 61})
    found = [
        count_udp(record, window) for window in windows([100 * MS, 300 * MS], 0, 501 * MS)
    ]  # fmt: skip
    assert [count.sent for count in found] == [60, 40]
    assert [count.lost for count in found] == [1, 2]


def test_windows_touch_and_the_first_begins_at_the_first_probe():
    assert windows([10, 20], 3, 50) == [Window(3, 20), Window(20, 50)]
    assert windows([10], 30, 50) == [Window(10, 50)]


def test_an_echo_after_two_seconds_is_lost_and_pending_before():
    record = stream(10)
    record.received[5] = [record.sent[5] + 2001 * MS]
    assert count_udp(record, Window(0, 10**12)).lost == 1
    del record.received[5]
    soon = count_udp(record, Window(0, 10**12), now_ns=record.sent[5] + 1000 * MS)
    assert (soon.lost, soon.pending) == (0, 1)


def test_duplicates_are_counted_beside_losses():
    record = stream(10, lost={1})
    record.received[3] *= 3
    count = count_udp(record, Window(0, 10**12))
    assert (count.lost, count.duplicated, count.received) == (1, 2, 9)


def test_the_gap_runs_between_echoes_and_includes_both_ends():
    count = count_udp(stream(100, lost=range(40, 60)), Window(0, 10**12))
    assert count.longest_gap_ms == 105.0
    assert count.gap_start_ns == (39 * 5 + 1) * MS
    assert longest_gap([], 0, 500) == (500, 0)
    assert longest_gap([1, 2], 0, 500) == (498, 2)
    assert longest_gap([400, 410], 0, 420) == (400, 0)


def test_echoes_out_of_order_make_no_negative_gap():
    assert longest_gap([30, 10, 20], 0, 30) == (10, 0)


def test_tcp_survives_only_without_a_break_and_with_echoes():
    echoes = [n * 20 * MS for n in range(1, 100)]
    record = TcpRecord([1], echoes, [])
    count = count_tcp(record, Window(0, 10**10))
    assert (count.survived, count.longest_stall_ms) == (True, 20.0)
    assert not count_tcp(TcpRecord([1], echoes, [500 * MS]), Window(0, 10**10)).survived
    assert count_tcp(TcpRecord([1], echoes, [500 * MS]), Window(600 * MS, 10**10)).survived
    assert not count_tcp(TcpRecord([], [], []), Window(0, 10**10)).survived


def test_a_stall_over_the_edge_of_a_window_counts_in_both():
    record = TcpRecord([1], [100 * MS, 900 * MS, 920 * MS], [])
    assert count_tcp(record, Window(0, 500 * MS)).longest_stall_ms == 800.0
    assert count_tcp(record, Window(500 * MS, 10**10)).longest_stall_ms == 800.0


def test_a_dead_session_stalls_for_the_whole_window():
    record = TcpRecord([1], [100 * MS], [])
    count = count_tcp(record, Window(500 * MS, 1500 * MS))
    assert (count.survived, count.longest_stall_ms) == (False, 1000.0)


def test_files_are_read_without_their_unfinished_line(tmp_path):
    udp, tcp = tmp_path / "x.udp", tmp_path / "x.tcp"
    udp.write_text("s,1,100\nr,1,150\nr,1,160\ns,2,200\ns,3")
    tcp.write_text("o,0,5\nr,1,10\nx,1,20\n")
    assert read_udp(udp) == UdpRecord({1: 100, 2: 200}, {1: [150, 160]})
    assert read_tcp(tcp) == TcpRecord([5], [10], [20])
    assert read_udp(tmp_path / "none") == UdpRecord()


def test_raw_rows_can_be_counted_again(tmp_path):
    record = stream(50, lost={7, 8})
    record.received[20] *= 2
    write_raw(tmp_path / "1.csv", record, Window(0, 200 * MS))
    with (tmp_path / "1.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["seq", "sent_ns", "received_ns"]
    assert len(rows) == 41
    assert sum(row["received_ns"] == "" for row in rows) == 2


def test_counting_a_long_run_is_quick():
    record = stream(200_000)
    begun = time.monotonic()
    count_udp(record, Window(0, 10**13))
    assert time.monotonic() - begun < 5


def test_what_is_lost_at_rest_is_not_what_moves_have_lost():
    record = stream(100, lost={10, 60, 61, 99})
    moving = [Window(40 * MS, 60 * MS), Window(300 * MS, 305 * MS)]  # probes 8 to 11, and 60
    assert count_outside(record, moving, 500 * MS) == (95, 2)
    assert count_outside(record, moving, 495 * MS) == (94, 1)
    assert count_outside(record, [], 500 * MS, now_ns=500 * MS) == (100, 0)  # none is late yet
