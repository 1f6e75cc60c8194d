"""A path at another address that looks at all octets for what should not be readable."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection
from contextlib import suppress

CHUNK = 256 * 1024
RANGE = 8  # ports


class RecordingRelay:
    """open() listens at `near` on a range of ports, each of which leads to the same at `far`.

    readable: the words that were seen;  octets: how many passed
    """

    def __init__(self, near: str, far: str, words: Collection[bytes]) -> None:
        self.readable: set[bytes] = set()
        self.octets = 0
        self._near, self._far = near, far
        self._words = words
        self._servers: list[asyncio.Server] = []

    async def open(self) -> tuple[int, int]:
        """The range of ports."""
        for first in range(40000, 49000, RANGE):
            with suppress(OSError):
                sockets = [socket.create_server((self._near, first + n)) for n in range(RANGE)]
                self._servers = [
                    await asyncio.start_server(self._carry, sock=each, limit=CHUNK)
                    for each in sockets
                ]
                return first, first + RANGE - 1
        raise AssertionError("no ports are free")

    async def _carry(self, source: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        port = back.get_extra_info("sockname")[1]
        there, out = await asyncio.open_connection(self._far, port, limit=CHUNK)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pass_on(source, out))
            group.create_task(self._pass_on(there, back))

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        longest = max(map(len, self._words))
        tail = b""
        with suppress(OSError):
            while octets := await source.read(CHUNK):
                self.octets += len(octets)
                seen = tail + octets
                self.readable |= {word for word in self._words if word in seen}
                tail = seen[-longest:]
                sink.write(octets)
                await sink.drain()
            sink.write_eof()

    def close(self) -> None:
        for server in self._servers:
            server.close()
