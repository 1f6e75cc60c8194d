"""An NVE's line to the agent of one server: kept up, and calls over it that end once.

A call that was not sent yet can be taken back; one that was sent waits for its answer however long
the line is broken, for nobody knows what has become of it.  An agent that is another process than
before has forgotten what was under way: calls that may be repeated are, the others fail.

Not here: what is called (remote.py), the agent (server_agent.py), messages' order
(server_session.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from vmmobility.drivers.hypervisor.server_session import (
    BROKEN,
    Message,
    Session,
    Who,
    greet_server,
    new_instance,
)
from vmmobility.errors import DecodeError, HypervisorError
from vmmobility.wire.values import Address

CONNECT_S = 3.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0  # between two attempts to connect
UNSENT_S = 5.0  # a call that could not be sent for so long is taken back
_LOOK_S = 0.25  # how often a call looks whether it can still be taken back


class Note(Protocol):
    """Logs an event of the daemon itself."""

    def __call__(self, name: str, **detail: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A server of this NVE, and where its agent listens (TCP)."""

    name: str
    address: Address
    port: int


@dataclass(slots=True, eq=False)
class Call:
    """again: it may be carried out twice; changes: it does something, if it was sent."""

    do: str
    arguments: Message
    again: bool
    changes: bool
    done: asyncio.Future[Any] = field(default_factory=asyncio.Future)
    number: int = 0  # in the session; 0: not in one yet


class ServerLink:
    """The line to one server.

    key:       the pair's signing key, number and secret, as it is now
    reported:  gets what the agent reports, unasked
    changed:   told that the agent answers, or does so no more
    restarted: told that an agent answers that knows nothing yet; the calls that it makes come first
    """

    def __init__(
        self, nve: str, server: ServerAddress, key: Callable[[], tuple[int, bytes]], note: Note
    ) -> None:
        self.server = server
        self.reported: Callable[[Message], None] = lambda message: None
        self.restarted: Callable[[], None] = lambda: None
        self.changed: Callable[[], None] = lambda: None
        self._who = Who(nve, server.name, new_instance())
        self._key = key
        self._note = note
        self._session: Session | None = None
        self._calls: list[Call] = []
        self.unsent_s = UNSENT_S
        self.connected = False
        self.dropped = 0  # what it has reported and nobody understood
        self.reason = "it was not reached yet"

    async def run(self) -> None:
        """Keep the line up, until cancelled."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                await self._converse()
            except BROKEN as error:
                if self.connected:
                    pause = FIRST_PAUSE_S
                self._lost(str(error) or type(error).__name__)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _converse(self) -> None:
        server = self.server
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(str(server.address), server.port)
        try:
            connection = await greet_server(reader, writer, self._who, self._key(), self._session)
            await connection.prove()
            session = self._session_with(connection.theirs.instance)
            self.connected, self.reason = True, ""
            self._note("server.connected", server=server.name)
            self.changed()
            await connection.run(session, self._hear)
        finally:
            writer.close()

    def _lost(self, reason: str) -> None:
        if self.connected or self.reason != reason:
            self._note("server.lost", server=self.server.name, reason=reason)
        was, self.connected, self.reason = self.connected, False, reason
        if was:
            self.changed()

    def _session_with(self, instance: str) -> Session:
        if self._session is not None and self._session.peer == instance:
            return self._session
        old, self._session = self._session, Session(instance)
        calls, self._calls = self._calls, []
        if old is not None or not any(call.do == "adopt" for call in calls):
            self.restarted()
        for call in calls:
            if old is not None and call.number and old.was_sent(call.number) and not call.again:
                error = HypervisorError(
                    f"the agent of {self.server.name} was restarted while it was to {call.do}",
                    "look at the VM with `vmmob nve list`",
                )
                _fail(call, error)
            elif not call.done.done():
                self._begin(call)
        return self._session

    # ---- calls ---------------------------------------------------------------------------------

    def begin(
        self, do: str, arguments: Message, *, again: bool = True, changes: bool = True
    ) -> Call:
        """A call that is sent now, or as soon as the agent answers."""
        call = Call(do, arguments, again, changes)
        self._begin(call)
        return call

    def _begin(self, call: Call) -> None:
        self._calls.append(call)
        call.number = 0
        if self._session is not None:
            call.number = self._session.post({"do": call.do, "with": call.arguments})

    async def end(self, call: Call, *, patient: bool = False) -> Any:
        """The call's result.  It is taken back if it was not sent within `unsent_s`, or given up if
        it changes nothing; patient: never.

        Raises HypervisorError: the agent's own, or that it does not answer.
        """
        loop = asyncio.get_running_loop()
        until = None if patient else loop.time() + self.unsent_s
        while not call.done.done():
            await asyncio.wait([call.done], timeout=None if until is None else _LOOK_S)
            late = until is not None and loop.time() >= until
            if late and not call.done.done() and self._take_back(call):
                raise HypervisorError(
                    f"the agent of {self.server.name} does not answer: "
                    f"{self.reason or 'it takes too long'}",
                    f"see that `vmmob server run` runs on {self.server.name}, and its access link",
                )
        return call.done.result()

    def _take_back(self, call: Call) -> bool:
        sent = bool(call.number) and (self._session is None or self._session.was_sent(call.number))
        if sent and call.changes:
            return False
        self._calls.remove(call)
        if call.number and not sent and self._session is not None:
            self._session.blank(call.number)
        call.done.cancel()
        return True

    def _hear(self, message: Message) -> None:
        number = message.get("answer")
        if number is None:
            try:
                self.reported(message)
            except DecodeError as error:  # of an agent of another version, or a broken one
                self.dropped += 1
                self._note("drop", reason=error.reason, peer=self.server.name, words=str(error))
            return
        for call in self._calls:
            if call.number == number:
                self._calls.remove(call)
                if "error" in message:
                    words = _text(message["error"]), _text(message.get("remedy", ""))
                    _fail(call, HypervisorError(*words))
                elif not call.done.done():
                    call.done.set_result(message.get("result"))
                return


def _text(said: object) -> str:
    """Words of the agent's that may be told to other nodes."""
    return str(said).encode(errors="backslashreplace").decode()


def _fail(call: Call, error: Exception) -> None:
    if not call.done.done():
        call.done.set_exception(error)
        call.done.exception()  # seen: nobody may be waiting for it any more
