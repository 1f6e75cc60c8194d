"""The destination's door for a guest with disks: where the source learns what to copy, and copies.

One TCP port; the first line of a connection says what it is:

    disks\n      -> {"copy": [true, false], "memory": PORT}\n     which disks to copy; where QEMU
                                                                  takes the memory
    then end\n   -> {"whole": true}\n or {"error": WHY}\n         all that was copied is on the disk
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

from vmmobility.drivers.hypervisor.byte_pipe import BytePipe, watch_path
from vmmobility.drivers.hypervisor.disk_images import DiskImages, node_name
from vmmobility.drivers.hypervisor.qmp import QmpSession
from vmmobility.errors import HypervisorError

LINE_LIMIT = 256  # octets
LINE_LIMIT_S = 5.0
END_LIMIT_S = 5.0


class DiskDoor:
    """open() once QEMU waits; close() when the guest runs or is given up."""

    def __init__(
        self,
        session: QmpSession,
        images: DiskImages,
        copied: Sequence[bool],
        nbd: Path,
        stall_limit_s: float,
    ) -> None:
        self._session = session
        self._images = images
        self._copied = list(copied)
        self._nbd = nbd
        self._stall_limit_s = stall_limit_s
        self._loop = asyncio.get_running_loop()
        self._pipes: list[BytePipe] = []
        self._open = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._runner: asyncio.Task[None] | None = None

    async def open(self, address: str, ports: tuple[int, int], memory_port: int) -> tuple[str, int]:
        """Export the disks that are to be copied, and listen; where.  Raises HypervisorError."""
        if any(self._copied):
            self._nbd.unlink(missing_ok=True)
            server = {"type": "unix", "data": {"path": str(self._nbd)}}
            await self._session.execute("nbd-server-start", {"addr": server})
        for index, copied in enumerate(self._copied):
            if copied:
                node = node_name(index)
                export = {"type": "nbd", "id": node, "node-name": node, "name": node}
                await self._session.execute("block-export-add", {**export, "writable": True})
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for port in range(ports[0], ports[1] + 1):
            try:
                server_socket = socket.create_server((address, port), family=family)
            except OSError:
                continue
            server_socket.setblocking(False)
            self._runner = self._loop.create_task(self._listen(server_socket, memory_port))
            return address, port
        raise HypervisorError(
            f"the ports {ports[0]} to {ports[1]} of {address} are all in use",
            "widen the range of ports for incoming guests",
        )

    async def close(self) -> None:
        """Let nobody in any more, and break off what is under way.  Idempotent."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
            self._runner = None
        for pipe in self._pipes:
            pipe.abort()

    async def _listen(self, server: socket.socket, memory_port: int) -> None:
        with server:
            async with asyncio.TaskGroup() as group:
                while True:
                    connection, _ = await self._loop.sock_accept(server)
                    group.create_task(self._enter(connection, memory_port))

    async def _enter(self, connection: socket.socket, memory_port: int) -> None:
        """One connection.  Strangers, and a source that goes away, are let go of."""
        connection.setblocking(False)
        try:
            async with asyncio.timeout(LINE_LIMIT_S):
                words = (await self._line(connection)).split()
            if words == ["disks"]:
                watch_path(connection, self._stall_limit_s)
                await self._say(connection, {"copy": self._copied, "memory": memory_port})
                if await self._line(connection) == "end":
                    await self._say(connection, await self._end())
            elif len(words) == 2 and words[0] == "disk" and words[1].isdecimal():
                connection = self._join(int(words[1]), connection)
        except (TimeoutError, OSError, ValueError):
            pass
        finally:
            connection.close()

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

    async def _end(self) -> dict[str, object]:
        try:
            async with asyncio.timeout(END_LIMIT_S):
                await self._quiet.wait()
                if any(self._copied):
                    await self._session.execute("nbd-server-stop")
                await asyncio.to_thread(self._images.whole)
        except TimeoutError:
            return {"error": f"the disks' connections have not ended within {END_LIMIT_S:.0f} s"}
        except (HypervisorError, OSError) as error:
            return {"error": str(error)}
        return {"whole": True}

    def _join(self, index: int, far: socket.socket) -> socket.socket:
        """Let the connection's octets flow to and from QEMU's server, by threads of their own.

        Answers what is left to close here.
        """
        if index >= len(self._copied) or not self._copied[index]:
            raise ValueError(index)
        watch_path(far, self._stall_limit_s)
        near = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            near.connect(str(self._nbd))
        except OSError:
            near.close()
            raise
        self._open += 1
        self._quiet.clear()
        ours = far.dup()  # the loop keeps the number of the other until it is closed
        self._pipes.append(BytePipe(f"disk {index} comes in", (ours, near), self._ended))
        return far

    def _ended(self, error: str) -> None:
        """Called in a pipe's thread."""
        del error  # the source's copy fails, and says why

        def note() -> None:
            self._open -= 1
            if not self._open:
                self._quiet.set()

        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(note)
