"""One outgoing move of a QEMU guest, as one coroutine: copy, hold, the moment, the switch.

QEMU's migration thread sends until its budget of a 100 ms window is spent, then sleeps to the
window's end: the *tick*.  Decisions fall only at ticks.  So the copy is held by a tiny bandwidth
(the guest runs on), the ticks are observed, ABOUT_TO_STOP is reported shortly before one, and
proceed() in time makes QEMU stop the guest at that very tick.  Whatever happens to the timing, the
order redirect -> STOP holds: until proceed() QEMU may not finish.  docs/design/hypervisor.md tells
the whole story, and why the copy makes few rounds under TCG.

Not here: incoming moves and the guest's life (guest.py).  Rests on qmp.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import Any, Protocol

from vmmobility.drivers.hypervisor.interface import GuestEvent
from vmmobility.drivers.hypervisor.qmp import QmpSession
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.drivers.hypervisor.stall import Broken, Path, Progress
from vmmobility.drivers.hypervisor.ticks import Lead, TickClock
from vmmobility.errors import HypervisorError

POLL_FAR_S = 0.010
POLL_NEAR_S = 0.001
# When less than this times the hold mark remains, polling quickens and a window's budget falls
# below the mark: else a whole round and the decision to finish could pass between two polls.
NEAR_FACTOR = 4
NEAR_MARKS_PER_S = 8
# A round that is not the last ends at this pace: the threshold is then below one page, and no
# guest, however idle, is stopped for having dirtied less than that.
CAREFUL_BYTES_PER_S = 2 * 1024 * 1024
CAREFUL_SHARE = 4
DOWNTIME_COPYING_MS = 1  # so small that QEMU never finishes of its own accord
DOWNTIME_SWITCH_MS = 2_000_000  # QEMU's greatest: the next decision is "finish"
SETTLED_LIMIT_S = 2.0  # a failed or cancelled migration has brought the guest back by then
_OVER = ("completed", "failed", "cancelled")

# No return path: with it, a source that misses the destination's last word starts its guest again
# while the destination's runs.
CAPABILITIES = {"events": True, "return-path": False}
# Without it a guest that dirties nothing (a paused one) would be handed over before proceed().
SOURCE_CAPABILITIES = {**CAPABILITIES, "pause-before-switchover": True}


class Report(Protocol):
    """Tells the listener; time_ns None: now."""

    def __call__(
        self, event: GuestEvent, detail: dict[str, Any], time_ns: int | None = None
    ) -> None: ...


class Phase(Enum):
    """Where an outgoing move stands."""

    COPYING = "copying"
    HELD = "held"
    TIMING = "timing"  # switch_over() was called: waiting for the moment
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
        lead: Lead,
        path_is_deaf: Callable[[], bool],
    ) -> None:
        self.target = target
        self.phase = Phase.COPYING
        self._guest = guest
        self._session = session
        self._report = report
        self._settings = settings
        self._least_rounds = least_rounds
        self._lead = lead
        self._path_is_deaf = path_is_deaf  # what was sent goes unacknowledged
        self._switch = asyncio.Event()
        self._proceed = asyncio.Event()
        self._over = asyncio.Event()
        self._waiting = asyncio.Event()  # QEMU has stopped the guest and awaits migrate-continue
        self._ended = asyncio.Event()
        self._stopped_ns: int | None = None
        self._handing_over = False  # migrate-continue is sent: the destination may get the whole
        self._outcome = ""
        self._reason = ""

    async def begin(self) -> None:
        """Start the pre-copy.  Raises HypervisorError if QEMU refuses."""
        await set_capabilities(self._session.execute, SOURCE_CAPABILITIES)
        await self._session.execute(
            "migrate-set-parameters",
            {
                "max-bandwidth": self._settings.hold_bytes_per_s,
                "downtime-limit": DOWNTIME_COPYING_MS,
            },
        )
        await self._session.execute("migrate", {"uri": tcp_uri(*self.target)})

    async def run(self) -> None:
        """From the first round to COMPLETED or FAILED, which it reports.  Never raises."""
        try:
            await self._converge()
            ticks = await self._hold()
            await self._wait_for_moment(ticks)
            await self._finish()
        except (Broken, HypervisorError) as error:
            await self._fail(str(error))
        finally:
            self.phase = Phase.ENDED
            self._ended.set()

    @property
    def guest_is_stopped(self) -> bool:
        """Whether the switch has begun: QEMU decides whether the guest will run here again."""
        return self.phase is Phase.SWITCHING or self._waiting.is_set()

    def switch_over(self) -> None:
        """Report ABOUT_TO_STOP at the next good moment."""
        self._switch.set()

    def proceed(self) -> None:
        """The redirect is in place."""
        self._proceed.set()

    def on_status(self, status: str) -> None:
        """QEMU's MIGRATION event."""
        if status in _OVER and not self._over.is_set():
            self._outcome = status
            self._over.set()
        if status == "pre-switchover" or status in _OVER:
            # Wake whoever waits: _check() tells them what it was.
            self._waiting.set()
        if status in _OVER:
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

    async def _first_window(self, progress: Progress) -> None:
        """Let one held window pass before the copy begins in earnest.

        Until its first tick QEMU has no threshold, and a guest whose whole memory fits into one
        window (little used, mostly zero) would be stopped at once.
        """
        while not self._waiting.is_set():
            info = await self._query()
            if info.get("status") == "active":
                await self._watch_one_tick(TickClock())
                break
            progress.seen(0)
            await self._pause(POLL_NEAR_S)
        await self._set_bandwidth(self._settings.copy_bytes_per_s)

    async def _converge(self) -> None:
        """Copy until little enough remains, then slow the copy down to almost nothing."""
        mark = self._settings.hold_remaining_bytes
        progress = Progress(self._settings)
        await self._first_window(progress)
        near = False
        while True:
            info = await self._query()
            ram = info.get("ram", {})
            remaining = int(ram.get("remaining", 0))
            rounds = int(ram.get("dirty-sync-count", 0))
            active = info.get("status") == "active" and rounds > 0
            if active and rounds >= self._least_rounds and remaining < mark:
                break
            if self._waiting.is_set():
                break
            progress.seen(int(ram.get("transferred", 0)))
            if active and not near and remaining < mark * NEAR_FACTOR:
                near = True
                await self._set_bandwidth(
                    min(mark * NEAR_MARKS_PER_S, self._settings.copy_bytes_per_s)
                )
            if active and rounds < self._least_rounds and remaining < mark // CAREFUL_SHARE:
                await self._set_bandwidth(CAREFUL_BYTES_PER_S)
            await self._pause(POLL_NEAR_S if near else POLL_FAR_S)
        await self._set_bandwidth(self._settings.hold_bytes_per_s)
        self.phase = Phase.HELD
        await self._pause(self._settings.settle_ms / 1000)
        info = await self._query()
        self._report(
            GuestEvent.CONVERGED,
            {
                "remaining_bytes": int(info.get("ram", {}).get("remaining", 0)),
                "rounds": int(info.get("ram", {}).get("dirty-sync-count", 0)),
            },
        )

    async def _hold(self) -> TickClock:
        """Observe the ticks until switch_over() was called and one tick has been seen."""
        ticks = TickClock()
        path = Path(self._path_is_deaf, self._settings.stall_limit_s)
        while not (self._switch.is_set() and (ticks.known or self._waiting.is_set())):
            await self._pause(ticks.until_watch(time.monotonic()), self._switch)
            path.look()
            if not self._switch.is_set() or not ticks.known:
                await self._watch_one_tick(ticks)
        self.phase = Phase.TIMING
        return ticks

    async def _watch_one_tick(self, ticks: TickClock) -> None:
        before = int((await self._query()).get("ram", {}).get("transferred", 0))
        last = time.monotonic()
        give_up = last + ticks.watch_limit_s
        while last < give_up:
            await self._pause(POLL_NEAR_S)
            sent = int((await self._query()).get("ram", {}).get("transferred", 0))
            now = time.monotonic()
            if sent != before:
                ticks.seen((last + now) / 2)
                return
            last = now

    async def _wait_for_moment(self, ticks: TickClock) -> None:
        left_s = 0.0
        if not self._waiting.is_set():
            lead_s = self._lead.seconds
            moment = ticks.next_after(time.monotonic() + lead_s)
            await self._pause(moment - lead_s - time.monotonic())
            left_s = moment - time.monotonic()
        self.phase = Phase.ABOUT_TO_STOP
        self._report(GuestEvent.ABOUT_TO_STOP, {"expected_in_ms": round(left_s * 1000, 1)})
        asked = time.monotonic()
        await self._proceed.wait()
        self._check()
        self._lead.took(time.monotonic() - asked)

    async def _finish(self) -> None:
        self.phase = Phase.SWITCHING
        if self._waiting.is_set():
            self._report(GuestEvent.STOPPED, {"early": True}, self._stopped_ns)
        await self._session.execute(
            "migrate-set-parameters",
            {
                "max-bandwidth": self._settings.switch_bytes_per_s,
                "downtime-limit": DOWNTIME_SWITCH_MS,
            },
        )
        try:
            async with asyncio.timeout(self._settings.switch_limit_s):
                await self._waiting.wait()
                if not self._over.is_set():
                    self._handing_over = True
                    await self._session.execute("migrate-continue", {"state": "pre-switchover"})
                await self._over.wait()
        except TimeoutError:
            raise Broken(
                f"the switch has not ended within {self._settings.switch_limit_s:.0f} s"
            ) from None
        if self._outcome != "completed":
            raise Broken("")
        await self._complete()

    async def _complete(self) -> None:
        # Read inside the event, QEMU's figures can still be 0.
        self._report(GuestEvent.COMPLETED, _figures(await self._query()))

    async def _fail(self, reason: str) -> None:
        """Make sure that the migration is over and report whether the guest runs."""
        running = False
        detail = self._reason
        try:
            if not self._over.is_set():
                detail = detail or reason  # not what QEMU says of our breaking it off
                await self._abandon()
                async with asyncio.timeout(SETTLED_LIMIT_S):
                    await self._over.wait()
            if self._outcome == "completed":  # breaking it off came too late
                await self._complete()
                return
            said = (await self._query()).get("error-desc", "")
            detail = detail or said or reason or f"the copy to {self.target[0]} broke off"
            running = await self._settled()
        except (HypervisorError, TimeoutError) as error:
            detail = detail or reason or str(error)
        self._report(GuestEvent.FAILED, {"reason": detail, "running": running})

    async def _abandon(self) -> None:
        if self._handing_over:
            # Never migrate_cancel from here on: it starts the guest again even if the last octet
            # has just been sent.  yank closes the connection, and QEMU starts the guest only if
            # it had not sent everything.  Out of band, for QEMU's main loop is blocked while it
            # sends the last part, on a cut path for minutes.
            await yank(self._session.execute)
        else:
            await self._session.execute("migrate_cancel")

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

    # -- waiting ---------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._over.is_set():
            raise Broken(self._reason)

    async def _set_bandwidth(self, bytes_per_s: int) -> None:
        await self._session.execute("migrate-set-parameters", {"max-bandwidth": bytes_per_s})

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


def _figures(info: dict[str, Any]) -> dict[str, Any]:
    ram = info.get("ram", {})
    return {
        "total_ms": info.get("total-time", 0),
        "downtime_ms": info.get("downtime", 0),
        "setup_ms": info.get("setup-time", 0),
        "rounds": ram.get("dirty-sync-count", 0),
        "transferred_bytes": ram.get("transferred", 0),
    }


async def set_capabilities(
    execute: Callable[[str, dict[str, Any]], Awaitable[Any]], wanted: Mapping[str, bool]
) -> None:
    """Switch migration capabilities on or off."""
    capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
    await execute("migrate-set-capabilities", {"capabilities": capabilities})


async def yank(execute: Callable[..., Awaitable[Any]]) -> None:
    """Shut the connection of a migration down, even while QEMU's main loop is blocked."""
    await execute("yank", {"instances": [{"type": "migration"}]}, out_of_band=True)


def tcp_uri(address: str, port: int) -> str:
    """QEMU's name for a TCP end."""
    return f"tcp:[{address}]:{port}" if ":" in address else f"tcp:{address}:{port}"
