"""One checkpoint of a QEMU guest: its memory and its disks of one moment, in files, then sent.

    stop -> transaction: a new bitmap a disk, a backup of what the old bitmap has -> migrate
    (background-snapshot) -> QEMU lets the guest go on by itself -> both end -> send -> complete

The backup of the disks begins (copy before write) in the same stop as the memory's snapshot, so
both are of that moment.  Both go into files here: neither a slow path nor a full standby is ever in
the way of the guest's writes.  A bitmap's name says of which store, and since which checkpoint, it
tells what has changed: whether it fits is known from what the standby says that it has, whoever of
both has crashed in between.  docs/design/hypervisor.md.

Not here: the standby's side (checkpoint_door.py), activation (checkpoint_guests.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmmobility.drivers.hypervisor import private_files
from vmmobility.drivers.hypervisor.checkpoint_send import CheckpointConnection, CheckpointTarget
from vmmobility.drivers.hypervisor.checkpoint_store import MEMORY
from vmmobility.drivers.hypervisor.disk_images import QEMU_IMG, DiskImages, node_name
from vmmobility.drivers.hypervisor.qmp import QmpSession, event_time_ns
from vmmobility.drivers.hypervisor.settings import MIB, QemuSettings
from vmmobility.drivers.hypervisor.stall import Broken
from vmmobility.drivers.hypervisor.streams import Streams
from vmmobility.errors import HypervisorError

POLL_S = 0.01
WINDOW_LIMIT_S = 5.0  # from stop to the guest's going on
TAKE_LIMIT_S = 120.0
CLEAN_LIMIT_S = 20.0
SETTLE_LIMIT_S = 10.0  # a snapshot that is given up ends of itself: cancelled, no other may follow
SPARE_BYTES = 64 * MIB  # more than it takes must be free here
FD_NAME = "vmmobility-checkpoint"
UNLIMITED_BYTES_PER_S = 1 << 40
_JOB, _STAGE, _BITMAP = "checkpoint", "stage", "ck-"
_SNAPSHOT = {"pause-before-switchover": False, "return-path": False, "events": True}
_OVER = ("completed", "failed", "cancelled")


class CheckpointTake:
    """take() once; hold_off() and abort() from outside.

    final: the guest stays stopped after it, and its QEMU counts as moved out
    """

    def __init__(
        self,
        guest: str,
        session: QmpSession,
        images: DiskImages,
        folder: Path,
        settings: QemuSettings,
        memory_mib: int,
        *,
        final: bool = False,
    ) -> None:
        self._guest = guest
        self._session = session
        self._disks = range(len(images.disks))
        self._folder = folder
        self._settings = settings
        self._memory_mib = memory_mib
        self.final = final
        self._connection: CheckpointConnection | None = None
        self._aborted = ""
        self._may_run = True  # else somebody has paused the guest meanwhile
        self._window = asyncio.Event()  # not set: QEMU may start the guest by itself
        self._window.set()
        self._stopped_ns = self._resumed_ns = 0
        self._went_on = asyncio.Event()
        self.stopped_at = 0.0  # monotonic seconds: the moment of which the checkpoint is
        self.figures: dict[str, Any] = {}

    async def take(self, target: CheckpointTarget) -> dict[str, Any]:
        """All of it; figures, once it is complete at the standby.  Raises HypervisorError, Broken:
        then the guest runs on, unless it was final or paused meanwhile."""
        begun = time.monotonic()
        self._connection = CheckpointConnection(self._guest, target, Streams.of(self._settings))
        try:
            store, last = await asyncio.to_thread(self._connection.hello)
            base = await self._choose_base(store, last)
            number = last + 1
            await self._stage()
            await self._snapshot(f"{_BITMAP}{store}-", number, base)
            await self._unstage()
            parts = [(MEMORY, self._folder / MEMORY)]
            parts += [(f"disk{i}", self._folder / f"{_STAGE}{i}") for i in self._disks]
            sizes = [path.stat().st_size for _, path in parts]
            self._check()
            await asyncio.to_thread(
                self._connection.send, number, base, parts, self._settings.copy_bytes_per_s
            )
        except TimeoutError:
            raise Broken(f"the checkpoint was not taken within {TAKE_LIMIT_S:.0f} s") from None
        except OSError as error:
            raise HypervisorError(
                f"{self._guest}: no checkpoint can be written in {self._folder}: {error.strerror}",
                "see that it can be written to and has room",
            ) from None
        finally:
            await asyncio.to_thread(self._connection.close)
            await self._clean()
        return {
            "number": number,
            "full": base is None,
            "pause_ms": self._pause_ms,
            "memory_bytes": sizes[0],
            "disk_bytes": sum(sizes[1:]),
            "total_ms": round((time.monotonic() - begun) * 1000, 1),
        }

    def on_event(self, event: Mapping[str, Any]) -> None:
        """QEMU's STOP and RESUME."""
        if event["event"] == "STOP" and not self._stopped_ns:
            self._stopped_ns = event_time_ns(event)
        elif event["event"] == "RESUME" and self._stopped_ns:
            self._resumed_ns = event_time_ns(event)
            self._went_on.set()

    async def hold_off(self) -> None:
        """Before somebody pauses the guest: on return QEMU does not start it by itself.

        Raises HypervisorError if that cannot be said.
        """
        self._may_run = False
        self.abort("the guest was paused")
        try:
            async with asyncio.timeout(WINDOW_LIMIT_S):
                await self._window.wait()
        except TimeoutError:
            raise HypervisorError(
                f"{self._guest}: QEMU is in the middle of a checkpoint, and does not come back",
                "stop the VM",
            ) from None

    def abort(self, why: str) -> None:
        """Give it up as soon as may be; take() raises."""
        self._aborted = self._aborted or why
        if self._connection is not None:
            self._connection.abort()

    # -- inside ----------------------------------------------------------------------------------

    @property
    def _pause_ms(self) -> float | None:
        if self.final or not self._resumed_ns:
            return None
        return round((self._resumed_ns - self._stopped_ns) / 1e6, 1)

    def _check(self) -> None:
        if self._aborted:
            raise Broken(self._aborted)

    async def _choose_base(self, store: str, last: int) -> int | None:
        """Since which checkpoint the disks' changes are known; None: they have to go whole.

        Bitmaps that nobody can need any more are removed.
        """
        await remove_checkpoints(self._session)
        wanted = f"{_BITMAP}{store}-{last}"
        found = await find_bitmaps(self._session)
        for node, names in found.items():
            for name in names - {wanted}:
                await self._remove_bitmap(node, name)
        fits = last and all(wanted in found.get(node_name(i), set()) for i in self._disks)
        return last if fits else None

    async def _stage(self) -> None:
        """Make the files that the checkpoint goes into, and let QEMU open those of the disks."""
        nodes = await self._session.execute("query-named-block-nodes")
        sizes = {node["node-name"]: node["image"] for node in nodes}
        needed = self._memory_mib * MIB + SPARE_BYTES
        for index in self._disks:
            image = sizes[node_name(index)]
            dirty = image.get("actual-size", image["virtual-size"])
            for bitmap in _bitmaps_of(nodes, node_name(index)):
                dirty = min(dirty, int(bitmap["count"]))
            needed += dirty
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise HypervisorError(
                f"{self._guest}: a checkpoint may take {needed // MIB} MiB in {self._folder}, and "
                f"{free // MIB} are free",
                "make room there",
            )
        for index in self._disks:
            path = self._folder / f"{_STAGE}{index}"
            path.unlink(missing_ok=True)
            size = sizes[node_name(index)]["virtual-size"]
            words = (QEMU_IMG, "create", "-q", "-f", "qcow2", str(path), str(size))
            done = await asyncio.to_thread(
                subprocess.run,
                words,
                check=False,
                capture_output=True,
                text=True,
                umask=private_files.UMASK,
            )
            if done.returncode:
                raise HypervisorError(f"{self._guest}: {path}: {done.stderr.strip()}")
            file = {"driver": "file", "filename": str(path)}
            node = {"driver": "qcow2", "node-name": f"{_STAGE}{index}", "file": file}
            await self._session.execute("blockdev-add", node)

    async def _snapshot(self, prefix: str, number: int, base: int | None) -> None:
        """The moment itself, and all until its files are whole."""
        await set_snapshot(self._session, on=not self.final)
        memory = os.open(
            self._folder / MEMORY, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
        )
        try:
            await self._session.give_descriptor(FD_NAME, memory)
        finally:
            os.close(memory)
        actions = self._disk_actions(prefix, number, base)
        if not self.final and not (await self._session.execute("query-status"))["running"]:
            raise Broken("the guest does not run")  # QEMU would start it
        self._check()
        self._window.clear()
        self.stopped_at = time.monotonic()
        try:
            await self._session.execute("stop")
            if actions:
                await self._session.execute("transaction", {"actions": actions})
            await self._session.execute("migrate", {"uri": f"fd:{FD_NAME}"})
            if not self.final:
                await self._let_go_on()
        finally:
            self._window.set()
        async with asyncio.timeout(TAKE_LIMIT_S):
            await self._await_end()

    async def _let_go_on(self) -> None:
        """Wait until QEMU has saved the devices and lets the guest go on, of its own accord."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WINDOW_LIMIT_S):
                while not self._went_on.is_set():
                    state = (await self._session.execute("query-migrate")).get("status")
                    if state in ("failed", "cancelled"):
                        raise Broken("QEMU could not take a snapshot of its memory")
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._went_on.wait(), POLL_S)
                return
        raise Broken("QEMU has not let the guest go on after the snapshot")

    async def _await_end(self) -> None:
        while True:
            self._check()
            state = await self._session.execute("query-migrate")
            jobs = await _jobs(self._session)
            for index in self._disks:
                job = jobs.get(f"{_JOB}{index}", {})
                if not job or "error" in job:
                    why = job.get("error", "its job was ended")
                    raise Broken(f"disk {index} could not be read: {why}")
            if state.get("status") in ("failed", "cancelled"):
                why = state.get("error-desc", "no reason given")
                raise Broken(f"QEMU could not write the memory: {why}")
            done = all(jobs[f"{_JOB}{index}"]["status"] == "concluded" for index in self._disks)
            if done and state.get("status") == "completed":
                return
            await asyncio.sleep(POLL_S)

    def _disk_actions(self, prefix: str, number: int, base: int | None) -> list[dict[str, Any]]:
        actions: list[dict[str, Any]] = []
        for index in self._disks:
            node = node_name(index)
            bitmap = {"node": node, "name": f"{prefix}{number}"}
            actions.append({"type": "block-dirty-bitmap-add", "data": bitmap})
            backup = {"job-id": f"{_JOB}{index}", "device": node, "target": f"{_STAGE}{index}"}
            how: dict[str, Any] = {"sync": "full"}
            if base is not None:
                # It stays as it is: it is needed again if this checkpoint comes to nothing.
                how = {"sync": "bitmap", "bitmap": f"{prefix}{base}", "bitmap-mode": "never"}
            actions.append(
                {"type": "blockdev-backup", "data": {**backup, **how, "auto-dismiss": False}}
            )
        return actions

    async def _unstage(self) -> None:
        """QEMU lets go of the files: they are whole."""
        for index in self._disks:
            await self._session.execute("job-dismiss", {"id": f"{_JOB}{index}"})
            await self._session.execute("blockdev-del", {"node-name": f"{_STAGE}{index}"})

    async def _clean(self) -> None:
        """Leave nothing but the bitmaps; the guest runs, if it may.  Never raises."""
        with contextlib.suppress(HypervisorError, TimeoutError):
            async with asyncio.timeout(CLEAN_LIMIT_S):
                await cancel_snapshot(self._session)
                await remove_checkpoints(self._session)
        if self._may_run and not self.final and self.stopped_at:
            with contextlib.suppress(HypervisorError):
                if not (await self._session.execute("query-status"))["running"]:
                    await self._session.execute("cont")
        for index in self._disks:
            (self._folder / f"{_STAGE}{index}").unlink(missing_ok=True)
        (self._folder / MEMORY).unlink(missing_ok=True)

    async def _remove_bitmap(self, node: str, name: str) -> None:
        await self._session.execute("block-dirty-bitmap-remove", {"node": node, "name": name})


async def set_snapshot(session: QmpSession, *, on: bool) -> None:
    """Have the next migration be a snapshot of the running guest, or what it was before."""
    wanted = {**_SNAPSHOT, "background-snapshot": on} if on else {"background-snapshot": False}
    listed = [{"capability": name, "state": state} for name, state in wanted.items()]
    await session.execute("migrate-set-capabilities", {"capabilities": listed})
    if not on:
        listed = [{"capability": name, "state": state} for name, state in _SNAPSHOT.items()]
        await session.execute("migrate-set-capabilities", {"capabilities": listed})
    await session.execute("migrate-set-parameters", {"max-bandwidth": UNLIMITED_BYTES_PER_S})


async def cancel_snapshot(session: QmpSession) -> None:
    """End a snapshot that is under way, and let migrations be none.  Raises HypervisorError.

    It goes to a file here, so it soon ends.  QEMU 7.2 may refuse all later ones ("not compatible
    with guest memory configuration") once one was cancelled, so that is what is done last.
    """
    asked, until = False, time.monotonic() + SETTLE_LIMIT_S
    while True:
        state = (await session.execute("query-migrate")).get("status", "")
        if state in ("", "none", *_OVER):
            break
        if not asked and time.monotonic() > until:
            asked = True
            await session.execute("migrate_cancel")
        await asyncio.sleep(POLL_S)
    listed = [{"capability": "background-snapshot", "state": False}]
    await session.execute("migrate-set-capabilities", {"capabilities": listed})


async def remove_checkpoints(session: QmpSession) -> None:
    """End the backups of a checkpoint, and let go of their files.  Raises HypervisorError."""
    while mine := {n: j for n, j in (await _jobs(session)).items() if _is_ours(n, _JOB)}:
        for name, job in mine.items():
            with contextlib.suppress(HypervisorError):  # it may end of itself meanwhile
                if job["status"] == "concluded":
                    await session.execute("job-dismiss", {"id": name})
                else:
                    await session.execute("block-job-cancel", {"device": name, "force": True})
        await asyncio.sleep(POLL_S)
    for node in await session.execute("query-named-block-nodes"):
        if _is_ours(node["node-name"], _STAGE):
            await session.execute("blockdev-del", {"node-name": node["node-name"]})


async def remove_bitmaps(session: QmpSession) -> None:
    """Nobody protects this guest any more.  Raises HypervisorError."""
    for node, names in (await find_bitmaps(session)).items():
        for name in names:
            await session.execute("block-dirty-bitmap-remove", {"node": node, "name": name})


async def find_bitmaps(session: QmpSession) -> dict[str, set[str]]:
    """Node name -> the names of our bitmaps there that have seen every write."""
    nodes = await session.execute("query-named-block-nodes")
    return {
        node["node-name"]: {
            bitmap["name"]
            for bitmap in _bitmaps_of(nodes, node["node-name"])
            if bitmap.get("recording") and not bitmap.get("inconsistent")
        }
        for node in nodes
        if _bitmaps_of(nodes, node["node-name"])
    }


def _bitmaps_of(nodes: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [
        bitmap
        for node in nodes
        if node["node-name"] == name
        for bitmap in node.get("dirty-bitmaps", [])
        if str(bitmap.get("name", "")).startswith(_BITMAP)
    ]


def _is_ours(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and name.removeprefix(prefix).isdecimal()


async def _jobs(session: QmpSession) -> dict[str, dict[str, Any]]:
    return {job["id"]: job for job in await session.execute("query-jobs")}
