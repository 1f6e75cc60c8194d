"""A VM and its fabric at rest: what a cell begins with, and what comes of it is waited for.

Also how a VM that is lost, or that a mode wants stopped, is brought to run again.  Not here: a
cell's move and its fault (fault_cells.py), what is looked at (fault_looks.py).
"""

from __future__ import annotations

from typing import Any

from vmmobility.errors import ApiError, LabError
from vmmobility.lab.disk_fresh import bring, fresh_disk, wipe_records
from vmmobility.lab.fault_eyes import Eyes
from vmmobility.lab.fault_holds import await_true
from vmmobility.lab.fault_looks import EVERY_MS, RECORDS, Looks
from vmmobility.lab.guest.disk_records import acknowledged
from vmmobility.lab.laboratory import VM_START_S, Laboratory

SETTLE_S = 45.0
_FRESH = 0.7  # of the records written once: for a disk that must have room for others, begin anew


class Rest:
    """One lab with one VM."""

    def __init__(self, lab: Laboratory, eyes: Eyes, looks: Looks) -> None:
        self._lab = lab
        self._eyes = eyes
        self._looks = looks
        self._vm = lab.fabric.vms[0]

    # -- looking ---------------------------------------------------------------------------------

    def binding(self) -> dict[str, Any]:
        """The VM's, as the manager has it; {} if it has none, or does not answer."""
        daemons = self._lab.daemons
        try:
            target = f"/v1/bindings/{self._vm.name}?vni=0"
            found = daemons.ask(daemons.manager, "GET", target, timeout_s=2.0)
        except ApiError:
            return {}
        row = found[0] if isinstance(found, list) and found else found
        return row if isinstance(row, dict) else {}

    def open_running(self, move_id: str) -> tuple[list[str], list[str]]:
        """Where the VM runs, and what is not at rest yet of one that is to run."""
        at, points = self._eyes.running_at(), self._move_open(move_id)
        if len(at) == 1:
            points += self._bound_open(at[0])
        elif not at:
            told = self._looks.alarms() or self._looks.stopped() or self._looks.is_removed()
            points += [] if told else ["nobody says that the VM runs nowhere"]
            held = str(self.binding().get("nve", "")) if self._looks.stopped() else ""
            points += self._looks.leftovers(held, held or self._looks.newest())
        return at, points

    def open_stopped(self, move_id: str) -> tuple[str, list[str]]:
        """Where the VM is, and what is not at rest yet of one that is stopped."""
        points, row = self._move_open(move_id), self.binding()
        at = str(row.get("nve", ""))
        if (row.get("state"), row.get("guest")) != ("serving", "stopped"):
            points.append(f"the VM is {row.get('state')}, its guest {row.get('guest')}")
        elif row.get("guest_ordered"):
            points.append(f"its guest is to be {row['guest_ordered']}")
        points += [f"it runs at {node}" for node in self._eyes.running_at()]
        return at, points + self._looks.leftovers(at, at)

    def _move_open(self, move_id: str) -> list[str]:
        move = self._looks.move(move_id) if move_id else {"ok": True}
        if move.get("ok") is not None:
            return []
        return [f"the move is {move.get('state') or 'not known to the manager'}"]

    def _bound_open(self, node: str) -> list[str]:
        row = self.binding()
        bound = (row.get("nve"), row.get("state")) == (node, "serving")
        points = [] if bound else [f"the VM is not bound to {node}"]
        if bound and row.get("guest_ordered"):
            points.append(f"its guest is to be {row['guest_ordered']}")
        return points + self._looks.leftovers(node, node)

    # -- bringing about --------------------------------------------------------------------------

    def come(self, within_s: float = SETTLE_S) -> None:
        """One guest runs, and the fabric is at rest: what a cell begins with.  LabError if not."""
        last: list[str] = []

        def rests() -> bool:
            nonlocal last
            at = self._eyes.running_at()
            last = self._bound_open(at[0]) if len(at) == 1 else [f"it runs at {at or 'no NVE'}"]
            return not last

        at = self._eyes.running_at()
        if not at:
            await_true(self._eyes.running_at, 3.0)  # one that has just been let go on
            held = str(self.binding().get("nve", ""))
            if not self._eyes.running_at() and self._looks.stopped():
                if problem := self.start(held):
                    raise LabError(f"the VM, started at {held}, {problem}", "see its NVE's log")
            elif not self._eyes.running_at():
                self.revive()
        if not await_true(rests, within_s):
            raise LabError("it does not come to rest: " + "; ".join(last), "see the logs")

    def revive(self, anew: bool = False) -> None:
        """Start the lost VM where its newest image is.  anew: at home, with a new image."""
        lab, vm = self._lab, self._vm
        node = "" if anew else self._looks.newest()
        if node:
            wipe_records(self._looks.image(node), RECORDS)
            if node != vm.home:  # nobody leads to where a VM that is not registered may start
                bring(self._looks.image(node), self._looks.image(vm.home))
                node = vm.home
        else:
            node = vm.home
            for nve in lab.fabric.of_kind("nve"):
                for path in self._looks.image(nve.name).parent.glob(f"{vm.name}.img*"):
                    path.unlink()
            fresh_disk(self._looks.image(node), vm.disk_mib, RECORDS)
        self._eyes.forget_consoles()
        lab.daemons.ask(node, "PUT", f"/v1/vms/{vm.name}", definition(lab), VM_START_S)
        if problem := self._awake():
            raise LabError(f"{vm.name}, started at {node}, {problem}", "see its log and console")

    def stop(self) -> None:
        """The VM is stopped where it is, and stays so; its records are told and on its disk."""
        self._order("stop", "&force=1")
        last: list[str] = []

        def stopped() -> bool:
            nonlocal last
            last = self.open_stopped("")[1]
            return not last

        if not await_true(stopped, SETTLE_S):
            raise LabError("the VM does not stop: " + "; ".join(last), "see its NVE's log")

    def start(self, node: str) -> str:
        """The stopped VM is to run, as people order it; its records begin anew.  Why it does not,
        "" if it does."""
        wipe_records(self._looks.image(node), RECORDS)
        self._eyes.forget_consoles()
        try:
            self._order("start")
        except ApiError as error:
            return str(error)
        if not await_true(self._eyes.running_at, VM_START_S):
            return f"does not start: {self.binding().get('guest_error')}"
        return self._awake()

    def have_room_for_records(self) -> None:
        """Records go to places that hold none yet, or a full disk would not be felt."""
        if acknowledged(self._eyes.consoles()) > _FRESH * RECORDS:
            at = self._eyes.running_at()[0]
            self._lab.daemons.ask(at, "DELETE", f"/v1/vms/{self._vm.name}?vni=0", timeout_s=30.0)
            if not await_true(lambda: not self._eyes.running_at(), SETTLE_S):
                raise LabError("the VM does not stop", "see its NVE's log")
            self.revive(anew=True)
            self.come()

    def _order(self, verb: str, more: str = "") -> None:
        daemons = self._lab.daemons
        daemons.ask(daemons.manager, "POST", f"/v1/vms/{self._vm.name}/{verb}?vni=0{more}")

    def _awake(self) -> str:
        """What is wrong with the guest that was just started, "" if nothing."""
        if deaf := self._looks.deaf(VM_START_S):
            return f"does not answer: {deaf}"
        writes = await_true(lambda: acknowledged(self._eyes.consoles()) > 0, VM_START_S)
        return "" if writes else "writes nothing"


def definition(lab: Laboratory) -> dict[str, Any]:
    """The VM with its own number and pace of records."""
    vm = lab.fabric.vms[0]
    body = lab.definition(vm)
    words = [word for word in body["machine"]["append"].split() if not word.startswith("disk_")]
    records = f"disk_records={RECORDS} disk_every_ms={EVERY_MS}"
    return {**body, "machine": {**body["machine"], "append": " ".join([*words, records])}}
