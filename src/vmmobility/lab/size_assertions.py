"""Judging what a scenario asserts of packet sizes and of bulk TCP.

Each judge answers "" if it is so, else what it saw instead.  Not here: how it is found
(size_findings.py).
"""

from __future__ import annotations

import time

from vmmobility.lab.counting import LATE_NS
from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.namespaces import GATEWAYS
from vmmobility.lab.report_sizes import SizeReport
from vmmobility.lab.size_findings import holders, phase_reports, sizes_report
from vmmobility.lab.step_types import Assertion
from vmmobility.wire.values import FAMILIES


def packet_size(run: LabRun, what: Assertion) -> str:
    """The largest packet that passed in that phase of the VM's last move, and who told of more."""
    found = list(phase_reports(run, what.vm, what.state))
    last = max((one.move for one in found), default=0)
    mine = [one for one in found if one.move == last and what.source in ("", one.correspondent)]
    if not mine:
        return f"no packets of known size to {what.vm} in a move"
    return "; ".join(filter(None, (_differs(run, one, what) for one in mine)))


def _differs(run: LabRun, one: SizeReport, what: Assertion) -> str:
    wanted = what.octets[one.family == "ipv6"]
    who = f"{one.correspondent} {one.family}"
    if one.largest_octets != wanted:
        return f"{who}: {one.largest_octets} octets passed"
    vms = {vm.name for vm in run.lab.fabric.vms}
    if one.correspondent not in vms and wanted >= run.lab.fabric.mtu_at(one.correspondent):
        return ""  # nothing bigger can be sent
    if one.error is None:
        return f"{who}: nobody told of bigger ones" if what.node else ""
    if one.error.mtu != wanted:
        return f"{who}: told {one.error.mtu} by {one.error.source}"
    if what.node not in ("", one.error.node):
        return f"{who}: told by {one.error.source} ({one.error.node})"
    return ""


def no_silent_drop(run: LabRun, what: Assertion) -> str:
    """Of every packet of known size sent up to now an echo or an error has come."""
    time.sleep(LATE_NS / 1e9)
    found = sizes_report(run)
    if found.silent <= what.maximum:
        return "" if found.sent else "no packets of known size were sent"
    return f"{found.silent} of {found.sent} packets had neither echo nor error"


def no_broken_bulk(run: LabRun, what: Assertion) -> str:
    """Every bulk session lives, never broke and has carried something."""
    found = sizes_report(run).bulk
    broken = [f"{b.correspondent} to {b.vm} {b.family}" for b in found if not b.survived]
    if not found:
        return "no bulk was sent"
    return f"broken bulk sessions: {', '.join(broken)}" if broken else ""


def too_big_counted(run: LabRun, what: Assertion) -> str:
    """Every error that the probes of sizes had from that NVE is in its count for the VM."""
    nodes, homes = holders(run), {vm.name: vm.home for vm in run.lab.fabric.vms}
    heard = 0
    for pair in (pair for pair in run.sizes.pairs if pair.vm == what.vm):
        beside = homes.get(pair.correspondent) == what.node
        for version in FAMILIES:
            for _, source in run.sizes.record(pair, version).errors.values():
                heard += nodes.get(source) == what.node or (beside and source in GATEWAYS)
    rows = run.lab.daemons.ask(what.node, "GET", "/v1/vms")
    counted = sum(row["traffic"]["too_big"] for row in rows if row.get("vm") == what.vm)
    return "" if 0 < heard <= counted else f"{what.node} counts {counted}; {heard} were heard"
