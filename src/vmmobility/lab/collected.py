"""Judging what a collector has heard of a VM: while it is away, and while it is at home.

Not here: the collector (gobgp.py), the other assertions (assertions.py), which calls this.
"""

from __future__ import annotations

from ipaddress import ip_network

from vmmobility.drivers.frr.plan import COMMUNITY
from vmmobility.lab.gobgp import Heard
from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.step_types import Assertion


def collected(run: LabRun, what: Assertion) -> str:
    """Away: every collector has a host route to each address of the VM, with ORIGIN IGP and the
    community; at home: none."""
    collectors = run.lab.collectors
    if not collectors.names:
        return "this fabric has no collector"
    problems = []
    for name in [what.node] if what.node else collectors.names:
        heard = collectors.heard(name)
        for text in run.lab.addresses(what.vm):
            paths = [one for one in heard if one.prefix == ip_network(text)]
            if seen := _wrong(paths, what.state):
                problems.append(f"{name} has {seen} to {text}")
    return "; ".join(problems)


def _wrong(paths: list[Heard], state: str) -> str:
    """What is amiss with the paths to one address; "" if nothing is."""
    if state == "home":
        return ", ".join(f"a route by {path.peer}" for path in paths)
    if not paths:
        return "no route"
    return ", ".join(
        f"a route by {path.peer} with ORIGIN {path.origin}, communities {list(path.communities)}"
        for path in paths
        if path.origin != "IGP" or path.communities != (COMMUNITY,)
    )
