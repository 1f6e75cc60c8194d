"""From one run's probes of packet sizes to what passed in each phase of each move.

Not here: the arithmetic (sizes.py), the report's values (report_sizes.py).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from vmmobility.lab import measures
from vmmobility.lab.counting import Window
from vmmobility.lab.lab_run import LabRun, MoveRecord
from vmmobility.lab.logbook import LogEvent
from vmmobility.lab.namespaces import GATEWAYS
from vmmobility.lab.report_sizes import SizeReport, SizesReport
from vmmobility.lab.sizes import Phase, bulk_report, phases, silent, size_report
from vmmobility.wire.values import FAMILIES


def sizes_report(run: LabRun) -> SizesReport:
    """All that the run's probes of sizes have found up to now."""
    now_ns, whole = time.time_ns(), Window(0, run.ended_ns or time.time_ns())
    records = {(pair, v): run.sizes.record(pair, v) for pair in run.sizes.pairs for v in FAMILIES}
    return SizesReport(
        tuple(itertools.chain(*(phase_reports(run, vm) for vm in moved(run)))),
        tuple(bulk_report(run.number, pair, v, record) for (pair, v), record in records.items()),
        sum(len(record.sent) for record in records.values()),
        sum(silent(record, whole, now_ns) for record in records.values()),
    )


def moved(run: LabRun) -> list[str]:
    """The VMs that the run has moved."""
    return list(dict.fromkeys(record.vm for record in run.moves))


def phase_reports(run: LabRun, vm: str, name: str = "") -> Iterator[SizeReport]:
    """Every stream to the VM in every phase of its moves, or in those of that name."""
    now_ns, nodes = time.time_ns(), holders(run)
    pairs = [pair for pair in run.sizes.pairs if pair.vm == vm]
    records = {(pair, v): run.sizes.record(pair, v) for pair in pairs for v in FAMILIES}
    for phase in _phases(run, vm):
        if name in ("", phase.name):
            for (pair, version), record in records.items():
                yield size_report(phase, pair, version, record, nodes, now_ns)


def holders(run: LabRun) -> dict[str, str]:
    """Address -> the node that has it.  The gateways' belong to whichever NVE a VM lives at."""
    fabric = run.lab.fabric
    found = {str(a.ip): e.node for link in fabric.links for e in link.ends for a in e.addresses}
    return {**found, **dict.fromkeys(GATEWAYS, "its gateway")}


def _phases(run: LabRun, vm: str) -> Iterator[Phase]:
    records = [record for record in run.moves if record.vm == vm]
    events = run.lab.logbook.events()
    end_ns = run.ended_ns or time.time_ns()
    previous = run.begun_ns
    for record, later in itertools.zip_longest(records, records[1:]):
        following = later.requested_ns if later is not None else end_ns
        ended = record.ended_ns or following
        turned = _turned(events, record, following)
        times = (previous, record.requested_ns, turned, max(turned, ended), following)
        yield from phases(run.number, record.number, times)
        previous = ended


def _turned(events: list[LogEvent], record: MoveRecord, until_ns: int) -> int:
    """When the source's kernel led packets elsewhere; when it was asked for, if it never did."""
    window = Window(record.requested_ns, until_ns)
    facts = measures.MoveFacts(record.vm, record.source, record.target, window)
    event = measures.first(
        measures.of_move(events, facts), "forwarding", record.source,
        lambda e: e.fields.get("forwarding") == "redirect",
    )  # fmt: skip
    return record.requested_ns if event is None else event.at_ns
