"""How streams between hosts are opened and taken: memory, disks, checkpoints; TLS if it is wanted.

What comes out is a connected socket of plain octets in either case (tls_pump.py), that breaks when
nothing is acknowledged for the stall limit.  Not here: what is spoken.  Rests on stream_tls.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from vmmobility.drivers.hypervisor.byte_pipe import watch_path
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.drivers.hypervisor.stream_tls import StreamTls
from vmmobility.drivers.hypervisor.tls_pump import plain_end
from vmmobility.errors import HypervisorError

CONNECT_LIMIT_S = 3.0
HANDSHAKE_LIMIT_S = 5.0
ACCEPT_RETRY_S = 0.1
TELL_S = 1.0  # of those who are refused one so often is told of
ESTABLISHED = 1  # tcp_info.tcpi_state

Refused = Callable[[str, HypervisorError], None]


def _untold(peer: str, error: HypervisorError) -> None:
    pass


class Streams:
    """Of one driver.

    stall_limit_s: a path is broken when nothing was acknowledged for so long
    tls: the folder of its certificates; None: in the clear
    refused(peer, error): called when somebody came whom TLS does not let in
    """

    def __init__(
        self, stall_limit_s: float, tls: Path | None = None, refused: Refused = _untold
    ) -> None:
        self.stall_limit_s = stall_limit_s
        self.refused = refused
        self._tls = None if tls is None else StreamTls(tls)

    @classmethod
    def of(cls, settings: QemuSettings, refused: Refused = _untold) -> Streams:
        return cls(settings.stall_limit_s, settings.tls, refused)

    @property
    def secured(self) -> bool:
        """Whether they go by TLS."""
        return self._tls is not None

    def check_door(self) -> None:
        """Raises HypervisorError where TLS is wanted and its files are no use to a door."""
        if self._tls is not None:
            self._tls.context("server")

    def connect(self, who: str, address: str, port: int) -> socket.socket:
        """To another host's door, of which `who` needs something.  Blocks.

        Raises HypervisorError if nobody is there, or TLS does not come about.
        """
        try:
            connection = socket.create_connection((address, port), timeout=CONNECT_LIMIT_S)
            watch_path(connection, self.stall_limit_s)
        except OSError as error:
            raise HypervisorError(
                f"{who}: cannot connect to {address} port {port}: {error}",
                "see that the other end waits there and the path is open",
            ) from None
        if self._tls is not None:
            connection.settimeout(HANDSHAKE_LIMIT_S)
            secured = self._tls.dial(connection, who, address, port)
            connection = plain_end(secured, f"TLS of {who}")
        connection.settimeout(None)
        return connection

    async def take(self, connection: socket.socket) -> socket.socket:
        """What has come to a door, and takes its place; not blocking.

        Raises HypervisorError, TimeoutError, OSError if TLS does not come about.
        """
        connection.setblocking(False)
        watch_path(connection, self.stall_limit_s)
        if self._tls is None:
            return connection
        descriptor = connection.fileno()
        steps = self._tls.answer(connection)
        try:
            async with asyncio.timeout(HANDSHAKE_LIMIT_S):
                while True:
                    try:
                        write = next(steps)
                    except StopIteration as end:
                        plain = plain_end(end.value, "TLS of a door")
                        break
                    await _ready(descriptor, write=write)
        finally:
            steps.close()
        plain.setblocking(False)
        return plain


async def _ready(descriptor: int, *, write: bool) -> None:
    """Return once it can be written to, or read from."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def tell() -> None:
        if not done.done():
            done.set_result(None)

    (loop.add_writer if write else loop.add_reader)(descriptor, tell)
    try:
        await done
    finally:
        (loop.remove_writer if write else loop.remove_reader)(descriptor)


def is_broken(connection: socket.socket) -> bool:
    """Whether a connection's path has been given up, or its other end closed."""
    try:
        if connection.family is not socket.AF_UNIX:
            return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != ESTABLISHED
        poll = select.poll()
        poll.register(connection, select.POLLRDHUP)
        return bool(poll.poll(0))
    except OSError:
        return True


def listen(address: str, ports: tuple[int, int]) -> socket.socket:
    """A listening socket at the first free port of the range.  Raises HypervisorError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in range(ports[0], ports[1] + 1):
        try:
            return socket.create_server((address, port), family=family)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            raise HypervisorError(
                f"cannot listen at {address} port {port}: {error.strerror}"
            ) from None
    raise HypervisorError(
        f"the ports {ports[0]} to {ports[1]} of {address} are all in use",
        "widen the range of ports for incoming guests",
    )


class Doorway:
    """Where a door lets people in.  open(), then close().

    enter(connection): called for each in a task of its own; it does not block, and is closed
    afterwards.  Who goes away, or talks nonsense (ValueError), is let go of.  Its
    answer may be True: nobody else is let in.
    """

    def __init__(
        self, streams: Streams, enter: Callable[[socket.socket], Awaitable[bool | None]]
    ) -> None:
        self._streams = streams
        self._enter = enter
        self._runner: asyncio.Task[None] | None = None
        self._tell_at = 0.0

    def open(self, address: str, ports: tuple[int, int]) -> tuple[str, int]:
        """Listen on the first free port of the range; where.  Raises HypervisorError."""
        self._streams.check_door()
        server = listen(address, ports)
        server.setblocking(False)
        self._runner = asyncio.get_running_loop().create_task(self._listen(server))
        return address, server.getsockname()[1]

    async def close(self) -> None:
        """Let nobody in, and give up who is inside.  Idempotent."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
            self._runner = None

    async def _listen(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with server:
            async with asyncio.TaskGroup() as group:
                while True:
                    try:
                        connection, peer = await loop.sock_accept(server)
                    except OSError:  # too many open files: later, perhaps
                        await asyncio.sleep(ACCEPT_RETRY_S)
                        continue
                    group.create_task(self._let_in(connection, str(peer[0])))

    async def _let_in(self, connection: socket.socket, peer: str) -> None:
        letting_go = (TimeoutError, OSError, ValueError, RuntimeError, HypervisorError)
        with contextlib.suppress(*letting_go), connection:
            try:
                plain = await self._streams.take(connection)
            except HypervisorError as error:
                self._tell(peer, error)
                return
            with plain:
                last = await self._enter(plain)
            if last and self._runner is not None:
                self._runner.cancel()

    def _tell(self, peer: str, error: HypervisorError) -> None:
        now = time.monotonic()
        if now >= self._tell_at:
            self._tell_at = now + TELL_S
            self._streams.refused(peer, error)
