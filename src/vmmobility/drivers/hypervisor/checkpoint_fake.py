"""The in-memory twin of the drivers' checkpoints: a part of FakeHypervisor.

    b.fail_next["receive_checkpoints"] = "no room"    a.break_next["checkpoint"] = "path cut"
    b.full = "no room": the standby takes no checkpoint, until it is ""

What a checkpoint holds is the guest's `state_of` (any value a test gives it) at that moment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmmobility.drivers.hypervisor.interface import GuestEvent, VmDefinition
from vmmobility.errors import HypervisorError
from vmmobility.wire.values import VmKey


@dataclass
class Standby:
    """What a standby holds of a VM.  number: of the last complete checkpoint; value: its content"""

    place: tuple[str, int]
    token: str
    number: int = 0
    value: Any = None
    ran: bool = False
    open: bool = True


class FakeCheckpoints:
    """See Hypervisor (interface.py) for each method."""

    break_next: dict[str, str]

    if TYPE_CHECKING:  # of FakeHypervisor
        _world: Any
        _guests: dict[VmKey, Any]
        _guest: Callable[[VmKey], Any]
        _report: Callable[..., None]
        _may_fail: Callable[[str, VmKey | None], None]

        async def query(self, vm: VmKey) -> Any: ...
        def run_loaded(self, definition: VmDefinition) -> None: ...
        def runs(self, vm: VmKey) -> bool: ...

    def __init__(self) -> None:
        self.standbys: dict[VmKey, Standby] = {}
        self.values: dict[VmKey, Any] = {}
        self.armed: dict[VmKey, float | None] = {}
        self.full = ""
        self._open = True

    async def receive_checkpoints(
        self, definition: VmDefinition, listen_address: str
    ) -> tuple[str, int, str, int]:
        """Be the VM's standby."""
        vm = definition.vm
        self._may_fail("receive_checkpoints", vm)
        if vm in self._guests:
            raise HypervisorError(f"{vm}: it lives here")
        standby = self.standbys.get(vm)
        if standby is None:
            place = (listen_address, self._world.next_port)
            self._world.next_port += 1
            standby = self.standbys[vm] = Standby(place, f"token-{place[1]}")
        if standby.ran:
            raise HypervisorError(f"{vm}: this standby was activated")
        standby.open = self._open = True
        self._world.doors[standby.place] = self
        return *standby.place, standby.token, standby.number

    async def checkpoint(
        self, vm: VmKey, address: str, port: int, token: str, *, final: bool = False
    ) -> None:
        """Take a checkpoint; its reports follow."""
        self._may_fail("checkpoint", vm)
        if not self.runs(vm):
            raise HypervisorError(f"{vm}: it does not run here")
        if final:
            self.stop_for_good(vm)
        reason = self.break_next.pop("checkpoint", "")
        there = self._world.doors.get((address, port))
        standby = None if there is None else there.standbys.get(vm)
        if standby is None or not standby.open:
            reason = reason or f"{vm}: cannot connect to its standby"
        elif standby.token != token:
            reason = reason or f"{vm}: its standby does not take its checkpoints"
        else:
            reason = reason or there.full
        if reason or standby is None:
            self._report(
                vm,
                GuestEvent.CHECKPOINT,
                {"ok": False, "final": final, "reason": reason, "age_ms": 0},
            )
            return
        full = not standby.number
        standby.number += 1
        standby.value = self.values.get(vm)
        there._report(vm, GuestEvent.CHECKPOINT_HELD, {"number": standby.number})
        figures: dict[str, Any] = {
            "pause_ms": 0.0,
            "memory_bytes": 0,
            "disk_bytes": 0,
            "total_ms": 0.0,
        }
        detail = {
            "ok": True,
            "number": standby.number,
            "full": full,
            **figures,
            "age_ms": 0,
            "final": final,
        }
        self._report(vm, GuestEvent.CHECKPOINT, detail)

    async def unprotect(self, vm: VmKey) -> None:
        """No checkpoint follows."""
        self._may_fail("unprotect", vm)

    async def activate(self, definition: VmDefinition, ports: Sequence[str]) -> None:
        """Let the guest run from the last complete checkpoint."""
        vm = definition.vm
        self._may_fail("activate", vm)
        if vm in self._guests:
            return
        standby = self.standbys.get(vm)
        if standby is None or not standby.number:
            raise HypervisorError(f"{vm}: no checkpoint of it is complete here")
        if standby.ran:
            raise HypervisorError(f"{vm}: it has run here since it was activated, and has ended")
        self._close_door(vm)
        standby.ran = self._open = True
        self.values[vm] = standby.value
        self.run_loaded(definition)
        del self.standbys[vm]
        self._report(vm, GuestEvent.RESUMED)

    def arm(self, vm: VmKey, until: float | None) -> None:
        """Note it in `armed`."""
        self._may_fail("arm", vm)
        self.armed[vm] = until

    async def drop_checkpoints(self, definition: VmDefinition) -> None:
        """Be no standby any more."""
        self._may_fail("drop_checkpoints", definition.vm)
        self._close_door(definition.vm)
        self.standbys.pop(definition.vm, None)

    def stop_for_good(self, vm: VmKey) -> None:
        """The last checkpoint is of a guest that has stopped."""
        raise NotImplementedError

    def close_doors(self) -> None:
        """The daemon ends; what its standbys hold stays."""
        for vm in self.standbys:
            self._close_door(vm)

    def _close_door(self, vm: VmKey) -> None:
        standby = self.standbys.get(vm)
        if standby is not None:
            standby.open = False
            self._world.doors.pop(standby.place, None)
