"""QEMU guests that people start and move themselves: the lab's own hands, not an NVE's.

A guest by hand is a QEMU process in its host's namespace that opens the tap which `expect` made.
It has two monitors: one for the NVE to watch, one for these hands.  Not here: what the NVE makes
of it.  Rests on the command line of drivers/hypervisor/process.py.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmmobility.drivers.hypervisor.interface import VmDefinition
from vmmobility.drivers.hypervisor.process import GuestFolder, command_line
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.engine.dataplane import port_name
from vmmobility.errors import LabError
from vmmobility.lab.daemons import Daemons
from vmmobility.lab.fabric import Fabric
from vmmobility.lab.namespaces import Namespaces
from vmmobility.lab.narrator import Say
from vmmobility.wire.values import VmKey

_START_S = 10.0
_ANSWER_S = 10.0
_POLL_S = 0.01
_FIRST_PORT = 49900


@dataclass(slots=True)
class HandMove:
    """A migration by hand.  Times are CLOCK_REALTIME, the two middle ones QEMU's own."""

    vm: str
    source: str
    target: str
    started_ns: int
    stopped_ns: int | None = None
    resumed_ns: int | None = None
    ended_ns: int = 0
    status: str = ""

    @property
    def ok(self) -> bool:
        """Whether QEMU says that it is complete."""
        return self.status == "completed"


