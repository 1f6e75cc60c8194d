"""Judging the fabric: ways without detours, host routes, redirects that have drained.

Each judge answers "" if it is so, else what it saw instead.  Not here: walking and reading
(settled.py), the other assertions (assertions.py), which calls these.
"""

from __future__ import annotations

from collections import Counter

from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.settled import host_routes, settled_paths, undrained
from vmmobility.lab.step_types import Assertion


def direct_path(run: LabRun, what: Assertion) -> str:
    """No correspondent's way to the VM passes an NVE but the serving one, in either family."""
    paths = settled_paths(run, what.vm)
    indirect = [path for path in paths if not path.direct]
    if not paths:
        return f"nobody talks to {what.vm}"
    if not indirect:
        known = {(p.move, p.correspondent, p.vm, p.family) for p in run.settled}
        run.settled += [p for p in paths if (p.move, p.correspondent, p.vm, p.family) not in known]
    return "; ".join(f"{' > '.join(path.hops)} ({path.family})" for path in indirect)


def no_host_routes(run: LabRun, what: Assertion) -> str:
    """No router has a host route of the VM, and no NVE but the serving one an entry."""
    routes = [
        f"{route.router} has an {route.family} route (table {route.table}, {route.protocol})"
        for route in host_routes(run, [what.vm])
    ]
    return "; ".join([*routes, *(f"entry at {text}" for text in undrained(run, what.vm))])


def drained(run: LabRun, what: Assertion) -> str:
    """No NVE (or not that one) redirects for the VM any more: its entry is gone."""
    left = [text for text in undrained(run, what.vm) if what.node in ("", text.split()[0])]
    return f"entry at {', '.join(left)}" if left else ""


def routes_at_most(run: LabRun, what: Assertion) -> str:
    """No router (or not that one) has more host routes of VMs (of that VM) in its tables."""
    vms = [what.vm] if what.vm else [vm.name for vm in run.lab.fabric.vms]
    found = Counter(r.router for r in host_routes(run, vms) if what.node in ("", r.router))
    over = [f"{router} has {n}" for router, n in found.items() if n > what.maximum]
    return "; ".join(over)
