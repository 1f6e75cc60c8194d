"""Carrying out a scenario's steps, one after another.

A failed assertion is noted and the run goes on; any other failed step ends the run.
Not here: what assertions mean (assertions.py), moves (lab_run.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from signal import SIGTERM
from typing import Any

from vmmobility.errors import LabError, VmMobilityError
from vmmobility.lab.assertions import judge
from vmmobility.lab.drain_steps import carry_out
from vmmobility.lab.fabric_steps import FabricSteps
from vmmobility.lab.faults import find_link
from vmmobility.lab.guest_steps import GuestSteps
from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.marks import Restart
from vmmobility.lab.replaying import replay
from vmmobility.lab.state_assertions import run_vmmob
from vmmobility.lab.step_types import (
    Assertion,
    Carrier,
    Drain,
    Exec,
    Fault,
    Guest,
    Kill,
    KillFrr,
    LookAtStandby,
    LoseState,
    Move,
    Pause,
    Power,
    Protect,
    Remember,
    Repeat,
    Replay,
    Start,
    StartFrr,
    Step,
)

_POLL_S = 0.1


class Steps:
    """Runs steps and keeps what failed."""

    def __init__(self, run: LabRun) -> None:
        self._run = run
        self._lab = run.lab
        self.failures: list[str] = []
        self.results: list[dict[str, Any]] = []
        run.pause = self._pause
        self._guests = GuestSteps(run)
        self._fabric = FabricSteps(run)
        self._heal_at: list[tuple[float, str]] = []

    def carry_out(self, steps: Sequence[Step]) -> None:
        """All steps; what fails is in `failures`."""
        try:
            for step in steps:
                self._one(step)
            self._check_daemons()
            for record in self._run.moves:
                self._run.wait_for(record)
        except VmMobilityError as error:
            self.failures.append(f"run {self._run.number}: {error}")
            self._lab.say(f"the run ends here: {error}")
            for record in self._run.moves:
                self._run.settle(record)

    def _one(self, step: Step) -> None:
        self._heal_what_is_due()
        self._check_daemons()
        match step:
            case Move():
                record = self._run.request(step)
                if step.wait:
                    self._run.wait_for(record)
            case Drain():
                self._run.drains.append(asdict(carry_out(self._run, step)))
            case Protect():
                self._run.protections.begin(self._run, step)
            case LookAtStandby():
                self._run.protections.look(self._run, step)
            case Pause():
                self._pause(step.seconds)
            case Fault():
                self._fault(step)
            case Exec():
                self._exec(step)
            case Assertion():
                self._assert(step)
            case Repeat():
                for _ in range(step.times):
                    for inner in step.steps:
                        self._one(inner)
            case Guest():
                self._guests.carry_out(step)
            case KillFrr() | StartFrr() | Carrier():
                self._fabric.carry_out(step)
            case Remember():
                self._run.marks.remember(self._lab.daemons)
                self._run.flows.mark("at rest")
            case Replay():
                replay(self._run, step)
            case Kill() | Start() | Power() | LoseState():
                self._host(step)

    def _check_daemons(self) -> None:
        """Nothing that follows would mean anything if one has ended that nobody has ended."""
        if words := self._lab.daemons.fallen():
            raise LabError(words, "that is a fault: see its log")

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._heal_what_is_due()
            self._check_daemons()
            time.sleep(min(left, _POLL_S))

    def _host(self, step: Kill | Start | Power | LoseState) -> None:
        hosts, say = self._lab.hosts, self._lab.say
        match step:
            case Kill():
                what = "" if step.process == "daemon" else f" ({step.process})"
                say(f"{step.signal.name} to {', '.join(step.nodes)}{what}")
                hosts.kill(step.nodes, step.signal, step.process)
            case Start():
                self._start(step)
            case Power(on=False):
                self._run.flows.mark(f"{step.node} dark")
                self._run.protections.strike(f"{step.node} dark")
                hosts.power_off(step.node)
                self._run.protections.struck()
                say(f"{step.node}'s host is dark")
            case Power():
                self._run.flows.mark(f"{step.node} back")
                hosts.power_on(step.node)
                self._start(Start((step.node,)))
            case LoseState():
                hosts.lose_state(step.node)
                say(f"{step.node} has lost its state")

    def _start(self, step: Start) -> None:
        daemons = self._lab.daemons
        if step.kill_first:
            daemons.kill(step.nodes, SIGTERM)
        for node in step.nodes:
            daemons.start(node)
        for node in step.nodes:
            daemons.wait_ready(node)
            restart = Restart(node, daemons.forked_ns[node], daemons.answered_ns[node])
            self._run.marks.restarts.append(restart)
        again = " again" if step.kill_first else ""
        self._lab.say(f"{', '.join(step.nodes)} started{again}")

    def _fault(self, step: Fault) -> None:
        link = find_link(self._lab.fabric, step.link, "scenario")
        if step.per_mille == 0:
            self._lab.faults.heal(link)
            self._lab.say(f"link {step.link} is healed")
            return
        if step.per_mille == 1000:
            self._run.protections.strike(f"{step.link} cut")
        self._lab.faults.drop(link, step.per_mille, step.control_only)
        self._run.protections.struck()
        how = "cut" if step.per_mille == 1000 else f"losing {step.per_mille / 10:g} % each way"
        whom = " for control messages" if step.control_only else ""
        self._lab.say(f"link {step.link} is {how}{whom}")
        if step.seconds is not None:
            self._heal_at.append((time.monotonic() + step.seconds, step.link))
            self._pause(step.seconds)
            self._heal_what_is_due()

    def _heal_what_is_due(self) -> None:
        due = [entry for entry in self._heal_at if entry[0] <= time.monotonic()]
        for entry in due:
            self._heal_at.remove(entry)
            self._fault(Fault(entry[1], 0))

    def _exec(self, step: Exec) -> None:
        if step.vmmob:
            done = run_vmmob(self._run, step.node, step.command)
        else:
            done = self._run.command(step.node, step.command)
        if step.expect_status is not None and done.returncode != step.expect_status:
            what = f"`{' '.join(step.command)}` in {step.node}: status {done.returncode}"
            raise LabError(f"{what}: {done.stderr.strip()[:300]}", "any_status = true ignores it")

    def _assert(self, step: Assertion) -> None:
        begun = time.monotonic()
        seen = judge(self._run, step)
        while seen and time.monotonic() < begun + step.within_s:
            self._pause(_POLL_S)
            seen = judge(self._run, step)
        waited = time.monotonic() - begun
        words = [step.what, step.vm, step.node, step.via, step.event, step.state, step.target]
        if step.what == "vmmob":
            words += step.command
        name = " ".join(filter(None, words))
        self.results.append({"run": self._run.number, "assert": name, "ok": not seen,
                             "seen": seen, "waited_s": round(waited, 3)})  # fmt: skip
        if seen:
            self.failures.append(f"run {self._run.number}: {name}: {seen}")
        self._lab.say(f"assert {name}: " + (seen or "yes")
                      + (f", after {waited:.1f} s" if waited > 1 else ""))  # fmt: skip
