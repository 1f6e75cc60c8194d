"""The hypervisor driver for guests that other hands run: virsh, or QEMU started by hand.

It watches each over a monitor that its QEMU keeps for this node (machine.qmp), reports what others
do with it, and can pause it and let it run again.  It starts, moves and ends none.
docs/design/hypervisor.md says what is reported when.  Not here: one guest (external_guest.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import NoReturn

from vmmobility.drivers.hypervisor.external_guest import ExternalGuest, Note
from vmmobility.drivers.hypervisor.interface import Listener, VmDefinition
from vmmobility.drivers.hypervisor.settings import ExternalSettings
from vmmobility.errors import HypervisorError
from vmmobility.wire.move_terms import NO_TERMS, MoveTerms
from vmmobility.wire.registry import GuestLife
from vmmobility.wire.values import VmKey


def _refuse(vm: VmKey) -> NoReturn:
    """Raise what an order gets that only the guest's owner can carry out."""
    raise HypervisorError(f"VM {vm} is run by others", "start, move and end it with virsh or QEMU")


class RunByOthers:
    """What only a guest's owner does is refused."""

    async def start(
        self, definition: VmDefinition, ports: Sequence[str], *, held: bool = False
    ) -> None:
        _refuse(definition.vm)

    async def keep(self, definition: VmDefinition) -> None:
        _refuse(definition.vm)

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
        _refuse(definition.vm)

    async def copy_out(
        self,
        vm: VmKey,
        address: str,
        port: int,
        terms: MoveTerms = NO_TERMS,
        *,
        secret: str = "",
    ) -> None:
        _refuse(vm)

    async def switch_over(self, vm: VmKey) -> None:
        _refuse(vm)

    async def proceed(self, vm: VmKey) -> None:
        _refuse(vm)

    async def receive_checkpoints(
        self, definition: VmDefinition, listen_address: str
    ) -> tuple[str, int, str, int]:
        _refuse(definition.vm)

    async def checkpoint(
        self, vm: VmKey, address: str, port: int, token: str, *, final: bool = False
    ) -> None:
        _refuse(vm)

    async def unprotect(self, vm: VmKey) -> None:
        pass  # it never was protected

    async def activate(self, definition: VmDefinition, ports: Sequence[str]) -> None:
        _refuse(definition.vm)

    def arm(self, vm: VmKey, until: float | None) -> None:
        pass  # it never was protected

    async def drop_checkpoints(self, definition: VmDefinition) -> None:
        pass  # there are none

    async def retire(self, definition: VmDefinition) -> None:
        pass  # what is here is its owner's

    async def shut_down(self, vm: VmKey) -> None:
        _refuse(vm)


class ExternalHypervisor(RunByOthers):
    """Watched guests of this node.  Reports go to `listener`, called in the event loop.

    note: told in words why a guest cannot be watched (guest.unclear), and that it can (guest.clear)
    """

    def __init__(
        self, listener: Listener, note: Note, settings: ExternalSettings | None = None
    ) -> None:
        self._listener = listener
        self._note = note
        self._settings = settings or ExternalSettings()
        self._guests: dict[VmKey, ExternalGuest] = {}

    # -- watching --------------------------------------------------------------------------------

    async def watch(self, definition: VmDefinition, ports: Sequence[str]) -> None:
        """Watch from now on.  Repeated, it reports a guest that runs here once more."""
        vm = definition.vm
        if len(ports) != len(definition.interfaces):
            raise HypervisorError(
                f"{vm}: {len(definition.interfaces)} interfaces, {len(ports)} taps"
            )
        if await self._watch(definition) is None:
            await self._guests[vm].tell_again()

    async def unwatch(self, vm: VmKey) -> None:
        """Let go of the guest, leaving it as it is."""
        guest = self._guests.pop(vm, None)
        if guest is not None:
            await guest.close()

    async def adopt(self, definitions: Sequence[VmDefinition]) -> dict[VmKey, bool]:
        """Watch these again; VM -> does it run here.  What runs or has departed is reported."""
        for definition in definitions:
            await self._watch(definition)
        guests = [self._guests[definition.vm] for definition in definitions]
        lives = await asyncio.gather(*(guest.ask() for guest in guests))
        here = zip(guests, lives, strict=True)
        return {
            guest.definition.vm: life in (GuestLife.RUNNING, GuestLife.ARRIVED)
            for guest, life in here
            if life is not GuestLife.NONE
        }

    async def _watch(self, definition: VmDefinition) -> ExternalGuest | None:
        """The guest, watched anew; None if it was watched so before."""
        vm = definition.vm
        known = self._guests.get(vm)
        if known is not None and known.definition == definition:
            return None
        guest = ExternalGuest(definition, self._listener, self._note, self._settings)
        for other in self._guests.values():
            if other.monitor == guest.monitor and other is not known:
                raise HypervisorError(
                    f"{vm}: {guest.monitor} is the monitor of VM {other.definition.vm}",
                    "give each QEMU a monitor of its own, and correct machine.qmp",
                )
        await self.unwatch(vm)
        self._guests[vm] = guest
        guest.begin()
        return guest

    # -- questions and orders --------------------------------------------------------------------

    async def query(self, vm: VmKey) -> GuestLife:
        """What is here of the guest now."""
        guest = self._guests.get(vm)
        return GuestLife.NONE if guest is None else await guest.ask()

    async def pause(self, vm: VmKey) -> None:
        """Stop the guest's CPUs."""
        await self._guest(vm).pause()

    async def resume(self, vm: VmKey) -> None:
        """Let a guest run that was paused here."""
        await self._guest(vm).resume()

    async def stop(self, vm: VmKey) -> None:
        """Keep the guest from running; its process is its owner's, and it stays watched."""
        guest = self._guests.get(vm)
        if guest is not None:
            await guest.halt_if_here()

    async def announce(self, vm: VmKey) -> None:
        """Send announcements on the guest's behalf."""
        await self._guest(vm).announce()

    async def cancel(self, vm: VmKey) -> None:
        """There is no move of ours."""

    async def orphans(self, known: Collection[VmKey]) -> Sequence[VmKey]:
        """None: a guest of other hands is no orphan of ours."""
        return ()

    async def close(self) -> None:
        """Let go of all guests, leaving them as they are."""
        guests = list(self._guests.values())
        self._guests.clear()
        await asyncio.gather(*(guest.close() for guest in guests))

    def _guest(self, vm: VmKey) -> ExternalGuest:
        guest = self._guests.get(vm)
        if guest is None:
            raise HypervisorError(f"{vm}: it is not watched here", "see `vmmob nve expect`")
        return guest
