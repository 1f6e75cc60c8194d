"""Which VMs must live at the end of a schedule: all whose guest ever ran, but those of which a
fault destroyed the last whole copy, or which people stopped.

Not here: the faults themselves (operations.py), the look at the end (liveness.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.engine.fake_hypervisor import Guest, Life
from tests.engine.network import MANAGER, World
from vmmobility.engine.manager_transitions import MoveState
from vmmobility.wire.values import VmKey

# The destination's copy is being ended, or has been.
BACKWARD = (MoveState.ENDING_GUEST, MoveState.TURNING_BACK)


class Fates:
    """Which VMs must be alive at the end."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.ran: set[VmKey] = set()
        self.doomed: dict[VmKey, str] = {}
        self.manager_forgot = False  # its records were lost, or set back
        self.set_back = False

    def guests(self, vm: VmKey) -> list[Guest]:
        hypervisors = (n.hypervisor for n in self._world.nodes.values())
        return [h.guests[vm] for h in hypervisors if h is not None and vm in h.guests]

    def copies(self, vm: VmKey) -> list[Guest]:
        """The whole and current copies of the VM."""
        guests = self.guests(vm)
        running = [g for g in guests if g.life is Life.RUNNING]
        if running:
            return running
        if self.manager_forgot:
            # Nobody knows any more that one that was handed over may be let go on.
            guests = [g for g in guests if g.life is not Life.HANDED or g.copy_to or g.by_hand]
        ends = self._is_ended_at(vm)
        return [
            g
            for g in guests
            if (g.loading and g.at.own.nve_id != ends) or g.life in (Life.HANDED, Life.PAUSED)
        ]

    def _is_ended_at(self, vm: VmKey) -> str:
        """Where the manager has a guest ended that has not run yet."""
        manager = self._world.nodes[MANAGER].manager
        move = manager._current.get(vm) if manager else None
        return move.destination.nve_id if move and move.state in BACKWARD else ""

    def destroyed(self, guests: Iterable[Guest], why: str) -> None:
        """These are about to end."""
        gone = list(guests)
        for vm in {g.vm for g in gone}:
            copies = self.copies(vm)
            if copies and all(copy in gone for copy in copies):
                self.doomed.setdefault(vm, why)

    @property
    def must_live(self) -> set[VmKey]:
        return self.ran - set(self.doomed)
