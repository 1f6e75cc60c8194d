"""What post-copy adds to a QEMU guest: a door for its memory, a wait for what it lacks, its end.

A part of QemuGuest.  Not here: the source's side (postcopy.py), the door (memory_door.py).
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vmmobility.drivers.hypervisor import private_files, process
from vmmobility.drivers.hypervisor.copy_goal import CopyGoal
from vmmobility.drivers.hypervisor.interface import GuestEvent, VmDefinition
from vmmobility.drivers.hypervisor.memory_door import MemoryDoor
from vmmobility.drivers.hypervisor.move import OutgoingMove, Phase
from vmmobility.drivers.hypervisor.postcopy import Far, FetchedMark
from vmmobility.drivers.hypervisor.process import GuestFolder
from vmmobility.drivers.hypervisor.qmp import QmpSession
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.drivers.hypervisor.streams import Streams
from vmmobility.errors import HypervisorError
from vmmobility.wire.move_terms import MoveTerms

PATIENCE_S = 10.0  # longer than a source looks for its destination


class GuestPostCopy:
    """See QemuGuest (guest.py)."""

    definition: VmDefinition
    folder: GuestFolder
    pid: int
    session: QmpSession
    fetched: FetchedMark
    move: OutgoingMove | None
    _name: str
    _settings: QemuSettings
    _streams: Streams
    _group: asyncio.TaskGroup | None
    _leaving: bool
    _memory_door: MemoryDoor | None
    _patience: asyncio.Task[None] | None

    if TYPE_CHECKING:

        @property
        def alive(self) -> bool: ...
        async def execute(self, command: str) -> Any: ...
        def report(
            self,
            event: GuestEvent,
            detail: dict[str, Any] | None = None,
            time_ns: int | None = None,
        ) -> None: ...

    async def open_memory_door(self, address: str, secret: str, *, again: bool) -> tuple[str, int]:
        """Let the source come, and once more if its move may be forced; where.

        Raises HypervisorError.
        """
        door = self._new_memory_door(secret, begun=False, again=again)
        at = door.open(address, self._settings.ports)
        if again:
            private_files.write(self.folder.path / "door", json.dumps((*at, secret)))
        return at

    @property
    def gives_its_memory(self) -> bool:
        """Whether it runs elsewhere, and fetches from here what it lacks."""
        return self.move is not None and self.move.phase is Phase.FETCHING

    def check_not_fetched(self) -> None:
        """Raises HypervisorError where a destination has run it: what is here is old for ever."""
        if self.fetched.at is not None:
            raise HypervisorError(
                f"{self._name}: it went on elsewhere in post-copy: what is here is old",
                "stop it; if it is lost there, start it from its disks",
            )

    async def wait_until_fetched(self, limit_s: float) -> None:
        """Raises HypervisorError if its destination still fetches after the limit."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self.gives_its_memory:  # noqa: ASYNC110 (it ends soon, or not for long)
                    await asyncio.sleep(process.POLL_S)
        if self.gives_its_memory:
            raise HypervisorError(
                f"{self._name}: its destination still fetches its memory from here (post-copy)",
                "wait until it has all, or stop it there",
            )

    async def _find_postcopy(self) -> None:
        """An earlier daemon may have left it in post-copy, as source or as destination."""
        at, door = self.fetched.at, _kept(self.folder)
        if at is None and door is None:
            return
        status = (await self.execute("query-migrate")).get("status", "")
        if not status.startswith("postcopy") or self._group is None:
            return
        if at is not None:
            goal = CopyGoal(self._settings, MoveTerms())
            move = OutgoingMove(
                self._name,
                self.session,
                at,
                self.report,
                self._settings,
                1,
                goal,
                far=Far(self.fetched.secret, lambda: self.alive),
            )
            self.move = move
            self._group.create_task(move.fetch_on(), name=f"move {self._name}")
        elif door is not None:
            address, port, secret = door
            found = self._new_memory_door(secret, begun=True)
            found.open(address, (port, port))
            self._heed_postcopy(status)

    def _new_memory_door(self, secret: str, *, begun: bool, again: bool = True) -> MemoryDoor:
        self._memory_door = MemoryDoor(
            self.session,
            self.folder.path / "memory",
            self._streams,
            lambda: self._give_up("its source has ended before all of its memory was here"),
            secret,
            begun=begun,
            again=again,
        )
        return self._memory_door

    def _heed_postcopy(self, status: str) -> None:
        """QEMU's MIGRATION event.  A guest that waits for its memory waits for its source, but not
        for ever."""
        if self._memory_door is None:
            return
        self._stop_waiting()
        if self._group is not None and status == "postcopy-paused":
            self._patience = self._group.create_task(self._lose_patience())
        elif self._group is not None and status == "completed":
            self._patience = self._group.create_task(self._need_no_door(self._memory_door.fetches))
        self._memory_door.heed(status)

    async def _need_no_door(self, fetched: bool) -> None:
        """All is here.  A source whose path has broken just before may still come and ask."""
        if fetched:
            await asyncio.sleep(self._settings.recover_limit_s + PATIENCE_S)
        self._patience = None
        (self.folder.path / "door").unlink(missing_ok=True)
        await self._close_memory_door()

    async def _lose_patience(self) -> None:
        limit_s = self._settings.recover_limit_s + PATIENCE_S
        await asyncio.sleep(limit_s)
        self._patience = None
        self._give_up(f"its source was not heard of for {limit_s:.0f} s, and has the rest of it")

    def _give_up(self, reason: str) -> None:
        """It will never be whole: what runs here is ended, and nowhere is there another."""
        if self._leaving or self._group is None:
            return

        async def end() -> None:
            with suppress(HypervisorError):
                await process.kill(self.folder, self.definition.vm, self.pid)

        self.report(GuestEvent.FAILED, {"reason": reason, "running": False})
        self._group.create_task(end(), name=f"end of {self._name}")
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    async def _close_memory_door(self) -> None:
        self._stop_waiting()
        if self._memory_door is not None:
            door, self._memory_door = self._memory_door, None
            await door.close()


def _kept(folder: GuestFolder) -> tuple[str, int, str] | None:
    """Where an earlier daemon's door for its memory was, and its secret."""
    try:
        address, port, secret = json.loads((folder.path / "door").read_text())
    except (OSError, ValueError):
        return None
    return str(address), int(port), str(secret)
