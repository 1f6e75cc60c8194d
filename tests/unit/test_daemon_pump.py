"""The pump: a batch is one append, nothing leaves before it, and errors end the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from vmmobility.daemon.endpoint import UdpEndpoint
from vmmobility.daemon.event_log import EventLog
from vmmobility.daemon.pump import Pump
from vmmobility.engine.outputs import Endpoint, Event, HypervisorOrder, Order, Outbox, Output, Send
from vmmobility.errors import StoreError, Unavailable
from vmmobility.wire.values import Address, VmKey

VM = VmKey(0, "vm1")
PEER = Endpoint(ip_address("127.0.0.1"), 9)


class Story:
    """Everything that happened, in order: what the store, the socket and the world were told."""

    def __init__(self) -> None:
        self.lines: list[str] = []


class EchoEngine:
    """Records and answers every datagram; `fault` makes it fail as a defect would."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.due: float | None = None
        self.ticks = 0
        self.fault = ""

    def datagram_received(
        self, data: bytes, source: Endpoint, local: Address | None, now: float
    ) -> None:
        if self.fault:
            raise RuntimeError(self.fault)
        self.outbox.record(data.decode(), 1)
        self.outbox.emit(Send(data, source, local))

    def next_timer(self) -> float | None:
        return self.due

    def timer(self, now: float) -> None:
        self.ticks += 1
        self.due = None
        self.outbox.emit(Event("ticked"))

    def flush(self) -> list[Output]:
        return self.outbox.flush()

    def persisted(self, number: int) -> None:
        self.outbox.persisted(number)

    def persist_failed(self, reason: str) -> None:
        self.outbox.persist_failed(reason)


class StoryStore:
    def __init__(self, story: Story) -> None:
        self._story = story
        self.failure: Exception | None = None

    recovered = None

    def load(self) -> dict[str, Any]:
        return {}

    def append(self, changes: Any) -> None:
        if self.failure is not None:
            raise self.failure
        self._story.lines.append("append " + " ".join(key for key, _ in changes))

    def close(self) -> None:
        self._story.lines.append("closed")


class StoryEndpoint(UdpEndpoint):
    """Bound to nothing: hands over batches, notes what is sent."""

    def __init__(self, story: Story) -> None:
        super().__init__([], 8747)
        self._story = story
        self.receive: Callable[[list[tuple[bytes, Endpoint, Address]]], None]

    def open(self, receiver: Any) -> None:
        self.receive = receiver

    def send(self, output: Send) -> None:
        self._story.lines.append(f"send {output.data.decode()}")

    def batch(self, *texts: str) -> None:
        self.receive([(text.encode(), PEER, PEER.address) for text in texts])


class Rig:
    """A pump between an EchoEngine and a Story."""

    def __init__(self, tmp_path: Path) -> None:
        self.story = Story()
        self.engine = EchoEngine()
        self.store = StoryStore(self.story)
        self.endpoint = StoryEndpoint(self.story)
        self.log = EventLog("n", tmp_path / "log.json")
        perform: Callable[[Output], None] = lambda o: self.story.lines.append(type(o).__name__)  # noqa: E731
        self.pump = Pump(self.engine, self.store, self.endpoint, self.log, perform)
        self.pump.open()

    def record(self, key: str) -> Callable[[float], str]:
        def feed(now: float) -> str:
            self.engine.outbox.record(key, 1)
            self.engine.outbox.emit(HypervisorOrder(Order.START, VM))
            return key

        return feed


async def turns(count: int = 3) -> None:
    """Until what is scheduled by now has run, and what that schedules, so many deep."""
    for _ in range(count):
        ran = asyncio.Event()
        asyncio.get_running_loop().call_soon(ran.set)
        await asyncio.wait_for(ran.wait(), 5)


def play(tmp_path: Path, part: Callable[[Rig], Any]) -> Rig:
    async def whole() -> Rig:
        rig = Rig(tmp_path)
        await part(rig)
        rig.pump.close()
        rig.log.close()
        return rig

    return asyncio.run(whole())


