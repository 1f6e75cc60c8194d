"""Judging what must not have changed, and what must have: bindings, routes, leases, drops, hops.

Each judge answers "" if it is so, else what it saw instead.  Not here: the other assertions
(assertions.py), which calls these.
"""

from __future__ import annotations

import os
import socket
import subprocess

from vmmobility.errors import LabError
from vmmobility.lab.inside import inside, python, python_environment
from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.marks import bindings_now, drops_now
from vmmobility.lab.probe import ECHO_PORT
from vmmobility.lab.route_recorder import spans
from vmmobility.lab.step_types import Assertion
from vmmobility.wire.values import FAMILIES

_COMMAND_S = 60.0
_HOP_S = 0.7
_HOP_TRIES = 3
_MOST_HOPS = 32
_HOP_OPTION = {
    4: (socket.AF_INET, socket.IPPROTO_IP, socket.IP_TTL),
    6: (socket.AF_INET6, socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS),
}


def bindings_unchanged(run: LabRun, what: Assertion) -> str:
    """Every binding has the NVE and the epoch that it had."""
    before, now = run.marks.bindings, bindings_now(run.lab.daemons)
    if not before:
        return "no binding was there to remember"
    problems = []
    for vm in sorted(before.keys() | now.keys()):
        old, new = before.get(vm), now.get(vm)
        if old != new:
            problems.append(f"{vm} was {_binding(old)}, is {_binding(new)}")
    return "; ".join(problems)


def _binding(found: tuple[str, int] | None) -> str:
    return "bound nowhere" if found is None else f"at {found[0]}, epoch {found[1]}"


def routes_unchanged(run: LabRun, what: Assertion) -> str:
    """No router and no NVE has got, lost or changed a route to a VM."""
    since = run.marks.remembered_ns
    problems = []
    for vm in run.lab.fabric.vms:
        for span in spans(run.lab.routes.changes(vm.name)):
            where = f"{span.node}'s {span.family} route to {vm.name} ({span.via})"
            if span.start_ns > since:
                problems.append(f"{where} came")
            elif span.end_ns is not None and span.end_ns > since:
                problems.append(f"{where} went")
    return "; ".join(problems)


def refreshed(run: LabRun, what: Assertion) -> str:
    """Every lease ends later than the grace that the manager gave it at its start."""
    daemons = run.lab.daemons
    uptime_s = float(daemons.ask(daemons.manager, "GET", "/v1/status")["uptime_s"])
    problems = []
    for row in daemons.ask(daemons.manager, "GET", "/v1/bindings"):
        left, lifetime_s = row["expires_in_s"], float(row["lifetime_s"])
        if row["state"] != "serving" or left is None:
            problems.append(f"{row['vm']} is {row['state']}")
        # expires_in_s is rounded to a tenth, and the daemon is older than its leases.
        elif left + uptime_s <= lifetime_s + 0.3:
            problems.append(f"{row['vm']} lives by grace: {left} s left, up for {uptime_s} s")
    return "; ".join(problems)


def replay_dropped(run: LabRun, what: Assertion) -> str:
    """Every node has counted at least as many drops as it was sent old messages."""
    if not run.marks.replayed:
        return "nothing was replayed"
    problems = []
    for node, (before, sent) in run.marks.replayed.items():
        dropped = sum(drops_now(run.lab.daemons, node).values()) - before
        if dropped < sent:
            problems.append(f"{node} has dropped {dropped} of {sent}")
    return "; ".join(problems)


def no_event(run: LabRun, what: Assertion) -> str:
    """Nobody has logged it since `remember`."""
    for event in run.lab.logbook.events():
        recent = event.ts_ns >= run.marks.remembered_ns
        if recent and event.name == what.event and what.node in ("", event.node):
            return f"{event.node} logged {event.name} of {event.vm or 'no VM'}"
    return ""


def vmmob(run: LabRun, what: Assertion) -> str:
    """A command of ours ends with status 0."""
    done = run_vmmob(run, what.node, what.command)
    if done.returncode == 0 and what.contains in done.stdout:
        return ""
    output = " ".join((done.stdout + done.stderr).split())
    return f"`vmmob {' '.join(what.command)}`: status {done.returncode}: {output[:300]}"


def run_vmmob(run: LabRun, node: str, words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """`vmmob WORDS` as an operator of that node would type it."""
    path = str(run.lab.daemons.socket(node))
    names = ("VMMOB_SOCKET", "VMMOB_NVE_SOCKET", "VMMOB_ROUTER_SOCKET", "VMMOB_NAPT_SOCKET")
    sockets = dict.fromkeys(names, path)
    environment = {**os.environ, **python_environment(), **sockets, "COLUMNS": "200"}
    try:
        return subprocess.run(python("vmmobility", *words), capture_output=True, text=True,
                              check=False, timeout=_COMMAND_S, env=environment)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        remedy = f"it had {_COMMAND_S:g} s"
        raise LabError(f"`vmmob {' '.join(words)}` has not ended", remedy) from error


def guest(run: LabRun, what: Assertion) -> str:
    """The guest that hands started is running, paused, or not there."""
    seen = run.lab.by_hand.state(what.vm, what.node)
    return "" if seen == what.state else f"{what.vm} at {what.node} is {seen}"


def redirects(run: LabRun, what: Assertion) -> str:
    """That NVE redirects the VM's packets to the other."""
    for entry in run.lab.daemons.ask(what.node, "GET", "/v1/vms"):
        if entry.get("vm") == what.vm:
            seen = (entry.get("forwarding"), entry.get("target"))
            return "" if seen == ("redirect", what.target) else f"it forwards {seen}"
    return f"{what.node} has no entry of {what.vm}"


def hops(run: LabRun, what: Assertion) -> str:
    """The VM's echo comes though the request may spend so few hops only, in both families."""
    space = run.lab.spaces.name(what.source)
    problems = []
    for version in FAMILIES:
        address = str(run.lab.fabric.vm(what.vm).address(version))
        if _echo_within(space, address, version, what.maximum):
            continue
        needed = (n for n in range(what.maximum + 1, _MOST_HOPS)
                  if _echo_within(space, address, version, n, tries=1))  # fmt: skip
        found = next(needed, None)
        length = f"{found} hops" if found else "no path of any length"
        problems.append(f"{what.source} to {address}: {length}")
    return "; ".join(problems)


def _echo_within(
    space: str, address: str, version: int, most: int, tries: int = _HOP_TRIES
) -> bool:
    family, level, option = _HOP_OPTION[version]
    sock = inside(space, lambda: socket.socket(family, socket.SOCK_DGRAM))
    with sock:
        sock.settimeout(_HOP_S)
        sock.setsockopt(level, option, most)
        for _ in range(tries):
            try:
                sock.sendto(b"hops?", (address, ECHO_PORT))
                if sock.recv(64) == b"hops?":
                    return True
            except OSError:  # time exceeded, or none: the way is longer
                continue
    return False
