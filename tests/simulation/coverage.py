"""What a campaign has covered: which fault struck in which phase of a VM's life, how often.

A phase is that of the VM's move as the manager's events tell it, or where it stands between moves.
Faults of a node are told apart by its part in that move.  Not here: faults (operations.py).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.engine.network import MANAGER
from vmmobility.engine.outputs import Event
from vmmobility.wire.values import VmKey

RESTING, UNBOUND, ENDING = "at rest", "unbound", "ending"
PHASES = (
    UNBOUND, RESTING, "preparing", "copying", "delivering", "announcing",
    "withdrawing", "switching", "redirecting",
    "ending-guest", "turning-back", "clearing", ENDING,
)  # fmt: skip
# The event that tells of a phase's beginning -> the phase.
BEGINS = {
    "move.ticketed": "preparing",
    "move.prepared": "copying",
    "move.converged": "delivering",
    "move.announcing": "announcing",
    "move.withdrawing": "withdrawing",
    "move.delivering": "switching",
    "move.registered": "redirecting",
    "move.ending-guest": "ending-guest",
    "move.turning-back": "turning-back",
    "move.clearing": "clearing",
    "move.done": RESTING,
    "move.aborted": RESTING,
    "move.failed": RESTING,
    "binding": RESTING,
    "binding.removed": UNBOUND,
}
OF_A_NODE = frozenset(
    {"crash", "power", "torn", "disk full", "kernel fails", "hypervisor fails", "state lost"}
)


class Coverage:
    """Counts (fault, phase) of one run, then of many."""

    def __init__(self) -> None:
        self.struck: Counter[tuple[str, str]] = Counter()
        self.routers: frozenset[str] = frozenset()
        self._phase: dict[str, tuple[str, str, str]] = {}

    def add(self, other: Counter[tuple[str, str]]) -> None:
        self.struck.update(other)

    def knows(self, vm: VmKey) -> None:
        self._phase.setdefault(vm.vm_id, (UNBOUND, "", ""))

    def event(self, event: Event) -> None:
        phase = BEGINS.get(event.name)
        if phase is None:
            return
        detail: dict[str, Any] = event.detail
        vm = detail["vm"]
        if event.name == "binding" and self._phase.get(vm, (UNBOUND,))[0] not in (UNBOUND, RESTING):
            return  # a move's own attach: the move's events follow
        if phase in (RESTING, UNBOUND):
            self._phase[vm] = (phase, detail.get("nve", detail.get("to", "")), "")
        else:
            self._phase[vm] = (phase, detail["from"], detail["to"])

    def strike(self, fault: str, node: str) -> None:
        """Counted once for each VM's phase."""
        for phase, source, destination in self._phase.values():
            name = fault
            if fault in OF_A_NODE:
                part = {MANAGER: "manager", source: "source", destination: "destination"}
                other = "router" if node in self.routers else "another"
                name = f"{fault}, {part.get(node, other)}"
            self.struck[name, phase] += 1

    def table(self) -> str:
        """Faults by phases, in text."""
        faults = sorted({fault for fault, _ in self.struck})
        width = max(map(len, faults), default=0) + 2
        heads = [p[:8] for p in PHASES]
        lines = [" " * width + " ".join(f"{h:>8}" for h in heads)]
        for fault in faults:
            cells = " ".join(f"{self.struck[fault, p] or '-':>8}" for p in PHASES)
            lines.append(f"{fault:<{width}}{cells}")
        return "\n".join(lines)
