"""Steps that are about the fabric: FRR's daemons signalled and started again, links down and up.

Not here: FRR's processes (frr.py), links that drop frames and stay up (faults.py).
"""

from __future__ import annotations

import os
import signal

from vmmobility.errors import LabError
from vmmobility.lab.faults import find_link
from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.step_types import Carrier, KillFrr, StartFrr

_ENDING = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class FabricSteps:
    """Carries out the fabric's steps of one run."""

    def __init__(self, run: LabRun) -> None:
        self._run = run
        self._lab = run.lab

    def carry_out(self, step: KillFrr | StartFrr | Carrier) -> None:
        """LabError if it cannot be done."""
        match step:
            case KillFrr():
                self._signal(step)
            case StartFrr():
                started = self._lab.frr.revive(step.node)
                self._lab.say(f"{step.node}: {', '.join(started) or 'nothing'} started again")
            case Carrier():
                link = find_link(self._lab.fabric, step.link, "scenario")
                self._lab.faults.carrier(link, step.up)
                self._lab.say(f"link {step.link} is {'up' if step.up else 'down'}")

    def _signal(self, step: KillFrr) -> None:
        frr = self._lab.frr
        if step.signal in _ENDING:
            frr.kill(step.node, step.daemons, step.signal)
        else:
            for daemon in step.daemons:
                process = frr.processes[step.node, daemon]
                if process.poll() is not None:
                    raise LabError(f"{daemon} of {step.node} does not run", "start-frr first")
                os.kill(process.pid, step.signal)
        self._lab.say(f"{step.signal.name} to {', '.join(step.daemons)} of {step.node}")
