"""What a hypervisor holds as the standby of other NVEs' guests: a store and a door for each VM.

Not here: files (checkpoint_store.py), the conversation (checkpoint_door.py), QEMU
(checkpoint_qemu.py).
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from vmmobility.drivers.hypervisor.checkpoint_door import CheckpointDoor
from vmmobility.drivers.hypervisor.checkpoint_store import CheckpointStore
from vmmobility.drivers.hypervisor.interface import (
    GuestEvent,
    GuestReport,
    Listener,
    VmDefinition,
)
from vmmobility.drivers.hypervisor.streams import Streams
from vmmobility.wire.values import VmKey


class Standbys:
    """The stores of one hypervisor driver.  folder: of all stores; disks: of relative images."""

    def __init__(
        self,
        folder: Path,
        disks: Path,
        listener: Listener,
        ports: tuple[int, int],
        streams: Streams,
    ) -> None:
        self._folder = folder
        self._disks = disks
        self._listener = listener
        self._ports = ports
        self._streams = streams
        self._open: dict[VmKey, tuple[CheckpointStore, CheckpointDoor]] = {}

    async def receive(self, definition: VmDefinition, address: str) -> tuple[str, int, str, int]:
        """As Hypervisor.receive_checkpoints."""
        vm = definition.vm
        if vm not in self._open:
            store = CheckpointStore(definition, self._folder, self._disks)
            await asyncio.to_thread(store.open)

            def held(number: int) -> None:
                report = GuestReport(vm, GuestEvent.CHECKPOINT_HELD, {"number": number})
                self._listener(report)

            door = CheckpointDoor(store, self._streams, held)
            door.open(address, self._ports)
            self._open[vm] = (store, door)
        store, door = self._open[vm]
        return *door.at, store.record.token, store.record.number

    async def at_rest(self, definition: VmDefinition) -> CheckpointStore | None:
        """The VM's store, into which nobody writes any more; None if there is none."""
        await self.close_door(definition.vm)
        store = CheckpointStore(definition, self._folder, self._disks)
        return store if await asyncio.to_thread(lambda: store.open(make=False)) else None

    async def close_door(self, vm: VmKey) -> None:
        """Let nobody bring checkpoints.  Idempotent."""
        if vm in self._open:
            await self._open.pop(vm)[1].close()

    async def drop(self, definition: VmDefinition) -> None:
        """Remove the VM's store.  Idempotent."""
        await self.close_door(definition.vm)
        store = CheckpointStore(definition, self._folder, self._disks)
        await asyncio.to_thread(store.drop)

    async def close(self) -> None:
        """Close all doors; the stores stay."""
        for vm in list(self._open):
            await self.close_door(vm)
