"""What a run has found of its protected VMs.

Checkpoints are counted from the primary's own words, fail-overs from the lab's eyes on QEMU and the
correspondents' probes.  Not here: those (protections.py), the report's values
(report_protections.py).
"""

from __future__ import annotations

from dataclasses import asdict

from vmmobility.lab.correspondents import FAMILY_NAMES
from vmmobility.lab.counting import UdpRecord, Window, count_udp, echo_ns
from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.logbook import LogEvent
from vmmobility.lab.protections import Protection, records, who_ran
from vmmobility.lab.report_protections import (
    FailOver,
    ProtectionReport,
    ProtectionsReport,
    Spread,
)
from vmmobility.wire.values import FAMILIES


def protections_report(run: LabRun) -> ProtectionsReport:
    """Every protection of the run."""
    events = run.lab.logbook.events()
    return ProtectionsReport(tuple(_one(run, p, events) for p in run.protections.all))


def _one(run: LabRun, protection: Protection, events: list[LogEvent]) -> ProtectionReport:
    taken = [
        event
        for event in events
        if (event.name, event.vm, event.node)
        == ("guest.checkpoint", protection.vm, protection.primary)
        and event.ts_ns >= protection.begun_ns
    ]
    good = [event for event in taken if event.fields.get("ok")]
    spread = {
        key: Spread.over(event.number(key) for event in good)
        for key in ("pause_ms", "total_ms", "memory_bytes", "disk_bytes")
    }
    return ProtectionReport(
        run.number,
        protection.vm,
        protection.primary,
        protection.standby,
        protection.every_s,
        protection.lease_s,
        len(good),
        len(taken) - len(good),
        sum(bool(event.fields.get("full")) for event in good),
        fail_over=_fail_over(run, protection, events, good) if protection.strike else None,
        **spread,
    )


def _fail_over(
    run: LabRun, protection: Protection, events: list[LogEvent], good: list[LogEvent]
) -> FailOver:
    struck, ran = protection.struck_ns, who_ran(run, protection)
    held = {
        event.fields.get("number"): event.ts_ns
        for event in events
        if (event.name, event.vm, event.node)
        == ("guest.checkpoint-held", protection.vm, protection.standby)
        and event.ts_ns >= protection.begun_ns
    }
    used = max((int(number or 0) for number in held), default=0)
    fenced = [e.at_ns for e in events if e.name == "guest.fenced" and e.at_ns >= struck]
    moments = {e.fields.get("number"): e.ts_ns - (e.number("age_ms") or 0) * 1e6 for e in good}
    streams = {
        f"{pair.correspondent} {FAMILY_NAMES[version]}": run.probes.udp(pair, version)
        for pair in run.probes.pairs
        if pair.vm == protection.vm
        for version in FAMILIES
    }
    begin = ran.standby_first_ns
    window = Window(struck, run.ended_ns)
    known = records(run, protection)
    return FailOver(
        protection.strike,
        struck,
        used,
        _ms(struck - moments[used]) if used in moments else None,
        _ms(min(fenced) - struck) if fenced else None,
        _ms(ran.primary_last_ns - struck) if ran.primary_last_ns else None,
        _ms(begin - struck) if begin else None,
        round(ran.both_ms, 3),
        {name: _first_echo(record, struck, begin) for name, record in streams.items()},
        {name: count_udp(r, window).longest_gap_ms for name, r in streams.items()},
        None if known is None else {**asdict(known), "of_one_moment": known.of_one_moment},
    )


def _first_echo(record: UdpRecord, struck_ns: int, since_ns: int | None) -> float | None:
    """The first that came once the standby ran, since the strike."""
    if since_ns is None:
        return None
    echoes = (echo_ns(record, number) for number in record.sent)
    times = [at for at in echoes if at is not None and at >= since_ns]
    return _ms(min(times) - struck_ns) if times else None


def _ms(nanoseconds: float) -> float:
    return round(nanoseconds / 1e6, 3)
