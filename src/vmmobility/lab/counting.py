"""Counting what the probes recorded: windows, losses, duplicates, gaps, stalls.

Pure functions on records.  Each probe belongs to the move in whose window it was sent; windows
follow each other without a hole (docs/lab.md).  Not here: sending (probe.py).
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LATE_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Window:
    """From start (included) to end (excluded), CLOCK_REALTIME."""

    start_ns: int
    end_ns: int

    def holds(self, time_ns: int) -> bool:
        return self.start_ns <= time_ns < self.end_ns


@dataclass(slots=True)
class UdpRecord:
    """What one UDP stream sent and received: sequence number -> times."""

    sent: dict[int, int] = field(default_factory=dict)
    received: dict[int, list[int]] = field(default_factory=dict)


@dataclass(slots=True)
class TcpRecord:
    """What one chain of TCP sessions felt: times of opening, of echoes and of breaking."""

    opened: list[int] = field(default_factory=list)
    echoes: list[int] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class UdpCount:
    """One stream in one window."""

    sent: int
    lost: int
    duplicated: int
    longest_gap_ms: float
    gap_start_ns: int
    received: int
    pending: int = 0


@dataclass(frozen=True, slots=True)
class TcpCount:
    """One chain of sessions in one window."""

    survived: bool
    longest_stall_ms: float
    breaks: int


def windows(starts: Sequence[int], first_ns: int, end_ns: int) -> list[Window]:
    """Contiguous windows: the first begins at the first probe, the last ends at the end."""
    edges = [min([first_ns, *starts[:1]]), *starts[1:], end_ns]
    return [Window(a, max(a, b)) for a, b in itertools.pairwise(edges)]


def read_udp(path: Path) -> UdpRecord:
    """A UDP stream's file; an unfinished last line is left out."""
    record = UdpRecord()
    for what, number, time_ns in _lines(path):
        if what == "s":
            record.sent[number] = time_ns
        else:
            record.received.setdefault(number, []).append(time_ns)
    return record


def read_tcp(path: Path) -> TcpRecord:
    """A TCP chain's file."""
    record = TcpRecord()
    kinds = {"o": record.opened, "r": record.echoes, "x": record.broken}
    for what, _, time_ns in _lines(path):
        kinds[what].append(time_ns)
    return record


def _lines(path: Path) -> Iterable[tuple[str, int, int]]:
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            parts = line.split(",")
            if line.endswith("\n") and len(parts) == 3:
                yield parts[0], int(parts[1]), int(parts[2])


def echo_ns(record: UdpRecord, number: int) -> int | None:
    """When the first echo of that probe came, if it came within 2 s."""
    times = record.received.get(number)
    if not times or times[0] - record.sent[number] > LATE_NS:
        return None
    return times[0]


def count_udp(record: UdpRecord, window: Window, now_ns: int | None = None) -> UdpCount:
    """Count the probes sent in the window.  Those still within their 2 s at `now_ns` are pending.

    The gap is the longest time without an echo: from the first probe's sending, over the arrivals
    of the window's echoes in order, to the last probe's sending.
    """
    sent = [(n, t) for n, t in record.sent.items() if window.holds(t)]
    lost = duplicated = pending = 0
    arrivals: list[int] = []
    for number, sent_ns in sent:
        duplicated += max(0, len(record.received.get(number, ())) - 1)
        arrival = echo_ns(record, number)
        if arrival is not None:
            arrivals.append(arrival)
        elif now_ns is not None and now_ns - sent_ns <= LATE_NS:
            pending += 1
        else:
            lost += 1
    times = [t for _, t in sent]
    gap_ns, gap_start = longest_gap(arrivals, min(times), max(times)) if sent else (0, 0)
    gap_ms = round(gap_ns / 1e6, 3)
    return UdpCount(len(sent), lost, duplicated, gap_ms, gap_start, len(arrivals), pending)


def count_outside(
    record: UdpRecord, busy: Sequence[Window], end_ns: int, now_ns: int | None = None
) -> tuple[int, int]:
    """(sent, lost) of the probes sent up to the end and in none of these windows."""
    sent = lost = 0
    for number, sent_ns in record.sent.items():
        if sent_ns >= end_ns or any(window.holds(sent_ns) for window in busy):
            continue
        sent += 1
        pending = now_ns is not None and now_ns - sent_ns <= LATE_NS
        lost += echo_ns(record, number) is None and not pending
    return sent, lost


def first_echo_after(record: UdpRecord, time_ns: int, end_ns: int) -> int | None:
    """When the first echo came at or after `time_ns`, and before `end_ns`."""
    times = [t for found in record.received.values() for t in found if time_ns <= t < end_ns]
    return min(times, default=None)


def longest_gap(arrivals: Sequence[int], first_ns: int, last_ns: int) -> tuple[int, int]:
    """(length, start) of the longest time without an arrival between first and last."""
    best, best_start = 0, first_ns
    previous = first_ns
    for time_ns in sorted(arrivals):
        if time_ns - previous > best:
            best, best_start = time_ns - previous, previous
        previous = max(previous, time_ns)
    if last_ns - previous > best:
        best, best_start = last_ns - previous, previous
    return best, best_start


def count_tcp(record: TcpRecord, window: Window) -> TcpCount:
    """A session survives a window if it was open in it and never broke in it.

    The stall is the longest time between two echoes, one of them in the window.
    """
    breaks = sum(window.holds(t) for t in record.broken)
    was_open = any(t < window.end_ns for t in record.opened)
    edge = [t for t in record.echoes if t < window.start_ns][-1:]
    inside = [t for t in record.echoes if window.holds(t)]
    after = [t for t in record.echoes if t >= window.end_ns][:1]
    times = [*edge, *inside, *after]
    if inside:
        stall = max((b - a for a, b in itertools.pairwise(times)), default=0)
    else:
        stall = window.end_ns - window.start_ns
    survived = was_open and breaks == 0 and bool(inside)
    return TcpCount(survived, round(stall / 1e6, 3), breaks)


def write_raw(path: Path, record: UdpRecord, window: Window) -> None:
    """The window's probes as CSV `seq,sent_ns,received_ns`, a row more for every duplicate."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["seq", "sent_ns", "received_ns"])
        for number, sent_ns in record.sent.items():
            if not window.holds(sent_ns):
                continue
            if echo_ns(record, number) is None:
                rows.writerow([number, sent_ns, ""])
                continue
            for time_ns in record.received[number]:
                rows.writerow([number, sent_ns, time_ns])
