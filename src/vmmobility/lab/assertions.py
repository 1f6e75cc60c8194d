"""Judging a scenario's assertions against a running lab.

Each judge answers "" if it is so, else what it saw instead.  Not here: waiting for it (steps.py).
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from typing import Any

from vmmobility.engine.dataplane import port_name
from vmmobility.errors import ApiError, LabError
from vmmobility.lab import (
    disk_assertions,
    fabric_assertions,
    flow_assertions,
    protection_assertions,
    size_assertions,
    state_assertions,
)
from vmmobility.lab.collected import collected
from vmmobility.lab.counting import LATE_NS, Window, count_outside, count_tcp, count_udp
from vmmobility.lab.inside import udp_ask
from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.path_walk import read_routes
from vmmobility.lab.probe import ECHO_PORT
from vmmobility.lab.route_recorder import kind_of
from vmmobility.lab.settled import TOMBSTONES
from vmmobility.lab.soundness import command_line, examine, processes_in
from vmmobility.lab.step_types import Assertion
from vmmobility.lab.tunnelled import external_not_tunnelled
from vmmobility.wire.values import FAMILIES, VmKey

ROUTE_PROTOCOL = "77"
_ANSWER_S = 3.0


def judge(run: LabRun, what: Assertion) -> str:
    """ "" if the assertion holds now, else what was seen instead."""
    try:
        return _JUDGES[what.what](run, what)
    except (ApiError, LabError) as error:
        return error.message


def _no_loss(run: LabRun, what: Assertion) -> str:
    asked_ns = time.time_ns()
    pairs = [pair for pair in run.probes.pairs if what.vm in ("", pair.vm)]
    pairs = [pair for pair in pairs if what.source in ("", pair.correspondent)]
    while True:
        streams = [(p, v, run.probes.udp(p, v)) for p in pairs for v in FAMILIES]
        now_ns, whole = time.time_ns(), Window(0, asked_ns)
        counts = [(p, v, r, count_udp(r, whole, now_ns)) for p, v, r in streams]
        if not any(c.pending for _, _, _, c in counts) or now_ns > asked_ns + 2 * LATE_NS:
            break
        time.sleep(0.1)
    total, seen = 0, []
    for pair, version, record, count in counts:
        sent, lost = count.sent, count.lost
        if what.at_rest:
            sent, lost = count_outside(record, run.moving(pair.vm), asked_ns, now_ns)
        total += lost
        if lost:
            seen.append(f"{pair.correspondent} to {pair.vm} IPv{version}: {lost} of {sent}")
    return f"{total} probes lost ({'; '.join(seen)})" if total > what.maximum else ""


def _no_broken_tcp(run: LabRun, what: Assertion) -> str:
    window = Window(0, time.time_ns())
    broken = [
        f"{pair.correspondent} to {pair.vm} IPv{version}"
        for pair in run.probes.pairs
        for version in FAMILIES
        if not count_tcp(run.probes.tcp(pair, version), window).survived
    ]
    return f"broken TCP sessions: {', '.join(broken)}" if broken else ""


def _serving(run: LabRun, what: Assertion) -> str:
    for entry in run.lab.daemons.ask(what.node, "GET", "/v1/vms"):
        if entry.get("vm") == what.vm:
            forwarding = entry.get("forwarding")
            return "" if forwarding == "local" else f"{what.node} forwards {forwarding}"
    return f"{what.node} does not know {what.vm}"


def _binding(run: LabRun, what: Assertion) -> str:
    daemons = run.lab.daemons
    found = daemons.ask(daemons.manager, "GET", f"/v1/bindings/{what.vm}?vni=0")
    entry = found[0] if isinstance(found, list) and found else found
    row = entry if isinstance(entry, dict) else {}
    nve, state = row.get("nve"), row.get("state")
    if nve == what.node and what.state in ("", state):
        return ""
    return f"the manager binds {what.vm} to {nve} ({state})"


def our_routes(run: LabRun, node: str) -> list[dict[str, Any]]:
    """Every route of ours (by its protocol number) in a node's kernel, all tables."""
    found = []
    for family in ("-4", "-6"):
        command = ["ip", "-n", run.lab.spaces.name(node), "-j", family, "route", "show",
                   "table", "all", "proto", ROUTE_PROTOCOL]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found += read_routes(done.stdout)
    return found


def _vm_routes(run: LabRun, node: str, vm: str) -> dict[str, str]:
    """address -> kind of the node's route to it, main table."""
    addresses = dict.fromkeys(run.lab.addresses(vm), "none")
    ends = [link.end(node) for link in run.lab.fabric.links]
    interfaces = [end.interface for end in ends if end is not None]
    for route in our_routes(run, node):
        address = str(route.get("dst", "")).split("/")[0]
        leads = route.get("type", "unicast") == "unicast"  # not the blackhole beneath
        if leads and address in addresses and route.get("table", "main") in ("main", 254):
            addresses[address] = kind_of(str(route.get("dev", "")), interfaces)
    return addresses


def _route(run: LabRun, what: Assertion) -> str:
    seen = _vm_routes(run, what.node, what.vm)
    if all(kind == what.via for kind in seen.values()):
        return ""
    return f"{what.node} routes " + ", ".join(f"{a}: {kind}" for a, kind in seen.items())


