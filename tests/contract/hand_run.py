"""A QEMU as an operator runs it by hand: two monitors, one for the NVE and one for the operator."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, QMPClient

from tests.contract.waiting import until
from vmmobility.drivers.hypervisor.accelerator import find_binary


class HandRun:
    """One host's place for the guest: boot() or await_copy(), then what the operator does.

    words:   what QEMU gets besides (devices, a kernel); by default a machine without a disk
    through: the program that starts it, if it is to run elsewhere (ip netns exec NAME)
    """

    def __init__(
        self, folder: Path, words: Sequence[str] = (), through: Sequence[str] = ()
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.qmp = folder / "nve.qmp"
        self.memory = folder / "memory"
        self._hands = folder / "hands.qmp"
        self._log = folder / "qemu.log"
        self._words = list(words)
        self._through = list(through)
        self._process: subprocess.Popen[bytes] | None = None
        self._client: QMPClient | None = None

    async def boot(self, *more: str) -> None:
        """Start QEMU; return when the operator's monitor answers."""
        assert self._process is None
        command = [find_binary("qemu-system-x86_64"), "-nodefaults", "-display", "none"]
        command += ["-machine", "q35", "-accel", "tcg", "-m", "128M", "-no-reboot"]
        for monitor in (self.qmp, self._hands):
            command += ["-qmp", f"unix:{monitor},server=on,wait=off"]
        self._hands.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 (it does not wait)
                [*self._through, *command, *self._words, *more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        await until(self._connected, bool)

    async def _connected(self) -> bool:
        """Whether the operator's monitor answers; its QEMU lives."""
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        client = QMPClient("hands")
        with suppress(ConnectError):  # not yet
            await client.connect(str(self._hands))
            self._client = client
        return self._client is not None

    async def await_copy(self, *more: str) -> None:
        """Start a QEMU that waits for the guest's memory."""
        self.memory.unlink(missing_ok=True)
        await self.boot("-incoming", f"unix:{self.memory}", *more)

    async def say(self, command: str, **arguments: Any) -> Any:
        """A command at the operator's own monitor."""
        assert self._client is not None
        return await self._client.execute(command, arguments or None)

    async def status(self) -> str:
        """QEMU's run state."""
        return str((await self.say("query-status"))["status"])

    async def migrate(self, to: HandRun) -> None:
        """Send the guest there and see it through."""
        await self.say("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        await self.say("migrate", uri=f"unix:{to.memory}")

        async def status() -> Any:
            return (await self.say("query-migrate")).get("status")

        await until(status, "completed".__eq__)

    async def is_watched(self) -> bool:
        """Whether somebody is connected to the monitor that is not the operator's."""
        ends = [c["filename"] for c in await self.say("query-chardev")]
        [theirs] = [end for end in ends if str(self.qmp) in end]
        return not theirs.startswith("disconnected:")

    def signal(self, number: signal.Signals) -> None:
        """A signal to QEMU."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    @property
    def pid(self) -> int:
        """QEMU's."""
        assert self._process is not None
        return self._process.pid

    async def end(self) -> None:
        """Kill QEMU, if it runs; its sockets' names stay, as after a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._client is not None:
            client, self._client = self._client, None
            with suppress(EOFError, OSError):
                await client.disconnect()
