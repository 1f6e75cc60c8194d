"""The flows of one run to the address of a load-shared group: started, read, divided into phases.

A phase lasts from one membership change of the scenario (`remember`, a host that goes dark or
comes up) to the next.  Not here: the probe itself (flow_probe.py), judging (flow_assertions.py),
the report's values (report_flows.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from vmmobility.errors import LabError
from vmmobility.lab.correspondents import FAMILY_NAMES
from vmmobility.lab.inside import python, python_environment
from vmmobility.lab.report_flows import FlowReport
from vmmobility.wire.values import FAMILIES

FLOWS, EVERY_MS = 24, 100  # of each correspondent and family; a question of each so often
_START_S, _END_S, _POLL_S = 30.0, 15.0, 0.05

FlowKey = tuple[str, str, int]
"""Correspondent, family, number."""


@dataclass(slots=True)
class FlowRecord:
    """What one flow has sent, and who answered: (when, name), in order of time (nanoseconds)."""

    sent: list[int] = field(default_factory=list)
    answers: list[tuple[int, str]] = field(default_factory=list)

    def between(self, begin_ns: int, end_ns: int) -> list[tuple[int, str]]:
        return [answer for answer in self.answers if begin_ns <= answer[0] < end_ns]


class Flows:
    """All flows of one run; none where the fabric has no group."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._talkers: tuple[str, ...] = ()
        self.marks: list[tuple[int, str]] = []

    def start(self, namespace: Mapping[str, str], addresses: Sequence[str]) -> None:
        """One process a correspondent; returns once each flow was answered.  Raises LabError."""
        self._talkers = tuple(namespace)
        for name, space in namespace.items():
            folder = self._folder / name
            folder.mkdir(parents=True, exist_ok=True)
            words = [str(folder), str(FLOWS), str(EVERY_MS), *addresses]
            command = python("vmmobility.lab.flow_probe", *words, namespace=space)
            with (folder / "stderr.txt").open("ab") as stderr:
                self._processes.append(
                    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stderr,
                                     stderr=stderr, env=python_environment())
                )  # fmt: skip
        deadline = time.monotonic() + _START_S
        while mute := [key for key, flow in self.records().items() if not flow.answers]:
            if time.monotonic() > deadline:
                what = f"{len(mute)} flows get no answer, the first of {mute[0]}"
                raise LabError(what, "`vmmob lab up` and look around")
            time.sleep(_POLL_S)
        self.mark("begun")

    def mark(self, what: str) -> None:
        """From now on it is another phase."""
        self.marks.append((time.time_ns(), what))

    def stop(self) -> None:
        """Let them end: no more sending, 2 s of listening."""
        for process in self._processes:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def records(self) -> dict[FlowKey, FlowRecord]:
        """Every flow so far."""
        found: dict[FlowKey, FlowRecord] = {}
        for talker in self._talkers:
            for family in (FAMILY_NAMES[version] for version in FAMILIES):
                flows = read_flows(self._folder / talker / f"{family}.flows")
                for number in range(FLOWS):
                    found[talker, family, number] = flows.get(number, FlowRecord())
        return found

    def reports(self, run: int) -> list[FlowReport]:
        """Each phase, correspondent and family."""
        ends = [*self.marks, (time.time_ns(), "")]
        records, found = self.records(), list[FlowReport]()
        for (begin_ns, what), (end_ns, _) in pairwise(ends):
            for talker in self._talkers:
                for family in (FAMILY_NAMES[version] for version in FAMILIES):
                    flows = [r for key, r in records.items() if key[:2] == (talker, family)]
                    found.append(report(run, what, talker, family, flows, (begin_ns, end_ns)))
        return found


def read_flows(path: Path) -> dict[int, FlowRecord]:
    """A file of the probe; an unfinished last line is left out."""
    found: dict[int, FlowRecord] = {}
    text = path.read_text(encoding="ascii") if path.exists() else ""
    for line in text[: text.rfind("\n") + 1].splitlines():
        kind, number, at, *name = line.split(",")
        record = found.setdefault(int(number), FlowRecord())
        if kind == "s":
            record.sent.append(int(at))
        else:
            record.answers.append((int(at), name[0]))
    return found


def changes(record: FlowRecord, begin_ns: int, end_ns: int) -> int:
    """How often another VM answered than the time before."""
    names = [name for _, name in record.between(begin_ns, end_ns)]
    return sum(one != other for one, other in pairwise(names))


def report(
    run: int,
    phase: str,
    talker: str,
    family: str,
    flows: Sequence[FlowRecord],
    window: tuple[int, int],
) -> FlowReport:
    """What became of these flows in that time."""
    begin_ns, end_ns = window
    at_first, at_last = Counter[str](), Counter[str]()
    turned: list[float] = []
    for flow in flows:
        before = flow.between(0, begin_ns)
        answers = flow.between(begin_ns, end_ns)
        if before:
            at_first[before[-1][1]] += 1
        if answers:
            at_last[answers[-1][1]] += 1
        turns = [at for at, name in answers if before and name != before[-1][1]]
        if turns:
            turned.append((turns[0] - begin_ns) / 1e6)
    return FlowReport(
        run,
        phase,
        talker,
        family,
        len(flows),
        dict(sorted(at_first.items())),
        dict(sorted(at_last.items())),
        sum(changes(flow, begin_ns, end_ns) for flow in flows),
        len(turned),
        max(turned, default=None),
        max((longest_gap_ms(flow, begin_ns, end_ns) for flow in flows), default=0.0),
    )


def longest_gap_ms(flow: FlowRecord, begin_ns: int, end_ns: int) -> float:
    """The longest time without an answer."""
    times = [begin_ns, *(at for at, _ in flow.between(begin_ns, end_ns)), end_ns]
    return max(later - earlier for earlier, later in pairwise(times)) / 1e6
