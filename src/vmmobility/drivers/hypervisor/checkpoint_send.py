"""The primary's connection to a standby's door: what it has, and a checkpoint's files to it.

The conversation is told in checkpoint_door.py.  Every method blocks; abort() from another thread
ends it.  Not here: how a checkpoint is taken (checkpoint_take.py).  Rests on sockets.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmmobility.drivers.hypervisor.checkpoint_store import CHUNK
from vmmobility.drivers.hypervisor.streams import Streams
from vmmobility.errors import HypervisorError

HELLO_LIMIT_S = 30.0  # the standby may be merging an earlier one
COMPLETE_LIMIT_S = 120.0  # its disks may be slow


@dataclass(frozen=True, slots=True)
class CheckpointTarget:
    """A standby's door: where it is, and the token that it wants to see."""

    address: str
    port: int
    token: str


class CheckpointConnection:
    """hello(), then send() for each checkpoint; close().  Raise HypervisorError."""

    def __init__(self, guest: str, target: CheckpointTarget, streams: Streams) -> None:
        self._guest = guest
        self._target = target
        self._streams = streams
        self._connection: socket.socket | None = None
        self._aborted = False

    def hello(self) -> tuple[str, int]:
        """The store's name, and the number of its last complete checkpoint (0: none)."""
        where = f"{self._target.address} port {self._target.port}"
        name = f"{self._guest}'s checkpoints"
        self._connection = self._streams.connect(name, self._target.address, self._target.port)
        if self._aborted:
            self.abort()
        try:
            self._say({"token": self._target.token})
            said = self._hear(HELLO_LIMIT_S)
            if "error" in said:
                raise HypervisorError(
                    f"{self._guest}: its standby at {where}: {said['error']}",
                    str(said.get("remedy", "")),
                )
            return str(said["store"]), int(said["last"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HypervisorError(
                f"{self._guest}: its standby at {where} does not take its checkpoints: {error}",
                "protect the VM anew",
            ) from None

    def send(
        self, number: int, base: int | None, parts: Sequence[tuple[str, Path]], bytes_per_s: int
    ) -> int:
        """Send a checkpoint; on return it is complete at the standby.  How many octets it was."""
        sizes = [path.stat().st_size for _, path in parts]
        listed = [[name, size] for (name, _), size in zip(parts, sizes, strict=True)]
        try:
            self._say({"checkpoint": number, "base": base, "parts": listed})
            total = self._send_files([path for _, path in parts], bytes_per_s)
            said = self._hear(COMPLETE_LIMIT_S)
        except (OSError, ValueError) as error:
            raise HypervisorError(
                f"{self._guest}: checkpoint {number} has not reached its standby: {error}",
                "see that the standby's NVE runs and the path is open",
            ) from None
        if said.get("complete") != number:
            why = str(said.get("error", "no reason given"))
            raise HypervisorError(f"{self._guest}: its standby: {why}", str(said.get("remedy", "")))
        return total

    def abort(self) -> None:
        """Break the connection off, also for whoever waits in it.  Idempotent."""
        self._aborted = True
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of it."""
        self.abort()
        if self._connection is not None:
            self._connection.close()

    def _send_files(self, paths: Sequence[Path], bytes_per_s: int) -> int:
        assert self._connection is not None
        total, check, begun = 0, 0, time.monotonic()
        self._connection.settimeout(None)  # a path that is cut breaks by TCP
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                while octets := os.read(descriptor, CHUNK):
                    check = zlib.crc32(octets, check)
                    self._connection.sendall(octets)
                    total += len(octets)
                    time.sleep(max(0.0, begun + total / bytes_per_s - time.monotonic()))
            finally:
                os.close(descriptor)
        self._say({"sum": check})
        return total

    def _say(self, words: dict[str, Any]) -> None:
        assert self._connection is not None
        self._connection.sendall(json.dumps(words).encode() + b"\n")

    def _hear(self, limit_s: float) -> dict[str, Any]:
        assert self._connection is not None
        self._connection.settimeout(limit_s)
        line = b""
        while not line.endswith(b"\n"):
            part = self._connection.recv(4096)
            if not part:
                raise OSError("it has closed the connection")
            line += part
        said = json.loads(line)
        if not isinstance(said, dict):
            raise ValueError(f"it says {said!r}")
        return said
