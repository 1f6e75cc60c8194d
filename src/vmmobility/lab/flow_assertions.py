"""Judging what a scenario asserts of flows to a load-shared group.

Each judge answers "" if it is so, else what it saw instead.  Not here: how it is found (flows.py).
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict

from vmmobility.lab.flows import EVERY_MS, FlowRecord, changes
from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.step_types import Assertion

_RECENT_NS = 5 * EVERY_MS * 1_000_000
_LEAST_SHARE = 0.15


def flows_stay(run: LabRun, what: Assertion) -> str:
    """Since the last `remember` no flow was answered by another VM than before, and each was."""
    begin_ns, end_ns = run.flows.marks[-1][0], time.time_ns()
    records = run.flows.records()
    moved = {key: n for key, r in records.items() if (n := changes(r, begin_ns, end_ns))}
    mute = [key for key, r in records.items() if not r.between(begin_ns, end_ns)]
    found = [f"{' '.join(map(str, key))} changed {n} times" for key, n in moved.items()]
    found += [f"{' '.join(map(str, key))} had no answer" for key in mute]
    return "; ".join(found[:10])


def flows_spread(run: LabRun, what: Assertion) -> str:
    """The flows of a correspondent (of all) are now answered by every VM of the group, none by
    less than its share."""
    shares = _answered(run, what.source)
    members = {vm for group in run.lab.fabric.groups for vm in group.vms}
    found = []
    for (talker, family), counts in shares.items():
        least = _LEAST_SHARE * sum(counts.values())
        few = [f"{vm} {counts[vm]}" for vm in sorted(members) if counts[vm] < least]
        if few:
            found.append(f"{talker} {family}: {', '.join(few)} of {sum(counts.values())}")
    return "; ".join(found)


def flows_at(run: LabRun, what: Assertion) -> str:
    """All flows (of a correspondent) are now answered, and by this VM."""
    strange = []
    for (talker, family), counts in _answered(run, what.source).items():
        other = {vm or "nobody": n for vm, n in counts.items() if vm != what.vm}
        strange += [f"{talker} {family}: {n} by {vm}" for vm, n in other.items()]
    return "; ".join(strange)


def _answered(run: LabRun, source: str) -> dict[tuple[str, str], Counter[str]]:
    """Who answered each flow last, lately; "": nobody did."""
    since_ns = time.time_ns() - _RECENT_NS
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for (talker, family, _), record in run.flows.records().items():
        if source in ("", talker):
            found[talker, family][_last(record, since_ns)] += 1
    return found


def _last(record: FlowRecord, since_ns: int) -> str:
    return record.answers[-1][1] if record.answers and record.answers[-1][0] >= since_ns else ""
