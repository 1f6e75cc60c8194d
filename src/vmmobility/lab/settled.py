"""The fabric once it has settled: every correspondent's way to its VMs, host routes that stand.

Looked at whenever a scenario asserts `direct-path`, and at the end of every run in a fabric with
router agents.  Not here: one way (path_walk.py), what a report says (report_fabric.py).
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from vmmobility.errors import ApiError
from vmmobility.lab.correspondents import FAMILY_NAMES, Pair
from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.path_walk import PathWalker
from vmmobility.lab.report_fabric import FabricReport, HostRoute, SettledPath
from vmmobility.lab.route_times import route_times
from vmmobility.lab.tunnelled import tunnel_counts
from vmmobility.wire.values import FAMILIES

TOMBSTONES = ("none", "gone")  # an NVE's entry that holds its epoch only
_AT_ONCE = 4
_POLL_S = 0.1
_SETTLE_S = 10.0


def settled_paths(run: LabRun, vm: str) -> list[SettledPath]:
    """The way of every correspondent of the VM, both families, as it is now."""
    serving = run.place_of(vm)
    walker = PathWalker(run.lab.fabric, run.lab.spaces, lambda nve, key: _target(run, nve, key))
    numbers = [move.number for move in run.moves if move.vm == vm]
    nves = {node.name for node in run.lab.fabric.of_kind("nve")}
    vms = {other.name for other in run.lab.fabric.vms}

    def one(job: tuple[Pair, int]) -> SettledPath:
        pair, version = job
        own = run.place_of(pair.correspondent) if pair.correspondent in vms else ""
        path = walker.walk(pair.correspondent, vm, version, own)
        detours = tuple(h for h in path.hops if h in nves - {serving, own})
        return SettledPath(
            run.number, max(numbers, default=0), pair.correspondent, vm, FAMILY_NAMES[version],
            path.hops, detours, not path.broken and not detours and serving in path.hops,
        )  # fmt: skip

    jobs = [(p, version) for p in run.scenario.probes if p.vm == vm for version in FAMILIES]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(one, jobs))


def _target(run: LabRun, nve: str, vm: str) -> str:
    for entry in run.lab.daemons.ask(nve, "GET", "/v1/vms"):
        if entry.get("vm") == vm and entry.get("forwarding") == "redirect":
            return str(entry.get("target") or "")
    return ""


def host_routes(run: LabRun, vms: Iterable[str]) -> list[HostRoute]:
    """Every host route to an address of those VMs, by whomever, in any table of any router."""
    wanted = {str(a.ip): vm for vm in vms for a in run.lab.fabric.vm(vm).addresses}
    routers = [node.name for node in run.lab.fabric.of_kind("router")]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        tables = pool.map(lambda router: list(_routes(run, router)), routers)
        return [
            HostRoute(run.number, router, wanted[address], family, table, protocol)
            for router, found in zip(routers, tables, strict=True)
            for address, family, table, protocol in found
            if address in wanted
        ]


def _routes(run: LabRun, router: str) -> Iterator[tuple[str, str, str, str]]:
    """(destination, family, table, protocol) of each route of a router."""
    for version in FAMILIES:
        command = ["ip", "-n", run.lab.spaces.name(router), f"-{version}", "-j", "route", "show",
                   "table", "all"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for route in json.loads(done.stdout or "[]"):
            address = str(route.get("dst", "")).removesuffix("/32").removesuffix("/128")
            table = str(route.get("table", "main"))
            yield address, FAMILY_NAMES[version], table, str(route.get("protocol", ""))


def undrained(run: LabRun, vm: str) -> list[str]:
    """NVEs that do not serve the VM and hold an entry of it all the same, with what it does."""
    serving = run.place_of(vm)
    found = []
    for nve in run.lab.fabric.of_kind("nve"):
        if nve.name == serving or not run.lab.daemons.running(nve.name):
            continue
        for entry in run.lab.daemons.ask(nve.name, "GET", "/v1/vms"):
            if entry.get("vm") == vm and entry.get("phase") not in TOMBSTONES:
                found.append(f"{nve.name} ({entry.get('phase')})")
    return found


def fabric_at_end(run: LabRun) -> None:
    """At the end of a run, its probes still going: wait for redirects to drain, then look."""
    if not run.lab.daemons.agents or not run.lab.daemons.running(run.lab.daemons.manager):
        return
    vms = list(dict.fromkeys(pair.vm for pair in run.scenario.probes))
    try:
        deadline = time.monotonic() + (_SETTLE_S if run.moves else 0.0)
        while time.monotonic() < deadline and any(undrained(run, vm) for vm in vms):
            time.sleep(_POLL_S)
        for vm in vms:
            run.settled += settled_paths(run, vm)
    except ApiError as error:
        run.lab.say(f"the settled paths are not known: {error.message}")
    run.host_routes_left = host_routes(run, vms)


def fabric_report(run: LabRun) -> FabricReport:
    """What a finished run has found of its fabric."""
    routers = run.lab.fabric.of_kind("router")
    dc_of = {node.name: node.dc for node in routers if node.software}
    found = []
    for vm in dict.fromkeys(move.vm for move in run.moves):
        changes = run.lab.routes.changes(vm)
        moves = [move for move in run.moves if move.vm == vm]
        ends = [move.requested_ns for move in moves[1:]] + [run.ended_ns]
        for move, end_ns in zip(moves, ends, strict=True):
            begin_ns = move.requested_ns
            times = route_times(run.number, move.number, vm, changes, begin_ns, end_ns, dc_of)
            found += [times] if times is not None else []
    return FabricReport(
        tuple(run.settled), tuple(found), tuple(run.host_routes_left), tuple(tunnel_counts(run))
    )
