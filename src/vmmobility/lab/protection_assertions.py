"""Judging what a scenario asserts of protected VMs.

Each judge answers "" if it is so, else what it saw instead.  Not here: what was seen
(protections.py).
"""

from __future__ import annotations

from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.protections import Protection, records, who_ran
from vmmobility.lab.step_types import Assertion


def taken_over(run: LabRun, what: Assertion) -> str:
    """The standby there serves the VM, the primary had stopped before it began, and what it has
    is whole: disk and memory of one moment, no earlier record missing."""
    protection = run.protections.of(what.vm)
    if protection.standby != what.node:
        return f"the standby of {what.vm} is at {protection.standby}"
    place = run.place_of(what.vm)
    if place != what.node:
        return f"the manager binds {what.vm} to {place or 'nobody'}"
    return _ran_one_by_one(run, protection) or _is_whole(run, protection)


def _ran_one_by_one(run: LabRun, protection: Protection) -> str:
    ran = who_ran(run, protection)
    if ran.standby_first_ns is None:
        return f"{protection.vm} has not run at {protection.standby}"
    if ran.primary_last_ns is None:
        return f"nobody knows when {protection.vm} has run at {protection.primary}"
    if ran.both_ms > 0 or ran.primary_last_ns > ran.standby_first_ns:
        return f"{protection.vm} ran at both for {ran.both_ms:.1f} ms"
    return ""


def _is_whole(run: LabRun, protection: Protection) -> str:
    found = records(run, protection)
    if found is None:
        return ""
    if found.missing:
        return f"{found.missing} records before {found.in_checkpoint} are not in the checkpoint"
    if found.first_after is None:
        return f"{protection.vm} has written nothing at {protection.standby} yet"
    if not found.of_one_moment:
        return (
            f"the checkpoint's disk has records up to {found.in_checkpoint}, its memory went on "
            f"with {found.first_after}"
        )
    return ""


def runs_at(run: LabRun, what: Assertion) -> str:
    """The VM runs at that NVE, and nowhere else."""
    if run.lab.fabric.vm(what.vm).kind == "guest" and run.lab.eyes is not None:
        found = run.lab.eyes.running_at()
        return "" if found == [what.node] else f"it runs at {', '.join(found) or 'no NVE'}"
    found = []
    for nve in run.lab.fabric.of_kind("nve"):
        if run.lab.daemons.running(nve.name):
            rows = run.lab.daemons.ask(nve.name, "GET", "/v1/vms")
            found += [nve.name for r in rows if (r["vm"], r["forwarding"]) == (what.vm, "local")]
    return "" if found == [what.node] else f"{', '.join(found) or 'no NVE'} delivers to it"
