"""A disk that fills up under a living daemon: it ends in order, nothing half said, and goes on.

Each daemon's state_dir is a file system of its own, small and in memory.  A journal reserves space
a MiB at a time, so it is cut to end `room` octets behind its last record, and the rest of the file
system is filled: the record that no longer fits is another one for each `room`.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.namespaces import wait_for
from tests.daemon.live_fabric import VM, LiveFabric, ShortTimers, live_fabric
from vmmobility.errors import VmMobilityError
from vmmobility.store import frames

pytestmark = [pytest.mark.netns, pytest.mark.lab]

PATIENCE_S = 20.0
ENDED = ("done", "aborted", "failed")
ROOMS = [0, 64, 600, 1200, 1800, 2600, 3600]


class SmallDisks(ShortTimers):
    """Every daemon's state on a file system of 4 MiB."""

    def configure(self) -> None:
        super().configure()
        for node in self.nodes:
            disk = self.home(node.name) / "state"
            disk.mkdir()
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "none", disk], check=True
            )

    def unmount(self) -> None:
        for node in self.nodes:
            # Lazily: relays live on, with their logs there.
            disk = self.home(node.name) / "state"
            subprocess.run(["umount", "--lazy", disk], check=False, capture_output=True)


@pytest.fixture(scope="module")
def fabric() -> Iterator[LiveFabric]:
    with live_fabric(SmallDisks) as live:
        try:
            yield live
        finally:
            for node in live.daemons.nodes:
                if live.daemons.running(node.name):
                    live.kill(node.name, signal.SIGTERM)
            assert isinstance(live.daemons, SmallDisks)
            live.daemons.unmount()


class Disk:
    """A daemon's small disk: filled, and freed."""

    def __init__(self, fabric: LiveFabric, node: str) -> None:
        self._fabric, self._node = fabric, node
        self._home = fabric.daemons.home(node)
        self._ballast = self._home / "state" / "ballast"
        self._journal = self._home / "state" / "journal"
        self._said = 0

    def fill(self, room: int) -> None:
        """With the daemon ended: leave `room` octets behind the last record, and no more."""
        content = self._journal.read_bytes().rstrip(b"\0")
        self._journal.write_bytes(content + bytes(room))
        with self._ballast.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    continue
        self._said = len(self._stderr())

    def free(self) -> None:
        self._ballast.unlink()

    def _stderr(self) -> str:
        path = self._home / "stderr.txt"
        return path.read_text() if path.exists() else ""

    def said(self) -> list[str]:
        """What the daemon has said on stderr since the disk was filled."""
        return self._stderr()[self._said :].splitlines()

    def records(self) -> dict[str, Any]:
        return records(self._journal)


def records(journal: Path) -> dict[str, Any]:
    """What the journal holds, read by other eyes than the daemon's."""
    state: dict[str, str] = {}
    for frame in frames.scan(journal.read_bytes()).frames:
        for key, value in frames.changes_of(frame):
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
    return {key: json.loads(value) for key, value in state.items()}


def highest_epoch(state: dict[str, Any]) -> int:
    """The highest epoch that these records name anywhere."""
    found = [0]

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, str(key))
        elif isinstance(value, list):
            for inner in value:
                walk(inner, name)
        elif isinstance(value, int) and "epoch" in name:
            found.append(value)

    walk(state, "")
    return max(found)


def ends(fabric: LiveFabric, node: str) -> bool:
    return not fabric.daemons.running(node)


def wear(fabric: LiveFabric, node: str) -> None:
    """Have the VM moved back and forth until that daemon has ended."""

    def ended() -> bool:
        if not ends(fabric, node):
            with contextlib.suppress(VmMobilityError):
                to = "nve-b" if fabric.where() == "nve-a" else "nve-a"
                fabric.vmmob("move", VM, to)  # refused while one is under way
        return ends(fabric, node)

    wait_for(ended, f"{node} meets the full disk", PATIENCE_S)


def check_end(fabric: LiveFabric, node: str, disk: Disk) -> None:
    assert fabric.daemons.processes[node].wait(PATIENCE_S) == 1
    said = disk.said()
    assert [line.partition(" ")[0] for line in said] == ["error:", "remedy:"], said
    assert "No space left on device" in said[0]
    assert "disk" in said[1] or "make room" in said[1]


@pytest.mark.parametrize("room", ROOMS)
def test_a_manager_says_nothing_that_it_could_not_record(fabric: LiveFabric, room: int):
    fabric.eventually(fabric.where, "the VM is served", PATIENCE_S)
    disk = Disk(fabric, "manager")
    fabric.kill("manager", signal.SIGTERM)
    disk.fill(room)
    fabric.daemons.start("manager")
    wear(fabric, "manager")
    check_end(fabric, "manager", disk)
    # Epochs are the manager's to give: none is out that is not on record.
    known = highest_epoch(disk.records())
    for nve in ("nve-a", "nve-b"):
        with fabric.nve(nve) as client:
            rows = client.vms()
        assert all(row["epoch"] <= known for row in rows), (known, rows)
    heals(fabric, "manager", disk)


@pytest.mark.parametrize("room", ROOMS)
def test_an_nve_says_nothing_that_it_could_not_record(fabric: LiveFabric, room: int):
    fabric.eventually(fabric.where, "the VM is served", PATIENCE_S)
    serving = fabric.where()
    disk = Disk(fabric, serving)
    fabric.kill(serving, signal.SIGTERM)
    kernel, processes = fabric.kernel(serving), fabric.processes(serving)
    fabric.echoes()
    disk.fill(room)
    fabric.daemons.start(serving)
    wear(fabric, serving)
    check_end(fabric, serving, disk)
    if move_under_way(fabric) in ("", "preparing", "copying"):
        # Nothing has been turned: the guest and all that its packets need are as they were.
        fabric.echoes()
    if room == 0:
        assert (fabric.kernel(serving), fabric.processes(serving)) == (kernel, processes)
    heals(fabric, serving, disk)


def move_under_way(fabric: LiveFabric) -> str:
    """The state of the move that has not ended, or "" if there is none."""
    with fabric.manager() as client:
        states = [str(move["state"]) for move in client.moves()]
    return next((state for state in states if state not in ENDED), "")


def at_rest(fabric: LiveFabric) -> bool:
    """Whether no NVE is in the middle of anything with the VM."""
    phases = set()
    for nve in ("nve-a", "nve-b"):
        with fabric.nve(nve) as client:
            phases |= {str(row["phase"]) for row in client.vms()}
    return phases <= {"none", "serving", "redirecting"}


def heals(fabric: LiveFabric, node: str, disk: Disk) -> None:
    """With room again the daemon starts, and what was under way comes to its end."""
    disk.free()
    fabric.start(node)
    fabric.eventually(fabric.where, "the VM is served", PATIENCE_S)
    fabric.eventually(lambda: not move_under_way(fabric), "the move's end", PATIENCE_S)
    fabric.eventually(lambda: at_rest(fabric), "the NVEs have heard of it", PATIENCE_S)
    fabric.move("nve-b" if fabric.where() == "nve-a" else "nve-a")
    fabric.echoes()
