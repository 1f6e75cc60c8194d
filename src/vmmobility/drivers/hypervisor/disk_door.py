"""The destination's door for a guest with disks: where the source learns what to copy, and copies.

One TCP port; the first line of a connection says what it is:

    disks\n      -> {"seen": ["", NAME], "memory": PORT}\n   for each disk "": copy it, or the name
                                                              of a file beside it on shared storage;
                                                              and where QEMU takes the memory
    then sync\n  -> {"done": true}\n or {"error": WHY}\n      what has come is on the disk
    then end\n   -> the same                                  all has come, and is on the disk
    disk N\n     octets of NBD follow, to and from QEMU's server

QEMU's server has to end before the memory's last part comes, else the guest does not get its disks
(they are held by the export): so `end` waits for that.  Not here: images (disk_images.py), the
source's side (disk_copy.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Sequence
from pathlib import Path

from vmmobility.drivers.hypervisor.byte_pipe import BytePipe
from vmmobility.drivers.hypervisor.disk_images import DiskImages, node_name
from vmmobility.drivers.hypervisor.qmp import QmpSession
from vmmobility.drivers.hypervisor.streams import Doorway, Streams
from vmmobility.errors import HypervisorError

LINE_LIMIT = 256  # octets
LINE_LIMIT_S = 5.0
END_LIMIT_S = 10.0


class DiskDoor:
    """open() once QEMU waits; close() when the guest runs or is given up.

    tokens: of DiskImages.make_room()
    """

    def __init__(
        self,
        session: QmpSession,
        images: DiskImages,
        tokens: Sequence[str],
        nbd: Path,
        streams: Streams,
    ) -> None:
        self._session = session
        self._images = images
        self._tokens = list(tokens)
        self._missing = {index for index, token in enumerate(tokens) if not token}
        self._nbd = nbd
        self._loop = asyncio.get_running_loop()
        self._pipes: list[BytePipe] = []
        self._open = 0
        self._quiet = asyncio.Event()
        self._files: asyncio.Future[None] | None = None  # work on files, which no timeout ends
        self._doorway = Doorway(streams, self._enter)
        self._memory_port = 0

    async def open(self, address: str, ports: tuple[int, int], memory_port: int) -> tuple[str, int]:
        """Export the disks that are to be copied, and listen; where.  Raises HypervisorError."""
        if self._missing:
            server = {"type": "unix", "data": {"path": str(self._nbd)}}
            await self._session.execute("nbd-server-start", {"addr": server})
        for index in sorted(self._missing):
            node = node_name(index)
            export = {"type": "nbd", "id": node, "node-name": node, "name": node}
            await self._session.execute("block-export-add", {**export, "writable": True})
        self._memory_port = memory_port
        return self._doorway.open(address, ports)

    async def close(self) -> None:
        """Let nobody in, break off what is under way, wait for work on files.  Idempotent."""
        await self._doorway.close()
        for pipe in self._pipes:
            pipe.abort()
        if self._files is not None:
            await asyncio.gather(self._files, return_exceptions=True)

    async def _enter(self, connection: socket.socket) -> None:
        """One connection.  Raises what ends it."""
        async with asyncio.timeout(LINE_LIMIT_S):
            words = (await self._line(connection)).split()
        if words == ["disks"]:
            await self._say(connection, {"seen": self._tokens, "memory": self._memory_port})
            while True:
                await self._say(connection, await self._told(await self._line(connection)))
        elif len(words) == 2 and words[0] == "disk" and words[1].isdecimal():
            self._join(int(words[1]), connection)

    async def _line(self, connection: socket.socket) -> str:
        line = b""
        while not line.endswith(b"\n"):
            octet = await self._loop.sock_recv(connection, 1)  # not one more: others may read on
            if not octet or len(line) > LINE_LIMIT:
                raise ValueError(line)
            line += octet
        return line.decode(errors="replace").strip()

    async def _say(self, connection: socket.socket, words: dict[str, object]) -> None:
        await self._loop.sock_sendall(connection, json.dumps(words).encode() + b"\n")

    async def _told(self, line: str) -> dict[str, object]:
        try:
            if line == "sync":
                await self._work(self._images.sync)
            elif line == "end":
                await self._end()
            else:
                raise ValueError(line)
        except TimeoutError:
            return {"error": f"the disks' connections have not ended within {END_LIMIT_S:.0f} s"}
        except HypervisorError as error:
            return {"error": error.message}
        return {"done": True}

    async def _end(self) -> None:
        if self._missing:
            raise HypervisorError(f"disks {sorted(self._missing)} were not copied")
        if self._pipes:
            async with asyncio.timeout(END_LIMIT_S):
                await self._quiet.wait()
            await self._session.execute("nbd-server-stop")
            await self._work(self._images.whole)

    async def _work(self, work: object) -> None:
        """Do something on files in a thread; close() waits for its end, come what may."""
        assert callable(work)
        self._files = self._loop.run_in_executor(None, work)
        await asyncio.shield(self._files)

    def _join(self, index: int, far: socket.socket) -> None:
        """Let the connection's octets flow to and from QEMU's server, by threads of their own."""
        if index >= len(self._tokens) or self._tokens[index]:
            raise ValueError(index)
        near = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            near.connect(str(self._nbd))
        except OSError:
            near.close()
            raise
        self._open += 1
        self._missing.discard(index)
        self._quiet.clear()
        # A descriptor of its own: the loop still knows the other's number.
        ends = (far.dup(), near)
        self._pipes.append(BytePipe(f"disk {index} comes in", ends, self._ended))

    def _ended(self, error: str) -> None:
        """Called in a pipe's thread."""
        del error  # the source's copy fails, and says why

        def note() -> None:
            self._open -= 1
            if not self._open:
                self._quiet.set()

        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(note)
