"""Post-copy, the source's side: the guest runs at the destination and fetches what it lacks.

From QEMU's `postcopy-active` on, no memory is whole anywhere until the destination has all of it.
So the source never lets its guest run again (a mark in its folder says so to later daemons), and a
path that breaks ends nothing: both QEMUs pause, and Fetch connects them again until that succeeds
or the limit is over.  What it says at the destination's door is in memory_door.py.

Not here: when post-copy begins (move.py).  Rests on qmp.py, copy_stream.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmmobility.drivers.hypervisor import private_files
from vmmobility.drivers.hypervisor.copy_stream import CopyStream
from vmmobility.drivers.hypervisor.qmp import QmpSession
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.drivers.hypervisor.stall import Broken
from vmmobility.drivers.hypervisor.streams import Streams
from vmmobility.errors import HypervisorError

LOOK_S = 0.2
AGAIN_S = 1.0  # a lost destination is looked for so often
DRAIN_LIMIT_S = 1.0
ANSWER_LIMIT_S = 10.0
LINE_LIMIT = 64
FD_NAME = "vmmobility-again"
AGAIN, LOST, GO, WHOLE = b"again", b"lost", b"go\n", b"whole\n"


def line(word: bytes, secret: str) -> bytes:
    """What is said at a door: AGAIN or LOST, by one who knows the move's secret."""
    return word + b" " + secret.encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Far:
    """What a source needs to speak to its destination's door, and to say that it has ended.

    secret: of the move; alive: whether the source's QEMU process lives
    """

    secret: str
    alive: Callable[[], bool]


class Fetch:
    """run() returns once the destination has all, and raises Broken when it never will.

    A QEMU that does not answer, or whose monitor is lost for a moment, still has what is missing
    there: only when its process has ended, or its migration failed, is that said to be lost.

    at:      the door of the destination
    over:    set when QEMU's migration has ended; outcome() says how
    stream:  what carried the copy until now; None after a daemon's restart
    """

    def __init__(
        self,
        guest: str,
        session: QmpSession,
        at: tuple[str, int],
        far: Far,
        settings: QemuSettings,
        over: asyncio.Event,
        outcome: Callable[[], str],
        stream: CopyStream | None,
    ) -> None:
        self._guest = guest
        self._session = session
        self._at = at
        self._far = far
        self._settings = settings
        self._over = over
        self._outcome = outcome
        self._stream = stream
        self._lost_at: float | None = None if stream is not None else time.monotonic()
        self._silent_at: float | None = None  # since then QEMU has not answered
        self._next_at = 0.0

    async def run(self) -> None:
        while not self._over.is_set():
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._over.wait()
            except TimeoutError:
                pass
            else:
                break
            try:
                if await self._look():
                    return
                self._silent_at = None
            except HypervisorError as error:
                await self._not_answered(error)
        if self._outcome() != "completed":
            await self._say_lost()
            raise Broken("the source's QEMU has failed while the rest of its memory was fetched")

    async def _look(self) -> bool:
        """Go on if the path has broken; whether the destination has all already."""
        if self._stream is not None and self._stream.failed:
            await self._let_pause(self._stream)
            self._stream = None
        status = (await self._session.execute("query-migrate")).get("status", "")
        if status == "postcopy-active" and self._stream is None and self._lost_at is None:
            return False  # it goes on, over a connection of QEMU's own
        if status != "postcopy-paused" and self._stream is not None:
            return False
        now = time.monotonic()
        self._lost_at = self._lost_at or now
        if now - self._lost_at > self._settings.recover_limit_s:
            raise Broken(
                f"{self._at[0]} could not be reached for {self._settings.recover_limit_s:.0f} "
                "s while it fetched the rest of the memory"
            )
        if now < self._next_at:
            return False
        self._next_at = now + AGAIN_S
        return await self._again(status)

    async def _not_answered(self, error: HypervisorError) -> None:
        """QEMU is asked again, over whatever connection there is by then, but not for ever."""
        if not self._far.alive():
            await self._say_lost()
            raise error
        now = time.monotonic()
        self._silent_at = self._silent_at or now
        limit_s = self._settings.recover_limit_s
        if now - self._silent_at > limit_s:
            raise Broken(
                f"the source's QEMU lives, but has not answered for {limit_s:.0f} s while the rest "
                f"of its memory was fetched: {error.message}"
            )

    async def _let_pause(self, stream: CopyStream) -> None:
        """The path is lost: have QEMU notice, but not while it begins post-copy.

        Were its stream broken in that moment, after the guest's state has left, some QEMUs would
        start the guest again.  So what it writes goes nowhere until it has sent more memory.
        """
        deadline = time.monotonic() + DRAIN_LIMIT_S
        before = await self._transferred()
        while time.monotonic() < deadline and not self._over.is_set():
            if await self._transferred() != before:
                break
            await asyncio.sleep(LOOK_S / 10)
        stream.abort()

    async def _transferred(self) -> int:
        info = await self._session.execute("query-migrate")
        return int(info.get("ram", {}).get("transferred", 0))

    async def _again(self, status: str) -> bool:
        """Try to go on; whether the destination has all already."""
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                said, connection = await asyncio.to_thread(self._knock, AGAIN)
        except (OSError, HypervisorError):
            return False
        with connection:
            if said == WHOLE:
                return True
            if said != GO or status != "postcopy-paused":
                return False
            try:
                await self._session.give_descriptor(FD_NAME, connection.fileno())
                await self._session.execute("migrate", {"uri": f"fd:{FD_NAME}", "resume": True})
            except HypervisorError:
                return False
        self._lost_at = None
        return False

    async def _say_lost(self) -> None:
        """Tell the destination that what it lacks will never come."""
        try:
            _, connection = await asyncio.to_thread(self._knock, LOST)
        except (OSError, HypervisorError):
            return
        connection.close()

    def _knock(self, word: bytes) -> tuple[bytes, socket.socket]:
        """Say a word at the door; its answer.  Blocks.  Raises OSError, HypervisorError."""
        connection = Streams.of(self._settings).connect(self._guest, *self._at)
        try:
            connection.settimeout(ANSWER_LIMIT_S)
            connection.sendall(line(word, self._far.secret))
            said = b""
            while not said.endswith(b"\n") and len(said) < LINE_LIMIT:
                octet = connection.recv(1)  # not one more: QEMU reads on
                if not octet:
                    break
                said += octet
            connection.settimeout(None)
        except BaseException:
            connection.close()
            raise
        return said, connection


class FetchedMark:
    """A file in a guest's folder: its destination has had it in post-copy, or may have."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "fetched"

    def set(self, at: tuple[str, int], secret: str) -> None:
        """On return it is durable.  Raises OSError."""
        with open(self._path, "w", opener=private_files.opener) as file:
            json.dump((*at, secret), file)
            file.flush()
            os.fsync(file.fileno())

    def unset(self) -> None:
        self._path.unlink(missing_ok=True)

    @property
    def at(self) -> tuple[str, int] | None:
        """The door where the guest fetches its memory; None if there is no mark."""
        found = self._read()
        return None if found is None else found[:2]

    @property
    def secret(self) -> str:
        """Of the move."""
        found = self._read()
        return "" if found is None else found[2]

    def _read(self) -> tuple[str, int, str] | None:
        try:
            address, port, secret = json.loads(self._path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            return ("", 0, "")  # torn: the mark is there
        return str(address), int(port), str(secret)
