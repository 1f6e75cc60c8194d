"""`python -m tests.throughput`: TCP to a VM by a plain route, and by each back end of tunnels.

One kernel, one run, rounds in turn; medians, and their ratio to the plain route.  It judges
nothing: a machine's figures are its own.  Not here: the path (path.py), the stream (stream.py).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.contract.conftest import lack_of_kernel_tunnels
from tests.contract.dataplane_fabric import OWN
from tests.throughput.path import Measured, Way, path
from tests.throughput.stream import PATIENCE_S

STREAM = Path(__file__).with_name("stream.py")


def rate(measured: Measured, version: int, seconds: float) -> float:
    """Mbit/s of one stream, as the VM received it; one that went beside the tunnel is an error."""
    before = measured.redirected() if measured.nves else 0
    found = _stream(measured, version, seconds)
    if measured.nves and measured.redirected() == before:
        raise SystemExit(f"error: {measured.way}: the stream went beside the tunnel")
    return found


def _stream(measured: Measured, version: int, seconds: float) -> float:
    address = OWN[version]

    def program(space: str, *words: str) -> list[str]:
        return ["ip", "netns", "exec", space, sys.executable, str(STREAM), *words]

    with subprocess.Popen(
        program(measured.vm.name, "receive", address), stdout=subprocess.PIPE, text=True
    ) as receiver:
        try:
            assert receiver.stdout is not None
            assert receiver.stdout.readline() == "ready\n", "the receiver does not listen"
            sender = program(measured.host.name, "send", address, str(seconds))
            subprocess.run(sender, check=True, timeout=seconds + 2 * PATIENCE_S)
            total, took = receiver.stdout.readline().split()
        finally:
            receiver.kill()
    return int(total) * 8 / float(took) / 1e6


def report(rates: dict[tuple[str, int], list[float]], given: argparse.Namespace) -> dict[str, Any]:
    """Everything as JSON values; ratios are of medians."""
    rows = []
    for (way, version), found in rates.items():
        plain = statistics.median(rates["plain", version])
        median = statistics.median(found)
        rows.append({
            "family": f"ipv{version}", "way": way, "mbit_s": [round(one, 1) for one in found],
            "median_mbit_s": round(median, 1), "of_plain": round(median / plain, 3),
        })  # fmt: skip
    return {
        "kernel": platform.release(),
        "rounds": given.rounds,
        "seconds": given.seconds,
        "no_kernel_tunnels": lack_of_kernel_tunnels(),
        "results": rows,
    }


def print_table(found: dict[str, Any]) -> None:
    """The same for people."""
    print(f"kernel {found['kernel']}, {found['rounds']} rounds of {found['seconds']:g} s")
    print(
        f"{'family':<8}{'way':<8}{'median Mbit/s':>14}{'lowest':>10}{'highest':>10}{'of plain':>10}"
    )
    for row in found["results"]:
        print(f"{row['family']:<8}{row['way']:<8}{row['median_mbit_s']:>14}{min(row['mbit_s']):>10}"
              f"{max(row['mbit_s']):>10}{row['of_plain']:>10.1%}")  # fmt: skip
    if found["no_kernel_tunnels"]:
        print(f"no kernel tunnels here: {found['no_kernel_tunnels']}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.throughput", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a stream")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    ways: list[Way] = ["plain", "relay"]
    if not lack_of_kernel_tunnels():
        ways.append("kernel")
    rates: dict[tuple[str, int], list[float]] = {(w, v): [] for v in (4, 6) for w in ways}
    with tempfile.TemporaryDirectory(prefix="vmtp") as folder, ExitStack() as stack:
        paths = [stack.enter_context(path(way, Path(folder))) for way in ways]
        for number in range(1, given.rounds + 1):
            for version in (4, 6):
                for one in paths:
                    found = rate(one, version, given.seconds)
                    rates[one.way, version].append(found)
                    print(
                        f"round {number}, IPv{version}, {one.way}: {found:.1f} Mbit/s", flush=True
                    )
    result = report(rates, given)
    print_table(result)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
