"""Tear-down of a lab, and the search for what it left behind.

Processes are ended because they are in our namespaces or name our folder, never by a program's
name.  Not here: building.  Rests on /proc.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from vmmobility.lab import namespaces, workdir
from vmmobility.lab.inside import NETNS
from vmmobility.lab.workdir import LabInfo

_PATIENCE_S = 3.0
_INTERFACES = ("vmt", "vmmob")  # taps, the tunnel


def processes(info: LabInfo) -> dict[int, str]:
    """Every process inside this lab's namespaces, and every Python or QEMU that was started with
    its folder's path (not a stranger who reads a log there)."""
    inodes = set(info.namespaces.values())
    needle = str(info.folder).encode() + b"/"
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in (os.getpid(), os.getppid()):
            continue
        try:
            inode = (entry / "ns/net").stat().st_ino
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        program = command.partition(b"\0")[0].rpartition(b"/")[2]
        ours = program.startswith((b"python", b"qemu", b"ip")) and needle in command
        if command and (inode in inodes or ours):
            found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def tear_down(info: LabInfo) -> list[str]:
    """End its processes, delete its namespaces and folder; what is left all the same."""
    info = replace(info, namespaces=_still_its_own(info))
    for sign, patience_s in ((signal.SIGTERM, _PATIENCE_S), (signal.SIGKILL, _PATIENCE_S)):
        _signal(info, sign)
        deadline = time.monotonic() + patience_s
        while processes(info) and time.monotonic() < deadline:
            time.sleep(0.02)
        if not processes(info):
            break
    survivors = processes(info)
    namespaces.delete(namespaces.existing(info.lab_id))
    _unmount(info.folder)
    shutil.rmtree(info.folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # another lab may live there
        workdir.base().rmdir()
    # From here on another's namespace may bear one of the inodes' numbers.
    return leftovers(replace(info, namespaces={})) + [
        f"process {pid}: {command}"
        for pid, command in sorted(survivors.items())
        if Path(f"/proc/{pid}").exists()
    ]


def _unmount(folder: Path) -> None:
    """File systems that the lab has put beneath its folder."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [line.split(" ")[1] for line in lines]
    for point in sorted((p for p in points if p.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)


def _still_its_own(info: LabInfo) -> dict[str, int]:
    """Its namespaces that exist: an inode's number is used again once its namespace is gone."""
    found = {}
    for name, inode in info.namespaces.items():
        with contextlib.suppress(OSError):
            if (NETNS / name).stat().st_ino == inode:
                found[name] = inode
    return found


def leftovers(info: LabInfo) -> list[str]:
    """What of this lab is still in the process table, a kernel or the file system."""
    left = [f"namespace {name}" for name in namespaces.existing(info.lab_id)]
    left += [f"process {pid}: {command}" for pid, command in sorted(processes(info).items())]
    if info.folder.exists():
        left.append(f"folder {info.folder}")
    return left + host_leftovers(info.host)


def host_leftovers(before: Iterable[str]) -> list[str]:
    """Interfaces of ours in the host's own namespace: a daemon ran outside its own.

    Those that were there before the lab are not its own: this host may run an NVE in earnest.
    """
    fresh = sorted(set(workdir.host_interfaces()) - set(before))
    return [f"interface {name} in the host" for name in fresh if name.startswith(_INTERFACES)]


def sweep() -> list[LabInfo]:
    """Tear down the labs whose owner died; returns them."""
    swept = [info for info in workdir.all_labs() if workdir.abandoned(info)]
    for info in swept:
        tear_down(info)
    return swept


def _signal(info: LabInfo, sign: signal.Signals) -> None:
    for pid in processes(info):
        try:
            os.kill(pid, sign)
        except ProcessLookupError:
            continue
