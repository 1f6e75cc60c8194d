"""Is a guest sound after a move: its checksummed memory whole, and not spinning?

Spinning is the sign of a torn guest: its QEMU at about 100 % of a CPU for a second while it is
deaf, or far above what it used before the move.  Not here: the guest's own check (lab/guest).
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from vmmobility.errors import LabError
from vmmobility.lab.inside import NETNS, udp_ask

CONTROL_PORT = 8
WATCH_S = 1.0
_FULL = 0.85
_ABOVE = 0.4
_CHECK_S = 30.0


@dataclass(frozen=True, slots=True)
class Soundness:
    """One verdict.  cpu: share of one CPU that QEMU used over WATCH_S; None for light VMs."""

    sound: bool
    bad_pages: int | None
    memory_pages: int | None
    cpu: float | None
    reason: str = ""


def qemu_cpu(namespace: str) -> float | None:
    """CPU share over WATCH_S of the guests inside the namespace; None if there is none."""
    pids = [pid for pid in processes_in(namespace) if _command(pid).startswith("qemu-system")]
    if not pids:
        return None
    before, begun = sum(map(_ticks, pids)), time.monotonic()
    time.sleep(WATCH_S)
    used = (sum(map(_ticks, pids)) - before) / os.sysconf("SC_CLK_TCK")
    return round(used / (time.monotonic() - begun), 3)


def examine(asker: str, address: str, cpu: float | None, cpu_before: float | None) -> Soundness:
    """Ask the guest to check its memory, from the namespace `asker`, and judge its CPU use."""
    try:
        answer = json.loads(udp_ask(asker, address, CONTROL_PORT, b"check", _CHECK_S))
    except (LabError, ValueError) as error:
        return Soundness(False, None, None, cpu, f"no answer to `check`: {error}")
    bad, pages = int(answer["bad_pages"]), int(answer["memory_pages"])
    if bad:
        return Soundness(False, bad, pages, cpu, f"{bad} of {pages} pages are torn")
    if spins(cpu, cpu_before):
        return Soundness(False, bad, pages, cpu, f"spins at {cpu:.0%} of a CPU")
    return Soundness(True, bad, pages, cpu)


def spins(cpu: float | None, before: float | None) -> bool:
    """About a whole CPU, and far above the level before the move."""
    if cpu is None:
        return False
    return cpu >= _FULL and cpu - (before or 0.0) >= _ABOVE


def processes_in(namespace: str) -> list[int]:
    """The processes inside a network namespace."""
    try:
        inode = (NETNS / namespace).stat().st_ino
    except OSError:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "ns/net").stat().st_ino == inode:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def command_line(pid: int) -> str:
    """A process's command line, words parted by spaces; empty if it has ended."""
    try:
        return (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode("utf-8", "replace")
        )
    except OSError:
        return ""


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])
