"""The daemon's side of the relay process: start it or adopt it, order it, notice its death.

Not here: what the table should hold (plan.py).  The relay is detached on purpose: nothing here
ends it when the daemon ends.  Whether a relay lives is told by the lock on `relay.lock`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import vmmobility
from vmmobility.drivers.linux.ownership import TUN_NAME
from vmmobility.drivers.linux.relay_control import VERSION
from vmmobility.drivers.linux.relay_descriptors import (
    DESCRIPTORS,
    RelayDescriptors,
    copies_of,
    open_all,
)
from vmmobility.drivers.linux.settings import LinuxSettings
from vmmobility.errors import DataPlaneError

_START_PATIENCE_S = 60.0  # one that dies is noticed at once; on an emulated CPU it starts slowly
_STOP_PATIENCE_S = 2.0
_ANSWER_PATIENCE_S = 5.0
_POLL_S = 0.005
_LONGEST_ANSWER = 64 << 20


class Found(Enum):
    """How `ensure` came by the relay."""

    KNOWN = "known"  # connected all the time: it holds what it was told
    ADOPTED = "adopted"  # it ran before we connected: it holds what an earlier daemon told
    STARTED = "started"  # it holds nothing


class RelayClient:
    """One connection to the one relay of this state folder.

    `on_lost` is called (from the event loop) when a connected relay goes away unasked.  `carries`,
    set before the first `ensure`: whether it moves packets, or only answers neighbours, since the
    kernel tunnels carry packets.
    """

    def __init__(self, settings: LinuxSettings, on_lost: Callable[[], None]) -> None:
        self._settings = settings
        self._on_lost = on_lost
        self.carries = True
        self._socket_path = settings.state_dir / "relay.sock"
        self._lock_path = settings.state_dir / "relay.lock"
        self._log_path = settings.state_dir / "relay.log"
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: deque[asyncio.Future[dict[str, Any]]] = deque()
        self._child: subprocess.Popen[bytes] | None = None
        self._settled = False
        self._spares: RelayDescriptors | None = None

    @property
    def connected(self) -> bool:
        """Whether a relay is connected, as far as known."""
        return self._writer is not None

    def configuration(self) -> list[str]:
        """The relay's command line; an adopted relay must have the same."""
        settings = self._settings
        arguments = ["--tun", TUN_NAME] if self.carries else []
        arguments += ["--state-dir", str(settings.state_dir)]
        for version in (4, 6):
            locator = settings.locator(version)
            if locator is not None:
                arguments += [f"--ipv{version}", str(locator)]
        mac = settings.gateway_mac.hex(":")
        return [*arguments, "--gateway-mac", mac, "--gateway6", str(settings.gateway6)]

    async def ensure(self) -> Found:
        """Be connected to a relay of our configuration.

        Raises DataPlaneError with the relay's last words if it does not start.
        """
        if self.connected:
            return Found.KNOWN
        self._settled = False
        found = Found.ADOPTED if await self._adopt() else await self._replace()
        self._settled = True
        return found

    async def _adopt(self) -> bool:
        """Connect to the relay that runs, if it is one of ours and of our configuration."""
        if not await self._connect():
            return False
        try:
            hello = await self.order({"op": "hello"})
        except DataPlaneError:
            # A process that is being killed still accepts for a moment.
            return False
        alike = hello.get("configuration") == self.configuration()
        if not alike or hello.get("version") != VERSION:
            return False
        self._take_spares(hello)
        return True

    def _take_spares(self, hello: Mapping[str, Any]) -> None:
        """Copies of the adopted relay's descriptors, for its successor."""
        self._let_go_of_spares()
        if not self.carries:
            return
        with contextlib.suppress(OSError, ValueError, KeyError):  # then the next opens its own
            self._spares = copies_of(int(hello["pid"]), str(hello["descriptors"]))

    def _let_go_of_spares(self) -> None:
        if self._spares is not None:
            self._spares.close()
            self._spares = None

    async def _replace(self) -> Found:
        await self._end()
        self._start()
        deadline = asyncio.get_running_loop().time() + _START_PATIENCE_S
        while not await self._connect():
            died = self._child is not None and self._child.poll() is not None
            if died or asyncio.get_running_loop().time() > deadline:
                raise DataPlaneError(f"the relay did not start: {self._last_words()}")
            await asyncio.sleep(_POLL_S)
        return Found.STARTED

    def _start(self) -> None:
        settings = self._settings
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        command = [settings.relay_python, "-m", "vmmobility.drivers.linux.relay"]
        root = str(Path(vmmobility.__file__).parent.parent)
        inherited = os.environ.get("PYTHONPATH", "")
        environment = {**os.environ, "PYTHONPATH": f"{root}:{inherited}" if inherited else root}
        spares = self._spares_for_a_start()
        inherited_fds: tuple[int, ...] = ()
        if spares is not None:
            command_end = [DESCRIPTORS, spares.as_text()]
            inherited_fds = spares.all
        else:
            command_end = []
        with open(self._log_path, "wb") as log:
            self._child = subprocess.Popen(
                [*command, *self.configuration(), *command_end],
                pass_fds=inherited_fds,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd="/",
                start_new_session=True,
            )

    def _spares_for_a_start(self) -> RelayDescriptors | None:
        """What a new relay inherits: those that the last one had, packets waiting in them, or new
        ones.  None: it shall try itself, and say what is wrong."""
        if self._spares is not None and not self._spares.usable:
            self._let_go_of_spares()
        if self._spares is None and self.carries:
            locators = {v: str(a) for v in (4, 6) if (a := self._settings.locator(v)) is not None}
            with contextlib.suppress(OSError):
                self._spares = open_all(TUN_NAME, locators)
        return self._spares

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log_path.read_text(errors="replace").strip().splitlines()
            if lines:
                return lines[-1]
        return "it said nothing"

    async def _connect(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(
                str(self._socket_path), limit=_LONGEST_ANSWER
            )
        except OSError:
            return False
        self._writer = writer
        self._reading = asyncio.get_running_loop().create_task(
            self._read(reader), name="relay answers"
        )
        return True

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Hand each answer to the order that waits longest; the end of the stream is its death."""
        with contextlib.suppress(OSError, ValueError):
            while line := await reader.readline():
                if self._waiting:
                    future = self._waiting.popleft()
                    if not future.done():
                        future.set_result(json.loads(line))
        self._disconnect()
        if self._settled:
            self._on_lost()

    def _disconnect(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = self._reading = None
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                what = f"the relay died before it answered: {self._last_words()}"
                remedy = f"see {self._log_path}; if a relay of another state folder runs, end it"
                future.set_exception(DataPlaneError(what, remedy))

    async def order(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Send one order; answers the relay's reply.  Raises DataPlaneError if it is refused."""
        if self._writer is None:
            raise DataPlaneError("no relay is connected", "it is started by the next apply")
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._writer.write(json.dumps(content, separators=(",", ":")).encode() + b"\n")
        try:
            async with asyncio.timeout(_ANSWER_PATIENCE_S):
                reply = await future
        except TimeoutError:
            raise DataPlaneError(
                f"the relay does not answer `{content['op']}`", "see relay.log; restart it"
            ) from None
        if not reply.get("ok"):
            raise DataPlaneError(f"the relay refused `{content['op']}`: {reply.get('error')}")
        return reply

    async def close(self) -> None:
        """Let go of the relay; it works on."""
        self._let_go_of_spares()
        await self._hang_up()

    async def _hang_up(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        self._disconnect()
        if self._child is not None:
            # It is meant to outlive us: tell subprocess that nobody waits for it.
            self._child.returncode = 0
            self._child = None

    async def stop(self) -> None:
        """End the relay of this folder, politely first, and remove its files."""
        self._let_go_of_spares()
        await self._end()

    async def _end(self) -> None:
        self._settled = False
        if self.connected or await self._connect():
            with contextlib.suppress(DataPlaneError):
                await self.order({"op": "stop"})
        child = self._child
        await self._hang_up()
        begun = asyncio.get_running_loop().time()
        while (holder := self._lock_holder()) is not None:
            waited = asyncio.get_running_loop().time() - begun
            if waited > 2 * _STOP_PATIENCE_S:
                raise DataPlaneError(
                    f"the relay (process {holder}) does not end", f"end it; see {self._log_path}"
                )
            # A relay that holds the lock but has not yet written its number shows as 0.
            if waited > _STOP_PATIENCE_S and holder > 1:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(holder, signal.SIGKILL)
            await asyncio.sleep(_POLL_S)
        if child is not None:
            child.returncode = None
            await asyncio.to_thread(child.wait)
        for path in (self._socket_path, self._lock_path, self._log_path):
            path.unlink(missing_ok=True)

    def _lock_holder(self) -> int | None:
        """The process id of the living relay of this folder, or None."""
        try:
            with open(self._lock_path, "r+b") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.suppress(OSError, ValueError):
                return int(self._lock_path.read_text())
            return 0
        except OSError:
            return None
        return None
