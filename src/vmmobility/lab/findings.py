"""From one run's records to its moves' reports, and the raw files.

Not here: the arithmetic (counting.py, measures.py) or the report's format (report.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vmmobility.lab import measures, report
from vmmobility.lab.correspondents import FAMILY_NAMES, Pair
from vmmobility.lab.counting import (
    LATE_NS,
    Window,
    count_tcp,
    count_udp,
    first_echo_after,
    windows,
    write_raw,
)
from vmmobility.lab.lab_run import LabRun, MoveRecord
from vmmobility.lab.logbook import LogEvent
from vmmobility.lab.moments import moments, split_gap
from vmmobility.lab.route_recorder import RouteSpan, spans
from vmmobility.wire.values import FAMILIES


def move_reports(run: LabRun, raw: Path | None) -> list[report.MoveReport]:
    """Every move of the run; its raw files too if a folder is given."""
    events = run.lab.logbook.events()
    found = []
    for vm in dict.fromkeys(record.vm for record in run.moves):
        records = [record for record in run.moves if record.vm == vm]
        route_spans = spans(run.lab.routes.changes(vm))
        for record, window in zip(records, windows_of(run, records), strict=True):
            found.append(_move(run, record, window, events, route_spans))
            if raw is not None:
                _write_raw(run, record, window, raw)
    return sorted(found, key=lambda move: move.number)


def windows_of(run: LabRun, records: list[MoveRecord]) -> list[Window]:
    """One window a move of one VM: contiguous from its first probe to the end."""
    sent = [
        min(times.values())
        for pair in run.probes.pairs
        if pair.vm == records[0].vm
        for version in FAMILIES
        if (times := run.probes.udp(pair, version).sent)
    ]
    first_ns = min(sent, default=records[0].requested_ns)
    return windows([record.requested_ns for record in records], first_ns, run.ended_ns)


def _pairs(run: LabRun, record: MoveRecord) -> list[Pair]:
    return [pair for pair in run.probes.pairs if pair.vm == record.vm]


def _move(
    run: LabRun, record: MoveRecord, window: Window, events: list[LogEvent],
    route_spans: list[RouteSpan],
) -> report.MoveReport:  # fmt: skip
    event_window = Window(record.requested_ns, window.end_ns)
    facts = measures.MoveFacts(record.vm, record.source, record.target, event_window)
    mine = measures.of_move(events, facts)
    times = measures.guest(mine, facts)
    control = measures.control(mine, facts)
    phases = tuple(measures.phases(mine, record.requested_ns))
    resumed_ns = measures.resumed_at(events, facts)
    at = moments(phases, record.source, record.target)
    probes = tuple(_probes(run, record, window, at, resumed_ns))
    health = record.soundness
    return report.MoveReport(
        number=record.number,
        run=run.number,
        vm=record.vm,
        source=record.source,
        target=record.target,
        mode=str(record.answer.get("mode") or "hot"),
        ok=bool(record.ok),
        reason=record.reason,
        expected=record.expected,
        started_ns=record.requested_ns,
        window_ms=round((window.end_ns - record.requested_ns) / 1e6, 3),
        probes=probes,
        tcp=_tcp(run, record, window),
        guest=report.GuestReport(
            downtime_ms=times["downtime_ms"],
            stop_to_resume_ms=times["stop_to_resume_ms"],
            total_ms=times["total_ms"],
            cold_ms=report.median(probe.resume_to_echo_ms for probe in probes),
            sound=bool(health and health.sound),
            bad_pages=health.bad_pages if health else None,
            memory_pages=health.memory_pages if health else None,
            cpu=health.cpu if health else None,
            cpu_before=run.cpu_before.get(record.vm),
            reason=health.reason if health else "not examined",
        ),
        control=report.ControlReport(**control),
        queue_peak=measures.queue_peak(events, facts),
        relayed=measures.relayed(run.poller.polls(record.vm), event_window),
        phases=phases,
        routes=tuple(_routes(route_spans, event_window)),
        measured=dict(record.answer.get("measured") or {}),
    )


def _probes(
    run: LabRun, record: MoveRecord, window: Window, at: dict[str, float], resumed_ns: int | None
) -> Iterable[report.ProbeReport]:
    stop_ms = at["resume"] - at["stop"] if {"stop", "resume"} <= set(at) else None
    for pair in _pairs(run, record):
        for version in FAMILIES:
            stream = run.probes.udp(pair, version)
            count = count_udp(stream, window)
            echo_ms = None
            if resumed_ns is not None:
                echo_ns = first_echo_after(stream, resumed_ns, window.end_ns + LATE_NS)
                echo_ms = None if echo_ns is None else round((echo_ns - resumed_ns) / 1e6, 3)
            start_ms = round((count.gap_start_ns - record.requested_ns) / 1e6, 3)
            split = split_gap(start_ms, count.longest_gap_ms, at, echo_ms)
            beyond = None if stop_ms is None else round(count.longest_gap_ms - stop_ms, 3)
            yield report.ProbeReport(
                correspondent=pair.correspondent,
                family=FAMILY_NAMES[version],
                sent=count.sent,
                lost=count.lost,
                duplicated=count.duplicated,
                longest_gap_ms=count.longest_gap_ms,
                gap_beyond_stop_ms=beyond,
                gap_start_ms=start_ms,
                resume_to_echo_ms=echo_ms,
                gap_parts=split,
            )


def _tcp(run: LabRun, record: MoveRecord, window: Window) -> report.TcpReport:
    counts = [
        count_tcp(run.probes.tcp(pair, version), window)
        for pair in _pairs(run, record)
        for version in FAMILIES
    ]
    stall = max((count.longest_stall_ms for count in counts), default=0.0)
    return report.TcpReport(len(counts), sum(count.survived for count in counts), stall)


def _routes(route_spans: list[RouteSpan], window: Window) -> list[report.RouteReport]:
    found = []
    for span in route_spans:
        ended = span.end_ns
        if span.start_ns >= window.end_ns or (ended is not None and ended < window.start_ns):
            continue
        before = span.start_ns < window.start_ns
        after = ended is None or ended >= window.end_ns
        start_ms = None if before else round((span.start_ns - window.start_ns) / 1e6, 3)
        end_ms = None if after or ended is None else round((ended - window.start_ns) / 1e6, 3)
        found.append(
            report.RouteReport(span.node, span.family, span.via, span.text, start_ms, end_ms)
        )
    return found


def _write_raw(run: LabRun, record: MoveRecord, window: Window, folder: Path) -> None:
    for pair in _pairs(run, record):
        for version in FAMILIES:
            name = f"{record.number}-{pair.correspondent}-{FAMILY_NAMES[version]}.csv"
            write_raw(folder / name, run.probes.udp(pair, version), window)
