"""The hypervisor interface of an NVE.

Not here: when to do what (engine/nve.py), taps and routes (drivers/linux).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from vmmobility.engine.dataplane import RedirectPolicy
from vmmobility.errors import HypervisorError
from vmmobility.wire.move_terms import NO_TERMS, MoveTerms
from vmmobility.wire.registry import GuestLife
from vmmobility.wire.values import Interface, VmKey


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk image of a VM.

    path:     absolute: the same file name at every NVE; else inside the NVE's own folder of disks
    format:   "qcow2" or "raw"
    size_mib: its size to the guest, in MiB: an NVE that has no such image makes one of it when the
              VM moves in
    """

    path: str
    format: str
    size_mib: int


@dataclass(frozen=True, slots=True)
class VmDefinition:
    """A VM as the hypervisor needs it; travels from NVE to NVE as compact JSON (encode/decode).

    kind:       "qemu", "netns" (the lab's light stand-in), or "external": run by other hands
    vcpus:      number of virtual CPUs
    memory_mib: memory in MiB
    machine:    kind-specific settings, JSON values only; qemu: kernel, initrd, append (paths and
                kernel command line); netns: namespace; external: qmp, the path of the monitor
                that its QEMU keeps for this node
    redirect:   how NVEs that it has left redirect its packets; None: as each one's own setting says
    disks:      its disk images, of kind "qemu" only
    member:     its number in a load-shared group, 0: it does not say
    """

    vm: VmKey
    kind: str
    interfaces: tuple[Interface, ...]
    vcpus: int = 1
    memory_mib: int = 128
    machine: dict[str, Any] = field(default_factory=dict)
    redirect: RedirectPolicy | None = None
    disks: tuple[Disk, ...] = ()
    member: int = 0


class GuestEvent(Enum):
    """What a hypervisor reports of a guest, unasked."""

    STARTED = "started"  # the guest runs (first start)
    STOPPED = "stopped"  # its CPUs have stopped in a switchover (QEMU's STOP)
    RESUMED = "resumed"  # it runs here after a move in (QEMU's RESUME)
    # outgoing, every second: detail has disk_bytes of disk_total_bytes that are copied, and
    # memory_bytes of memory_total_bytes: sent, and that with what remains now
    PROGRESS = "progress"
    CONVERGED = "converged"  # outgoing: what remains fits the blackout budget; the copy is held
    ABOUT_TO_STOP = "about-to-stop"  # outgoing, after switch_over(): redirect now, then proceed()
    COMPLETED = "completed"  # outgoing: everything is sent; whether it runs, the destination says
    FAILED = "failed"  # a move in or out failed; detail["running"] says if the guest runs here
    GONE = "gone"  # the guest ended (crash, killed); clean: it has shut itself down, or rebooted
    # A checkpoint has ended: detail["ok"], "reason" if not; "number", "full", "pause_ms",
    # "memory_bytes", "disk_bytes", "total_ms", "age_ms": since the moment of which it is
    CHECKPOINT = "checkpoint"
    # At a standby: the checkpoint detail["number"] is complete here
    CHECKPOINT_HELD = "checkpoint-held"
    # Of watched guests only.  Arrived: detail["migrated"] if it was seen to come from another host.
    ARRIVED = "arrived"  # it runs here, and nobody of ours has brought it
    DEPARTED = "departed"  # other hands have sent its memory away, and it is stopped for that


@dataclass(frozen=True, slots=True)
class GuestReport:
    """One event of one guest.  time_ns is CLOCK_REALTIME in nanoseconds, for display only.

    detail: measurements, e.g. remaining_bytes, downtime_ms, total_ms, rounds, reason, running
    """

    vm: VmKey
    event: GuestEvent
    detail: dict[str, Any] = field(default_factory=dict)
    time_ns: int = field(default_factory=time.time_ns)


Listener = Callable[[GuestReport], None]


