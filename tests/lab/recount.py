"""A report counted again from the raw files alone, by other means than the lab's own.

Not here: anything of vmmobility.lab; it would only agree with itself.
"""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

LATE_NS = 2_000_000_000


def recount(path: Path) -> dict[str, Any]:
    """What one CSV says."""
    with path.open() as file:
        rows = [(int(r["seq"]), int(r["sent_ns"]), r["received_ns"]) for r in csv.DictReader(file)]
    sent = {seq: ns for seq, ns, _ in rows}
    first: dict[int, int] = {}
    for seq, _, received in rows:
        if received:
            first.setdefault(seq, int(received))
    echoes = sorted(first.values())
    edges = [min(sent.values()), *echoes, max(sent.values())]
    gaps = [later - earlier for earlier, later in itertools.pairwise(edges)]
    return {
        "sent": len(sent),
        "lost": sum(seq not in first for seq in sent),
        "duplicated": sum(count - 1 for count in Counter(seq for seq, _, _ in rows).values()),
        "longest_gap_ms": round(max(gaps) / 1e6, 3),
        "late": sum(first[seq] - sent[seq] > LATE_NS for seq in first),
        "echoes": echoes,
        "seqs": set(sent),
    }


def awk_lost(path: Path) -> int:
    """The line of docs/lab.md."""
    program = 'NR>1 && $3=="" {lost++} END {print lost+0}'
    done = subprocess.run(["awk", "-F,", program, str(path)], capture_output=True, check=True)
    return int(done.stdout)


def log_times(raw: Path, node: str, event: str) -> list[int]:
    """When a daemon's log says that it happened."""
    found = []
    for line in (raw / "logs" / "run-1" / f"{node}-log.json").read_text().splitlines():
        data = json.loads(line)
        if data["event"] == event:
            found.append(data.get("at_ns") or data["ts_ns"])
    return found


def check(report: dict[str, Any], raw: Path) -> None:
    """Every figure that the raw files bear; each probe in one move's file, none left out."""
    seen: dict[tuple[str, str], set[int]] = {}
    for move in report["moves"]:
        for probe in move["probes"]:
            path = raw / f"{move['number']}-{probe['correspondent']}-{probe['family']}.csv"
            again = recount(path)
            for key in ("sent", "lost", "duplicated"):
                assert probe[key] == again[key], (path.name, key)
            assert abs(probe["longest_gap_ms"] - again["longest_gap_ms"]) < 0.002, path.name
            assert again["late"] == 0
            assert awk_lost(path) == probe["lost"]
            numbers = seen.setdefault((probe["correspondent"], probe["family"]), set())
            assert not numbers & again["seqs"], f"{path.name}: a probe in two windows"
            numbers |= again["seqs"]
            _check_cold(move, probe, again, raw)
    for numbers in seen.values():
        assert numbers == set(range(1, max(numbers) + 1)), "a probe in no window"
    assert report["summary"]["sent"] == sum(map(len, seen.values()))


def _check_cold(
    move: dict[str, Any], probe: dict[str, Any], again: dict[str, Any], raw: Path
) -> None:
    if not move["ok"]:
        return
    begin, end = move["started_ns"], move["started_ns"] + move["window_ms"] * 1e6
    (stopped,) = [t for t in log_times(raw, move["from"], "guest.stopped") if begin <= t < end]
    (resumed,) = [t for t in log_times(raw, move["to"], "guest.resumed") if begin <= t < end]
    stop_ms = (resumed - stopped) / 1e6
    assert abs(move["guest"]["stop_to_resume_ms"] - stop_ms) < 0.002
    assert abs(probe["longest_gap_ms"] - probe["gap_beyond_stop_ms"] - stop_ms) < 0.003
    cold_ms = (min(t for t in again["echoes"] if t >= resumed) - resumed) / 1e6
    # An echo of a probe of the window before may have been the first.
    assert 0 <= probe["resume_to_echo_ms"] <= cold_ms + 0.002
    parts = probe["gap_parts"]
    whole = sum(parts[key] for key in ("held_ms", "stopped_ms", "cold_ms", "other_ms"))
    assert abs(whole - probe["longest_gap_ms"]) < 0.01
