"""Steps that are about one guest: started and stopped through an NVE, or by hand.

Not here: moves through the manager (lab_run.py), QEMU by hand itself (by_hand.py).
"""

from __future__ import annotations

from vmmobility.errors import ApiError, LabError
from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.step_types import Guest


class GuestSteps:
    """Carries out the Guest steps of one run."""

    def __init__(self, run: LabRun) -> None:
        self._run = run
        self._lab = run.lab

    def carry_out(self, step: Guest) -> None:
        """LabError if it fails, or does not fail as it should."""
        try:
            self._one(step)
        except (ApiError, LabError) as error:
            if step.error is None or step.error not in error.message:
                raise
            self._lab.say(f"{step.do} {step.vm} at {step.nve} is refused: {error.message}")
            return
        if step.error is not None:
            raise LabError(f"{step.do} {step.vm} at {step.nve} has worked",
                           f"the scenario expects {step.error!r}")  # fmt: skip

    def _one(self, step: Guest) -> None:
        lab, vm = self._lab, self._lab.fabric.vm(step.vm)
        match step.do:
            case "start-vm":
                body = lab.definition(vm, step.nve)
                lab.daemons.ask(step.nve, "PUT", f"/v1/vms/{vm.name}", body, step.timeout_s)
            case "stop-vm":
                lab.daemons.ask(step.nve, "DELETE", f"/v1/vms/{vm.name}?vni=0")
            case "expect":
                body = lab.definition(vm, step.nve)
                lab.daemons.ask(step.nve, "PUT", f"/v1/expected/{vm.name}", body, step.timeout_s)
            case "start-by-hand":
                lab.by_hand.start(vm.name, step.nve, lab.hand_definition(vm))
                self._run.talk_to({vm.name})
            case "migrate-by-hand":
                self._run.hand_moves.append(
                    lab.by_hand.migrate(vm.name, step.nve, lab.hand_definition(vm), step.timeout_s)
                )
            case "stop-by-hand":
                lab.by_hand.stop(vm.name, step.nve)
        lab.say(f"{step.do} {vm.name} at {step.nve}: done")
