"""What LightHypervisor does for protected VMs: checkpoints of nothing, over the same door.

A light VM has no memory and no disks of ours; its number is all that a checkpoint brings.
A part of LightHypervisor.  Not here: the door and the store (checkpoint_guests.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmmobility.drivers.hypervisor.checkpoint_guests import Standbys
from vmmobility.drivers.hypervisor.checkpoint_send import CheckpointConnection, CheckpointTarget
from vmmobility.drivers.hypervisor.checkpoint_store import MEMORY
from vmmobility.drivers.hypervisor.interface import (
    GuestEvent,
    GuestReport,
    Listener,
    VmDefinition,
)
from vmmobility.drivers.hypervisor.streams import Streams
from vmmobility.errors import HypervisorError
from vmmobility.wire.registry import GuestLife
from vmmobility.wire.values import VmKey

BYTES_PER_S = 1 << 30


class LightCheckpoints:
    """See Hypervisor (interface.py) for each method."""

    _folder: Path
    _listener: Listener
    _standbys: Standbys
    _streams: Streams
    _taking: dict[VmKey, asyncio.Task[None]]

    if TYPE_CHECKING:  # of LightHypervisor

        async def query(self, vm: VmKey) -> GuestLife: ...
        async def pause(self, vm: VmKey) -> None: ...
        async def _launch(
            self, definition: VmDefinition, ports: Sequence[str], listen: str
        ) -> Any: ...

    async def receive_checkpoints(
        self, definition: VmDefinition, listen_address: str
    ) -> tuple[str, int, str, int]:
        """Be the VM's standby."""
        if await self.query(definition.vm) is not GuestLife.NONE:
            raise HypervisorError(f"{definition.vm}: it lives here", "protect it to another NVE")
        return await self._standbys.receive(definition, listen_address)

    async def checkpoint(
        self, vm: VmKey, address: str, port: int, token: str, *, final: bool = False
    ) -> None:
        """Begin a checkpoint."""
        if vm in self._taking:
            raise HypervisorError(f"{vm}: a checkpoint of it is under way already")
        if await self.query(vm) is not GuestLife.RUNNING:
            raise HypervisorError(f"{vm}: it does not run here")
        if final:
            await self.pause(vm)
        target = CheckpointTarget(address, port, token)
        loop = asyncio.get_running_loop()
        self._taking[vm] = loop.create_task(self._take(vm, target, final), name=f"checkpoint {vm}")

    async def _take(self, vm: VmKey, target: CheckpointTarget, final: bool) -> None:
        begun = time.monotonic()
        connection = CheckpointConnection(str(vm), target, self._streams)
        nothing = self._folder / MEMORY
        try:
            nothing.touch()
            _, last = await asyncio.to_thread(connection.hello)
            parts = [(MEMORY, nothing)]
            await asyncio.to_thread(connection.send, last + 1, last or None, parts, BYTES_PER_S)
            sizes = {"memory_bytes": 0, "disk_bytes": 0, "full": not last}
            detail: dict[str, Any] = {"ok": True, "number": last + 1, "pause_ms": 0.0, **sizes}
        except (HypervisorError, OSError) as error:
            detail = {"ok": False, "reason": str(error)}
        finally:
            connection.close()
            self._taking.pop(vm, None)
        took_ms = round((time.monotonic() - begun) * 1000, 1)
        detail |= {"age_ms": round(took_ms), "total_ms": took_ms, "final": final}
        self._listener(GuestReport(vm, GuestEvent.CHECKPOINT, detail))

    async def unprotect(self, vm: VmKey) -> None:
        """No checkpoint follows."""
        taking = self._taking.get(vm)
        if taking is not None:
            await asyncio.gather(taking, return_exceptions=True)

    async def activate(self, definition: VmDefinition, ports: Sequence[str]) -> None:
        """Let the VM run from the last complete checkpoint."""
        vm = definition.vm
        store = await self._standbys.at_rest(definition)
        if await self.query(vm) is GuestLife.RUNNING:
            return
        if store is None:
            raise HypervisorError(f"{vm}: no checkpoint of it is here", "see vmmob vm show")
        await asyncio.to_thread(store.activate)
        await self._launch(definition, ports, "")
        self._listener(GuestReport(vm, GuestEvent.RESUMED))
        await asyncio.to_thread(store.drop)

    def arm(self, vm: VmKey, until: float | None) -> None:
        """The lab's light VMs have no guard: their daemon alone pauses them."""

    async def drop_checkpoints(self, definition: VmDefinition) -> None:
        """Be no standby any more."""
        await self._standbys.drop(definition)
