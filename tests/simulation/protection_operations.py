"""What the verbs of warm standbys do to a World.

Not here: other verbs (operations.py), what must hold of guests (tests/engine/safety.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.engine.conversation import vm_key
from tests.engine.network import MANAGER, World
from vmmobility.engine.manager_move import CommandRefused
from vmmobility.engine.outputs import Event

if TYPE_CHECKING:
    from tests.simulation.fates import Fates


class ProtectionOperations:
    """Protects, hands over, protects no more; a part of Operations."""

    world: World
    hit: Callable[[str, str], None]
    fates: Fates

    def _try(self, what: str, command: Callable[[], object]) -> None:
        if self.world.nodes[MANAGER].manager is None:
            return
        try:
            command()
            self.hit(what, MANAGER)
        except CommandRefused:
            self.hit(f"{what} refused", MANAGER)

    def do_protect(self, vm: str, to: str, fail_over: str, lease: str) -> None:
        key = vm_key(vm)
        self._try(
            "protect",
            lambda: self.world.protect(
                key, to, fail_over=fail_over == "fail-over", lease_s=float(lease)
            ),
        )

    def do_unprotect(self, vm: str) -> None:
        self._try("unprotect", lambda: self.world.unprotect(vm_key(vm)))

    def do_hand_over(self, vm: str) -> None:
        self._try("hand over", lambda: self.world.hand_over(vm_key(vm)))

    def do_clocks(self, share: str) -> None:
        """From the beginning, when all clocks are 0, those of the NVEs run apart by so much."""
        for index, node in enumerate(self.world.nodes.values()):
            if node.edge is not None:
                node.rate = 1 + float(share) * (1 if index % 2 else -1)

    def unprotect_all(self) -> None:
        """At the end of a schedule: whoever is protected is it no more."""
        manager = self.world.nodes[MANAGER].manager
        assert manager is not None
        for vm in list(manager.protected):
            self.do_unprotect(vm.vm_id)

    def protection_told(self, event: Event) -> None:
        """To be told of every event."""
        if event.name in ("protection.taken-over", "protection.lost", "protection.primary-silent"):
            self.hit(event.name.partition(".")[2], MANAGER)
        if event.name == "guest.unfenceable":
            vm = vm_key(event.detail["vm"])
            self.fates.doomed.setdefault(vm, "it could not be paused, and was ended for that")
