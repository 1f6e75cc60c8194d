"""The hypervisor driver for QEMU, over its monitor.

Implements interface.Hypervisor.  Guests are processes of their own: the daemon may be killed and
adopt()s them when it returns.  Taps exist already and are opened by name; QEMU runs in the
daemon's network namespace.
Not here: one guest (guest.py), its process (process.py), its move out (move.py).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from vmmobility.drivers.hypervisor import private_files, process
from vmmobility.drivers.hypervisor.accelerator import choose_accelerator
from vmmobility.drivers.hypervisor.checkpoint_guests import Standbys
from vmmobility.drivers.hypervisor.checkpoint_qemu import QemuCheckpoints
from vmmobility.drivers.hypervisor.disk_images import DiskImages
from vmmobility.drivers.hypervisor.first_frame import spend_first_frames
from vmmobility.drivers.hypervisor.guest import QemuGuest
from vmmobility.drivers.hypervisor.host_files import HostFiles
from vmmobility.drivers.hypervisor.interface import (
    GuestEvent,
    Listener,
    VmDefinition,
    not_watchable,
)
from vmmobility.drivers.hypervisor.migration import (
    capabilities,
    listening_at,
    set_capabilities,
    tcp_uri,
)
from vmmobility.drivers.hypervisor.move import Phase
from vmmobility.drivers.hypervisor.process import GuestFolder
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.drivers.hypervisor.streams import Refused, Streams
from vmmobility.errors import EnvironmentProblem, HypervisorError
from vmmobility.wire.move_terms import NO_TERMS, MoveTerms
from vmmobility.wire.registry import GuestLife
from vmmobility.wire.values import VmKey

# Unix socket paths hold 107 octets; the driver adds a digest of 12 and "/qmp" or "/nbd0".
STATE_DIR_LIMIT = 107 - len("/0123456789ab/nbd0")
# QEMU before 9.0 loses writes of a TCG guest at each dirty-log sync while the guest runs
# (docs/design/hypervisor.md): one round, then the switch.  KVM tracks exactly: a second round
# leaves less for the blackout.
LEAST_ROUNDS = {"tcg": 1, "kvm": 2}
FETCHED_LIMIT_S = 5.0  # a guest is not ended while its destination fetches its memory


class QemuHypervisor(QemuCheckpoints):
    """QEMU guests of this node.  Reports go to `listener`, called in the event loop.

    refused(peer, error): called when TLS has not let somebody in
    """

    def __init__(
        self,
        state_dir: Path,
        listener: Listener,
        settings: QemuSettings,
        refused: Refused = lambda peer, error: None,
    ) -> None:
        self._state_dir = state_dir.absolute()
        self._listener = listener
        self._settings = settings
        self._streams = Streams.of(settings, refused)
        self._disks = settings.disks or self._state_dir / "disks"
        self._guests: dict[VmKey, QemuGuest] = {}
        self._locks: defaultdict[VmKey, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._standbys = Standbys(
            self._state_dir / "standby",
            self._disks,
            listener,
            settings.ports,
            self._streams,
        )

    async def adopt(self, definitions: Sequence[VmDefinition]) -> dict[VmKey, bool]:
        """Reconnect to living guests; VM -> does it run here."""
        found: dict[VmKey, bool] = {}
        for definition in definitions:
            async with self._locks[definition.vm]:
                guest = await self._known(definition)
                if guest is not None:
                    found[definition.vm] = await guest.running()
        return found

    async def start(
        self, definition: VmDefinition, ports: Sequence[str], *, held: bool = False
    ) -> None:
        """Boot the guest.  Reports STARTED; nothing more if it runs already, or is to be held."""
        async with self._locks[definition.vm]:
            guest = await self._known(definition)
            if guest is not None:
                state = await guest.state()
                if guest.incoming:
                    raise HypervisorError(
                        f"{definition.vm}: it waits for an incoming copy", "cancel that first"
                    )
                if state != ("paused" if held else "running"):
                    raise HypervisorError(
                        f"{definition.vm}: it lives here already, but is {state}",
                        "resume it, or stop it and start it again",
                    )
                return
            images = await self._allowed_images(definition)
            guest = await self._launch(definition, ports, images, incoming=False, held=held)
            if not held:
                guest.report(GuestEvent.STARTED)

    async def stop(self, vm: VmKey) -> None:
        """End the guest and its process."""
        async with self._locks[vm]:
            guest = self._guests.get(vm)
            left = never_ran = False
            if guest is not None and guest.alive:
                await guest.wait_until_fetched(FETCHED_LIMIT_S)
                with suppress(HypervisorError):  # it hangs, and is ended all the same
                    left = await guest.life() is GuestLife.DEPARTED
                    never_ran = guest.incoming and await guest.give_up_waiting()
            try:
                # First: once its process is gone no later daemon would know of them.
                if guest is not None and left:
                    await asyncio.to_thread(guest.images.retire)
            finally:
                await self._end(vm, never_ran=never_ran)

    async def retire(self, definition: VmDefinition) -> None:
        """Put aside the images that are old, and forget the guest."""
        async with self._locks[definition.vm]:
            if await self._known(definition) is None:
                await asyncio.to_thread(self._images(definition).retire)
                await self._end(definition.vm)

    async def shut_down(self, vm: VmKey) -> None:
        """Press the guest's power button."""
        await self._guest(vm).execute("system_powerdown")

    async def pause(self, vm: VmKey) -> None:
        """Stop the guest's CPUs and keep it."""
        guest = self._guest(vm)
        if guest.incoming:
            return
        if guest.moving is not None and guest.moving.guest_is_stopped:
            # QEMU may start it again, whatever it is told now: let it decide first.
            await guest.moving.cancel("paused")
        if guest.taking is not None:
            await guest.taking.hold_off()
        await guest.execute("stop")

    async def keep(self, definition: VmDefinition) -> None:
        """It is the VM's, and does not run."""
        vm = definition.vm
        async with self._locks[vm]:
            guest = await self._known(definition)
            if guest is None:
                images = await self._allowed_images(definition)
                await asyncio.to_thread(images.in_use)
            else:
                await guest.keep()

    async def resume(self, vm: VmKey) -> None:
        """Let a paused or moved-out guest run here, then announce it.  Nothing if it runs."""
        guest = self._guest(vm)
        if guest.incoming:
            raise HypervisorError(f"{vm}: its copy has not arrived", "cancel the move instead")
        guest.check_not_fetched()
        if guest.moving is not None and guest.moving.guest_is_stopped:
            raise HypervisorError(f"{vm}: it is being handed over", "cancel the move first")
        # Whoever lets it run, its disks are its own again.
        await asyncio.to_thread(guest.images.in_use)
        guest.folder.kept.unlink(missing_ok=True)
        if await guest.running():
            return
        await guest.drop_stale_migration()
        if not await guest.running():
            await guest.execute("cont")
        await guest.announce()

    async def prepare_incoming(
        self,
        definition: VmDefinition,
        ports: Sequence[str],
        listen_address: str,
        terms: MoveTerms = NO_TERMS,
        *,
        held: bool = False,
        secret: str = "",
    ) -> tuple[str, int]:
        """Start a waiting guest; (address, TCP port) of its memory."""
        async with self._locks[definition.vm]:
            guest = await self._known(definition)
            if guest is not None and guest.incoming and guest.incoming_at is not None:
                return guest.incoming_at
            if guest is not None and not guest.incoming:
                raise HypervisorError(
                    f"{definition.vm}: it already lives here", "stop it before it is moved in"
                )
            # A waiting guest whose port is not known, or none.
            if guest is not None and not await guest.give_up_waiting():
                raise HypervisorError(f"{definition.vm}: it runs here already")
            await self._end(definition.vm, never_ran=guest is not None)
            images = await self._allowed_images(definition)
            tokens = await asyncio.to_thread(images.make_room, terms.copy_storage)
            try:
                guest = await self._launch(definition, ports, images, incoming=True, held=held)
                macs = (interface.mac for interface in definition.interfaces)
                spend_first_frames(zip(ports, macs, strict=False))
                at = await self._listen(guest, listen_address, terms, secret)
                if definition.disks:
                    at = await guest.open_door(tokens, *at)
                guest.incoming_at = at
            except BaseException:
                await self._end(definition.vm)
                await asyncio.to_thread(images.discard, whole_too=False)
                raise
            return guest.incoming_at

    async def copy_out(
        self,
        vm: VmKey,
        address: str,
        port: int,
        terms: MoveTerms = NO_TERMS,
        *,
        secret: str = "",
    ) -> None:
        """Begin the pre-copy."""
        async with self._locks[vm]:
            guest = self._guest(vm)
            move = guest.moving
            if move is not None:
                if move.target == (address, port):
                    return
                raise HypervisorError(f"{vm}: it is being moved to {move.target[0]} already")
            guest.check_not_fetched()
            await guest.drop_stale_migration()
            rounds = LEAST_ROUNDS[await self._accelerator()]
            await guest.begin_move((address, port), rounds, terms, secret)

    async def switch_over(self, vm: VmKey) -> None:
        """Report ABOUT_TO_STOP."""
        guest = self._guest(vm)
        if guest.move is None or guest.move.phase in (Phase.COPYING, Phase.ENDED):
            raise HypervisorError(f"{vm}: no converged copy is held", "wait for CONVERGED")
        guest.move.switch_over()

    async def proceed(self, vm: VmKey) -> None:
        """The redirect is in place: let the guest stop and finish."""
        guest = self._guest(vm)
        if guest.move is None or guest.move.phase in (Phase.COPYING, Phase.HELD):
            raise HypervisorError(f"{vm}: not about to stop", "wait for ABOUT_TO_STOP")
        guest.move.proceed()

    async def cancel(self, vm: VmKey) -> None:
        """Give up a move."""
        async with self._locks[vm]:
            guest = self._guests.get(vm)
            if guest is None:
                if process.find(GuestFolder.of(self._state_dir, vm)) is not None:
                    raise HypervisorError(
                        f"{vm}: its QEMU lives, but did not answer when it was looked for",
                        "restart the NVE once it answers, or stop the VM",
                    )
                await self._end(vm)  # what an earlier daemon's waiting guest has left
                return
            if not guest.alive:
                await self._end(vm)
            elif guest.incoming:
                if await guest.give_up_waiting():
                    await self._end(vm, never_ran=True)
            elif guest.moving is not None:
                await guest.moving.cancel("cancelled")
            else:
                await self._cancel_stale(guest)

    async def state(self, vm: VmKey) -> str:
        """Beyond the interface: "running", "paused", "incoming" or "moved-out"."""
        return await self._guest(vm).state()

    async def announce(self, vm: VmKey) -> None:
        """Send announcements on the guest's behalf."""
        await self._guest(vm).announce()

    async def query(self, vm: VmKey) -> GuestLife:
        """What is here of the guest.  HypervisorError if its QEMU lives and does not answer."""
        async with self._locks[vm]:
            guest = self._guests.get(vm)
            if guest is not None and guest.alive:
                try:
                    return await guest.life()
                except HypervisorError:
                    if guest.alive:
                        raise
            if process.find(GuestFolder.of(self._state_dir, vm)) is not None:
                raise HypervisorError(
                    f"{vm}: its QEMU lives, but did not answer when it was looked for",
                    "restart the NVE once it answers, or stop the VM",
                )
            return GuestLife.NONE

    async def watch(self, definition: VmDefinition, ports: Sequence[str]) -> None:
        """These guests are its own."""
        raise not_watchable(definition.vm)

    async def unwatch(self, vm: VmKey) -> None:
        """These guests are its own."""
        raise not_watchable(vm)

    async def orphans(self, known: Collection[VmKey]) -> Sequence[VmKey]:
        """The VMs of QEMUs of this state folder that are none of `known`."""
        return [vm for vm in process.living(self._state_dir) if vm not in known]

    async def close(self) -> None:
        """Let go of all guests, leaving them running."""
        guests = list(self._guests.values())
        self._guests.clear()
        await asyncio.gather(*(guest.close() for guest in guests), self._standbys.close())

    # -- inside ----------------------------------------------------------------------------------

    def _guest(self, vm: VmKey) -> QemuGuest:
        guest = self._guests.get(vm)
        if guest is None or not guest.alive:
            raise HypervisorError(f"{vm}: no such guest lives here", "see vmmob show vm")
        return guest

    async def _known(self, definition: VmDefinition) -> QemuGuest | None:
        """The living guest, connected; found again if an earlier daemon has started it."""
        guest = self._guests.get(definition.vm)
        if guest is not None:
            if guest.alive:
                return guest
            await self._end(definition.vm)
            return None
        folder = GuestFolder.of(self._state_dir, definition.vm)
        pid = process.find(folder)
        return None if pid is None else await self._attach(folder, definition, pid)

    async def _attach(
        self,
        folder: GuestFolder,
        definition: VmDefinition,
        pid: int,
        images: DiskImages | None = None,
    ) -> QemuGuest:
        images = images or self._images(definition)
        guest = QemuGuest(
            folder, definition, pid, self._listener, self._settings, images, self._streams
        )
        try:
            await guest.attach()
            if guest.incoming and not definition.disks:  # a door ends with its daemon
                guest.incoming_at = listening_at(await guest.execute("query-migrate"))
        except BaseException:
            await guest.close()  # QEMU serves one client: leave the place to the next attempt
            raise
        self._guests[definition.vm] = guest
        return guest

    async def _launch(
        self,
        definition: VmDefinition,
        ports: Sequence[str],
        images: DiskImages,
        *,
        incoming: bool,
        held: bool = False,
    ) -> QemuGuest:
        if len(ports) != len(definition.interfaces):
            raise HypervisorError(
                f"{definition.vm}: {len(definition.interfaces)} interfaces, {len(ports)} taps"
            )
        if len(str(self._state_dir)) > STATE_DIR_LIMIT:
            raise EnvironmentProblem(
                f"the state folder's path {self._state_dir} is too long for a socket in it",
                f"choose one of at most {STATE_DIR_LIMIT} characters",
            )
        process.check_files(definition)
        if not incoming:
            await asyncio.to_thread(images.check)
        private_files.make_folder(self._state_dir)
        folder = GuestFolder.of(self._state_dir, definition.vm)
        command = process.command_line(
            folder,
            definition,
            ports,
            binary=self._settings.binary,
            accelerator=await self._accelerator(),
            incoming=incoming,
            disks=images.arguments(),
            held=held,
        )
        pid = await process.spawn(folder, definition, command)
        if held and incoming:
            folder.held.touch()
        try:
            return await self._attach(folder, definition, pid, images)
        except HypervisorError:
            if process.is_ours(folder, pid):
                await process.kill(folder, definition.vm, pid)
                raise
            words = folder.last_words()
            raise HypervisorError(
                f"{definition.vm}: QEMU did not start: {words or 'it gave no reason'}",
                "see that the taps exist and no other QEMU holds them",
            ) from None

    async def _cancel_stale(self, guest: QemuGuest) -> None:
        """Cancel a move that an earlier daemon has left."""
        outcome = await guest.drop_stale_migration()
        await guest.drop_stale_copies()
        if outcome == "completed":
            guest.report(GuestEvent.COMPLETED)
        elif outcome:
            detail = {"reason": "cancelled", "running": await guest.running()}
            guest.report(GuestEvent.FAILED, detail)

    async def _listen(
        self, guest: QemuGuest, address: str, terms: MoveTerms, secret: str
    ) -> tuple[str, int]:
        """Let the waiting guest listen on the first free port of the range."""
        await set_capabilities(guest.execute, capabilities(terms))
        await guest.delay_announcements()
        if terms.forces or self._streams.secured:
            return await guest.open_memory_door(address, secret, again=terms.forces)
        first, last = self._settings.ports
        for port in range(first, last + 1):
            try:
                await guest.execute("migrate-incoming", {"uri": tcp_uri(address, port)})
            except HypervisorError as error:
                if "in use" not in error.message:
                    raise
            else:
                return address, port
        raise HypervisorError(
            f"{guest.definition.vm}: the ports {first} to {last} of {address} are all in use",
            "widen the range of ports for incoming guests",
        )

    async def _end(self, vm: VmKey, *, never_ran: bool = False) -> None:
        """never_ran: it is certain that a waiting guest has never run here."""
        guest = self._guests.pop(vm, None)
        folder = GuestFolder.of(self._state_dir, vm)
        if guest is not None:
            never_ran = never_ran or guest.load_failed
            await guest.end()
            if guest.incoming:
                await asyncio.to_thread(guest.images.discard, whole_too=never_ran)
        pid = process.find(folder)
        if pid is not None:  # of an earlier daemon, never adopted
            await process.kill(folder, vm, pid)
        if guest is None and (definition := process.defined(folder)) is not None:
            images = self._images(definition)
            await asyncio.to_thread(images.discard, whole_too=False)
        process.forget(folder)

    def _images(self, definition: VmDefinition) -> DiskImages:
        return DiskImages(definition, self._disks)

    async def _allowed_images(self, definition: VmDefinition) -> DiskImages:
        """Before anything is opened, made or removed: it names no file that is not for VMs."""
        images = self._images(definition)
        files = HostFiles(self._settings.images, (self._disks, *self._settings.disk_folders))
        await asyncio.to_thread(files.check, definition, images.paths)
        return images

    async def _accelerator(self) -> str:
        return await choose_accelerator(
            self._settings.accelerator, self._settings.binary, self._state_dir
        )
