"""Who outlives the daemon: a process beside a protected guest that pauses it when its lease ends.

    arm(folder, pid, until)     the guest of this folder may run until then (CLOCK_MONOTONIC)
    disarm(folder)              its guard ends

The lease stands in FOLDER/lease, which the daemon rewrites with every accepted refresh.  The guard
reads it again when it is over; not extended, it says `stop` at the guest's second monitor
(FOLDER/qmp2) and sees that it is done; a QEMU that does not say so is killed, for another NVE is
about to run the VM.  It looks on after that: a refresh may be accepted at any moment, and the guest
go on with the next lease.  It ends with the guest, or with the lease's file.  Run as a module with
the folder as its argument, and the descriptor at which it says that it guards; what goes wrong with
it stands in FOLDER/guard.log.

Not here: when a lease ends (engine/nve_guarding.py).  Rests on the standard library alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

LEASE, MONITOR, PID, LOG = "lease", "qmp2", "guard.pid", "guard.log"
MODULE = "vmmobility.drivers.hypervisor.lease_guard"
ANSWER_S = 0.5
READY_S = 10.0  # a guard that has not begun to guard by then does not
READY = b"ready\n"
LOOK_S = 1.0  # the lease is looked at so often at least: the guest may be gone
PAUSED_LOOK_S = 0.1  # and so often while it is over: the next may be short


class _Guard:
    """One that this daemon has started.  A thread waits for its end, so that no zombie stays."""

    def __init__(self, folder: Path) -> None:
        source = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
        self._sign, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with (folder / LOG).open("ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", MODULE, str(folder), str(theirs)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(theirs,),
                    env={**os.environ, "PYTHONPATH": path},
                )
        except BaseException:
            os.close(self._sign)
            raise
        finally:
            os.close(theirs)
        self.until = 0.0  # of the lease that it has to guard
        self._ready_by = time.monotonic() + READY_S
        self._is_ready = False
        threading.Thread(target=self.process.wait, name="guard", daemon=True).start()

    def __del__(self) -> None:
        os.close(self._sign)

    @property
    def flaw(self) -> str:
        """Why nobody guards the lease, or "".  One that has just begun counts as guarding."""
        self._is_ready = self._is_ready or self._has_said_ready()
        status = self.process.poll()
        if status is not None and (status or not self._is_ready or time.monotonic() < self.until):
            return f"the guard of its lease has ended by itself (status {status})"
        if not self._is_ready and time.monotonic() > self._ready_by:
            return f"the guard of its lease has not begun within {READY_S:.0f} s"
        return ""

    def _has_said_ready(self) -> bool:
        try:
            return os.read(self._sign, len(READY)) == READY
        except OSError:  # nothing yet
            return False


_guards: dict[Path, _Guard] = {}  # of this daemon


def arm(folder: Path, pid: int, until: float) -> None:
    """Extend the lease; start the guard unless it lives.

    Raises OSError if none can be started, or the one before has not guarded: another is started
    then, but until it has proven itself the guest counts as unguarded.
    """
    new = folder / (LEASE + ".new")
    new.write_text(json.dumps({"until": until, "pid": pid}))
    new.replace(folder / LEASE)
    known = _guards.get(folder)
    flaw = known.flaw if known is not None else ""
    if flaw and known is not None:
        known.process.kill()
        _guards.pop(folder)
    if (known is None and _of_another_daemon(folder) is None) or flaw or _has_ended(known):
        _guards[folder] = _Guard(folder)
        (folder / PID).write_text(str(_guards[folder].process.pid))
    if folder in _guards:
        _guards[folder].until = until
    if flaw:
        raise OSError(errno.ECHILD, f"{flaw}{_last_words(folder)}")


def disarm(folder: Path) -> None:
    """Let the guest run without a lease.  Idempotent."""
    with contextlib.suppress(OSError):
        (folder / LEASE).unlink(missing_ok=True)
    # At once: one that only looked on later might take the next lease for its own, or not see it.
    known, other = _guards.pop(folder, None), _of_another_daemon(folder)
    if known is not None:
        known.process.kill()
    elif other is not None:
        with contextlib.suppress(OSError):
            os.kill(other, signal.SIGKILL)
    with contextlib.suppress(OSError):
        (folder / PID).unlink(missing_ok=True)


def _has_ended(known: _Guard | None) -> bool:
    """Its work done: the lease before this one was over."""
    return known is not None and known.process.poll() is not None


def _of_another_daemon(folder: Path) -> int | None:
    """The pid of the living guard of this folder that stands in its file."""
    try:
        pid = int((folder / PID).read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if MODULE.encode() in words and str(folder).encode() in words else None


def _last_words(folder: Path) -> str:
    try:
        lines = (folder / LOG).read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f": {lines[-1][:200]}" if lines else ""


def guard(folder: Path, ready: Callable[[], None] = lambda: None) -> None:
    """Whenever the lease is over, pause the guest.  Returns when nothing is to guard.

    ready: called once it is seen that there is a lease, and a guest
    """
    told, paused = False, 0.0  # paused: the end of the lease for which it was
    while True:
        try:
            lease = json.loads((folder / LEASE).read_text())
            until, pid = float(lease["until"]), int(lease["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        if not _is_guest(folder, pid):
            return
        if not told:
            told = True
            ready()
        left = until - time.monotonic()
        if left > 0:
            time.sleep(min(left, LOOK_S))
            continue
        if until == paused:
            time.sleep(PAUSED_LOOK_S)
        elif _pause(folder / MONITOR):
            paused = until
        else:
            _kill(folder, pid)
            return


def _pause(monitor: Path) -> bool:
    """Whether QEMU says that its guest does not run."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(str(monitor))
            stream = connection.makefile("rw")
            stream.readline()
            for command in ("qmp_capabilities", "stop", "query-status"):
                stream.write(json.dumps({"execute": command, "id": command}) + "\n")
                stream.flush()
                answer: dict[str, object] = {}
                while answer.get("id") != command:  # events may come before
                    answer = json.loads(stream.readline())
            status = answer.get("return")
            return isinstance(status, dict) and status.get("running") is False
    except (OSError, ValueError):
        return False


def _kill(folder: Path, pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if _is_guest(folder, pid):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:
        return
    finally:
        os.close(handle)


def _is_guest(folder: Path, pid: int) -> bool:
    """Whether that process is the QEMU of this folder."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return str(folder / "pid").encode() in words


def _say_ready(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # the daemon has ended: the guest is guarded all the same
        os.write(descriptor, READY)
    os.close(descriptor)


if __name__ == "__main__":
    guard(Path(sys.argv[1]), lambda: _say_ready(int(sys.argv[2])))