class Hypervisor(Protocol):
    """What an NVE needs of a hypervisor.  Every method raises HypervisorError naming the VM.

    Guests outlive the NVE daemon (fail static): they are not ended by close(), and adopt() finds
    them again.  Every method is idempotent: repeating it after success changes nothing.
    """

    async def adopt(self, definitions: Sequence[VmDefinition]) -> dict[VmKey, bool]:
        """After a daemon's restart: reconnect to guests that live; VM -> is it running (not
        incoming, not paused).  Guests that are not there are absent from the answer; one that lives
        but does not answer is a HypervisorError."""

    async def start(
        self, definition: VmDefinition, ports: Sequence[str], *, held: bool = False
    ) -> None:
        """Boot the guest with these tap names (one an interface), which exist.  Reports STARTED.
        Nothing, and no report, if it runs already; HypervisorError if it waits, is paused or has
        moved out.  held: it is brought up and never runs: only its copying is wanted."""

    async def keep(self, definition: VmDefinition) -> None:
        """What is here of the guest, and of its disks, is the VM's, and does not run: a copy that
        was sent away is none, one that came held is taken for good.  Its process may be absent."""

    async def stop(self, vm: VmKey) -> None:
        """End the guest and its process (not a graceful shutdown).  No error if it is absent."""

    async def retire(self, definition: VmDefinition) -> None:
        """No guest of the VM lives here, and its manager says that it is served elsewhere: what a
        guest that was sent there has left (its host has lost its power, say) is old, and so is a
        copy that has come here and was not taken.  Nothing if one lives.  Idempotent."""

    async def shut_down(self, vm: VmKey) -> None:
        """Ask a running guest to shut itself down (ACPI's power button), and return.  It reports
        GONE if it does; whoever waits no longer than that calls stop()."""

    async def pause(self, vm: VmKey) -> None:
        """Stop the guest's CPUs and keep it (superseded, or suspended)."""

    async def resume(self, vm: VmKey) -> None:
        """Let a paused or moved-out guest run again here (roll-back), then announce it.  Nothing
        if it runs.  After COMPLETED only once cancel() or stop() has ended at the destination, or
        its machine was fenced: what was sent may still arrive."""

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
        """Start a waiting guest; returns the (address, TCP port) where its memory is expected.
        It reports RESUMED when it runs, FAILED if the incoming copy breaks.  held: it is not to run
        when all has come: RESUMED has detail["held"] then, and keep() or cancel() follows.
        terms: both ends get the same; HypervisorError if its disks cannot be copied as they say.
        secret: of this move, the same at both ends, for whoever comes when the copy has begun."""

    async def copy_out(
        self,
        vm: VmKey,
        address: str,
        port: int,
        terms: MoveTerms = NO_TERMS,
        *,
        secret: str = "",
    ) -> None:
        """Begin the pre-copy to (address, port).  Returns once it has begun.  Reports PROGRESS,
        and CONVERGED once what remains fits the budget, or the terms' time is up and they say
        force; then holds the copy with the guest running.  FAILED if it breaks, or the time is
        up.  Raises HypervisorError if nobody listens there."""

    async def switch_over(self, vm: VmKey) -> None:
        """After CONVERGED: report ABOUT_TO_STOP, wait for proceed()."""

    async def proceed(self, vm: VmKey) -> None:
        """The redirect is in place: let the guest stop, copy the rest.  Reports STOPPED, then
        COMPLETED or FAILED."""

    async def cancel(self, vm: VmKey) -> None:
        """Give up a move; ends no running guest.  Out: returns once FAILED, or COMPLETED if it
        came too late, is reported.  In: returns once the waiting guest is gone and can never run,
        or, if it ran first, after RESUMED, leaving it alone."""

    async def announce(self, vm: VmKey) -> None:
        """Send gratuitous ARP / unsolicited NA on the guest's behalf (draft Sections 5 and 8)."""

    async def query(self, vm: VmKey) -> GuestLife:
        """What is here of the guest now, asked of the hypervisor itself.  HypervisorError if that
        cannot be known: a guest that does not answer may live."""

    async def receive_checkpoints(
        self, definition: VmDefinition, listen_address: str
    ) -> tuple[str, int, str, int]:
        """Be the VM's standby: open (or find again) its store of checkpoints, and a door for them.
        The (address, TCP port, token) of the door, and the number of the last complete checkpoint,
        0 if there is none.  Reports CHECKPOINT_HELD for each further one."""

    async def checkpoint(
        self, vm: VmKey, address: str, port: int, token: str, *, final: bool = False
    ) -> None:
        """Take a checkpoint of memory and disks and send it to a standby's door.  Returns once it
        has begun; CHECKPOINT is reported when it is complete there, or has failed.  The guest is
        stopped for a moment, and never waits for the path or the standby.
        final: it stays stopped, and counts as moved out once its last checkpoint is complete."""

    async def unprotect(self, vm: VmKey) -> None:
        """No checkpoint of this guest follows: give up the one under way, forget what has changed.
        No error if the guest is absent."""

    async def activate(self, definition: VmDefinition, ports: Sequence[str]) -> None:
        """At the standby: take no more checkpoints, and let the guest run from the last complete
        one.  Reports RESUMED; nothing if it runs already.  HypervisorError, naming why, if there is
        none, or its guest has run here before and ended: then it is never started from it again."""

    async def drop_checkpoints(self, definition: VmDefinition) -> None:
        """Be no standby of the VM any more, and remove what was kept.  No error if there is none;
        a guest that was activated, and its disks, stay."""

    def arm(self, vm: VmKey, until: float | None) -> None:
        """Let somebody who outlives this daemon pause the guest at `until` (CLOCK_MONOTONIC),
        unless it is armed anew before; None: not any more.  At once, beside all other orders."""

    async def watch(self, definition: VmDefinition, ports: Sequence[str]) -> None:
        """Report what other hands do with this guest (ARRIVED, DEPARTED, GONE) from now on, whether
        it is here yet or not; it is to be plugged into these taps.  Only for kind "external"."""

    async def unwatch(self, vm: VmKey) -> None:
        """Let go of a watched guest, leaving it as it is.  Only for kind "external"."""

    async def orphans(self, known: Collection[VmKey]) -> Sequence[VmKey]:
        """Guests that an earlier daemon has started here and that live, but are none of `known`;
        stop() ends them.  Never guests of other hands."""

    async def close(self) -> None:
        """Let go of all guests, leaving them running."""


def not_watchable(vm: VmKey) -> HypervisorError:
    """What a driver raises that is told to watch a guest of its own."""
    return HypervisorError(
        f"{vm}: its kind is run by this NVE, not by others", "start it with `vmmob nve start`"
    )
