"""One QEMU guest of this node: its monitor's events become reports, orders become commands.

Not here: the set of guests and what callers may ask (qemu.py), the phases of a move out (move.py),
the process (process.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from vmmobility.drivers.hypervisor import process
from vmmobility.drivers.hypervisor.checkpoint_send import CheckpointTarget
from vmmobility.drivers.hypervisor.checkpoint_take import CheckpointTake, cancel_snapshot
from vmmobility.drivers.hypervisor.copy_goal import CopyGoal
from vmmobility.drivers.hypervisor.disk_copy import DiskCopy, remove_mirrors
from vmmobility.drivers.hypervisor.disk_door import DiskDoor
from vmmobility.drivers.hypervisor.disk_images import DiskImages
from vmmobility.drivers.hypervisor.guest_life import HANDING_OVER, life_of
from vmmobility.drivers.hypervisor.guest_postcopy import GuestPostCopy
from vmmobility.drivers.hypervisor.interface import (
    GuestEvent,
    GuestReport,
    Listener,
    VmDefinition,
)
from vmmobility.drivers.hypervisor.migration import yank
from vmmobility.drivers.hypervisor.move import OutgoingMove, Phase
from vmmobility.drivers.hypervisor.postcopy import Far, FetchedMark
from vmmobility.drivers.hypervisor.process import GuestFolder
from vmmobility.drivers.hypervisor.qmp import QmpSession, event_time_ns
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.drivers.hypervisor.stall import Broken
from vmmobility.drivers.hypervisor.streams import Streams
from vmmobility.errors import HypervisorError
from vmmobility.wire.move_terms import MoveTerms
from vmmobility.wire.registry import GuestLife

LOAD_FAILED = "load of migration failed"
_BY_THE_GUEST = ("guest-shutdown", "guest-reset")  # its own wish, as QEMU's SHUTDOWN says
END_NOTICE_S = 1.0  # between a lost monitor and the end of its process
STALE_LIMIT_S = 3.0
_STATES = {"running": "running", "inmigrate": "incoming", "postmigrate": "moved-out"}
_CANCELLABLE = ("setup", "active", "pre-switchover")
_UNDER_WAY = (*_CANCELLABLE, "device", "cancelling")
# Milliseconds, rounds.  Not at once: the guest has better to do in its first moments after a move.
ANNOUNCEMENT = {"initial": 300, "max": 500, "rounds": 5, "step": 50}


class QemuGuest(GuestPostCopy):
    """A living QEMU process, connected.  attach() begins, close() lets go, end() ends it."""

    def __init__(
        self,
        folder: GuestFolder,
        definition: VmDefinition,
        pid: int,
        listener: Listener,
        settings: QemuSettings,
        images: DiskImages,
        streams: Streams,
    ) -> None:
        self.definition = definition
        self.images = images
        self.door: DiskDoor | None = None
        self.folder = folder
        self.pid = pid
        self.incoming = False
        self.incoming_at: tuple[str, int] | None = None
        self.move: OutgoingMove | None = None
        self.taking: CheckpointTake | None = None
        self._name = str(definition.vm)
        self._listener = listener
        self._settings = settings
        self._streams = streams
        self.session = QmpSession(self._name, folder.monitor)
        self._runner: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None
        self._leaving = False
        self._failure_told = False
        self._load_failed = False
        self._shut_down = False
        self.fetched = FetchedMark(folder.path)
        self._memory_door = None
        self._patience = None

    @property
    def alive(self) -> bool:
        """Whether its process lives."""
        return process.is_ours(self.folder, self.pid)

    @property
    def load_failed(self) -> bool:
        """Whether QEMU has said that what came in was not whole: then it ends, and never ran."""
        return self.incoming and (self._load_failed or LOAD_FAILED in self.folder.last_words())

    async def attach(self) -> dict[str, Any]:
        """Connect to the monitor and begin to report; the answer of query-status."""
        await self._connect()
        status: dict[str, Any] = await self.session.execute("query-status")
        waits = status["status"] == "inmigrate"
        arrived = not waits and self.folder.held.exists()
        self.incoming = waits or arrived
        if status["running"]:
            await asyncio.to_thread(self.images.in_use)
        ready = asyncio.Event()
        # The root of the guest's task group; close() cancels and awaits it.
        loop = asyncio.get_running_loop()
        self._runner = loop.create_task(self._run(ready), name=f"guest {self._name}")
        await ready.wait()
        await self._find_postcopy()
        if arrived:  # while nobody looked
            self._arrived()
        return status

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """A monitor command.  Raises HypervisorError."""
        return await self.session.execute(command, arguments)

    async def running(self) -> bool:
        """Whether its CPUs run here."""
        return bool((await self.execute("query-status"))["running"])

    @property
    def moving(self) -> OutgoingMove | None:
        """Its move out, unless that has ended."""
        return None if self.move is None or self.move.phase is Phase.ENDED else self.move

    async def drop_stale_migration(self) -> str:
        """End a migration that an earlier daemon has left; how it ended, "" if there was none."""
        if self.moving is not None:
            return ""
        deadline = asyncio.get_running_loop().time() + STALE_LIMIT_S
        ordered = found = False
        while True:
            status: str = (await self.execute("query-migrate")).get("status", "")
            if status not in _UNDER_WAY:
                return status if found else ""
            found = True
            if not ordered:
                ordered = True
                # Once the rest is on its way, migrate_cancel could start a guest that was sent.
                await (
                    self.execute("migrate_cancel")
                    if status in _CANCELLABLE
                    else yank(self.session.execute)
                )
            if asyncio.get_running_loop().time() > deadline:
                raise HypervisorError(f"{self._name}: QEMU does not end an earlier migration")
            await asyncio.sleep(process.POLL_S)

    async def drop_stale_copies(self) -> None:
        """End copies of its disks that an earlier daemon has left; what is here is its own."""
        if self.definition.disks and self.moving is None:
            try:
                async with asyncio.timeout(STALE_LIMIT_S):
                    await remove_mirrors(self.session)
            except TimeoutError:
                raise HypervisorError(
                    f"{self._name}: QEMU does not end an earlier copy of its disks"
                ) from None
            if await self.running():
                await asyncio.to_thread(self.images.in_use)

    async def give_up_waiting(self) -> bool:
        """Keep a waiting guest from ever running; False if it runs already (RESUMED is reported).

        Raises HypervisorError if QEMU does not answer: nobody knows then whether it runs.
        """
        try:
            # Before the guest runs, QEMU takes this as "do not start it"; it is one with the start.
            await self.execute("stop")
            status = await self.execute("query-status")
        except HypervisorError:
            if self.alive:
                raise
            return True
        await self.session.catch_up()
        if status["status"] == "inmigrate" or self.incoming:
            return True
        await self.execute("cont")
        return False

    async def state(self) -> str:
        """ "running", "paused", "incoming" or "moved-out"."""
        status: str = (await self.execute("query-status"))["status"]
        return _STATES.get(status, "paused")

    async def life(self) -> GuestLife:
        """What is here of it, as QEMU has it now."""
        status = (await self.execute("query-status"))["status"]
        copy = ""
        if status == HANDING_OVER:
            copy = (await self.execute("query-migrate")).get("status", "")
        life = life_of(status, copy)
        kept = life is GuestLife.DEPARTED and self.folder.kept.exists()
        return GuestLife.HELD if kept else life

    async def announce(self) -> None:
        """Let the guest (virtio) and QEMU send their announcements."""
        await self.execute("announce-self", ANNOUNCEMENT)

    async def delay_announcements(self) -> None:
        """What QEMU announces of its own accord after a move in keeps to ANNOUNCEMENT, too."""
        parameters = {f"announce-{name}": value for name, value in ANNOUNCEMENT.items()}
        await self.execute("migrate-set-parameters", parameters)

    async def begin_move(
        self, target: tuple[str, int], least_rounds: int, terms: MoveTerms, secret: str
    ) -> None:
        """Begin the pre-copy; its reports follow."""
        if self._group is None:
            raise HypervisorError(f"{self._name}: the guest has ended")
        await self.end_checkpoint("the VM is moved")
        await cancel_snapshot(self.session)  # an earlier daemon may have left one
        goal = CopyGoal(self._settings, terms)
        disks = None
        if self.definition.disks:
            pace = goal.pace_bytes_per_s
            disks = DiskCopy(
                self._name, self.session, self.images, self.folder.path, self._settings, pace
            )
        move = OutgoingMove(
            self._name,
            self.session,
            target,
            self.report,
            self._settings,
            least_rounds,
            goal,
            disks,
            self.fetched,
            Far(secret, lambda: self.alive),
        )
        self.move = move
        try:
            await move.begin()
        except BaseException:
            self.move = None
            raise
        self._group.create_task(move.run(), name=f"move {self._name}")

    async def begin_checkpoint(self, target: CheckpointTarget, *, final: bool) -> None:
        """Take a checkpoint and send it; CHECKPOINT is reported when that has ended."""
        if self._group is None or self.incoming:
            raise HypervisorError(f"{self._name}: no guest runs here")
        if self.taking is not None or self.moving is not None:
            what = "checkpoint" if self.moving is None else "move"
            raise HypervisorError(f"{self._name}: a {what} of it is under way already")
        await self.drop_stale_migration()
        self.taking = CheckpointTake(
            self._name, self.session, self.images, self.folder.path, self._settings,
            self.definition.memory_mib, final=final,
        )  # fmt: skip
        self._group.create_task(self._take(self.taking, target), name=f"checkpoint {self._name}")

    async def _take(self, taking: CheckpointTake, target: CheckpointTarget) -> None:
        try:
            detail = {"ok": True, **await taking.take(target)}
        except (HypervisorError, Broken) as error:
            detail = {"ok": False, "reason": str(error)}
        self.taking = None
        detail["final"] = taking.final
        if taking.stopped_at:
            detail["age_ms"] = round((time.monotonic() - taking.stopped_at) * 1000)
        self.report(GuestEvent.CHECKPOINT, detail)

    async def end_checkpoint(self, why: str) -> None:
        """Give up the checkpoint that is under way, and wait for its end."""
        if self.taking is not None:
            self.taking.abort(why)
        while self.taking is not None:  # noqa: ASYNC110 (its own limits end it)
            await asyncio.sleep(process.POLL_S)

    def report(
        self, event: GuestEvent, detail: dict[str, Any] | None = None, time_ns: int | None = None
    ) -> None:
        """Tell the listener."""
        if time_ns is None:
            self._listener(GuestReport(self.definition.vm, event, detail or {}))
        else:
            self._listener(GuestReport(self.definition.vm, event, detail or {}, time_ns))

    async def end(self) -> None:
        """End QEMU: politely, then by force."""
        self._leaving = True
        if self.alive:
            with suppress(HypervisorError):  # it hangs or is gone: what follows deals with both
                await self.session.execute("quit", limit_s=self._settings.stop_limit_s)
            limit_s = self._settings.stop_limit_s
            if not await process.wait_for_end(self.folder, self.pid, limit_s):
                await process.kill(self.folder, self.definition.vm, self.pid)
        await self.close()

    async def open_door(
        self, tokens: Sequence[str], address: str, memory_port: int
    ) -> tuple[str, int]:
        """Let the source of a move in copy its disks; where.  Raises HypervisorError."""
        door = DiskDoor(self.session, self.images, tokens, self.folder.nbd, self._streams)
        self.door = door
        return await door.open(address, self._settings.ports, memory_port)

    async def close(self) -> None:
        """Let go of the guest, leaving it running."""
        self._leaving = True
        await self._close_door()
        await self._close_memory_door()
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
            self._runner = None
        await self.session.close()

    # -- reports ---------------------------------------------------------------------------------

    async def _connect(self) -> None:
        await self.session.connect(self._settings.start_limit_s, lambda: self.alive)

    async def _run(self, ready: asyncio.Event) -> None:
        try:
            await self._serve(ready)
        finally:
            self._group = None
        # The group has waited for the move's last report: GONE is the last of all.
        self._on_end()

    async def _serve(self, ready: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as self._group:
            ready.set()
            while True:
                await self.session.watch(self._on_event)
                if self._leaving:
                    return
                if await process.wait_for_end(self.folder, self.pid, END_NOTICE_S):
                    break
                await self.session.close()
                try:
                    await self._connect()
                except HypervisorError as error:
                    if self.gives_its_memory:
                        continue  # its move says when that has lasted too long
                    self.report(GuestEvent.FAILED, {"reason": str(error), "running": True})
                    break
                await self._look_again()
            self._stop_waiting()
            if self.move is not None:
                self.move.on_lost()

    async def _look_again(self) -> None:
        """The monitor was lost for a moment, and RESUMED perhaps with it."""
        with suppress(HypervisorError):  # lost again: the caller's loop sees it
            if self.incoming and await self.running():
                self._resumed(None)

    def _on_event(self, event: Mapping[str, Any]) -> None:
        name = event["event"]
        if name == "SHUTDOWN":
            self._shut_down = str(event["data"].get("reason", "")) in _BY_THE_GUEST
        if self.taking is not None and name in ("STOP", "RESUME", "MIGRATION"):
            self.taking.on_event(event)
        elif name == "MIGRATION":
            status = event["data"]["status"]
            self._heed_postcopy(status)
            if self.move is not None:
                self.move.on_status(status)
            elif self.incoming and status == "completed" and self.folder.held.exists():
                self._arrived()
            elif self.incoming and status == "failed":
                self._load_failed = True
                self._fail_incoming("the incoming copy broke")
        elif name == "STOP" and self.move is not None:
            self.move.on_stop(event_time_ns(event))
        elif name == "RESUME" and self.incoming:
            self._resumed(event_time_ns(event))
        elif name == "RESUME":
            self._settle_in()

    def _resumed(self, time_ns: int | None) -> None:
        self.incoming = False
        self.report(GuestEvent.RESUMED, time_ns=time_ns)
        self._settle_in()

    def _arrived(self) -> None:
        """All of a guest that is not to run has come.  It stays `incoming`: keep() takes it for
        good, and until then cancel() ends it."""
        self.report(GuestEvent.RESUMED, {"held": True})

    async def keep(self) -> None:
        """It is this node's, whatever was copied from or to here, and does not run."""
        status: str = (await self.execute("query-status"))["status"]
        if status == "inmigrate":
            raise HypervisorError(f"{self._name}: its copy has not arrived", "cancel the move")
        await self._close_door()
        await asyncio.to_thread(self.images.in_use)
        if status == "postmigrate":
            self.folder.kept.touch()
        await self.execute("stop")
        self.incoming = False
        self.folder.held.unlink(missing_ok=True)

    def _settle_in(self) -> None:
        """It runs here: nobody copies its disks to here any more, and they are its own."""

        async def settle() -> None:
            await self._close_door()
            with suppress(HypervisorError):  # a start later on says which mark is left
                await asyncio.to_thread(self.images.in_use)

        if self.definition.disks and self._group is not None:
            self._group.create_task(settle(), name=f"disks of {self._name}")

    async def _close_door(self) -> None:
        door, self.door = self.door, None
        if door is not None:
            await door.close()

    def _on_end(self) -> None:
        if self._leaving:
            return
        words = self.folder.last_words()
        if self.incoming:
            self._fail_incoming(words or "QEMU has ended")
        detail: dict[str, Any] = {"reason": words} if words else {}
        self.report(GuestEvent.GONE, detail | ({"clean": True} if self._shut_down else {}))

    def _fail_incoming(self, reason: str) -> None:
        # It stays `incoming`: cancel() still has to end it, should QEMU live on.
        if not self._failure_told:
            self._failure_told = True
            self.report(GuestEvent.FAILED, {"reason": reason, "running": False})
