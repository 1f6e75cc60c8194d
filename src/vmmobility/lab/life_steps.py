"""The step `life`: one order of a VM's life, as a user types it, and the state that follows.

Each leaves a row for the report, so that the states of the whole life stand in a table.
Not here: guests that an NVE starts, or hands (guest_steps.py), moves (lab_run.py).
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from vmmobility.errors import ApiError, LabError
from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.state_assertions import run_vmmob
from vmmobility.lab.step_types import Life

LOOK_S = 0.05
MORE = {"stop": ("--grace", "3"), "delete": ("--force",)}  # of an order, beside --wait


class LifeSteps:
    """Carries out the Life steps of one run."""

    def __init__(self, run: LabRun) -> None:
        self._run = run
        self._lab = run.lab
        self._answers: dict[str, Any] = {}
        self._told = False

    def carry_out(self, step: Life) -> None:
        """LabError if it fails, is not refused as it should, or leads to another state."""
        if not self._told:
            self._await_rooms(step)
        begun = time.monotonic()
        said = ""
        if step.order != "await":
            done = run_vmmob(self._run, self._lab.daemons.manager, self._words(step))
            said = self._judge(step, done)
        row = self._awaited(step)
        if row["state"] == "running":
            self._run.talk_to({step.vm})
        took_ms = round(1000 * (time.monotonic() - begun), 1)
        told = {"order": step.order, **row, "took_ms": took_ms, "refused": said}
        self._run.lives.append({"run": self._run.number, "vm": step.vm, **told})
        where = f" at {row['nve']}" if row["nve"] else ""
        why = f" (refused: {said})" if said else ""
        self._lab.say(f"{step.vm}: {step.order:8} -> {row['state']}{where}, guest {row['guest']}, "
                      f"{took_ms:.0f} ms{why}")  # fmt: skip

    def _await_rooms(self, step: Life) -> None:
        """Until every host has told what it has: before that nobody is offered anything."""
        daemons, deadline = self._lab.daemons, time.monotonic() + step.timeout_s
        while not self._told:
            rows = daemons.ask(daemons.manager, "GET", "/v1/nves")
            late = [row["nve"] for row in rows if not (row["capacity"] or {}).get("memory_mib")]
            if late and time.monotonic() > deadline:
                raise LabError(f"{', '.join(late)} has not told its room", "see its log")
            self._told = not late
            time.sleep(LOOK_S)

    def _words(self, step: Life) -> tuple[str, ...]:
        if step.order == "create":
            key = ("--key", step.key) if step.key else ()
            return ("vm", "create", str(self._file(step)), *key, "--json")
        return ("vm", step.order, step.vm, "--wait", "--json", *MORE.get(step.order, ()))

    def _file(self, step: Life) -> Path:
        vm = self._lab.fabric.vm(step.vm)
        body = self._lab.definition(vm)
        memory_mib = step.memory_mib or vm.memory_mib
        body["memory_mib"] = memory_mib
        body["resources"] = {"vcpus": vm.vcpus, "memory_mib": memory_mib}
        body["placement"] = {"nves": [step.nve]} if step.nve else {}
        path = self._lab.info.folder / f"{step.vm}-{memory_mib}-{step.nve or 'anywhere'}.json"
        path.write_text(json.dumps(body, indent=2))
        return path

    def _judge(self, step: Life, done: subprocess.CompletedProcess[str]) -> str:
        """What was said to a refusal that was expected."""
        what = f"`vmmob vm {step.order}` of {step.vm}"
        if step.refused:
            said = " ".join(done.stderr.split())
            if done.returncode == 0 or step.refused not in said:
                raise LabError(f"{what}: {said or 'it has worked'}",
                               f"the scenario expects {step.refused!r}")  # fmt: skip
            return said
        if done.returncode != 0:
            raise LabError(f"{what}: {done.stderr.strip()[:300]}", "see the manager's log")
        if step.order == "create":
            self._compare(step, json.loads(done.stdout))
        return ""

    def _compare(self, step: Life, answer: dict[str, Any]) -> None:
        if answer["offer"]:
            answer["offer"].pop("expires_in_s")  # time goes on
        before, self._answers[step.vm] = self._answers.get(step.vm), answer
        if step.same and answer != before:
            raise LabError(f"{step.vm}: the same request has another answer: {answer}",
                           f"it was {before}")  # fmt: skip

    def _awaited(self, step: Life) -> dict[str, Any]:
        deadline = time.monotonic() + step.timeout_s
        while (row := self._seen(step.vm))["state"] != step.state:
            if time.monotonic() > deadline:
                raise LabError(
                    f"{step.vm} is {row['state']} after {step.order}, not {step.state}",
                    f"it had {step.timeout_s:g} s",
                )
            time.sleep(LOOK_S)
        return row

    def _seen(self, vm: str) -> dict[str, Any]:
        daemons = self._lab.daemons
        try:
            found = daemons.ask(daemons.manager, "GET", f"/v1/vms/{vm}?vni=0")
        except ApiError:
            return {"state": "none", "guest": "none", "nve": "", "server": None}
        life = found["lifecycle"] or {"state": "none"}
        at = {"nve": found["nve"], "server": found["server"]}
        return {"state": life["state"], "guest": found["guest"], **at}
