"""What tunnels carried in a run: packets between hosts inside, or outside, the data centres.

Section 3: "Tunneling MUST NOT be used between a VM located in a data center and a host in some
other site".  Not here: capturing (tunnel_capture.py), how a report shows it (report_fabric.py).
"""

from __future__ import annotations

import time
from collections import Counter
from ipaddress import ip_address, ip_network

from vmmobility.engine.dataplane import outside_of
from vmmobility.lab.counting import Window
from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.report_fabric import TunnelCount
from vmmobility.lab.step_types import Assertion
from vmmobility.wire.values import Prefix

_MOST_NAMED = 4


def tunnel_counts(run: LabRun) -> list[TunnelCount]:
    """Of every NVE's underlay, up to the run's end, or now; none where nobody is outside."""
    prefixes = run.lab.fabric.dc_prefixes
    window = Window(run.begun_ns, run.ended_ns or time.time_ns())
    found = []
    for nve, capture in run.lab.tunnelled().items():
        packets = [packet for packet in capture.packets if window.holds(packet.at_ns)]
        classes = Counter(_class(p.sender, p.receiver, prefixes) for p in packets)
        strangers = Counter(
            f"{p.sender} to {p.receiver}"
            for p in packets
            if _class(p.sender, p.receiver, prefixes) not in ("inside", "unseen")
        )
        found.append(
            TunnelCount(
                run.number, nve, len(packets), classes["inside"], classes["from outside"],
                classes["to outside"], classes["unseen"], capture.lost,
                tuple(f"{pair} ({count})" for pair, count in strangers.most_common(_MOST_NAMED)),
            )
        )  # fmt: skip
    return found


def _class(sender: str, receiver: str, prefixes: tuple[Prefix, ...]) -> str:
    if sender == "-":
        return "unseen"
    if outside_of([ip_network(ip_address(sender))], prefixes):
        return "from outside"
    return "to outside" if outside_of([ip_network(ip_address(receiver))], prefixes) else "inside"


def external_not_tunnelled(run: LabRun, what: Assertion) -> str:
    """No tunnelled packet has an end outside - and some were captured, and none missed."""
    if not run.lab.fabric.dc_prefixes:
        return "nobody is outside the data centres in this fabric"
    counts = tunnel_counts(run)
    problems = []
    for count in counts:
        if count.from_outside or count.to_outside:
            problems.append(f"{count.nve} saw {', '.join(count.strangers)} in a tunnel")
        if count.unseen or count.missed:
            problems.append(f"{count.nve} could not see {count.unseen + count.missed} packets")
    if not sum(count.packets for count in counts):
        problems.append("no tunnelled packet was captured at all, so nothing is shown")
    return "; ".join(problems)
