"""The in-memory twin of the QEMU driver: the same contract, no processes, failures on demand.

    world = FakeWorld()                     # the memory channel between hypervisors
    a = FakeHypervisor(listener, world)     # one a node
    a.fail_next["start"] = "no room"        # the next start() raises HypervisorError
    a.break_next["copying"] = "path cut"    # the next move out fails in that phase

`fail_next` takes the methods' names; `break_next` takes "copying", "held", "switching", and
"loading": the destination ends after the source has sent everything.
`auto_converge` False keeps copies from converging until converge(vm) is called, or time_out(vm),
after which the move's terms decide.  kill(vm) ends a guest as a crash would.  Not a simulation of
time: reports come in the next turn of the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from vmmobility.drivers.hypervisor.checkpoint_fake import FakeCheckpoints
from vmmobility.drivers.hypervisor.interface import (
    GuestEvent,
    GuestReport,
    Listener,
    VmDefinition,
    not_watchable,
)
from vmmobility.errors import HypervisorError
from vmmobility.wire.move_terms import NO_TERMS, MoveTerms
from vmmobility.wire.registry import GuestLife
from vmmobility.wire.values import VmKey

FIRST_PORT = 49152


class _State(Enum):
    RUNNING = "running"
    PAUSED = "paused"
    INCOMING = "incoming"
    MOVED_OUT = "moved-out"


_LIVES = {
    _State.RUNNING: GuestLife.RUNNING,
    _State.PAUSED: GuestLife.HELD,
    _State.INCOMING: GuestLife.HELD,
    _State.MOVED_OUT: GuestLife.DEPARTED,
}


class _Phase(Enum):
    COPYING = "copying"
    HELD = "held"
    ABOUT_TO_STOP = "about-to-stop"


@dataclass
class _Guest:
    definition: VmDefinition
    state: _State
    listening: tuple[str, int] | None = None
    target: tuple[str, int] | None = None
    phase: _Phase | None = None
    held: bool = False
    arrived: bool = False
    terms: MoveTerms = NO_TERMS
    forced: bool = False  # its time was up: it is moved in post-copy
    fetched: bool = False  # and was


@dataclass
class FakeWorld:
    """Who listens where: the memory channel between the fakes of one test."""

    listening: dict[tuple[str, int], FakeHypervisor] = field(default_factory=dict)
    members: list[FakeHypervisor] = field(default_factory=list)
    doors: dict[tuple[str, int], FakeHypervisor] = field(default_factory=dict)
    next_port: int = FIRST_PORT


class FakeHypervisor(FakeCheckpoints):
    """A Hypervisor whose guests are entries of a dict.  `guests` outlive close(), as real ones."""

    def __init__(self, listener: Listener, world: FakeWorld | None = None) -> None:
        super().__init__()
        self.fail_next: dict[str, str] = {}
        self.break_next: dict[str, str] = {}
        self.auto_converge = True
        self.announced: list[VmKey] = []
        self.retired: list[VmKey] = []
        self._listener = listener
        self._world = world or FakeWorld()
        self._guests: dict[VmKey, _Guest] = {}
        self._world.members.append(self)

    async def adopt(self, definitions: Sequence[VmDefinition]) -> dict[VmKey, bool]:
        """VM -> does it run here."""
        self._may_fail("adopt", None)
        self._open = True
        known = [d.vm for d in definitions if d.vm in self._guests]
        for vm in known:
            if self._guests[vm].arrived:
                self._report(vm, GuestEvent.RESUMED, {"held": True})
        return {vm: self._guests[vm].state is _State.RUNNING for vm in known}

    async def start(
        self, definition: VmDefinition, ports: Sequence[str], *, held: bool = False
    ) -> None:
        """Boot the guest.  Reports STARTED, unless it is held."""
        self._may_fail("start", definition.vm)
        self._check_ports(definition, ports)
        guest = self._guests.get(definition.vm)
        if guest is not None and guest.state is _State.INCOMING:
            raise HypervisorError(f"{definition.vm}: it waits for an incoming copy")
        wanted = _State.PAUSED if held else _State.RUNNING
        if guest is not None and guest.state is not wanted:
            raise HypervisorError(f"{definition.vm}: it lives here already: {guest.state.value}")
        if guest is None and held:
            self._guests[definition.vm] = _Guest(definition, _State.PAUSED)
        elif guest is None:
            self._guests[definition.vm] = _Guest(definition, _State.RUNNING)
            self._report(definition.vm, GuestEvent.STARTED)

    async def stop(self, vm: VmKey) -> None:
        """End the guest."""
        self._may_fail("stop", vm)
        self._remove(vm)

    async def retire(self, definition: VmDefinition) -> None:
        """Note it in `retired`, unless a guest lives."""
        self._may_fail("retire", definition.vm)
        if definition.vm not in self._guests:
            self.retired.append(definition.vm)

    async def shut_down(self, vm: VmKey) -> None:
        """The guest shuts itself down at once."""
        self._may_fail("shut_down", vm)
        if self._guest(vm).state is _State.RUNNING:
            self.kill(vm)

    async def pause(self, vm: VmKey) -> None:
        """Stop the guest's CPUs and keep it."""
        self._may_fail("pause", vm)
        guest = self._guest(vm)
        if guest.state is _State.RUNNING:
            guest.state = _State.PAUSED

    async def keep(self, definition: VmDefinition) -> None:
        """It is the VM's, and does not run."""
        self._may_fail("keep", definition.vm)
        guest = self._guests.get(definition.vm)
        if guest is not None and guest.state is _State.INCOMING and not guest.arrived:
            raise HypervisorError(f"{definition.vm}: its copy has not arrived")
        if guest is not None:
            guest.state, guest.arrived, guest.listening = _State.PAUSED, False, None

    async def resume(self, vm: VmKey) -> None:
        """Let a paused or moved-out guest run here."""
        self._may_fail("resume", vm)
        guest = self._guest(vm)
        if guest.state is _State.INCOMING:
            raise HypervisorError(f"{vm}: its copy has not arrived")
        if guest.fetched:
            raise HypervisorError(f"{vm}: it went on elsewhere in post-copy: what is here is old")
        if guest.state is not _State.RUNNING:
            guest.state = _State.RUNNING
            self.announced.append(vm)

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
        """Start a waiting guest."""
        self._may_fail("prepare_incoming", definition.vm)
        self._check_ports(definition, ports)
        guest = self._guests.get(definition.vm)
        if guest is not None and guest.listening is not None:
            return guest.listening
        if guest is not None:
            raise HypervisorError(f"{definition.vm}: it already lives here")
        place = (listen_address, self._world.next_port)
        self._world.next_port += 1
        self._world.listening[place] = self
        self._guests[definition.vm] = _Guest(
            definition, _State.INCOMING, listening=place, held=held
        )
        return place

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
        self._may_fail("copy_out", vm)
        guest = self._guest(vm)
        if guest.phase is not None:
            if guest.target == (address, port):
                return
            raise HypervisorError(f"{vm}: it is being moved already")
        guest.target = (address, port)
        if self._destination(guest) is None:
            raise HypervisorError(f"{vm}: cannot connect to {address}: connection refused")
        guest.phase, guest.terms = _Phase.COPYING, terms
        total = guest.definition.memory_mib << 20
        self._report(vm, GuestEvent.PROGRESS, {"memory_bytes": 0, "memory_total_bytes": total})
        if not self._broken(vm, "copying") and self.auto_converge:
            self.converge(vm)

    def time_out(self, vm: VmKey) -> None:
        """The time of the copy's terms is up: it is given up, or forced."""
        terms = self._guest(vm).terms
        if terms.forces:
            self._guest(vm).forced = True
            self._guest(vm).phase = _Phase.HELD
            self._report(vm, GuestEvent.CONVERGED, {"remaining_bytes": 1, "forced": True})
        else:
            reason = f"the copy has not converged within the {terms.timeout_s} s asked for"
            self._fail_move(vm, reason)

    def converge(self, vm: VmKey) -> None:
        """What remains of the copy fits the budget: hold it."""
        self._guest(vm).phase = _Phase.HELD
        self._report(vm, GuestEvent.CONVERGED, {"remaining_bytes": 0, "rounds": 1})
        self._broken(vm, "held")

    async def switch_over(self, vm: VmKey) -> None:
        """Report ABOUT_TO_STOP."""
        self._may_fail("switch_over", vm)
        guest = self._guest(vm)
        if guest.phase not in (_Phase.HELD, _Phase.ABOUT_TO_STOP):
            raise HypervisorError(f"{vm}: no converged copy is held")
        if guest.phase is _Phase.HELD:
            guest.phase = _Phase.ABOUT_TO_STOP
            self._report(vm, GuestEvent.ABOUT_TO_STOP, {"expected_in_ms": 0.0})

    async def proceed(self, vm: VmKey) -> None:
        """The redirect is in place: stop here, run there."""
        self._may_fail("proceed", vm)
        guest = self._guest(vm)
        if guest.state is _State.MOVED_OUT:
            return
        if guest.phase is not _Phase.ABOUT_TO_STOP:
            raise HypervisorError(f"{vm}: not about to stop")
        self._report(vm, GuestEvent.STOPPED)
        destination = self._destination(guest)
        if self._broken(vm, "switching"):
            return
        if destination is None:
            self._fail_move(vm, "the destination has gone")
            return
        guest.state, guest.phase, guest.target = _State.MOVED_OUT, None, None
        guest.fetched = guest.forced
        figures = {"total_ms": 0, "downtime_ms": 0, "setup_ms": 0, "rounds": 1}
        self._report(vm, GuestEvent.COMPLETED, {**figures, "transferred_bytes": 0})
        if self.break_next.pop("loading", None) is None:
            destination._arrive(vm)
        else:
            destination.kill(vm)

    async def cancel(self, vm: VmKey) -> None:
        """Give up a move."""
        self._may_fail("cancel", vm)
        guest = self._guests.get(vm)
        if guest is None:
            return
        if guest.state is _State.INCOMING:
            self._remove(vm)
        elif guest.phase is not None:
            self._fail_move(vm, "cancelled")

    async def state(self, vm: VmKey) -> str:
        """Beyond the interface: "running", "paused", "incoming" or "moved-out"."""
        return self._guest(vm).state.value

    async def announce(self, vm: VmKey) -> None:
        """Note the announcement in `announced`."""
        self._may_fail("announce", vm)
        self._guest(vm)
        self.announced.append(vm)

    async def query(self, vm: VmKey) -> GuestLife:
        """What is here of the guest."""
        self._may_fail("query", vm)
        guest = self._guests.get(vm)
        return GuestLife.NONE if guest is None else _LIVES[guest.state]

    async def watch(self, definition: VmDefinition, ports: Sequence[str]) -> None:
        """These guests are its own."""
        raise not_watchable(definition.vm)

    async def unwatch(self, vm: VmKey) -> None:
        """These guests are its own."""
        raise not_watchable(vm)

    async def orphans(self, known: Collection[VmKey]) -> Sequence[VmKey]:
        """The guests that are none of `known`."""
        self._may_fail("orphans", None)
        return [vm for vm in self._guests if vm not in known]

    async def close(self) -> None:
        """Report no more; the guests stay."""
        self.close_doors()
        self._open = False

    def runs(self, vm: VmKey) -> bool:
        """Whether its guest runs here."""
        return vm in self._guests and self._guests[vm].state is _State.RUNNING

    def run_loaded(self, definition: VmDefinition) -> None:
        """Let a guest run from a checkpoint."""
        self._guests[definition.vm] = _Guest(definition, _State.RUNNING)

    def stop_for_good(self, vm: VmKey) -> None:
        """Its last checkpoint is being taken."""
        self._guest(vm).state = _State.MOVED_OUT

    def kill(self, vm: VmKey) -> None:
        """The guest's process ends, as in a crash."""
        guest = self._guest(vm)
        self._remove(vm)
        if guest.state is _State.INCOMING or guest.phase is not None:
            self._report(vm, GuestEvent.FAILED, {"reason": "killed", "running": False})
        self._report(vm, GuestEvent.GONE)

    def power_off(self, vm: VmKey) -> None:
        """The guest shuts itself down."""
        self._remove(vm)
        self._report(vm, GuestEvent.GONE, {"clean": True})

    # -- inside ----------------------------------------------------------------------------------

    def _may_fail(self, method: str, vm: VmKey | None) -> None:
        if method in self.fail_next:
            raise HypervisorError(f"{vm or 'all'}: {self.fail_next.pop(method)}")

    def _broken(self, vm: VmKey, phase: str) -> bool:
        if phase not in self.break_next:
            return False
        self._fail_move(vm, self.break_next.pop(phase))
        return True

    def _fail_move(self, vm: VmKey, reason: str) -> None:
        guest = self._guest(vm)
        destination = self._destination(guest)
        guest.phase, guest.target = None, None
        running = guest.state is _State.RUNNING
        self._report(vm, GuestEvent.FAILED, {"reason": reason, "running": running})
        if destination is not None:
            destination.kill(vm)  # QEMU, too, ends a waiting guest whose copy breaks

    def _destination(self, guest: _Guest) -> FakeHypervisor | None:
        return None if guest.target is None else self._world.listening.get(guest.target)

    def _arrive(self, vm: VmKey) -> None:
        guest = self._guest(vm)
        if guest.listening is not None:
            self._world.listening.pop(guest.listening, None)
        if guest.held:
            guest.arrived, guest.listening = True, None
            self._report(vm, GuestEvent.RESUMED, {"held": True})
            return
        guest.state, guest.listening = _State.RUNNING, None
        self._report(vm, GuestEvent.RESUMED)

    def _remove(self, vm: VmKey) -> None:
        guest = self._guests.pop(vm, None)
        if guest is None or guest.listening is None:
            return
        place = guest.listening
        self._world.listening.pop(place, None)
        for source in self._world.members:
            copied = source._guests.get(vm)
            if copied is not None and copied.target == place and copied.phase is not None:
                source._fail_move(vm, "the destination has gone")

    def _guest(self, vm: VmKey) -> _Guest:
        if vm not in self._guests:
            raise HypervisorError(f"{vm}: no such guest lives here")
        return self._guests[vm]

    def _check_ports(self, definition: VmDefinition, ports: Sequence[str]) -> None:
        if len(ports) != len(definition.interfaces):
            raise HypervisorError(f"{definition.vm}: the numbers of interfaces and taps differ")

    def _report(self, vm: VmKey, event: GuestEvent, detail: dict[str, Any] | None = None) -> None:
        if self._open:
            report = GuestReport(vm, event, detail or {})
            asyncio.get_running_loop().call_soon(self._listener, report)
