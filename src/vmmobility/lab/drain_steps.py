"""The step `drain`: the manager empties an NVE, and the report gets how that went.

Not here: the other steps (steps.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from vmmobility.errors import LabError
from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.step_types import Drain

LOOK_S = 1.0
SAY_S = 10.0


@dataclass(frozen=True, slots=True)
class DrainReport:
    """One drain.  parallel: moves at once that were allowed; most_at_once: that there were."""

    run: int
    nve: str
    state: str
    parallel: int
    most_at_once: int
    vms: int
    moved: int
    failed: int
    took_s: float
    vms_per_s: float
    median_move_ms: float | None
    reasons: tuple[str, ...] = ()


def carry_out(run: LabRun, step: Drain) -> DrainReport:
    """Have it done, and wait.  Raises LabError if VMs are left, or it takes too long."""
    daemons, say = run.lab.daemons, run.lab.say
    body = {"nve": step.nve, "to": list(step.to), "parallel": step.parallel}
    found = daemons.ask(daemons.manager, "POST", "/v1/drains", body)
    say(f"drain of {step.nve}: {found['all']} VMs, {step.parallel} at once")
    deadline, told = time.monotonic() + step.timeout_s, time.monotonic()
    while found["ok"] is None:
        if time.monotonic() > deadline:
            raise LabError(
                f"the drain of {step.nve} has not ended in {step.timeout_s:g} s: "
                f"{found['settled']} of {found['all']}",
                "see the manager's log",
            )
        target = f"/v1/drains/{found['id']}?wait={LOOK_S:g}"
        found = daemons.ask(daemons.manager, "GET", target, timeout_s=LOOK_S + 10)
        if time.monotonic() - told >= SAY_S:
            told = time.monotonic()
            say(f"  {found['settled']} of {found['all']}, {found['elapsed_s']:.0f} s")
    report = _report(run, found)
    say(f"drain of {step.nve}: {report.state}, {report.moved} VMs in {report.took_s:.1f} s, "
        f"{report.most_at_once} at once")  # fmt: skip
    if not found["ok"]:
        raise LabError(
            f"the drain of {step.nve} is {report.state}: {'; '.join(report.reasons[:3])}",
            "see the manager's log",
        )
    return report


def _report(run: LabRun, found: dict[str, Any]) -> DrainReport:
    daemons = run.lab.daemons
    ids = {row["move"] for row in found["vms"]}
    moves = [m for m in daemons.ask(daemons.manager, "GET", "/v1/moves") if m["id"] in ids]
    spans = [(m["started_ns"], m["started_ns"] + m["phases"][-1]["at_ms"] * 1e6) for m in moves]
    edges = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    now = most = 0
    for _, change in edges:
        now += change
        most = max(most, now)
    times = sorted(end - begin for begin, end in spans)
    took_s = max(found["elapsed_s"], 0.001)
    return DrainReport(
        run=run.number,
        nve=found["nve"],
        state=found["state"],
        parallel=found["parallel"],
        most_at_once=most,
        vms=found["all"],
        moved=found["moved"],
        failed=found["failed"],
        took_s=round(took_s, 3),
        vms_per_s=round(found["moved"] / took_s, 2),
        median_move_ms=round(times[len(times) // 2] / 1e6, 1) if times else None,
        reasons=tuple(f"{row['vm']}: {row['reason']}" for row in found["reasons"]),
    )
