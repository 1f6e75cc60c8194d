"""The destination's door for the memory of a guest that may be moved in post-copy, or by TLS.

The first connection is the source's copy: QEMU gets it as it is.  If that path breaks when the
guest runs here already, both QEMUs pause and keep what they have.  A later connection says on one
line, with the secret of the move, which the source has from the manager:

    again SECRET\n  -> whole\n   all memory is here;  or
                    -> go\n      then octets of the migration follow, to and from QEMU
                    (closed)     not yet: ask again
    lost SECRET\n                the source's QEMU has ended: what is missing here will never come

`lost` counts only if something is missing, and once QEMU has paused for it: while it has all, or
still gets it, nobody's word ends a guest.
QEMU is told to recover out of band, for its main loop may wait for a page itself.
Not here: the source's side (postcopy.py).  Rests on qmp.py, byte_pipe.py.
"""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections.abc import Callable
from pathlib import Path

from vmmobility.drivers.hypervisor.byte_pipe import BytePipe
from vmmobility.drivers.hypervisor.postcopy import AGAIN, GO, LINE_LIMIT, LOST, WHOLE, line
from vmmobility.drivers.hypervisor.qmp import QmpSession
from vmmobility.drivers.hypervisor.streams import Doorway, Streams

FD_NAME = "vmmobility-incoming"
LINE_LIMIT_S = 5.0
RECOVER_LIMIT_S = 2.0
RETRY_S = 0.05


class MemoryDoor:
    """open() once QEMU waits, or when it is found again; close() when nobody may come any more.

    socket_path: a name for QEMU's socket;  on_lost: called when the source says `lost`, rightly
    secret: of the move
    begun: QEMU has its copy, or has had it;  again: the source may come again, as in post-copy;
    else nobody is let in when QEMU has its copy
    """

    def __init__(
        self,
        session: QmpSession,
        socket_path: Path,
        streams: Streams,
        on_lost: Callable[[], None],
        secret: str,
        *,
        begun: bool = False,
        again: bool = True,
    ) -> None:
        self.fetches = False  # the guest was let run before all of its memory was here
        self._status = ""  # of QEMU's migration, as its events tell
        self._told_lost = False
        self._secret = secret
        self._session = session
        self._socket_path = socket_path
        self._on_lost = on_lost
        self._again = again
        self._begun = begun
        self._pipe: BytePipe | None = None
        self._loop = asyncio.get_running_loop()
        self._doorway = Doorway(streams, self._enter)
        self._turn = asyncio.Lock()

    def open(self, address: str, ports: tuple[int, int]) -> tuple[str, int]:
        """Listen; where.  Raises HypervisorError."""
        return self._doorway.open(address, ports)

    def heed(self, status: str) -> None:
        """QEMU's migration has this status now."""
        self._status = status
        self.fetches = self.fetches or status.startswith("postcopy")
        if status == "postcopy-paused" and self._told_lost:
            self._on_lost()

    async def close(self) -> None:
        """Let nobody in.  Idempotent."""
        await self._doorway.close()
        if self._pipe is not None:
            self._pipe.abort()

    async def _enter(self, connection: socket.socket) -> bool:
        """One connection.  QEMU hears of one after another, but who says nothing holds up nobody.

        Raises what ends it.
        """
        async with self._turn:
            later = self._begun
            if not later:
                await self._session.give_descriptor(FD_NAME, connection.fileno())
                await self._session.execute("migrate-incoming", {"uri": f"fd:{FD_NAME}"})
                self._begun = True
        if later and self._again:
            async with asyncio.timeout(LINE_LIMIT_S):
                said = await self._line(connection)
            async with self._turn:
                await self._heed_line(said, connection)
        return not self._again

    async def _heed_line(self, said: bytes, connection: socket.socket) -> None:
        if not self._secret:
            return  # nobody can show that it comes from the source
        if hmac.compare_digest(said, line(LOST, self._secret)):
            self._told_lost = True
            self.heed(self._status)
        elif not hmac.compare_digest(said, line(AGAIN, self._secret)):
            return
        elif self._status == "completed":
            await self._loop.sock_sendall(connection, WHOLE)
        elif self._status == "postcopy-paused":
            await self._recover(connection)

    async def _line(self, connection: socket.socket) -> bytes:
        said = b""
        while not said.endswith(b"\n") and len(said) < LINE_LIMIT:
            octet = await self._loop.sock_recv(connection, 1)
            if not octet:
                break
            said += octet
        return said

    async def _recover(self, connection: socket.socket) -> None:
        """Let QEMU take the rest by this connection."""
        if self._pipe is not None:
            self._pipe.abort()
        self._socket_path.unlink(missing_ok=True)
        uri = f"unix:{self._socket_path}"
        await self._session.execute("migrate-recover", {"uri": uri}, out_of_band=True)
        near = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            async with asyncio.timeout(RECOVER_LIMIT_S):
                await self._join(near)
                await self._loop.sock_sendall(connection, GO)
        except BaseException:
            near.close()
            raise
        # A descriptor of its own: the loop still knows the other's number.
        ends = (connection.dup(), near)
        self._pipe = BytePipe("memory comes in again", ends, lambda error: None)

    async def _join(self, near: socket.socket) -> None:
        near.setblocking(False)
        while True:
            try:
                await self._loop.sock_connect(near, str(self._socket_path))
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(RETRY_S)
            else:
                return