def _only_serving_route(run: LabRun, what: Assertion) -> str:
    daemons = run.lab.daemons
    found = daemons.ask(daemons.manager, "GET", f"/v1/bindings/{what.vm}?vni=0")
    entry = found[0] if isinstance(found, list) and found else found
    serving = entry.get("nve")
    problems = []
    for node in run.lab.fabric.nodes:
        if node.kind not in ("nve", "router"):
            continue
        wanted = "local" if node.name == serving else "none"
        seen = _vm_routes(run, node.name, what.vm)
        problems += [f"{node.name}: {a} is {k}" for a, k in seen.items() if k != wanted]
        if node.kind == "nve" and node.name != serving:
            problems += remains(run, node.name, what.vm)
    return "; ".join(problems)


def remains(run: LabRun, node: str, vm: str) -> list[str]:
    """What an NVE that does not serve the VM still holds for it: an entry, taps, routes in any
    table, nftables elements, a guest."""
    found = []
    for entry in run.lab.daemons.ask(node, "GET", "/v1/vms"):
        if entry["vm"] == vm and entry.get("phase") not in TOMBSTONES:
            found.append(f"{node} still holds an entry ({entry.get('phase')})")
    space, taps = run.lab.spaces.name(node), port_name(VmKey(0, vm), 0).removesuffix("0")
    links = _output(["ip", "-n", space, "-br", "link", "show"])
    found += [f"{node} still has the tap {w.split()[0]}" for w in links if w.startswith(taps)]
    addresses = run.lab.addresses(vm)
    for route in our_routes(run, node):
        if str(route.get("dst", "")).split("/")[0] in addresses:
            found.append(f"{node} still has a route to {route['dst']}")
    rules = " ".join(_output(["ip", "netns", "exec", space, "nft", "list", "ruleset"]))
    words = set(re.split(r"[\s,{}]+", rules))
    found += [f"{node} still counts or filters {a}" for a in addresses if a in words]
    guests = [pid for pid in processes_in(space) if taps in command_line(pid)]
    return [*found, *(f"{node} still runs the guest (process {pid})" for pid in guests)]


def _output(command: list[str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def _reachable(run: LabRun, what: Assertion) -> str:
    names = {vm.name for vm in run.lab.fabric.vms}
    source = run.lab.spaces.name(what.source)
    for version in FAMILIES:
        if what.vm in names:
            address = str(run.lab.fabric.vm(what.vm).address(version))
            udp_ask(source, address, ECHO_PORT, b"reachable?", _ANSWER_S)
            continue
        address = str(run.lab.fabric.first_end(what.vm).address(version))
        command = ["ip", "netns", "exec", source, "ping", "-c1", "-W2", address]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode != 0:
            return f"{what.source} does not reach {address}"
    return ""


def _unreachable(run: LabRun, what: Assertion) -> str:
    try:
        seen = _reachable(run, what)
    except LabError:
        return ""
    return "" if seen else f"{what.source} reaches {what.vm}"


def _command(run: LabRun, what: Assertion) -> str:
    done = run.command(what.node, what.command)
    output = (done.stdout + done.stderr).strip()
    if done.returncode == 0 and what.contains in done.stdout:
        return ""
    return f"`{' '.join(what.command)}` in {what.node}: status {done.returncode}: {output[:200]}"


def _event(run: LabRun, what: Assertion) -> str:
    for event in run.lab.logbook.events():
        recent = event.ts_ns >= max(run.last_request_ns, run.marks.remembered_ns)
        if recent and event.name == what.event and what.node in ("", event.node):
            return ""
    return f"no event {what.event} yet"


def _moves_done(run: LabRun, what: Assertion) -> str:
    open_moves = [f"{move.vm} to {move.target}" for move in run.moves if not run.settle(move)]
    return f"still moving: {', '.join(open_moves)}" if open_moves else ""


def _sound(run: LabRun, what: Assertion) -> str:
    asker = run.asker(what.vm)
    verdict = examine(asker, run.lab.known_as(what.vm)[0], None, None)
    return "" if verdict.sound else verdict.reason


_JUDGES: dict[str, Callable[[LabRun, Assertion], str]] = {
    "no-loss": _no_loss,
    "no-broken-tcp": _no_broken_tcp,
    "serving": _serving,
    "binding": _binding,
    "route": _route,
    "only-serving-route": _only_serving_route,
    "reachable": _reachable,
    "command": _command,
    "event": _event,
    "moves-done": _moves_done,
    "sound": _sound,
    "unreachable": _unreachable,
    "bindings-unchanged": state_assertions.bindings_unchanged,
    "routes-unchanged": state_assertions.routes_unchanged,
    "refreshed": state_assertions.refreshed,
    "replay-dropped": state_assertions.replay_dropped,
    "no-event": state_assertions.no_event,
    "vmmob": state_assertions.vmmob,
    "guest": state_assertions.guest,
    "redirects": state_assertions.redirects,
    "hops": state_assertions.hops,
    "direct-path": fabric_assertions.direct_path,
    "no-host-routes": fabric_assertions.no_host_routes,
    "drained": fabric_assertions.drained,
    "routes-at-most": fabric_assertions.routes_at_most,
    "collected": collected,
    "external-not-tunnelled": external_not_tunnelled,
    "packet-size": size_assertions.packet_size,
    "no-silent-drop": size_assertions.no_silent_drop,
    "no-broken-bulk": size_assertions.no_broken_bulk,
    "too-big-counted": size_assertions.too_big_counted,
    "flows-stay": flow_assertions.flows_stay,
    "flows-spread": flow_assertions.flows_spread,
    "flows-at": flow_assertions.flows_at,
    "taken-over": protection_assertions.taken_over,
    "runs-at": protection_assertions.runs_at,
    "disk-writes": disk_assertions.disk_writes,
}
