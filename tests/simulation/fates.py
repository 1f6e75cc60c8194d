"""Which VMs must live at the end of a schedule: all whose guest ever ran, but those of which a
fault destroyed the last whole copy, or which people stopped.

Not here: the faults themselves (operations.py), the look at the end (liveness.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.engine.fake_hypervisor import Guest, Life
from tests.engine.network import World
from vmmobility.wire.values import VmKey


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
        return [g for g in guests if g.loading or g.life in (Life.HANDED, Life.PAUSED)]

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
