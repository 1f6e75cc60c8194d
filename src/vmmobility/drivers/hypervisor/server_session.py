"""Messages between an NVE and a server's agent: in order, each once, over connections that break.

`Session` numbers what one process says to another and keeps it until the other has it; a new
connection between the same two processes goes on where the last one ended.  `Connection` is one
connection: greetings, seals, a sign of life every second.  docs/design/servers.md has the picture.

Not here: what is said (remote.py, server_agent.py), who connects (server_link.py), the frames' form
(wire/server_frames.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vmmobility.errors import DecodeError
from vmmobility.wire import server_frames as frames
from vmmobility.wire.server_frames import Greeting, Opener, Sealer, SessionKeys

SIGN_S = 1.0  # a side says something at least so often
SILENCE_S = 4.0  # a connection on which nothing was heard for so long is broken
GREET_S = 5.0  # greetings take no longer
MOST_KEPT = 100_000  # messages that the other side has not got: more are a fault

Message = Mapping[str, Any]
BROKEN = (OSError, EOFError, TimeoutError, DecodeError)
"""What ends a connection: the path, the other side, or a frame that is not its own."""


def new_instance() -> str:
    """A name for this run of a process."""
    return secrets.token_hex(16)


class Session:
    """What this process says to one process of the other side, and has heard of it.

    peer: the other process (Greeting.instance)
    """

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.heard = 0
        self.wake = asyncio.Event()
        self._kept: deque[tuple[int, Message]] = deque()
        self._number = 0
        self._sent = 0

    def post(self, message: Message) -> int:
        """Have it sent, now or when there is a connection; its number."""
        if len(self._kept) >= MOST_KEPT:
            raise AssertionError("nobody takes what is said to the other side")
        self._number += 1
        self._kept.append((self._number, message))
        self.wake.set()
        return self._number

    def was_sent(self, number: int) -> bool:
        """Whether the other side may have this message."""
        return number <= self._sent

    def blank(self, number: int) -> None:
        """Let a message that was not sent yet say nothing; its number is not used again."""
        assert not self.was_sent(number), "it may have been heard"
        self._kept = deque((n, {} if n == number else message) for n, message in self._kept)

    def acknowledged(self, number: int) -> None:
        """The other side has all up to this one."""
        while self._kept and self._kept[0][0] <= number:
            self._kept.popleft()

    def unsent(self, after: int) -> list[tuple[int, Message]]:
        """What a connection is to send that has sent all up to `after`."""
        found = [(n, message) for n, message in self._kept if n > after]
        if found:
            self._sent = max(self._sent, found[-1][0])
        return found

    def take(self, number: int) -> bool:
        """Whether a message that came is new."""
        if number != self.heard + 1:
            return False
        self.heard = number
        return True


@dataclass(frozen=True, slots=True)
class Who:
    """One side of a connection: names, and this process."""

    name: str
    peer: str
    instance: str

    def greeting(self, key: int) -> Greeting:
        return Greeting(self.name, self.peer, key, secrets.token_bytes(frames.NONCE), self.instance)


class Connection:
    """One connection, greetings exchanged."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ours: Greeting,
        theirs: Greeting,
        sealer: Sealer,
        opener: Opener,
    ) -> None:
        self.theirs = theirs
        self._goes_on = theirs.of == ours.instance
        self._reader, self._writer = reader, writer
        self._sealer, self._opener = sealer, opener
        self._proven = False

    async def prove(self) -> None:
        """Hear the first sealed frame: only now is the other side whom it says it is.

        Raises BROKEN.
        """
        self._say({})
        await self._writer.drain()
        async with asyncio.timeout(GREET_S):
            await self._hear()
        self._proven = True

    async def run(self, session: Session, hear: Callable[[Message], None]) -> None:
        """Send and hear until the connection breaks: always ends by raising one of BROKEN."""
        assert self._proven, "nothing may be said to whom has not proven who it is"
        session.acknowledged(self.theirs.heard if self._goes_on else 0)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._talk(session))
                group.create_task(self._listen(session, hear))
        except* BROKEN as errors:
            raise errors.exceptions[0] from None

    async def _talk(self, session: Session) -> None:
        sent, told = 0, -1
        while True:
            session.wake.clear()
            news = session.unsent(sent)
            for number, message in news:
                self._say({"n": number, "heard": session.heard, "m": message})
                sent, told = number, session.heard
            if not news and told != session.heard:
                self._say({"heard": session.heard})
                told = session.heard
            await self._writer.drain()
            try:
                async with asyncio.timeout(SIGN_S):
                    await session.wake.wait()
            except TimeoutError:
                told = -1

    async def _listen(self, session: Session, hear: Callable[[Message], None]) -> None:
        while True:
            async with asyncio.timeout(SILENCE_S):
                found = await self._hear()
            number, heard, message = found.get("n", 0), found.get("heard", 0), found.get("m")
            if type(number) is not int or type(heard) is not int:
                raise DecodeError("bad-value", "a frame's numbers are none")
            session.acknowledged(heard)
            if number and session.take(number):
                session.wake.set()
                if isinstance(message, dict) and message:
                    hear(message)

    def _say(self, document: Message) -> None:
        self._writer.write(self._sealer.seal(json.dumps(document, separators=(",", ":")).encode()))

    async def _hear(self) -> Message:
        return frames.read_document(self._opener.open(await _read(self._reader)))

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._writer.wait_closed()


async def _read(reader: asyncio.StreamReader) -> bytes:
    """One frame's octets.  Raises BROKEN; one that is cut off is an EOFError."""
    length = frames.length_of(await reader.readexactly(4))
    return await reader.readexactly(length)


async def greet_server(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    who: Who,
    key: tuple[int, bytes],
    known: Session | None,
) -> Connection:
    """The NVE's side of a new connection.  key: number and secret.  Raises BROKEN."""
    number, secret = key
    ours = who.greeting(number)
    if known is not None:
        ours = replace(ours, of=known.peer, heard=known.heard)
    said = ours.encode()
    writer.write(frames.frame(said))
    await writer.drain()
    async with asyncio.timeout(GREET_S):
        told = await _read(reader)
    theirs = Greeting.decode(told)
    _check(theirs, who, number)
    keys = frames.session_keys(secret, said, told)
    return Connection(reader, writer, ours, theirs, Sealer(keys.nve), Opener(keys.server))


async def greet_nve(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    who: Who,
    secret_of: Callable[[int], bytes | None],
    known: Callable[[str], Session | None],
) -> Connection:
    """The agent's side.  known: the session with an NVE's process, if there is one.

    Raises BROKEN.
    """
    async with asyncio.timeout(GREET_S):
        told = await _read(reader)
    theirs = Greeting.decode(told)
    _check(theirs, who, theirs.key)
    secret = secret_of(theirs.key)
    if secret is None:
        raise DecodeError("unknown-key", f"no key {theirs.key} of {theirs.name}")
    ours, session = who.greeting(theirs.key), known(theirs.instance)
    if session is not None:
        ours = replace(ours, of=session.peer, heard=session.heard)
    said = ours.encode()
    writer.write(frames.frame(said))
    keys: SessionKeys = frames.session_keys(secret, told, said)
    return Connection(reader, writer, ours, theirs, Sealer(keys.server), Opener(keys.nve))


def _check(theirs: Greeting, who: Who, key: int) -> None:
    if (theirs.name, theirs.peer, theirs.key) != (who.peer, who.name, key):
        what = f"{theirs.name!r} speaks to {theirs.peer!r}; {who.peer!r} and {who.name!r} are meant"
        raise DecodeError("wrong-receiver", what)
