"""One run of a scenario in a lab: its probes, its moves, and the asking for them.

Not here: the order of steps (steps.py), judging (assertions.py), reporting (findings.py).
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vmmobility.errors import ApiError, LabError
from vmmobility.lab.by_hand import HandMove
from vmmobility.lab.correspondents import Correspondents, Pair
from vmmobility.lab.counting import Window
from vmmobility.lab.flows import FLOWS, Flows
from vmmobility.lab.laboratory import Laboratory
from vmmobility.lab.marks import Marks
from vmmobility.lab.namespaces import GUEST_MTU
from vmmobility.lab.protections import Protections
from vmmobility.lab.report_fabric import HostRoute, SettledPath
from vmmobility.lab.scenario import Scenario
from vmmobility.lab.sizes import SizeProbes
from vmmobility.lab.soundness import Soundness, examine, qemu_cpu
from vmmobility.lab.step_types import Move
from vmmobility.lab.traffic_poller import TrafficPoller

AFTERMATH_NS = 1_000_000_000  # a move may still be felt so long after its end
_COMMAND_S = 60.0


@dataclass(slots=True)
class MoveRecord:
    """A move that was asked for.  ok is None while it goes on."""

    number: int
    vm: str
    source: str
    target: str
    expected: str
    requested_ns: int
    deadline_s: float
    move_id: str = ""
    ok: bool | None = None
    reason: str = ""
    ended_ns: int = 0
    answer: dict[str, Any] = field(default_factory=dict)
    soundness: Soundness | None = None


class LabRun:
    """The state of one run."""

    def __init__(self, lab: Laboratory, scenario: Scenario, number: int, first_move: int) -> None:
        self.lab = lab
        self.scenario = scenario
        self.number = number
        every_ms = lab.fabric.probe_every_ms
        self.probes = Correspondents(lab.info.folder / "probes" / str(number), every_ms)
        self.sizes = SizeProbes(lab.info.folder / "sizes" / str(number))
        self.flows = Flows(lab.info.folder / "flows" / str(number))
        self.marks = Marks()
        self.protections = Protections()
        self.pause: Callable[[float], None] = time.sleep  # the steps' own, that looks after daemons
        moved = frozenset(move.vm for move in scenario.moves())
        self.poller = TrafficPoller(lab.daemons, moved)
        self.moves: list[MoveRecord] = []
        self.hand_moves: list[HandMove] = []
        self.drains: list[dict[str, Any]] = []
        self.lives: list[dict[str, Any]] = []
        self.cpu_before: dict[str, float | None] = {}
        self.settled: list[SettledPath] = []
        self.host_routes_left: list[HostRoute] = []
        self.begun_ns = time.time_ns()
        self.ended_ns = 0
        self._first_move = first_move

    @property
    def last_request_ns(self) -> int:
        """When the last move was asked for (or the run began)."""
        return self.moves[-1].requested_ns if self.moves else self.begun_ns

    def moving(self, vm: str) -> list[Window]:
        """When the VM was not at rest: from each move's request to a moment after its end."""
        spans = [(m.requested_ns, m.ended_ns) for m in self.moves if m.vm == vm]
        spans += [(m.started_ns, m.ended_ns) for m in self.hand_moves if m.vm == vm]
        now_ns = time.time_ns()
        return [Window(begin, (end or now_ns) + AFTERMATH_NS) for begin, end in spans]

    def start(self) -> dict[str, str]:
        """Probes on, levels noted.  Who carries tunnelled packets at each NVE."""
        self.talk_to({vm.name for vm in self.lab.fabric.vms if vm.is_started})
        for vm in self.lab.fabric.vms:
            if vm.kind == "guest" and vm.is_started:
                home = self.place_of(vm.name) or vm.home
                self.cpu_before[vm.name] = qemu_cpu(self.lab.spaces.name(home))
        self._start_flows()
        self.poller.start()
        self.marks.remember(self.lab.daemons)
        return self._back_ends()

    def _start_flows(self) -> None:
        """To each group's address, from every correspondent."""
        fabric = self.lab.fabric
        if fabric.groups:
            talkers = [node.name for node in fabric.of_kind("correspondent")]
            spaces = {name: self.lab.spaces.name(name) for name in talkers}
            self.flows.start(spaces, self.lab.addresses(fabric.groups[0].vms[0]))
            self.lab.say(f"{FLOWS} flows from each of {', '.join(talkers)}, IPv4 and IPv6")

    def _back_ends(self) -> dict[str, str]:
        found = {}
        for node in self.lab.fabric.of_kind("nve"):
            tunnels = self.lab.daemons.ask(node.name, "GET", "/v1/status").get("tunnels") or {}
            found[node.name] = str(tunnels.get("back_end", ""))
        self.lab.say("tunnels are carried by the " + " and the ".join(sorted(set(found.values()))))
        return found

    def talk_to(self, vms: set[str]) -> None:
        """Start the probes to those VMs that run now and had none."""
        talking = {pair.vm for pair in self.probes.pairs}
        pairs = [p for p in self.scenario.probes if p.vm in vms - talking]
        if not pairs:
            return
        spaces = {p.correspondent: self.lab.spaces.name(p.correspondent) for p in pairs}
        self.probes.start(pairs, spaces, {p.vm: self.lab.known_as(p.vm) for p in pairs})
        if self.scenario.packet_sizes:
            self._try_sizes(pairs)
        vms_told, every_ms = len({p.vm for p in pairs}), self.lab.fabric.probe_every_ms
        self.lab.say(f"{len(spaces)} correspondents talk to {vms_told} VM(s), "
                     f"UDP every {every_ms} ms and TCP, IPv4 and IPv6")  # fmt: skip

    def _try_sizes(self, pairs: Sequence[Pair]) -> None:
        vms = {vm.name for vm in self.lab.fabric.vms}
        talkers = {pair.correspondent for pair in pairs}
        self.sizes.start(
            pairs,
            {name: self.lab.spaces.name(name) for name in talkers},
            {n: GUEST_MTU if n in vms else self.lab.fabric.mtu_at(n) for n in talkers},
            {pair.vm: self.lab.addresses(pair.vm) for pair in pairs},
        )
        self.lab.say("they also try what size of packets passes, and send bulk over TCP")

    def stop(self) -> None:
        """2 s after the last move's end, stop the probes."""
        ends = [move.ended_ns for move in self.moves]
        ends += [move.ended_ns for move in self.hand_moves]
        last_ns = max(ends, default=0)
        time.sleep(max(0.0, (last_ns + 2_000_000_000 - time.time_ns()) / 1e9))
        self.ended_ns = time.time_ns()
        self.sizes.stop()
        self.flows.stop()
        self.probes.stop()
        self.poller.stop()
        self.lab.logbook.read()

    def abort(self) -> None:
        """The run is over early: stop what it started."""
        self.sizes.stop()
        self.flows.stop()
        self.probes.stop()

    def place_of(self, vm: str) -> str:
        """The NVE to which the manager binds the VM, or ""."""
        daemons = self.lab.daemons
        try:
            found = daemons.ask(daemons.manager, "GET", f"/v1/bindings/{vm}?vni=0")
        except ApiError:
            return ""
        entry = found[0] if isinstance(found, list) and found else found
        return str(entry.get("nve") or "") if isinstance(entry, dict) else ""

    def asker(self, vm: str) -> str:
        """A namespace from which that VM is asked things."""
        for pair in self.probes.pairs:
            if pair.vm == vm:
                return self.lab.spaces.name(pair.correspondent)
        return self.lab.spaces.name(self.lab.daemons.manager)

    def request(self, step: Move) -> MoveRecord:
        """Ask the manager for a move."""
        daemons = self.lab.daemons
        if step.server:
            self._await_server(step)
        source = self.place_of(step.vm)
        self.poller.poll()  # what was relayed up to now belongs to the moves before
        number = self._first_move + len(self.moves)
        deadline_s = time.monotonic() + step.timeout_s
        record = MoveRecord(number, step.vm, source, step.to, step.expect, time.time_ns(),
                            deadline_s)  # fmt: skip
        self.moves.append(record)
        at = f" ({step.server})" if step.server else ""
        self.lab.say(f"move {number}: {step.vm} from {source or '?'} to {step.to}{at}")
        body = {"vm": step.vm, "vni": 0, "to": step.to}
        body |= {"mode": step.mode} if step.mode else {}
        body |= {"server": step.server} if step.server else {}
        try:
            record.answer = daemons.ask(daemons.manager, "POST", "/v1/moves", body)
            record.move_id = str(record.answer["id"])
        except ApiError as error:
            record.ok, record.reason = False, error.message
            record.ended_ns = time.time_ns()
        return record

    def _await_server(self, step: Move) -> None:
        """Until the manager has heard that it answers: before that it moves nothing there."""
        daemons, deadline = self.lab.daemons, time.monotonic() + step.timeout_s
        while True:
            rows = daemons.ask(daemons.manager, "GET", "/v1/nves")
            told = [s for row in rows if row["nve"] == step.to for s in row["servers"]]
            if any(s["server"] == step.server and s["liveness"] == "alive" for s in told):
                return
            if time.monotonic() > deadline:
                raise LabError(f"{step.to} does not say that {step.server} answers", "see its log")
            time.sleep(0.05)

    def settle(self, record: MoveRecord, wait_s: float = 0.0) -> bool:
        """Whether the move has ended, waiting up to `wait_s`; afterwards the guest is examined."""
        if record.ok is None:
            self._ask_for_end(record, wait_s)
        if record.ok is not None and record.soundness is None:
            self._examine(record)
        return record.ok is not None

    def _ask_for_end(self, record: MoveRecord, wait_s: float) -> None:
        daemons = self.lab.daemons
        try:
            target = f"/v1/moves/{record.move_id}?wait={wait_s:g}"
            record.answer = daemons.ask(daemons.manager, "GET", target, timeout_s=wait_s + 10)
        except ApiError as error:
            record.reason = error.message
            time.sleep(0.2)
        ok = record.answer.get("ok")
        if isinstance(ok, bool):
            record.ok = ok
            record.reason = str(record.answer.get("reason") or "")
        elif time.monotonic() > record.deadline_s:
            record.ok = False
            record.reason = record.reason or "it has not ended in time"
        if record.ok is not None:
            record.ended_ns = time.time_ns()

    def wait_for(self, record: MoveRecord) -> None:
        """Wait for the move's end; LabError if it is not the one expected."""
        while not self.settle(record, wait_s=1.0):
            pass
        wanted = {"ok": True, "fail": False}.get(record.expected)
        if wanted is not None and record.ok is not wanted:
            went = "succeeded" if record.ok else f"failed: {record.reason}"
            raise LabError(f"move {record.number} of {record.vm} to {record.target} {went}",
                           f"the scenario expects it to {record.expected}")  # fmt: skip

    def _examine(self, record: MoveRecord) -> None:
        vm = self.lab.fabric.vm(record.vm)
        cpu = None
        if vm.kind == "guest":
            place = record.target if record.ok else record.source
            cpu = qemu_cpu(self.lab.spaces.name(place))
        address = self.lab.known_as(record.vm)[0]
        before = self.cpu_before.get(record.vm)
        record.soundness = examine(self.asker(record.vm), address, cpu, before)
        if not record.soundness.sound:
            self.lab.say(f"{record.vm} is not sound: {record.soundness.reason}")

    def command(self, node: str, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in a node's namespace."""
        command = ["ip", "netns", "exec", self.lab.spaces.name(node), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S,
                                  check=False)  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise LabError(f"`{' '.join(words)}` in {node} has not ended",
                           f"it had {_COMMAND_S:g} s") from error  # fmt: skip
