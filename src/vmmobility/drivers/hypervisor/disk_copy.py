"""The source's side of a guest's disks in a move: whole images first, then every write mirrored.

QEMU mirrors each disk into a socket of ours, whose octets go on to the destination's door
(disk_door.py, which says what is spoken there).  Section 6: "the whole disk image is transferred
while VM continues to run"; later writes reach both ends before the guest hears that they are done,
so at the switch nothing is left but to end the mirrors.  Not here: memory (move.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any

from vmmobility.drivers.hypervisor.byte_pipe import BytePipe
from vmmobility.drivers.hypervisor.disk_images import DiskImages, node_name
from vmmobility.drivers.hypervisor.qmp import QmpSession
from vmmobility.drivers.hypervisor.settings import MIB, QemuSettings
from vmmobility.drivers.hypervisor.stall import Answers, Broken
from vmmobility.drivers.hypervisor.streams import Streams
from vmmobility.errors import HypervisorError

ASK_LIMIT_S = 3.0
END_LIMIT_S = 12.0  # with the guest stopped; the door's own limit comes first
CLEAN_LIMIT_S = 5.0
POLL_S = 0.002
LOOK_S = 0.5
_JOB, _TARGET = "mirror", "copy"  # with the disk's number: of QEMU's jobs and nodes, all ours
_GOING_ON = ("created", "running", "ready", "standby")


class DiskCopy:
    """One move's disks.  ask(), start(), look() until it is true, sync(), finish(); or abort().

    folder: of the guest, for sockets; pace_bytes_per_s: of each disk
    """

    def __init__(
        self,
        guest: str,
        session: QmpSession,
        images: DiskImages,
        folder: Path,
        settings: QemuSettings,
        pace_bytes_per_s: int,
    ) -> None:
        self._guest = guest
        self._session = session
        self._images = images
        self._folder = folder
        self._settings = settings
        self._pace_bytes_per_s = pace_bytes_per_s
        self._door: socket.socket | None = None
        self._target = ("", 0)
        self._pipes: list[BytePipe] = []
        self._tokens: list[str] = []
        self._aborted = False
        self._answers = Answers(settings.disk_hang_limit_s)
        self.done = self.total = 0  # octets

    async def ask(self, address: str, port: int) -> int:
        """Learn from the door which disks are to be copied; the port that takes the memory.

        Raises HypervisorError if nobody is there, or not a door for these disks.
        """
        self._target = (address, port)
        self._door = await asyncio.to_thread(self._connect)
        self._door.setblocking(False)
        try:
            async with asyncio.timeout(ASK_LIMIT_S):
                said = await self._exchange("disks")
            if "error" in said:
                where = f"{self._guest}: {address} port {port}"
                raise HypervisorError(f"{where}: {said['error']}", str(said.get("remedy", "")))
            self._tokens = [str(name) for name in said["seen"]]
            memory = int(said["memory"])
        except (OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
            raise HypervisorError(
                f"{self._guest}: {address} port {port} does not answer for its disks: {error}",
                "see that both NVEs run the same version",
            ) from None
        if len(self._tokens) != len(self._images.disks):
            raise HypervisorError(f"{self._guest}: the destination knows other disks")
        await asyncio.to_thread(self._images.sees, self._tokens)
        return memory

    async def start(self) -> None:
        """Begin to copy.  Raises HypervisorError."""
        try:
            async with asyncio.timeout(CLEAN_LIMIT_S):
                await remove_mirrors(self._session)  # an earlier daemon may have left some
        except TimeoutError:
            raise HypervisorError(
                f"{self._guest}: an earlier copy of its disks does not end", "look at its QEMU"
            ) from None
        await self._check_sizes()
        for index in self._copied:
            try:
                await self._join(index)
            except OSError as error:
                raise HypervisorError(
                    f"{self._guest}: disk {index} cannot be copied: {error}"
                ) from None
            await self._session.execute(
                "blockdev-mirror",
                {
                    "job-id": f"{_JOB}{index}",
                    "device": node_name(index),
                    "target": f"{_TARGET}{index}",
                    "sync": "full",
                    "copy-mode": "write-blocking",
                    "speed": self._pace_bytes_per_s,
                    "auto-dismiss": False,
                },
            )

    async def look(self) -> bool:
        """See how far it is (`done`, `total`); whether all of it is there, and every further write
        goes to both ends.  Raises Broken if a mirror has failed, or what was written is not taken,
        HypervisorError."""
        jobs = await _jobs(self._session)
        mine = [jobs.get(f"{_JOB}{index}", {}) for index in self._copied]
        for index, job in zip(self._copied, mine, strict=True):
            if job.get("status") not in _GOING_ON:
                why = job.get("error", "its connection was lost")
                raise Broken(f"disk {index} was not copied: {why}")
        self.done = sum(int(job["current-progress"]) for job in mine)
        self.total = sum(int(job["total-progress"]) for job in mine)
        self._answers.seen(self.done, self.total)
        return all(job["status"] == "ready" for job in mine)

    async def sync(self) -> None:
        """Have the destination put what it has on its disk, so that little is left for the switch.

        Raises Broken, HypervisorError.
        """
        if not self._copied:
            return
        telling = asyncio.get_running_loop().create_task(
            self._tell("sync", self._settings.disk_stall_limit_s)
        )
        try:
            while not (await asyncio.wait({telling}, timeout=LOOK_S))[0]:
                await self.look()
            await telling
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    async def finish(self) -> None:
        """With the guest stopped: end the mirrors; on return the destination has all of it, on its
        disk, and the images here are old.  Raises Broken, HypervisorError."""
        if not self._copied:
            return
        try:
            async with asyncio.timeout(END_LIMIT_S):
                for index in self._copied:
                    # Of a mirror that is ready this is its good end.
                    await self._session.execute("block-job-cancel", {"device": f"{_JOB}{index}"})
                for index in self._copied:
                    await self._good_end(index)
                await self._tell("end", END_LIMIT_S)
        except TimeoutError:
            raise Broken(f"the disks have not ended within {END_LIMIT_S:.0f} s") from None
        self._check_aborted()
        await asyncio.to_thread(self._images.handed, self._tokens)
        self._check_aborted()

    async def taken_back(self) -> None:
        """The guest runs here again: the images here are its own.  Raises HypervisorError."""
        await asyncio.to_thread(self._images.in_use)

    async def abort(self) -> None:
        """Leave nothing of it at QEMU.  Idempotent; never raises."""
        self._aborted = True
        self.break_off()
        with contextlib.suppress(HypervisorError, TimeoutError):
            async with asyncio.timeout(CLEAN_LIMIT_S):
                await remove_mirrors(self._session)

    def break_off(self) -> None:
        """Break the connections off; whoever waits for one hears of it.  Idempotent."""
        for pipe in self._pipes:
            pipe.abort()  # a mirror whose path is cut would wait for it
        if self._door is not None:
            with contextlib.suppress(OSError):
                self._door.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of everything; nobody waits for anything."""
        self.break_off()
        if self._door is not None:
            self._door.close()
            self._door = None

    # -- inside ----------------------------------------------------------------------------------

    @property
    def _copied(self) -> list[int]:
        return [index for index, token in enumerate(self._tokens) if not token]

    def _check_aborted(self) -> None:
        if self._aborted:
            raise Broken("given up")

    async def _check_sizes(self) -> None:
        found = await self._session.execute("query-named-block-nodes")
        sizes = {node["node-name"]: node["image"]["virtual-size"] for node in found}
        for index in self._copied:
            disk, size = self._images.disks[index], int(sizes.get(node_name(index), 0))
            if size != disk.size_mib * MIB:
                raise HypervisorError(
                    f"{self._guest}: disk {self._images.paths[index]} has {size} octets, but its "
                    f"definition says {disk.size_mib} MiB",
                    "correct size_mib; a copy would not fit",
                )

    async def _good_end(self, index: int) -> None:
        """Wait for the mirror's end, and let go of its target.  Raises Broken for any other end."""
        name = f"{_JOB}{index}"
        while (job := (await _jobs(self._session)).get(name, {})).get("status") != "concluded":
            if not job or self._aborted:
                raise Broken(f"disk {index} was not copied: its mirror was ended")
            await asyncio.sleep(POLL_S)
        if "error" in job:
            raise Broken(f"disk {index} was not copied: {job['error']}")
        await self._session.execute("job-dismiss", {"id": name})
        await self._session.execute("blockdev-del", {"node-name": f"{_TARGET}{index}"})

    async def _tell(self, word: str, limit_s: float) -> None:
        try:
            async with asyncio.timeout(limit_s):
                said = await self._exchange(word)
        except (OSError, ValueError) as error:
            raise Broken(f"the destination does not answer for its disks: {error}") from None
        except TimeoutError:
            raise Broken(f"the destination's disks are not done within {limit_s:.0f} s") from None
        if said.get("done") is not True:
            raise Broken(f"the destination's disks: {said.get('error', 'no reason given')}")

    async def _exchange(self, word: str) -> dict[str, Any]:
        """Say a word at the door; its answer.  Raises OSError, ValueError."""
        self._check_aborted()
        door, loop = self._door, asyncio.get_running_loop()
        assert door is not None
        await loop.sock_sendall(door, word.encode() + b"\n")
        line = b""
        while not line.endswith(b"\n"):
            part = await loop.sock_recv(door, 4096)
            if not part:
                raise OSError("it has closed the connection")
            line += part
        said = json.loads(line)
        if not isinstance(said, dict):
            raise ValueError(f"it says {said!r}")
        return said

    def _connect(self) -> socket.socket:
        return Streams.of(self._settings).connect(self._guest, *self._target)

    async def _join(self, index: int) -> None:
        """Give QEMU the destination's disk as a node: its NBD client speaks to a socket here.

        Raises HypervisorError, OSError.
        """
        path = self._folder / f"nbd{index}"
        path.unlink(missing_ok=True)
        before = len(self._pipes)
        far = await asyncio.to_thread(self._connect)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        joining: asyncio.Task[None] | None = None
        try:
            far.sendall(b"disk %d\n" % index)
            server.bind(str(path))
            server.listen(1)
            server.setblocking(False)
            # QEMU answers only once it has spoken with the other end.
            joining = asyncio.get_running_loop().create_task(self._accept(server, far, index))
            await self._session.execute(
                "blockdev-add",
                {
                    "driver": "nbd",
                    "node-name": f"{_TARGET}{index}",
                    "server": {"type": "unix", "path": str(path)},
                    "export": node_name(index),
                    "discard": "unmap",
                },
            )
        finally:
            if joining is not None:
                joining.cancel()  # done, or QEMU has not come
                await asyncio.gather(joining, return_exceptions=True)
            server.close()
            path.unlink(missing_ok=True)
            if len(self._pipes) == before:
                far.close()

    async def _accept(self, server: socket.socket, far: socket.socket, index: int) -> None:
        near, _ = await asyncio.get_running_loop().sock_accept(server)
        name = f"disk {index} of {self._guest}"
        self._pipes.append(BytePipe(name, (near, far), lambda error: None))


async def remove_mirrors(session: QmpSession) -> None:
    """End every mirror that QEMU has, and let go of what they write to.  Raises HypervisorError."""
    while True:
        mirrors = {name: job for name, job in (await _jobs(session)).items() if _is_mirror(name)}
        for name, job in mirrors.items():
            with contextlib.suppress(HypervisorError):  # it may end of itself meanwhile
                if job["status"] == "concluded":
                    await session.execute("job-dismiss", {"id": name})
                elif job["status"] in _GOING_ON:
                    await session.execute("block-job-cancel", {"device": name, "force": True})
        if not mirrors:
            break
        await asyncio.sleep(POLL_S)
    for node in await session.execute("query-named-block-nodes"):
        name = node["node-name"]
        if name.startswith(_TARGET) and name.removeprefix(_TARGET).isdecimal():
            await session.execute("blockdev-del", {"node-name": name})


def _is_mirror(job: str) -> bool:
    return job.startswith(_JOB) and job.removeprefix(_JOB).isdecimal()


async def _jobs(session: QmpSession) -> dict[str, dict[str, Any]]:
    return {job["id"]: job for job in await session.execute("query-jobs")}
