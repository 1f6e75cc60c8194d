"""Taps of ours that somebody still holds open: guests that live, whoever knows of them.

Reads only.  Not here: what follows from it (daemon/nve.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmmobility.drivers.linux import rtnetlink
from vmmobility.drivers.linux.netlink import Netlink
from vmmobility.drivers.linux.ownership import is_our_tap


@dataclass(frozen=True, slots=True)
class HeldTap:
    """A tap in use, and the processes that hold it, where they can be found."""

    name: str
    pids: tuple[int, ...]

    def __str__(self) -> str:
        holders = ", ".join(map(str, self.pids)) or "unknown"
        return f"{self.name} (process {holders})"


def held_taps() -> list[HeldTap]:
    """The taps of this network namespace with a carrier or a holder.  Raises DataPlaneError."""
    with Netlink() as netlink:
        links = [link for link in rtnetlink.links(netlink) if is_our_tap(link.name)]
    if not links:
        return []
    holders: dict[str, set[int]] = {}
    for pid, name in _open_taps():
        holders.setdefault(name, set()).add(pid)
    held = [link for link in links if link.running or link.name in holders]
    return [HeldTap(link.name, tuple(sorted(holders.get(link.name, ())))) for link in held]


def _open_taps() -> Iterator[tuple[int, str]]:
    """(pid, device) of each open tap; those of other network namespaces' processes left out.

    The kernel tells a descriptor's device in its fdinfo, yet not the device's namespace: a process
    that lives elsewhere may hold another tap of the same name.
    """
    here = os.stat("/proc/self/ns/net").st_ino
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        # A process may end at any moment, and its files with it.
        with contextlib.suppress(OSError):
            if os.stat(process / "ns/net").st_ino != here:
                continue
            for descriptor in (process / "fdinfo").iterdir():
                for line in descriptor.read_text().splitlines():
                    key, _, value = line.partition(":")
                    if key == "iff" and is_our_tap(value.strip()):
                        yield int(process.name), value.strip()
