"""Who outlives the daemon: a process beside a protected guest that pauses it when its lease ends.

    arm(folder, pid, until)     the guest of this folder may run until then (CLOCK_MONOTONIC)
    disarm(folder)              its guard ends

The lease stands in FOLDER/lease, which the daemon rewrites with every accepted refresh.  The guard
reads it again when it is over; not extended, it says `stop` at the guest's second monitor
(FOLDER/qmp2) and sees that it is done; a QEMU that does not say so is killed, for another NVE is
about to run the VM.  Run as a module with the folder as its argument.

Not here: when a lease ends (engine/nve_guarding.py).  Rests on the standard library alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

LEASE, MONITOR, PID = "lease", "qmp2", "guard.pid"
MODULE = "vmmobility.drivers.hypervisor.lease_guard"
ANSWER_S = 0.5
LOOK_S = 1.0  # the lease is looked at so often at least: the guest may be gone


def arm(folder: Path, pid: int, until: float) -> None:
    """Extend the lease; start the guard unless it runs.  Raises OSError."""
    new = folder / (LEASE + ".new")
    new.write_text(json.dumps({"until": until, "pid": pid}))
    new.replace(folder / LEASE)
    if not _guarded(folder):
        source = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
        guard = subprocess.Popen(
            [sys.executable, "-m", MODULE, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        _guards[folder] = guard
        (folder / PID).write_text(str(guard.pid))


def disarm(folder: Path) -> None:
    """Let the guest run without a lease.  Idempotent."""
    with contextlib.suppress(OSError):
        (folder / LEASE).unlink(missing_ok=True)


_guards: dict[Path, subprocess.Popen[bytes]] = {}  # those that this daemon has started


def _guarded(folder: Path) -> bool:
    """Whether a guard of this folder lives."""
    known = _guards.get(folder)
    if known is not None:
        return known.poll() is None
    try:
        pid = int((folder / PID).read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return False
    return MODULE.encode() in words and str(folder).encode() in words


def guard(folder: Path) -> None:
    """Wait until the lease is over, then pause the guest.  Returns when nothing is to guard."""
    while True:
        try:
            lease = json.loads((folder / LEASE).read_text())
            until, pid = float(lease["until"]), int(lease["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        if not _is_guest(folder, pid):
            return
        left = until - time.monotonic()
        if left > 0:
            time.sleep(min(left, LOOK_S))
            continue
        if not _pause(folder / MONITOR):
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


if __name__ == "__main__":
    guard(Path(sys.argv[1]))
