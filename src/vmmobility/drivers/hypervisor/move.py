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
import time

from vmmobility.drivers.hypervisor.copy_stream import CopyStream
from vmmobility.drivers.hypervisor.interface import GuestEvent
from vmmobility.drivers.hypervisor.migration import OVER, figures
from vmmobility.drivers.hypervisor.postcopy import Fetch
from vmmobility.drivers.hypervisor.precopy import PATH_LOOK_S, POLL_FAR_S, Phase, PreCopy
from vmmobility.drivers.hypervisor.stall import Broken
from vmmobility.errors import HypervisorError

__all__ = ["OutgoingMove", "Phase"]

DOWNTIME_SWITCH_MS = 2_000_000  # QEMU's greatest: the next decision is "finish"
SETTLED_LIMIT_S = 2.0  # a failed or cancelled migration has brought the guest back by then


class OutgoingMove(PreCopy):
    """A move out.  begin(), then run() in a task; the rest are signals from outside."""

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

    async def fetch_on(self) -> None:
        """What an earlier daemon has left in post-copy goes on.  Never raises."""
        try:
            await self._fetch(None)
            await self._complete()
        except (Broken, HypervisorError) as error:
            await self._fail(str(error))
        finally:
            self.phase = Phase.ENDED
            self._stream.abort()
            self._ended.set()

    @property
    def guest_is_stopped(self) -> bool:
        """Whether the switch has begun: QEMU decides whether the guest will run here again."""
        return self.phase in (Phase.SWITCHING, Phase.FETCHING) or self._waiting.is_set()

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
        if status == "postcopy-active":
            self._stream.let_back()
            if self.phase is Phase.SWITCHING:
                self.phase = Phase.FETCHING
            self._fetching.set()
        elif status == "device" and self._goal.terms.forces:
            self._stream.say_over()  # it finishes without post-copy
            if self._mark is not None:
                self._mark.unset()
        if status == "pre-switchover" or status in OVER:
            # Wake whoever waits: _check() tells them what it was.
            self._waiting.set()
        if status in OVER:
            self._proceed.set()
            self._fetching.set()

    def on_stop(self, time_ns: int) -> None:
        """QEMU's STOP event.  Before proceed() it is pause(), or a guest with nothing to copy."""
        if self.phase is Phase.SWITCHING:
            self._told_stop = True
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
        if self.phase is Phase.FETCHING:
            raise HypervisorError(
                f"{self._guest}: it goes on at {self.target[0]}, which fetches the rest of its "
                "memory (post-copy)",
                "wait until it has; what is here is old",
            )
        if self.phase is not Phase.ENDED and not self._over.is_set():
            self._reason = self._reason or reason
            await self._abandon()
        await self._ended.wait()

    # -- the phases ------------------------------------------------------------------------------

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
            self._told_stop = True
            self._report(GuestEvent.STOPPED, {"early": True}, self._stopped_ns)
        if self._forced:
            await self._session.execute("migrate-start-postcopy")
        else:
            await self._session.execute(
                "migrate-set-parameters", {"downtime-limit": DOWNTIME_SWITCH_MS}
            )
        self._stream.release()
        try:
            async with asyncio.timeout(self._settings.switch_limit_s):
                await self._waiting.wait()
            if not self._told_stop and not self._over.is_set():
                self._told_stop = True  # one that does not run: QEMU has nothing to stop
                self._report(GuestEvent.STOPPED, {"early": True})
            if self._disks is not None and not self._over.is_set():
                await self._disks.finish()
            async with asyncio.timeout(self._settings.switch_limit_s):
                await self._hand_over()
                if not self._fetching.is_set() or self._over.is_set():
                    await self._sent.wait()
        except TimeoutError:
            raise Broken(
                f"the switch has not ended within {self._settings.switch_limit_s:.0f} s"
            ) from None
        if self._forced and not self._over.is_set():
            await self._fetch(self._stream)
        elif self._outcome != "completed" or self._stream_error:
            raise Broken(self._stream_error)
        await self._complete()

    async def _fetch(self, stream: CopyStream | None) -> None:
        """Post-copy: the guest runs there, or is about to.  Raises Broken when its memory will
        never be whole."""
        self.phase = Phase.FETCHING
        await Fetch(
            self._guest,
            self._session,
            self._memory_at,
            self._far,
            self._settings,
            self._over,
            lambda: self._outcome,
            stream,
        ).run()

    async def _hand_over(self) -> None:
        await self._waiting.wait()
        if self.phase is Phase.SWITCHING and not self._over.is_set() and not self._handing_over:
            self._handing_over = True
            if self._forced and self._mark is not None:
                await asyncio.to_thread(self._mark.set, self._memory_at, self._far.secret)
            await self._session.execute("migrate-continue", {"state": "pre-switchover"})
        await (self._fetching if self._forced else self._over).wait()

    async def _complete(self) -> None:
        # Read inside the event, QEMU's figures can still be 0.
        self._report(GuestEvent.COMPLETED, figures(await self._query()))

    async def _fail(self, reason: str) -> None:
        """Make sure that the migration is over and report whether the guest runs."""
        if self.phase is Phase.FETCHING:
            detail = self._reason or reason
            self._report(GuestEvent.FAILED, {"reason": detail, "running": False})
            return
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
            broke = f"the copy to {self.target[0]} broke off"
            why = f"{broke}: {self._stream_error}" if self._stream_error else said
            detail = detail or why or reason or broke
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
