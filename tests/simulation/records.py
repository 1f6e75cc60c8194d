"""What must hold of records and of what is said, event by event (design, invariants 2 and 4).

- The highest epoch on record falls never: neither an NVE's or a router's for a VM (the tombstone),
  nor the manager's sequence - unless the disk itself was lost.
- No epoch is granted twice.  A manager that has lost its records, or was set back, may grant one of
  its earlier life again: to another VM, or if no NVE that is up holds this one under it or a later
  one and runs its guest.
- An acceptance leaves only when what it says is on the sender's disk.

Not here: forwarding and guests (tests/engine/safety.py).
"""

from __future__ import annotations

from typing import Any

from tests.engine import safety
from tests.engine.conversation import vm_key
from tests.engine.network import MANAGER, Node, World
from tests.engine.safety import Violation
from vmmobility.engine.outputs import Event, Send
from vmmobility.wire.authentication import TRAILER
from vmmobility.wire.message import Message, decode_part
from vmmobility.wire.options import Epoch, PhaseOption
from vmmobility.wire.registry import Kind, Phase, Purpose
from vmmobility.wire.values import VmKey

ANSWERED = frozenset(
    {
        Purpose.ROUTE,
        Purpose.ATTACH,
        Purpose.PREPARE,
        Purpose.SWITCH,
        Purpose.REDIRECT,
        Purpose.GUEST,
    }
)
FIRST_REFUSAL = 128


class Records:
    """Watches one World."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._highest: dict[tuple[str, str], int] = {}
        self._granted: dict[int, tuple[str, str]] = {}
        self._earlier: dict[tuple[str, int], str] = {}  # by a manager that forgot it: VM, epoch

    def _broken(self, invariant: str, what: str) -> Violation:
        return Violation(invariant, f"{self._world.now:.3f} {what}")

    def forget(self, name: str) -> None:
        """That node's disk was lost."""
        for key in [k for k in self._highest if k[0] == name]:
            del self._highest[key]
        if name == MANAGER:
            self._earlier |= {(vm, epoch): nve for epoch, (vm, nve) in self._granted.items()}
            self._granted.clear()

    def durable(self, node: Node, changes: list[Any]) -> None:
        for key, value in changes:
            if key == "epoch":
                epoch = value
            elif key.startswith(("vm/", "route/")):
                epoch = value["epoch"] if value else 0
            else:
                continue
            highest = self._highest.get((node.node_id, key), 0)
            if epoch < highest:
                what = f"{node.node_id}: {key} falls from {highest} to {epoch}"
                raise self._broken("epoch on record falls", what)
            self._highest[node.node_id, key] = epoch

    def event(self, event: Event) -> None:
        if event.name == "binding":
            epoch = event.detail["epoch"]
            grant = (event.detail["vm"], event.detail["nve"])
            if self._granted.setdefault(epoch, grant) != grant:
                what = f"epoch {epoch} is granted to {grant} and was to {self._granted[epoch]}"
                raise self._broken("epoch granted twice", what)
            vm, nve = grant
            if self._earlier.get((vm, epoch), nve) != nve and self._held(vm, epoch, nve):
                what = f"{vm}: epoch {epoch}, that {self._earlier[vm, epoch]} had, goes to {nve}"
                raise self._broken("epoch granted twice", what)

    def _held(self, vm: str, epoch: int, but: str) -> bool:
        """Whether another NVE runs the VM under this epoch or a later one."""
        key = vm_key(vm)
        for name in safety.running(self._world, key):
            entry = edge.entries.get(key) if (edge := self._world.nodes[name].edge) else None
            if name != but and entry is not None and entry.epoch >= epoch:
                return True
        return False

    def said(self, node: Node, output: Send) -> None:
        data = output.data
        if data[1] != Kind.REPLY or data[3] >= FIRST_REFUSAL or data[2] not in ANSWERED:
            return
        part = decode_part(data, TRAILER)
        if part.count > 1 and part.number > 1:
            return
        message = part.message
        if node.node_id == MANAGER:
            self._granted_on_disk(node, message)
        elif message.purpose is Purpose.ROUTE:
            self._led_on_disk(node, message)
        else:
            self._stands_on_disk(node, message)

    def _granted_on_disk(self, node: Node, message: Message) -> None:
        epoch = message.find(Epoch)
        if message.purpose is Purpose.ATTACH and epoch is not None:
            vm = message.vm
            if node.disk.get("epoch", 0) < epoch.epoch:
                what = f"{vm}: epoch {epoch.epoch} is said and not on the manager's disk"
                raise self._broken("said before durable", what)

    def _led_on_disk(self, node: Node, message: Message) -> None:
        vm, epoch = message.vm, message.epoch
        record = node.disk.get(f"route/{vm.vni}/{vm.vm_id}")
        if record is None or record["epoch"] < epoch:
            what = f"{node.node_id} says {vm} is led under epoch {epoch}, its disk {record}"
            raise self._broken("said before durable", what)

    def _stands_on_disk(self, node: Node, message: Message) -> None:
        """An NVE's reply says (epoch, phase)."""
        epoch, phase = message.find(Epoch), message.find(PhaseOption)
        if epoch is None or phase is None:
            return
        vm: VmKey = message.vm
        record = node.disk.get(f"vm/{vm.vni}/{vm.vm_id}")
        # Later changes of phase may have overtaken the answer.
        nothing = record is None and phase.phase is not Phase.NONE
        if nothing or (record is not None and record["epoch"] < epoch.epoch):
            said = f"{phase.phase.name} at epoch {epoch.epoch}"
            held = f"{Phase(record['phase']).name} at {record['epoch']}" if record else "nothing"
            what = f"{node.node_id} says {vm} is {said}, its disk {held}"
            raise self._broken("said before durable", what)
