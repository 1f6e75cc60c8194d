"""The source's side of a guest's disks in a move: whole images first, then every write mirrored.

QEMU mirrors each disk into a socket of ours, whose octets go on to the destination's door
(disk_door.py, which says what is spoken there).  Section 6: "the whole image" is copied while the
guest runs, and "later writes" reach both ends before the guest hears that they are done; so at the
switch nothing is left but to end the mirrors.  Not here: memory (move.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any

from vmmobility.drivers.hypervisor.byte_pipe import BytePipe, watch_path
from vmmobility.drivers.hypervisor.disk_images import MIB, DiskImages, node_name
from vmmobility.drivers.hypervisor.qmp import QmpSession
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.drivers.hypervisor.stall import Broken
from vmmobility.errors import HypervisorError

CONNECT_LIMIT_S = 3.0
END_LIMIT_S = 5.0
POLL_S = 0.02


class DiskCopy:
    """One move's disks.  ask(), start(), look() until it is true, finish(); or abort()."""

    def __init__(
        self, guest: str, session: QmpSession, images: DiskImages, folder: Path,
        settings: QemuSettings,
    ) -> None:  # fmt: skip
        self._guest = guest
        self._session = session
        self._images = images
        self._folder = folder
        self._settings = settings
        self._door: socket.socket | None = None
        self._target = ("", 0)
        self._pipes: list[BytePipe] = []
        self._begun: list[int] = []
        self.copied: list[bool] = []
        self.done = self.total = 0  # octets

    async def ask(self, address: str, port: int) -> int:
        """Learn from the door which disks are to be copied; the port that takes the memory.

        Raises HypervisorError if nobody is there, or not a door for these disks.
        """
        self._target = (address, port)
        self._door = await asyncio.to_thread(self._connect)
        self._door.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                await loop.sock_sendall(self._door, b"disks\n")
                said = json.loads(await self._line())
            self.copied = [bool(copy) for copy in said["copy"]]
            memory = int(said["memory"])
        except (OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
            raise HypervisorError(
                f"{self._guest}: {address} port {port} does not answer for its disks: {error}",
                "see that both NVEs run the same version",
            ) from None
        if len(self.copied) != len(self._images.disks):
            raise HypervisorError(f"{self._guest}: the destination knows other disks")
        return memory

    async def start(self) -> None:
        """Begin to copy.  Raises HypervisorError."""
        await self._check_sizes()
        for index, copy in enumerate(self.copied):
            if not copy:
                continue
            await self._join(index)
            self._begun.append(index)
            await self._session.execute(
                "blockdev-mirror",
                {
                    "job-id": _job(index),
                    "device": node_name(index),
                    "target": _target(index),
                    "sync": "full",
                    "copy-mode": "write-blocking",
                    "speed": self._settings.copy_bytes_per_s,
                    "auto-dismiss": False,
                },
            )

    async def look(self) -> bool:
        """See how far it is (`done`, `total`); whether all of it is there, and every further write
        goes to both ends.  Raises Broken if a mirror has failed."""
        jobs = await self._jobs()
        for index in self._begun:
            job = jobs.get(_job(index))
            if job is None or job["status"] not in ("created", "running", "ready", "standby"):
                why = (job or {}).get("error", "its connection was lost")
                raise Broken(f"disk {index} was not copied: {why}")
        mine = [jobs[_job(index)] for index in self._begun]
        self.done = sum(int(job["current-progress"]) for job in mine)
        self.total = sum(int(job["total-progress"]) for job in mine)
        return all(job["status"] == "ready" for job in mine)

    async def finish(self) -> None:
        """With the guest stopped: end the mirrors; on return the destination has all of it, on its
        disk.  Raises Broken."""
        try:
            async with asyncio.timeout(END_LIMIT_S):
                for index in self._begun:
                    # Of a mirror that is ready this is its good end.
                    await self._session.execute("block-job-cancel", {"device": _job(index)})
                for index in list(self._begun):
                    await self._ended(index)
                    await self._let_go(index)
                if self._door is not None and any(self.copied):
                    await self._confirm()
        except TimeoutError:
            raise Broken(f"the disks have not ended within {END_LIMIT_S:.0f} s") from None
        except (OSError, ValueError) as error:
            raise Broken(f"the destination has not confirmed its disks: {error}") from None
        self._images.handed(self.copied)

    async def abort(self) -> None:
        """Leave nothing of it at QEMU.  Idempotent; never raises."""
        for pipe in self._pipes:
            pipe.abort()  # a mirror whose path is cut would wait for it
        for index in list(self._begun):
            with contextlib.suppress(HypervisorError, TimeoutError):
                async with asyncio.timeout(END_LIMIT_S):
                    if _job(index) in await self._jobs():
                        with contextlib.suppress(HypervisorError):  # it has ended of itself
                            await self._session.execute(
                                "block-job-cancel", {"device": _job(index), "force": True}
                            )
                        await self._ended(index, failed=True)
                    await self._let_go(index)
        self.close()

    def close(self) -> None:
        """Let go of the door."""
        if self._door is not None:
            self._door.close()
            self._door = None

    # -- inside ----------------------------------------------------------------------------------

    async def _check_sizes(self) -> None:
        nodes = {n["node-name"]: n for n in await self._session.execute("query-named-block-nodes")}
        for index, disk in enumerate(self._images.disks):
            if self.copied[index]:
                size = int(nodes[node_name(index)]["image"]["virtual-size"])
                if size != disk.size_mib * MIB:
                    raise HypervisorError(
                        f"{self._guest}: disk {self._images.paths[index]} has {size} octets, but "
                        f"its definition says {disk.size_mib} MiB",
                        "correct size_mib; a copy would not fit",
                    )

    async def _jobs(self) -> dict[str, dict[str, Any]]:
        return {job["id"]: job for job in await self._session.execute("query-jobs")}

    async def _ended(self, index: int, *, failed: bool = False) -> None:
        """Wait for the mirror's end.  Raises Broken if it was not the good one."""
        while True:
            job = (await self._jobs()).get(_job(index))
            if job is None:
                return
            if job["status"] == "concluded":
                await self._session.execute("job-dismiss", {"id": _job(index)})
                if "error" in job and not failed:
                    raise Broken(f"disk {index} was not copied: {job['error']}")
                return
            await asyncio.sleep(POLL_S / 10)

    async def _let_go(self, index: int) -> None:
        await self._session.execute("blockdev-del", {"node-name": _target(index)})
        self._begun.remove(index)

    async def _confirm(self) -> None:
        assert self._door is not None
        await asyncio.get_running_loop().sock_sendall(self._door, b"end\n")
        said = json.loads(await self._line())
        if said.get("whole") is not True:
            raise ValueError(said.get("error", "it gave no reason"))

    async def _line(self) -> bytes:
        assert self._door is not None
        line = b""
        while not line.endswith(b"\n"):
            part = await asyncio.get_running_loop().sock_recv(self._door, 4096)
            if not part:
                raise OSError("it has closed the connection")
            line += part
        return line

    def _connect(self) -> socket.socket:
        try:
            connection = socket.create_connection(self._target, timeout=CONNECT_LIMIT_S)
        except OSError as error:
            raise HypervisorError(
                f"{self._guest}: cannot connect to {self._target[0]} port {self._target[1]}: "
                f"{error}",
                "see that the destination waits there and the path is open",
            ) from None
        watch_path(connection, self._settings.stall_limit_s)
        return connection

    async def _join(self, index: int) -> None:
        """Give QEMU the destination's disk as a node: its NBD client speaks to a socket here."""
        far = await asyncio.to_thread(self._connect)
        far.sendall(b"disk %d\n" % index)
        before = len(self._pipes)
        path = self._folder / f"nbd{index}"
        path.unlink(missing_ok=True)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(str(path))
        server.listen(1)
        server.setblocking(False)
        # QEMU answers only once it has spoken with the other end.
        joining = asyncio.get_running_loop().create_task(self._accept(server, far, index))
        try:
            await self._session.execute(
                "blockdev-add",
                {
                    "driver": "nbd",
                    "node-name": _target(index),
                    "server": {"type": "unix", "path": str(path)},
                    "export": node_name(index),
                    "discard": "unmap",
                },
            )
        finally:
            joining.cancel()  # done, or QEMU has not come
            server.close()
            path.unlink(missing_ok=True)
            if len(self._pipes) == before:
                far.close()

    async def _accept(self, server: socket.socket, far: socket.socket, index: int) -> None:
        near, _ = await asyncio.get_running_loop().sock_accept(server)
        name = f"disk {index} of {self._guest}"
        self._pipes.append(BytePipe(name, (near, far), lambda error: None))


def _job(index: int) -> str:
    return f"mirror{index}"


def _target(index: int) -> str:
    return f"copy{index}"
