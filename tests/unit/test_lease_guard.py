"""The guard of a lease: a real process beside one that answers like QEMU's monitor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmmobility.drivers.hypervisor import lease_guard

LIMIT_S = 20.0
FAR = 1000.0
QEMU = """
import json, socket, sys
folder = sys.argv[1][: -len("/pid")]
server = socket.socket(socket.AF_UNIX)
server.bind(folder + "/qmp2")
server.listen()
open(folder + "/up", "w").close()
while True:
    connection, _ = server.accept()
    stream = connection.makefile("rw")
    running = True
    print('{"QMP": {}}', file=stream, flush=True)
    for line in stream:
        said = json.loads(line)
        if said["execute"] == "stop":
            running = False
            open(folder + "/stopped", "w").close()
        answer = {"id": said["id"], "return": {"running": running}}
        print(json.dumps(answer), file=stream, flush=True)
"""


def wait_for(look: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not look():
        assert time.monotonic() < deadline, f"not within {LIMIT_S:.0f} s: {what}"
        os.sched_yield()


class Guest:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen([sys.executable, "-c", QEMU, str(folder / "pid")])
        wait_for((folder / "up").exists, "its monitor listens")

    def arm(self, seconds: float) -> None:
        lease_guard.arm(self.folder, self.process.pid, time.monotonic() + seconds)

    def problem(self) -> str:
        """Of one more extension, or ""."""
        try:
            self.arm(FAR)
        except OSError as error:
            return str(error.strerror)
        return ""

    @property
    def guard(self) -> int:
        return int((self.folder / lease_guard.PID).read_text())


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    made = Guest(tmp_path)
    yield made
    lease_guard.disarm(tmp_path)
    made.process.kill()
    made.process.wait()


def is_there(pid: int) -> bool:
    """Also as a zombie."""
    return Path(f"/proc/{pid}").exists()


def has_begun(guest: Guest) -> bool:
    assert guest.problem() == ""
    return lease_guard._guards[guest.folder]._is_ready


def test_a_lease_that_ends_pauses_the_guest_and_a_new_one_is_guarded_by_the_same(
    guest: Guest,
) -> None:
    guest.arm(0.5)
    first, stopped = guest.guard, guest.folder / "stopped"
    wait_for(stopped.exists, "it is paused")
    stopped.unlink()
    guest.arm(0.5)
    wait_for(stopped.exists, "it is paused again")
    assert guest.problem() == ""
    assert guest.guard == first
    wait_for(lambda: has_begun(guest), "it is guarded")


def test_a_lease_that_is_extended_while_the_guest_is_paused_is_guarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, paused = tmp_path / lease_guard.LEASE, []

    def pause(monitor: Path) -> bool:
        paused.append(monitor)
        if len(paused) == 1:
            lease.write_text('{"until": 2.0, "pid": 1}')  # a refresh is accepted
        else:
            lease.unlink()
        return True

    monkeypatch.setattr(lease_guard, "_pause", pause)
    monkeypatch.setattr(lease_guard, "_is_guest", lambda folder, pid: True)
    lease.write_text('{"until": 1.0, "pid": 1}')
    lease_guard.guard(tmp_path)
    assert len(paused) == 2


def test_a_lease_that_is_extended_is_guarded_by_the_same(guest: Guest) -> None:
    guest.arm(FAR)
    first = guest.guard
    wait_for(lambda: has_begun(guest), "it is guarded")
    assert guest.guard == first
    assert not (guest.folder / "stopped").exists()


def test_a_guard_that_dies_at_once_is_told_with_its_last_words(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = lease_guard.MODULE
    monkeypatch.setattr(lease_guard, "MODULE", "vmmobility.no_such_guard")
    guest.arm(FAR)
    wait_for(guest.problem, "the problem is told")
    told = ""
    for _ in range(2):  # every time, for as long as it lasts
        wait_for(lambda: not is_there(guest.guard), "the next one has ended, too")
        told = guest.problem()
        assert told.startswith("the guard of its lease has ended by itself (status 1)")
    assert "No module named vmmobility.no_such_guard" in told
    monkeypatch.setattr(lease_guard, "MODULE", sound)
    wait_for(lambda: not is_there(guest.guard), "the last of them has ended")
    assert guest.problem(), "the one before it did not guard"
    wait_for(lambda: has_begun(guest), "it is guarded")


def test_a_guard_that_is_killed_is_told_and_followed_by_another(guest: Guest) -> None:
    guest.arm(FAR)
    wait_for(lambda: has_begun(guest), "it is guarded")
    first, own = guest.guard, lease_guard._guards[guest.folder].process
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: own.poll() is not None, "it has ended, and its status was taken")
    assert "has ended by itself (status -9)" in guest.problem()
    assert guest.guard != first
    wait_for(lambda: has_begun(guest), "it is guarded again")


def test_a_guard_that_does_not_begin_is_told(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_guard, "READY_S", -1.0)
    guest.arm(FAR)
    assert "has not begun" in guest.problem()


def test_a_guard_of_an_earlier_daemon_goes_on_and_ends_with_its_lease(guest: Guest) -> None:
    guest.arm(FAR)
    wait_for(lambda: has_begun(guest), "it is guarded")
    first = guest.guard
    own = lease_guard._guards.pop(guest.folder)  # as after a daemon's restart
    assert guest.problem() == ""
    assert guest.guard == first
    lease_guard.disarm(guest.folder)
    own.process.wait(LIMIT_S)
    wait_for(lambda: not is_there(first), "it has ended")
    lease_guard.disarm(guest.folder)


def test_a_disarmed_guard_leaves_no_zombie_and_takes_no_later_lease(guest: Guest) -> None:
    guest.arm(FAR)
    first = guest.guard
    lease_guard.disarm(guest.folder)
    assert guest.problem() == ""
    assert guest.guard != first
    wait_for(lambda: not is_there(first), "it has ended, and its status was taken")
    wait_for(lambda: has_begun(guest), "the next is guarded")
