"""The probes of packet sizes of one run: started, read, and divided into the phases of moves.

Not here: the probe itself (size_probe.py), the report's values (report_sizes.py), judging
(size_assertions.py).
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmmobility.errors import LabError
from vmmobility.lab.correspondents import FAMILY_NAMES, Pair
from vmmobility.lab.counting import LATE_NS, Window
from vmmobility.lab.inside import python, python_environment
from vmmobility.lab.report_sizes import BulkReport, SizeError, SizeReport
from vmmobility.wire.values import FAMILIES

PHASES = ("before", "during", "after")
_KIND = {4: "fragmentation-needed", 6: "packet-too-big"}
_END_S, _POLL_S = 15.0, 0.05


@dataclass(slots=True)
class SizeRecord:
    """What one stream has sent and got back.

    sent:   sequence number -> (when, octets)
    errors: sequence number -> (MTU, from whom)
    """

    sent: dict[int, tuple[int, int]] = field(default_factory=dict)
    echoed: set[int] = field(default_factory=set)
    errors: dict[int, tuple[int, str]] = field(default_factory=dict)
    bulk: list[tuple[int, int]] = field(default_factory=list)
    breaks: int = 0


class SizeProbes:
    """All probes of packet sizes of one run."""

    def __init__(self, folder: Path) -> None:
        self.pairs: tuple[Pair, ...] = ()
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(
        self, pairs: Sequence[Pair], namespace: Mapping[str, str], mtu: Mapping[str, int],
        addresses: Mapping[str, Sequence[str]],
    ) -> None:  # fmt: skip
        """One process a correspondent; returns once every stream has had an echo and carried bulk.

        mtu: of each correspondent's own link.  Raises LabError if one stays mute.
        """
        self.pairs = (*self.pairs, *pairs)
        for name in dict.fromkeys(pair.correspondent for pair in pairs):
            folder = self._folder / name
            folder.mkdir(parents=True, exist_ok=True)
            targets = [p.vm for p in pairs if p.correspondent == name]
            words = [f"{vm}={','.join(addresses[vm])}" for vm in targets]
            command = python("vmmobility.lab.size_probe", str(folder), str(mtu[name]), *words,
                             namespace=namespace[name])  # fmt: skip
            with (folder / "stderr.txt").open("ab") as stderr:
                self._processes.append(
                    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stderr,
                                     stderr=stderr, env=python_environment())
                )  # fmt: skip

        self._wait_until_heard(pairs, 30.0)

    def _wait_until_heard(self, pairs: Sequence[Pair], within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while True:
            records = {(p, v): self.record(p, v) for p in pairs for v in FAMILIES}
            mute = [
                f"{pair.correspondent} to {pair.vm} {FAMILY_NAMES[version]}"
                for (pair, version), record in records.items()
                if not (record.echoed and record.bulk)
            ]
            if not mute:
                return
            if time.monotonic() > deadline:
                what = f"no packet of known size, or no bulk, passes: {', '.join(mute)}"
                raise LabError(what, "`vmmob lab up` and look around")
            time.sleep(_POLL_S)

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

    def record(self, pair: Pair, version: int) -> SizeRecord:
        """What that pair's stream of one family has recorded so far."""
        name = f"{pair.vm}-{FAMILY_NAMES[version]}.size"
        return read_sizes(self._folder / pair.correspondent / name)


def read_sizes(path: Path) -> SizeRecord:
    """A stream's file; an unfinished last line is left out."""
    record = SizeRecord()
    if not path.exists():
        return record
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        what, number, time_ns, *rest = line.rstrip().split(",")
        if what == "s":
            record.sent[int(number)] = (int(time_ns), int(rest[0]))
        elif what == "r":
            record.echoed.add(int(number))
        elif what == "e":
            record.errors[int(number)] = (int(rest[0]), rest[1])
        elif what == "b":
            record.bulk.append((int(time_ns), int(number)))
        else:
            record.breaks += 1
    return record


def silent(record: SizeRecord, window: Window, now_ns: int) -> int:
    """Packets of the window of which nothing was heard; those within their 2 s are left out."""
    return sum(
        window.holds(at_ns) and now_ns - at_ns > LATE_NS
        for number, (at_ns, _) in record.sent.items()
        if number not in record.echoed and number not in record.errors
    )


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of a move: which move, its name, when."""

    run: int
    move: int
    name: str
    window: Window


def phases(run: int, move: int, times: tuple[int, int, int, int, int]) -> Iterator[Phase]:
    """A move's phases from (end of the one before, asked for, turned, ended, next asked for).

    Before: until it is asked for.  During: from when the source's kernel leads packets elsewhere to
    the move's end.  After: from there until the next one.
    """
    previous, asked, turned, ended, following = times
    for name, begin, end in zip(
        PHASES, (previous, turned, ended), (asked, ended, following), strict=True
    ):
        yield Phase(run, move, name, Window(begin, end))


def size_report(
    phase: Phase, pair: Pair, version: int, record: SizeRecord, nodes: Mapping[str, str],
    now_ns: int,
) -> SizeReport:  # fmt: skip
    """One stream in one phase.  nodes: address -> the node that has it."""
    mine = {n: octets for n, (at, octets) in record.sent.items() if phase.window.holds(at)}
    passed = [octets for number, octets in mine.items() if number in record.echoed]
    told = {number: octets for number, octets in mine.items() if number in record.errors}
    error, largest = None, max(passed, default=0)
    if beyond := [(octets, -number) for number, octets in told.items() if octets > largest]:
        mtu, source = record.errors[-min(beyond)[1]]
        error = SizeError(_KIND[version], source, nodes.get(source, ""), mtu)
    return SizeReport(
        phase.run, phase.move, pair.correspondent, pair.vm, FAMILY_NAMES[version], phase.name,
        len(mine), len(passed), len(told), silent(record, phase.window, now_ns),
        max(passed, default=None), error,
    )  # fmt: skip


def bulk_report(run: int, pair: Pair, version: int, record: SizeRecord) -> BulkReport:
    """One bulk session over a run; it has survived if it never broke and carried something."""
    stalls = [b - a for (a, _), (b, _) in itertools.pairwise(record.bulk)]
    octets = record.bulk[-1][1] if record.bulk else 0
    return BulkReport(
        run, pair.correspondent, pair.vm, FAMILY_NAMES[version], octets,
        bool(record.bulk) and not record.breaks, round(max(stalls, default=0) / 1e6, 3),
    )  # fmt: skip