class Monitor:
    """One conversation with a QEMU over its monitor, no more than hands need."""

    def __init__(self, path: Path, patience_s: float = _ANSWER_S) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(patience_s)
        try:
            self._sock.connect(str(path))
        except OSError as error:
            self._sock.close()
            raise LabError(f"{path}: {error.strerror}", "does that guest run?") from error
        self._lines = self._sock.makefile("rb")
        self.events: list[tuple[str, int]] = []
        self._read()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """One command's answer; LabError if QEMU refuses it."""
        self._sock.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            answer = self._read()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise LabError(f"QEMU refuses {command}: {answer['error']['desc']}", "see its log")

    def time_of(self, event: str) -> int | None:
        """When that event came last, in ns."""
        return next((at for name, at in reversed(self.events) if name == event), None)

    def _read(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except OSError as error:
            raise LabError(f"QEMU does not answer: {error}", "see its log") from error
        if not line:
            raise LabError("QEMU has ended", "see its log")
        answer: dict[str, Any] = json.loads(line)
        if "event" in answer:
            stamp = answer["timestamp"]
            at_ns = stamp["seconds"] * 1_000_000_000 + stamp["microseconds"] * 1000
            self.events.append((answer["event"], at_ns))
        return answer

    def close(self) -> None:
        """Let go; the guest runs on."""
        self._lines.close()
        self._sock.close()


class ByHand:
    """The guests of kind `external` of one lab."""

    def __init__(self, fabric: Fabric, spaces: Namespaces, daemons: Daemons, say: Say) -> None:
        self._fabric = fabric
        self._spaces = spaces
        self._daemons = daemons
        self._say = say
        self._processes: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
        self._ports = _FIRST_PORT
        self.moves: list[HandMove] = []

    def monitor(self, vm: str, nve: str) -> Path:
        """The monitor socket that is the NVE's to watch."""
        return self._folder(vm, nve).monitor

    def _folder(self, vm: str, nve: str) -> GuestFolder:
        return GuestFolder(self._daemons.home(nve) / "hand" / vm)

    def place_of(self, vm: str) -> str:
        """The NVE at which these hands have it running, or ""."""
        for name, nve in self._processes:
            if name == vm and self.state(vm, nve) == "running":
                return nve
        return ""

    def start(self, vm: str, nve: str, definition: VmDefinition, incoming: bool = False) -> None:
        """Start QEMU at that host, as a person would type it."""
        if self._lives(vm, nve):
            raise LabError(f"{vm} lives at {nve} already", "stop-by-hand it first")
        ports = [port_name(VmKey(0, vm), n) for n in range(len(definition.interfaces))]
        self._check_taps(vm, nve, ports)
        folder = self._folder(vm, nve)
        folder.path.mkdir(parents=True, exist_ok=True)
        for stale in (folder.monitor, self._hands(folder), folder.pid_file):
            stale.unlink(missing_ok=True)
        words = command_line(folder, definition, ports, binary=QemuSettings().binary,
                             accelerator=self._daemons.accelerator, incoming=incoming)  # fmt: skip
        words += ["-qmp", f"unix:{self._hands(folder)},server=on,wait=off"]
        enter = ["ip", "netns", "exec", self._spaces.name(nve)]
        with folder.log.open("ab") as log:
            process = subprocess.Popen([*enter, *words], stdin=subprocess.DEVNULL, stdout=log,
                                       stderr=log, start_new_session=True)  # fmt: skip
        self._processes[vm, nve] = process
        self._await_monitor(vm, nve, process)

    def _check_taps(self, vm: str, nve: str, ports: Sequence[str]) -> None:
        """QEMU makes a tap that is missing, one that leads nowhere: do not let it."""
        shown = subprocess.run(["ip", "-n", self._spaces.name(nve), "-br", "link", "show"],
                               capture_output=True, text=True, check=False).stdout  # fmt: skip
        there = {line.split()[0] for line in shown.splitlines() if line.strip()}
        if missing := [port for port in ports if port not in there]:
            raise LabError(f"{vm} at {nve}: no tap {missing[0]}", "`expect` it there first")

    @staticmethod
    def _hands(folder: GuestFolder) -> Path:
        return folder.path / "hands"

    def _await_monitor(self, vm: str, nve: str, process: subprocess.Popen[bytes]) -> None:
        folder = self._folder(vm, nve)
        deadline = time.monotonic() + _START_S
        while not self._hands(folder).exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"{vm} did not start at {nve}: {folder.last_words()}", "see its log")
            time.sleep(_POLL_S)

    def _lives(self, vm: str, nve: str) -> bool:
        process = self._processes.get((vm, nve))
        return process is not None and process.poll() is None

    @contextmanager
    def _talking(self, vm: str, nve: str) -> Iterator[Monitor]:
        if not self._lives(vm, nve):
            raise LabError(f"{vm} does not live at {nve} by hand", "start-by-hand it first")
        monitor = Monitor(self._hands(self._folder(vm, nve)))
        try:
            yield monitor
        finally:
            monitor.close()

    def state(self, vm: str, nve: str) -> str:
        """ "running", "paused" (for whatever reason) or "none"."""
        if not self._lives(vm, nve):
            return "none"
        with self._talking(vm, nve) as monitor:
            return "running" if monitor.execute("query-status")["running"] else "paused"

    def migrate(self, vm: str, to: str, definition: VmDefinition, patience_s: float) -> HandMove:
        """What a person does: a waiting QEMU there, `migrate` here, then end this one."""
        source = self.place_of(vm)
        if not source:
            raise LabError(f"{vm} runs nowhere by hand", "start-by-hand it first")
        self.start(vm, to, definition, incoming=True)
        self._ports += 1
        uri = f"tcp:{self._fabric.first_end(to).address(4)}:{self._ports}"
        move = HandMove(vm, source, to, time.time_ns())
        self.moves.append(move)
        self._say(f"{vm}: migrated by hand from {source} to {to}")
        with self._talking(vm, source) as here, self._talking(vm, to) as there:
            there.execute("migrate-incoming", uri=uri)
            here.execute("migrate", uri=uri)
            move.status = _await_end(here, patience_s)
            move.ended_ns = time.time_ns()
            move.stopped_ns = here.time_of("STOP")
            if move.ok:
                move.resumed_ns = _await_resume(there, patience_s)
        self.stop(vm, source if move.ok else to)
        if not move.ok:
            raise LabError(f"the migration of {vm} to {to} has {move.status}", "see QEMU's log")
        return move

    def stop(self, vm: str, nve: str) -> None:
        """End that QEMU, as `quit` does; no error if it has ended."""
        process = self._processes.pop((vm, nve), None)
        if process is not None:
            process.terminate()
            try:
                process.wait(_ANSWER_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def end_all(self) -> None:
        """End whatever these hands have started."""
        for vm, nve in list(self._processes):
            self.stop(vm, nve)


def _await_resume(monitor: Monitor, patience_s: float) -> int:
    """When the guest first ran there; its NVE may have stopped it again by now."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        monitor.execute("query-status")  # reads the events before its answer
        if (at_ns := monitor.time_of("RESUME")) is not None:
            return at_ns
        time.sleep(_POLL_S)
    raise LabError("the migrated guest does not run", "see QEMU's log")


def _await_end(monitor: Monitor, patience_s: float) -> str:
    """How QEMU says that the migration has ended."""
    deadline = time.monotonic() + patience_s
    status = ""
    while time.monotonic() < deadline:
        status = str(monitor.execute("query-migrate").get("status", "none"))
        if status in ("completed", "failed", "cancelled"):
            return status
        time.sleep(_POLL_S)
    return f"not ended in {patience_s:g} s (it is {status})"
