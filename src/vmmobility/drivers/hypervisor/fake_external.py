"""The in-memory twin of the external driver: guests that a test's own hands run.

    hands = FakeHands()                                 # one host; outlives its hypervisors
    hypervisor = FakeExternalHypervisor(listener, hands)
    hands.boot(vm)                                      # reported as ARRIVED if watched
    hands.await_copy_of(vm); elsewhere.migrate(vm, hands)

`hypervisor.fail_next` is as in fake.py.  Reports come in the next turn of the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

from vmmobility.drivers.hypervisor.external import RunByOthers
from vmmobility.drivers.hypervisor.interface import (
    GuestEvent,
    GuestReport,
    Listener,
    VmDefinition,
)
from vmmobility.errors import HypervisorError
from vmmobility.wire.registry import GuestLife
from vmmobility.wire.values import VmKey

RUNS = (GuestLife.RUNNING, GuestLife.ARRIVED)


class FakeHands:
    """The guests of one host, and what people do with them."""

    def __init__(self) -> None:
        self.guests: dict[VmKey, GuestLife] = {}
        self.waiting: set[VmKey] = set()
        self.hypervisor: FakeExternalHypervisor | None = None

    def boot(self, vm: VmKey) -> None:
        """Start it."""
        self._become(vm, GuestLife.RUNNING)

    def await_copy_of(self, vm: VmKey) -> None:
        """Start a QEMU that waits for its memory."""
        self.waiting.add(vm)
        self._become(vm, GuestLife.HELD)

    def migrate(self, vm: VmKey, to: FakeHands) -> None:
        """Send it to another host, where it is awaited."""
        assert vm in to.waiting
        assert self.guests[vm] in RUNS
        to.waiting.discard(vm)
        self._become(vm, GuestLife.DEPARTED)
        to._become(vm, GuestLife.ARRIVED)

    def pause(self, vm: VmKey) -> None:
        """QEMU's stop."""
        self._become(vm, GuestLife.HELD)

    def cont(self, vm: VmKey) -> None:
        """QEMU's cont, whatever became of it before."""
        self._become(vm, GuestLife.RUNNING)

    def kill(self, vm: VmKey) -> None:
        """End its process."""
        self.waiting.discard(vm)
        self._become(vm, GuestLife.NONE)

    def _become(self, vm: VmKey, life: GuestLife) -> None:
        before = self.guests.pop(vm, GuestLife.NONE)
        if life is not GuestLife.NONE:
            self.guests[vm] = life
        if self.hypervisor is not None:
            self.hypervisor.saw(vm, before, life)


class FakeExternalHypervisor(RunByOthers):
    """Watches the guests of `hands`."""

    def __init__(self, listener: Listener, hands: FakeHands) -> None:
        self.fail_next: dict[str, str] = {}
        self.announced: list[VmKey] = []
        self._listener = listener
        self._hands = hands
        self._watched: set[VmKey] = set()
        hands.hypervisor = self

    def saw(self, vm: VmKey, before: GuestLife, now: GuestLife) -> None:
        """`hands` did something."""
        if vm not in self._watched or before is now:
            return
        if now is GuestLife.NONE:
            self._report(vm, GuestEvent.GONE, {"life": before.name.lower()})
        else:
            self._tell(vm, now)

    def _tell(self, vm: VmKey, life: GuestLife) -> None:
        if life in RUNS:
            self._report(vm, GuestEvent.ARRIVED, {"migrated": life is GuestLife.ARRIVED})
        elif life is GuestLife.DEPARTED:
            self._report(vm, GuestEvent.DEPARTED, {"migration": "completed"})

    def _report(self, vm: VmKey, event: GuestEvent, detail: dict[str, Any]) -> None:
        asyncio.get_running_loop().call_soon(self._listener, GuestReport(vm, event, detail))

    async def watch(self, definition: VmDefinition, ports: Sequence[str]) -> None:
        """Watch from now on; what runs or has departed is reported."""
        self._may_fail("watch", definition.vm)
        self._watched.add(definition.vm)
        self._tell(definition.vm, self._life(definition.vm))

    async def unwatch(self, vm: VmKey) -> None:
        """Let go of it."""
        self._may_fail("unwatch", vm)
        self._watched.discard(vm)

    async def adopt(self, definitions: Sequence[VmDefinition]) -> dict[VmKey, bool]:
        """VM -> does it run here."""
        found = {}
        for vm in (definition.vm for definition in definitions):
            self._watched.add(vm)
            self._may_fail("adopt", vm)
            life = self._life(vm)
            self._tell(vm, life)
            if life is not GuestLife.NONE:
                found[vm] = life in RUNS
        return found

    async def query(self, vm: VmKey) -> GuestLife:
        """What is here of it."""
        self._may_fail("query", vm)
        return self._life(vm) if vm in self._watched else GuestLife.NONE

    async def pause(self, vm: VmKey) -> None:
        """Stop its CPUs."""
        self._may_fail("pause", vm)
        if self._demand(vm) in RUNS:
            self._hands.guests[vm] = GuestLife.HELD

    async def resume(self, vm: VmKey) -> None:
        """Let a paused one run."""
        self._may_fail("resume", vm)
        life = self._demand(vm)
        if life is GuestLife.DEPARTED or vm in self._hands.waiting:
            raise HypervisorError(f"{vm}: it is run by others, and is not paused")
        if life is GuestLife.HELD:
            self._hands.guests[vm] = GuestLife.RUNNING
            self.announced.append(vm)

    async def stop(self, vm: VmKey) -> None:
        """Keep it from running."""
        self._may_fail("stop", vm)
        if vm in self._watched and self._life(vm) in RUNS:
            self._hands.guests[vm] = GuestLife.HELD

    async def announce(self, vm: VmKey) -> None:
        """Note the announcement in `announced`."""
        self._may_fail("announce", vm)
        self._demand(vm)
        self.announced.append(vm)

    async def cancel(self, vm: VmKey) -> None:
        """There is no move of ours."""

    async def orphans(self, known: Collection[VmKey]) -> Sequence[VmKey]:
        """None."""
        return ()

    async def close(self) -> None:
        """Watch no more."""
        self._watched.clear()

    def _life(self, vm: VmKey) -> GuestLife:
        return self._hands.guests.get(vm, GuestLife.NONE)

    def _demand(self, vm: VmKey) -> GuestLife:
        life = self._life(vm) if vm in self._watched else GuestLife.NONE
        if life is GuestLife.NONE:
            raise HypervisorError(f"{vm}: no such guest is watched here")
        return life

    def _may_fail(self, method: str, vm: VmKey) -> None:
        if method in self.fail_next:
            raise HypervisorError(f"{vm}: {self.fail_next.pop(method)}")
