"""A move out until its copy is held: disks, then memory at the wanted pace, then no more.

Not here: what follows, and the whole story (move.py).  Rests on qmp.py and both copies.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from enum import Enum
from typing import Any, Protocol

from vmmobility.drivers.hypervisor.copy_goal import CopyGoal
from vmmobility.drivers.hypervisor.copy_stream import CopyStream
from vmmobility.drivers.hypervisor.disk_copy import DiskCopy
from vmmobility.drivers.hypervisor.interface import GuestEvent
from vmmobility.drivers.hypervisor.migration import set_capabilities, source_capabilities
from vmmobility.drivers.hypervisor.postcopy import Far, FetchedMark
from vmmobility.drivers.hypervisor.qmp import QmpSession
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.drivers.hypervisor.stall import Broken, Progress
from vmmobility.drivers.hypervisor.streams import Streams
from vmmobility.errors import HypervisorError

POLL_FAR_S = 0.010
PROGRESS_S = 1.0
POLL_NEAR_S = 0.001
# When less than this times the hold mark remains, polling quickens and the pace falls, so that the
# mark is not run over between two polls.
NEAR_FACTOR = 4
NEAR_MARKS_PER_S = 12
# QEMU reckons what it may send in the blackout once every 100 ms; a hold as long as that makes
# sure that it does so at the release.
WINDOW_S = 0.105
PATH_LOOK_S = 0.5
UNLIMITED_BYTES_PER_S = 1 << 40
DOWNTIME_COPYING_MS = 0  # QEMU never finishes of its own accord while pages remain
FD_NAME = "vmmobility-copy"


class Report(Protocol):
    """Tells the listener; time_ns None: now."""

    def __call__(
        self, event: GuestEvent, detail: dict[str, Any], time_ns: int | None = None
    ) -> None: ...


class Phase(Enum):
    """Where an outgoing move stands."""

    COPYING = "copying"
    HELD = "held"
    ABOUT_TO_STOP = "about-to-stop"
    SWITCHING = "switching"  # proceed() was called
    FETCHING = "fetching"  # in post-copy the destination has the guest, and fetches what it lacks
    ENDED = "ended"


class PreCopy:
    """The first half of OutgoingMove."""

    def __init__(
        self,
        guest: str,
        session: QmpSession,
        target: tuple[str, int],
        report: Report,
        settings: QemuSettings,
        least_rounds: int,
        goal: CopyGoal,
        disks: DiskCopy | None = None,
        mark: FetchedMark | None = None,
        far: Far | None = None,
    ) -> None:
        self.target = target
        self._far = far or Far("", lambda: True)
        self._memory_at = target
        self._mark = mark
        self._forced = False  # the time is up, and the move goes on all the same
        self._fetching = asyncio.Event()  # QEMU is in post-copy
        self.phase = Phase.COPYING
        self._guest = guest
        self._session = session
        self._report = report
        self._settings = settings
        self._least_rounds = max(1, least_rounds)
        self._goal = goal
        self._disks = disks
        self._memory_begun = False
        self._stream = CopyStream(
            guest, Streams.of(settings), self._stream_ended, two_way=goal.terms.forces
        )
        self._loop = asyncio.get_running_loop()
        self._switch = asyncio.Event()
        self._proceed = asyncio.Event()
        self._over = asyncio.Event()
        self._waiting = asyncio.Event()  # QEMU has stopped the guest and awaits migrate-continue
        self._ended = asyncio.Event()
        self._sent = asyncio.Event()  # the stream has ended
        self._stream_error = ""
        self._stopped_ns: int | None = None
        self._told_stop = False  # STOPPED was reported
        self._handing_over = False  # migrate-continue is sent: the destination may get the whole
        self._outcome = ""
        self._reason = ""
        self._tell_at = 0.0

    async def begin(self) -> None:
        """Start to copy: disks, if it has any, else memory.  Raises HypervisorError if the path or
        QEMU refuses."""
        address, port = self.target
        try:
            if self._disks is not None:
                port = await self._disks.ask(address, port)
            self._memory_at = (address, port)
            await asyncio.to_thread(self._stream.connect, address, port)
            if self._disks is None:
                await self._begin_memory()
            else:
                await self._disks.start()
        except BaseException:
            self._stream.abort()
            if self._disks is not None:
                await self._disks.abort()
                self._disks.close()
            raise

    async def _begin_memory(self) -> None:
        """Raises Broken if the move was given up before."""
        execute = self._session.execute
        await set_capabilities(execute, source_capabilities(self._goal.terms))
        await execute(
            "migrate-set-parameters",
            {
                "max-bandwidth": UNLIMITED_BYTES_PER_S,
                "downtime-limit": DOWNTIME_COPYING_MS,
                "max-postcopy-bandwidth": self._settings.postcopy_bytes_per_s,
            },
        )
        await self._session.give_descriptor(FD_NAME, self._stream.qemu_end.fileno())
        self._check()
        self._memory_begun = True
        try:
            await execute("migrate", {"uri": f"fd:{FD_NAME}"})
        except HypervisorError:
            self._memory_begun = False
            raise
        self._goal.begin_memory()
        self._stream.pace(self._goal.pace_bytes_per_s)
        self._stream.start()

    async def _copy_disks(self, disks: DiskCopy) -> None:
        """Until all is there and every further write goes to both ends."""
        progress = Progress(self._settings.disk_stall_limit_s, math.inf)
        ready = False
        while not ready:
            await self._pause(POLL_FAR_S)
            ready = await disks.look()
            progress.seen(disks.done)
            # Post-copy cannot fetch a disk: one that is to be forced is copied to its end before.
            self._goal.check_time()
            self._tell_progress(at_once=ready)
        await disks.sync()

    async def _converge(self) -> None:
        """Copy until little enough remains, or the time is up and the move forced; then hold."""
        progress = Progress(self._settings.stall_limit_s, self._goal.converge_limit_s)
        near = False
        while not self._waiting.is_set():
            ram = (await self._query()).get("ram", {})
            remaining, rounds = int(ram.get("remaining", 0)), int(ram.get("dirty-sync-count", 0))
            mark = self._goal.mark_bytes(self._stream.sent)
            if rounds >= self._least_rounds and remaining < mark:
                break
            if self._goal.check_time():
                self._forced = True
                break
            progress.seen(self._stream.sent)
            self._tell_progress(remaining)
            if self._disks is not None:
                await self._disks.look()
            if rounds > 0 and not near and remaining < mark * NEAR_FACTOR:
                near = True
                self._stream.pace(min(mark * NEAR_MARKS_PER_S, self._goal.pace_bytes_per_s))
            await self._pause(POLL_NEAR_S if near else POLL_FAR_S)
        self._stream.hold()
        self.phase = Phase.HELD
        if not self._waiting.is_set():  # else it has nothing left to copy and is stopped already
            await self._pause(WINDOW_S)
        ram = (await self._query()).get("ram", {})
        remaining, rounds = int(ram.get("remaining", 0)), int(ram.get("dirty-sync-count", 0))
        self._tell_progress(remaining, at_once=True)
        detail = {"remaining_bytes": remaining, "rounds": rounds}
        self._report(GuestEvent.CONVERGED, detail | ({"forced": True} if self._forced else {}))

    def _tell_progress(self, remaining: int | None = None, *, at_once: bool = False) -> None:
        """Once a second: octets copied, and those with what remains; remaining: of memory."""
        if not at_once and time.monotonic() < self._tell_at:
            return
        self._tell_at = time.monotonic() + PROGRESS_S
        detail: dict[str, Any] = {}
        if self._disks is not None:
            detail |= {"disk_bytes": self._disks.done, "disk_total_bytes": self._disks.total}
        if remaining is not None:
            sent = self._stream.sent
            detail |= {"memory_bytes": sent, "memory_total_bytes": sent + remaining}
        self._report(GuestEvent.PROGRESS, detail)

    def _stream_ended(self, error: str) -> None:
        """Called in the stream's thread."""

        def note() -> None:
            self._stream_error = error
            self._sent.set()

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            self._loop.call_soon_threadsafe(note)

    # -- waiting ---------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._over.is_set():
            raise Broken(self._reason)

    async def _query(self) -> dict[str, Any]:
        info: dict[str, Any] = await self._session.execute("query-migrate")
        return info

    async def _pause(self, seconds: float, until: asyncio.Event | None = None) -> None:
        """Sleep, but wake if the move breaks (then raise) or `until` is set."""
        waited = self._over if until is None else until
        if seconds > 0:
            try:
                async with asyncio.timeout(seconds):
                    await waited.wait()
            except TimeoutError:
                pass
        self._check()
