"""One outgoing move of a QEMU guest, as one coroutine: copy, hold, redirect, switch.

The copy runs through CopyStream, whose thread takes QEMU's data at the wanted pace.  When little
enough remains it takes no more: QEMU's migration thread waits in a write while the guest runs on.
So the guest stops within a millisecond of proceed(), whenever that comes, and the order redirect ->
STOP holds, for QEMU cannot finish what nobody takes.  docs/design/hypervisor.md tells the whole
story, and why the copy makes few rounds under TCG.

Not here: incoming moves and the guest's life (guest.py).  Rests on qmp.py and copy_stream.py.
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
from vmmobility.drivers.hypervisor.migration import (
    OVER,
    SOURCE_CAPABILITIES,
    figures,
    set_capabilities,
)
from vmmobility.drivers.hypervisor.qmp import QmpSession
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.drivers.hypervisor.stall import Broken, Progress
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
DOWNTIME_SWITCH_MS = 2_000_000  # QEMU's greatest: the next decision is "finish"
SETTLED_LIMIT_S = 2.0  # a failed or cancelled migration has brought the guest back by then
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
    ENDED = "ended"


class OutgoingMove:
    """A move out.  begin(), then run() in a task; the rest are signals from outside."""

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
    ) -> None:
        self.target = target
        self.phase = Phase.COPYING
        self._guest = guest
        self._session = session
        self._report = report
        self._settings = settings
        self._least_rounds = max(1, least_rounds)
        self._goal = goal
        self._disks = disks
        self._memory_begun = False
        self._stream = CopyStream(guest, settings.stall_limit_s, self._stream_ended)
        self._loop = asyncio.get_running_loop()
        self._switch = asyncio.Event()
        self._proceed = asyncio.Event()
        self._over = asyncio.Event()
        self._waiting = asyncio.Event()  # QEMU has stopped the guest and awaits migrate-continue
        self._ended = asyncio.Event()
        self._sent = asyncio.Event()  # the stream has ended
        self._stream_error = ""
        self._stopped_ns: int | None = None
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
        await set_capabilities(execute, SOURCE_CAPABILITIES)
        await execute(
            "migrate-set-parameters",
            {"max-bandwidth": UNLIMITED_BYTES_PER_S, "downtime-limit": DOWNTIME_COPYING_MS},
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

    async def run(self) -> None:
        """From the first round to COMPLETED or FAILED, which it reports.  Never raises."""
        try:
            if self._disks is not None:
                await self._copy_disks(self._disks)
                await self._begin_memory()
            await self._converge()
            await self._redirect()
            await self._finish()
        except (Broken, HypervisorError) as error:
            await self._fail(str(error))
        finally:
            self.phase = Phase.ENDED
            self._stream.abort()
            if self._disks is not None:
                self._disks.close()
            self._ended.set()

    @property
    def guest_is_stopped(self) -> bool:
        """Whether the switch has begun: QEMU decides whether the guest will run here again."""
        return self.phase is Phase.SWITCHING or self._waiting.is_set()

    def switch_over(self) -> None:
        """Report ABOUT_TO_STOP now."""
        self._switch.set()

    def proceed(self) -> None:
        """The redirect is in place."""
        self._proceed.set()

    def on_status(self, status: str) -> None:
        """QEMU's MIGRATION event."""
        if status in OVER and not self._over.is_set():
            self._outcome = status
            self._over.set()
        if status == "pre-switchover" or status in OVER:
            # Wake whoever waits: _check() tells them what it was.
            self._waiting.set()
        if status in OVER:
            self._proceed.set()

    def on_stop(self, time_ns: int) -> None:
        """QEMU's STOP event.  Before proceed() it is pause(), or a guest with nothing to copy."""
        if self.phase is Phase.SWITCHING:
            self._report(GuestEvent.STOPPED, {}, time_ns)
        self._stopped_ns = time_ns

    def on_lost(self) -> None:
        """QEMU has ended."""
        self._reason = self._reason or "QEMU has ended"
        self.on_status("failed")

    async def cancel(self, reason: str) -> None:
        """Give the move up, in whatever phase; returns once its outcome is reported.

        The guest runs on unless everything was sent already (then COMPLETED is reported).
        """
        if self.phase is not Phase.ENDED and not self._over.is_set():
            self._reason = self._reason or reason
            await self._abandon()
        await self._ended.wait()

    # -- the phases ------------------------------------------------------------------------------

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
        self._report(GuestEvent.CONVERGED, {"remaining_bytes": remaining, "rounds": rounds})

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

    async def _redirect(self) -> None:
        """Hold until switch_over(), say so, hold until proceed()."""
        for phase, signal in (
            (Phase.HELD, self._switch),
            (Phase.ABOUT_TO_STOP, self._proceed),
        ):
            if phase is Phase.ABOUT_TO_STOP:
                if self._disks is not None:
                    await self._disks.sync()
                self.phase = phase
                self._report(GuestEvent.ABOUT_TO_STOP, {})
            while not signal.is_set():
                await self._pause(PATH_LOOK_S, signal)
                if self._stream.broken:
                    raise Broken(
                        "the destination has closed the copy, or acknowledged nothing for "
                        f"{self._settings.stall_limit_s:.0f} s"
                    )
                if self._disks is not None:
                    await self._disks.look()
            self._check()

    async def _finish(self) -> None:
        self.phase = Phase.SWITCHING
        if self._waiting.is_set():
            self._report(GuestEvent.STOPPED, {"early": True}, self._stopped_ns)
        await self._session.execute(
            "migrate-set-parameters",
            {"downtime-limit": DOWNTIME_SWITCH_MS},
        )
        self._stream.release()
        try:
            async with asyncio.timeout(self._settings.switch_limit_s):
                await self._waiting.wait()
            if self._disks is not None and not self._over.is_set():
                await self._disks.finish()
            async with asyncio.timeout(self._settings.switch_limit_s):
                await self._hand_over()
                await self._sent.wait()
        except TimeoutError:
            raise Broken(
                f"the switch has not ended within {self._settings.switch_limit_s:.0f} s"
            ) from None
        if self._outcome != "completed" or self._stream_error:
            raise Broken(self._stream_error)
        await self._complete()

    async def _hand_over(self) -> None:
        await self._waiting.wait()
        if self.phase is Phase.SWITCHING and not self._over.is_set() and not self._handing_over:
            self._handing_over = True
            await self._session.execute("migrate-continue", {"state": "pre-switchover"})
        await self._over.wait()

    async def _complete(self) -> None:
        # Read inside the event, QEMU's figures can still be 0.
        self._report(GuestEvent.COMPLETED, figures(await self._query()))

    async def _fail(self, reason: str) -> None:
        """Make sure that the migration is over and report whether the guest runs."""
        running = False
        detail = self._reason
        if self._disks is not None:
            await self._disks.abort()
        try:
            if not self._over.is_set():
                detail = detail or reason  # not what QEMU says of our breaking it off
                await self._abandon()
                async with asyncio.timeout(SETTLED_LIMIT_S):
                    await self._hand_over()
            if self._outcome == "completed" and self._sent.is_set() and not self._stream_error:
                await self._complete()  # breaking it off came too late
                return
            said = (await self._query()).get("error-desc", "")
            detail = detail or said or reason or f"the copy to {self.target[0]} broke off"
            running = self._outcome != "completed" and await self._settled()
            if running and self._disks is not None:
                await self._disks.taken_back()
        except (HypervisorError, TimeoutError) as error:
            detail = detail or reason or str(error)
        self._report(GuestEvent.FAILED, {"reason": detail, "running": running})

    async def _abandon(self) -> None:
        if self._disks is not None:
            await self._disks.abort()
        if not self._memory_begun:
            self.on_status("cancelled")
        elif self.phase is not Phase.SWITCHING:
            await self._session.execute("migrate_cancel")
        # From proceed() on never migrate_cancel: while QEMU stops the guest it hangs QEMU (7.2),
        # and after the last octet it starts a guest that was sent.  Broken off, QEMU starts the
        # guest only if it could not write everything, so that the destination cannot have it.
        self._stream.abort()

    async def _settled(self) -> bool:
        """Whether the guest runs, once QEMU has decided."""
        deadline = time.monotonic() + SETTLED_LIMIT_S
        while True:
            status = await self._session.execute("query-status")
            if status["status"] not in ("finish-migrate", "postmigrate"):
                return bool(status["running"])
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(POLL_FAR_S)

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
