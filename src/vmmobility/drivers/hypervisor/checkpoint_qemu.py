"""What QemuHypervisor does for protected guests: checkpoints out, and a standby that is activated.

A part of QemuHypervisor.  Not here: how one checkpoint is taken (checkpoint_take.py), how a
standby keeps them (checkpoint_store.py).
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vmmobility.drivers.hypervisor import lease_guard
from vmmobility.drivers.hypervisor.checkpoint_guests import Standbys
from vmmobility.drivers.hypervisor.checkpoint_send import CheckpointTarget
from vmmobility.drivers.hypervisor.checkpoint_store import CheckpointStore
from vmmobility.drivers.hypervisor.checkpoint_take import remove_bitmaps, remove_checkpoints
from vmmobility.drivers.hypervisor.disk_images import DiskImages
from vmmobility.drivers.hypervisor.guest import QemuGuest
from vmmobility.drivers.hypervisor.interface import VmDefinition
from vmmobility.drivers.hypervisor.migration import CAPABILITIES, set_capabilities
from vmmobility.drivers.hypervisor.process import GuestFolder
from vmmobility.errors import HypervisorError
from vmmobility.wire.values import VmKey

LOAD_LIMIT_S = 60.0
POLL_S = 0.005
FD_NAME = "vmmobility-standby"


class QemuCheckpoints:
    """See Hypervisor (interface.py) for each method."""

    _state_dir: Path
    _standbys: Standbys
    _guests: dict[VmKey, QemuGuest]
    _locks: defaultdict[VmKey, asyncio.Lock]

    if TYPE_CHECKING:  # of QemuHypervisor

        def _guest(self, vm: VmKey) -> QemuGuest: ...
        async def _allowed_images(self, definition: VmDefinition) -> DiskImages: ...
        async def _known(self, definition: VmDefinition) -> QemuGuest | None: ...
        async def _end(self, vm: VmKey, *, never_ran: bool = False) -> None: ...
        async def _launch(
            self,
            definition: VmDefinition,
            ports: Sequence[str],
            images: DiskImages,
            *,
            incoming: bool,
        ) -> QemuGuest: ...

    async def receive_checkpoints(
        self, definition: VmDefinition, listen_address: str
    ) -> tuple[str, int, str, int]:
        """Be the VM's standby."""
        async with self._locks[definition.vm]:
            if await self._known(definition) is not None:
                raise HypervisorError(
                    f"{definition.vm}: it lives here", "protect it to another NVE"
                )
            await self._allowed_images(definition)
            return await self._standbys.receive(definition, listen_address)

    async def checkpoint(
        self, vm: VmKey, address: str, port: int, token: str, *, final: bool = False
    ) -> None:
        """Begin a checkpoint."""
        async with self._locks[vm]:
            target = CheckpointTarget(address, port, token)
            await self._guest(vm).begin_checkpoint(target, final=final)

    async def unprotect(self, vm: VmKey) -> None:
        """No checkpoint follows."""
        async with self._locks[vm]:
            guest = self._guests.get(vm)
            if guest is None or not guest.alive or guest.incoming:
                return
            await guest.end_checkpoint("the VM is protected no more")
            await remove_checkpoints(guest.session)
            await remove_bitmaps(guest.session)

    async def activate(self, definition: VmDefinition, ports: Sequence[str]) -> None:
        """Let the guest run from the last complete checkpoint."""
        vm = definition.vm
        async with self._locks[vm]:
            store = await self._standbys.at_rest(definition)
            guest = await self._known(definition)
            if guest is not None and await guest.running():
                return
            if store is None:
                raise HypervisorError(f"{vm}: no checkpoint of it is here", "see vmmob vm show")
            if store.record.ran and guest is None:
                raise HypervisorError(
                    f"{vm}: it has run here since it was activated, and has ended",
                    "start it: its disks are as it has left them",
                )
            if guest is None or not store.record.ran:
                await self._allowed_images(definition)
                await asyncio.to_thread(store.activate)
                try:
                    guest = await self._load(definition, ports, store)
                except BaseException:
                    await asyncio.to_thread(store.withdraw)
                    raise
                await asyncio.to_thread(store.about_to_run)
            await guest.execute("cont")
            await guest.announce()
            await asyncio.to_thread(store.drop)

    def arm(self, vm: VmKey, until: float | None) -> None:
        """Pause it then, whatever becomes of this daemon."""
        folder = GuestFolder.of(self._state_dir, vm)
        if until is None:
            lease_guard.disarm(folder.path)
            return
        try:
            lease_guard.arm(folder.path, self._guest(vm).pid, until)
        except OSError as error:
            raise HypervisorError(
                f"{vm}: nobody guards its lease: {error.strerror}",
                f"see {folder.path / lease_guard.LOG}; its NVE pauses it while that lives",
            ) from None

    async def drop_checkpoints(self, definition: VmDefinition) -> None:
        """Be no standby any more."""
        async with self._locks[definition.vm]:
            await self._standbys.drop(definition)

    async def _load(
        self, definition: VmDefinition, ports: Sequence[str], store: CheckpointStore
    ) -> QemuGuest:
        """A guest with the checkpoint's memory, that has not run yet."""
        await self._end(definition.vm)  # one that was not loaded whole
        images = await self._allowed_images(definition)
        guest = await self._launch(definition, ports, images, incoming=True)
        try:
            await set_capabilities(guest.execute, CAPABILITIES)
            await guest.delay_announcements()
            await load_memory(guest, store.memory)
        except BaseException:
            await self._end(definition.vm)
            raise
        return guest


async def load_memory(guest: QemuGuest, memory: Path) -> None:
    """Read a waiting guest's memory from a file.  Raises HypervisorError."""
    descriptor = os.open(memory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        await guest.session.give_descriptor(FD_NAME, descriptor)
    finally:
        os.close(descriptor)
    await guest.execute("migrate-incoming", {"uri": f"fd:{FD_NAME}"})
    try:
        async with asyncio.timeout(LOAD_LIMIT_S):
            while (await guest.execute("query-status"))["status"] == "inmigrate":  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise HypervisorError(
            f"{guest.definition.vm}: QEMU has not read its checkpoint within {LOAD_LIMIT_S:.0f} s"
        ) from None
