"""The lab's own eyes on every QEMU of a lab: a second monitor each, and when its CPUs ran.

An NVE's QEMU is started through a wrapper beside the daemon (first in its PATH), which adds a
monitor in the NVE's folder `eyes`; a monitor serves one client, and the first is the daemon's.  The
wrapper also is where memory can be refused to QEMU (fault_strikes.py).  A thread follows STOP and
RESUME by QEMU's own clock, so an overlap of a millisecond is seen.  Not here: judging.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.errors import LabError
from vmmobility.lab.soundness import command_line

EYES = "eyes"
LIMIT = "memory-kib"  # in EYES: the address space that QEMU gets, while it is there
_EVERY_S, _ANSWER_S = 0.01, 3.0
_WRAPPER = """#!/bin/sh
# The lab's: QEMU with one more monitor, by which the lab looks.
eyes={eyes}
[ ! -e "$eyes/{limit}" ] || ulimit -v "$(cat "$eyes/{limit}")"
exec {qemu} "$@" -qmp "unix:$eyes/$$.look,server=on,wait=off"
"""

Hear = Callable[["Eye", str], None]


@dataclass(slots=True)
class Eye:
    """One QEMU.  spans: when its CPUs ran, CLOCK_REALTIME; the last has no end while they do."""

    node: str
    pid: int
    path: Path
    sock: socket.socket
    console: Path | None = None
    spans: list[list[int | None]] = field(default_factory=list)
    answers: dict[int, Any] = field(default_factory=dict)
    buffer: bytes = b""
    alive: bool = True
    number: int = 0

    @property
    def runs(self) -> bool:
        """As far as was heard."""
        return bool(self.spans) and self.spans[-1][1] is None

    def began(self, at_ns: int) -> None:
        """Its CPUs run from now on."""
        if not self.runs:
            self.spans.append([at_ns, None])

    def ended(self, at_ns: int) -> None:
        """They do not."""
        if self.runs:
            self.spans[-1][1] = at_ns


class Eyes:
    """Follows all QEMUs whose wrapper is one of these nodes'."""

    def __init__(self, homes: Mapping[str, Path], consoles: Path) -> None:
        self._homes = dict(homes)
        self._consoles = consoles
        self._eyes: list[Eye] = []
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="eyes", daemon=True)
        self.hear: Hear | None = None

    def open(self) -> dict[str, Path]:
        """Write the wrappers, begin to follow; the folder to put first in each daemon's PATH."""
        qemu = shutil.which(QemuSettings().binary)
        if qemu is None:
            raise LabError("QEMU is not installed", "install the package qemu-system-x86")
        self._consoles.mkdir(parents=True, exist_ok=True)
        found = {}
        for node, home in self._homes.items():
            eyes, folder = home / EYES, home / "bin"
            eyes.mkdir(parents=True, exist_ok=True)
            folder.mkdir(exist_ok=True)
            wrapper = folder / QemuSettings().binary
            words = _WRAPPER.format(eyes=eyes, limit=LIMIT, qemu=qemu)
            wrapper.write_text(words)
            wrapper.chmod(0o755)
            found[node] = folder
        self._thread.start()
        return found

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for eye in self._eyes:
            eye.sock.close()

    # -- what was seen ---------------------------------------------------------------------------

    def at(self, node: str) -> Eye | None:
        """The newest living QEMU of that node."""
        with self._lock:
            living = [eye for eye in self._eyes if eye.node == node and eye.alive]
        return living[-1] if living else None

    def ask(self, node: str, command: str) -> dict[str, Any]:
        """An answer of that node's QEMU; {} if there is none, or it does not answer."""
        eye = self.at(node)
        return {} if eye is None else self._ask(eye, command)

    def running_at(self) -> list[str]:
        """The nodes of all QEMUs whose CPUs run, each asked now."""
        with self._lock:
            living = [eye for eye in self._eyes if eye.alive]
        return [eye.node for eye in living if self._ask(eye, "query-status").get("running")]

    def heard_at(self) -> list[str]:
        """As running_at(), but as far as was heard: nobody is asked."""
        with self._lock:
            return [eye.node for eye in self._eyes if eye.alive and eye.runs]

    def ran(self, since_ns: int) -> list[str]:
        """The nodes where one has run since then, as far as was heard."""
        with self._lock:
            return [
                eye.node
                for eye in self._eyes
                if any(end is None or end > since_ns for _, end in eye.spans)
            ]

    def runs_at(self, node: str) -> bool:
        """Whether a QEMU of that node runs as far as was heard: nobody is asked."""
        return node in self.heard_at()

    def twice_ms(self, since_ns: int) -> float:
        """For how long any two have run at a time since then."""
        now_ns = time.time_ns()
        with self._lock:
            spans = [
                (max(start or 0, since_ns), now_ns if end is None else end, eye.pid)
                for eye in self._eyes
                for start, end in eye.spans
            ]
        return twice_ns(spans) / 1e6

    def spans(self) -> list[tuple[str, int, int | None]]:
        """Whose CPUs ran from when to when, oldest QEMU first; None: they still do."""
        with self._lock:
            return [(e.node, start or 0, end) for e in self._eyes for start, end in e.spans]

    def console_of(self, node: str) -> bytes:
        """What the newest QEMU of that node has said, whether it lives or not."""
        with self._lock:
            kept = [e.console for e in self._eyes if e.node == node and e.console is not None]
        return kept[-1].read_bytes() if kept else b""

    def consoles(self) -> bytes:
        """All that guests have said so far, oldest QEMU first."""
        return b"".join(path.read_bytes() for path in sorted(self._consoles.glob("*.log")))

    def forget_the_dead(self) -> None:
        """What QEMUs that live no more have said does not count any more."""
        with self._lock:
            kept = {eye.console for eye in self._eyes if eye.alive}
        for path in self._consoles.glob("*.log"):
            if path not in kept:
                path.unlink()

    def forget_consoles(self) -> None:
        """A guest with a new disk begins."""
        for path in self._consoles.glob("*.log"):
            path.unlink()

    # -- following -------------------------------------------------------------------------------

    def _follow(self) -> None:
        while not self._stop.is_set():
            self._find()
            with self._lock:
                living = {eye.sock: eye for eye in self._eyes if eye.alive}
            ready, _, _ = select.select(list(living), [], [], _EVERY_S)
            for sock in ready:
                self._read(living[sock])

    def _find(self) -> None:
        for eye in [eye for eye in self._eyes if eye.alive and eye.console is None]:
            eye.console = self._keep_console(eye.node, eye.pid)  # it comes after the monitor
        for node, home in self._homes.items():
            for path in sorted((home / EYES).glob("*.look")):
                pid = int(path.stem)
                if any(eye.path == path and eye.pid == pid for eye in self._eyes):
                    continue
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    sock.connect(str(path))
                except OSError:
                    sock.close()
                    continue
                eye = Eye(node, pid, path, sock)
                with self._lock:
                    self._eyes.append(eye)
                self._send(eye, {"execute": "qmp_capabilities"})
                self._order(eye, "query-status", first=True)

    def _keep_console(self, node: str, pid: int) -> Path | None:
        """Another name for what it writes: the NVE removes the first with the guest's folder."""
        words = command_line(pid).split(" ")
        found = [word.removeprefix("file:") for word in words if word.startswith("file:")]
        kept = self._consoles / f"{time.time_ns()}-{node}-{pid}.log"
        try:
            os.link(found[0], kept)
        except (OSError, IndexError):
            return None
        return kept

    def _read(self, eye: Eye) -> None:
        try:
            data = eye.sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            eye.alive = False
            eye.ended(time.time_ns())
            eye.path.unlink(missing_ok=True)
            return
        *lines, eye.buffer = (eye.buffer + data).split(b"\n")
        for line in lines:
            self._heard(eye, json.loads(line))

    def _heard(self, eye: Eye, message: dict[str, Any]) -> None:
        if "event" in message:
            stamp, name = message["timestamp"], str(message["event"])
            at_ns = stamp["seconds"] * 1_000_000_000 + stamp["microseconds"] * 1000
            if name == "RESUME":
                eye.began(at_ns)
            elif name in ("STOP", "SHUTDOWN"):
                eye.ended(at_ns)
            if self.hear is not None:
                status = message.get("data", {}).get("status", "")
                self.hear(eye, f"{name} {status}" if name == "MIGRATION" else name)
        elif message.get("id") == 0 and message.get("return", {}).get("running"):
            eye.began(time.time_ns())
        elif "id" in message:
            eye.answers[int(message["id"])] = message.get("return", {})

    def _order(self, eye: Eye, command: str, first: bool = False) -> int:
        with self._lock:
            eye.number += 0 if first else 1
            number = 0 if first else eye.number
        self._send(eye, {"execute": command, "id": number})
        return number

    @staticmethod
    def _send(eye: Eye, words: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            eye.sock.sendall(json.dumps(words).encode() + b"\n")

    def _ask(self, eye: Eye, command: str) -> dict[str, Any]:
        number = self._order(eye, command)
        deadline = time.monotonic() + _ANSWER_S
        while number not in eye.answers and eye.alive and time.monotonic() < deadline:
            time.sleep(0.002)
        found = eye.answers.pop(number, {})
        return found if isinstance(found, dict) else {}


def twice_ns(spans: list[tuple[int, int, int]]) -> int:
    """The longest overlap of two spans (start, end, whose) of different QEMUs."""
    longest = 0
    for index, (start, end, whose) in enumerate(spans):
        for other_start, other_end, other in spans[index + 1 :]:
            if other != whose:
                longest = max(longest, min(end, other_end) - max(start, other_start))
    return longest