def test_a_batch_is_one_append_and_leaves_after_it(tmp_path: Path):
    async def part(rig: Rig) -> None:
        rig.endpoint.batch("a", "b")
        rig.pump.input(rig.record("c"))
        assert rig.story.lines == []
        await turns()

    rig = play(tmp_path, part)
    assert rig.story.lines == ["append a b c", "send a", "send b", "HypervisorOrder"]


def test_a_command_is_durable_when_it_returns(tmp_path: Path):
    async def part(rig: Rig) -> None:
        assert rig.pump.command(rig.record("c")) == "c"
        assert rig.story.lines == ["append c", "HypervisorOrder"]

    play(tmp_path, part)


def test_a_command_that_raises_says_so_and_ends_nothing(tmp_path: Path):
    def refuse(now: float) -> None:
        raise ValueError("refused")

    async def part(rig: Rig) -> None:
        with pytest.raises(ValueError, match="refused"):
            rig.pump.command(refuse)
        rig.endpoint.batch("a")
        await turns()
        assert rig.story.lines == ["append a", "send a"]

    play(tmp_path, part)


@pytest.mark.parametrize("failure", [StoreError("disk full"), TypeError("no JSON"), ValueError()])
def test_a_record_that_is_not_durable_ends_the_daemon_in_silence(
    tmp_path: Path, failure: Exception
):
    async def part(rig: Rig) -> None:
        rig.store.failure = failure
        rig.endpoint.batch("a", "b")
        with pytest.raises(StoreError, match="could not be made durable"):
            await asyncio.wait_for(rig.pump.run(), 5)
        rig.store.failure = None
        rig.endpoint.batch("c")
        await turns()

    assert play(tmp_path, part).story.lines == []


def test_a_command_that_is_not_durable_is_not_answered(tmp_path: Path):
    async def part(rig: Rig) -> None:
        rig.store.failure = StoreError("disk full")
        for _ in range(2):
            with pytest.raises(Unavailable, match="ending"):
                rig.pump.command(rig.record("c"))
        with pytest.raises(StoreError):
            await rig.pump.run()

    assert play(tmp_path, part).story.lines == []


def test_an_error_in_the_engine_ends_the_daemon(tmp_path: Path):
    async def part(rig: Rig) -> None:
        rig.engine.fault = "defect"
        rig.endpoint.batch("a")
        with pytest.raises(RuntimeError, match="defect"):
            await asyncio.wait_for(rig.pump.run(), 5)

    assert play(tmp_path, part).story.lines == []


def test_an_error_while_an_output_is_carried_out_ends_the_daemon(tmp_path: Path):
    def fail(event: Event) -> None:
        raise ZeroDivisionError

    async def part(rig: Rig) -> None:
        rig.engine.outbox.emit(Event("told"))
        rig.log.subscribe(fail)
        rig.pump.input(lambda now: None)
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(rig.pump.run(), 5)

    play(tmp_path, part)


def test_stopping_ends_in_order_and_nothing_leaves_any_more(tmp_path: Path):
    async def part(rig: Rig) -> None:
        rig.endpoint.batch("a")
        rig.pump.stop()
        rig.pump.stop()
        await asyncio.wait_for(rig.pump.run(), 5)
        await turns()
        with pytest.raises(Unavailable):
            rig.pump.command(rig.record("c"))

    assert play(tmp_path, part).story.lines == []


def test_the_timer_is_armed_anew_after_every_batch(tmp_path: Path):
    async def part(rig: Rig) -> None:
        ticked = asyncio.Event()
        rig.log.subscribe(lambda event: ticked.set())
        now = asyncio.get_running_loop().time()
        rig.engine.due = now + 3600
        rig.pump.input(lambda now: None)
        await turns()
        rig.engine.due = now
        rig.pump.input(lambda now: None)
        await asyncio.wait_for(ticked.wait(), 5)
        assert rig.engine.ticks == 1

    play(tmp_path, part)
