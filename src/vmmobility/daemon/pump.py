"""The pump: runs one engine between its inputs and the world.

Inputs come as calls; their outputs are carried out in one batch at the next turn of the event loop:
all records of the batch are written with one sync, and only then do its messages leave.
Assembly only: decisions are the engine's.  Rests on asyncio.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from vmmobility.daemon.endpoint import UdpEndpoint
from vmmobility.daemon.event_log import EventLog
from vmmobility.engine.outputs import Endpoint, Event, Halt, Output, Persist, Send
from vmmobility.errors import StoreError, Unavailable
from vmmobility.store.interface import Store
from vmmobility.wire.values import Address

Result = TypeVar("Result")


class Engine(Protocol):
    """What the pump needs of an engine (docs/architecture.md, The engine's contract)."""

    def datagram_received(
        self, data: bytes, source: Endpoint, local: Address | None, now: float
    ) -> None: ...
    def next_timer(self) -> float | None: ...
    def timer(self, now: float) -> None: ...
    def flush(self) -> list[Output]: ...
    def persisted(self, number: int) -> None: ...
    def persist_failed(self, reason: str) -> None: ...


class Pump:
    """Runs `engine`.  `perform` carries out what is neither message, record nor event."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        endpoint: UdpEndpoint,
        log: EventLog,
        perform: Callable[[Output], None],
    ) -> None:
        self._engine = engine
        self._store = store
        self._endpoint = endpoint
        self._log = log
        self._perform = perform
        self._loop = asyncio.get_running_loop()
        self._cycle_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()

    def open(self) -> None:
        """Begin to receive."""
        self._endpoint.open(self._received)
        self.input(lambda now: None)

    def input(self, feed: Callable[[float], Result]) -> Result:
        """Feed the engine; its outputs are carried out at the next turn of the loop."""
        result = feed(self._loop.time())
        if not self._cycle_due:
            self._cycle_due = True
            self._loop.call_soon(self._guarded, self._cycle)
        return result

    def command(self, feed: Callable[[float], Result]) -> Result:
        """Feed the engine and carry out its outputs at once: durable when this returns.

        Raises Unavailable if the daemon is ending: then nothing of it is durable.
        """
        if not self._ended.done():
            result = feed(self._loop.time())
            self._guarded(self._cycle)
            if not self._failed():
                return result
        raise Unavailable("the daemon is ending", "ask again when it runs; its log says why")

    def _failed(self) -> bool:
        return self._ended.done() and self._ended.exception() is not None

    async def run(self) -> None:
        """Until stop(), or the error that ended the engine.  Raises StoreError after a Halt."""
        await self._ended

    def stop(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._failed()  # an error that nobody awaits any more is no news to the event loop
        self._endpoint.close()

    def _received(self, batch: list[tuple[bytes, Endpoint, Address]]) -> None:
        def feed(now: float) -> None:
            for data, source, local in batch:
                self._engine.datagram_received(data, source, local, now)

        self._guarded(self.input, feed)

    def _guarded(self, call: Callable[..., Any], *arguments: Any) -> None:
        """An error in the engine ends the daemon (fail static) instead of going on half done."""
        if self._ended.done():
            return
        try:
            call(*arguments)
        except Exception as error:
            if not self._ended.done():
                self._ended.set_exception(error)

    def _cycle(self) -> None:
        self._cycle_due = False
        while outputs := self._engine.flush():
            for output in outputs:
                self._carry_out(output)
        self._arm()

    def _carry_out(self, output: Output) -> None:
        match output:
            case Send():
                self._endpoint.send(output)
            case Persist():
                try:
                    self._store.append(output.changes)
                except (StoreError, TypeError, ValueError) as error:
                    self._engine.persist_failed(str(error))
                else:
                    self._engine.persisted(output.number)
            case Event():
                self._log.write(output)
            case Halt():
                raise StoreError(
                    f"a record could not be made durable: {output.reason}",
                    "see to the disk, then start the daemon again; nothing was said of that record",
                )
            case _:
                self._perform(output)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = self._engine.next_timer()
        self._timer = None if due is None else self._loop.call_at(due, self._guarded, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.input(self._engine.timer)
