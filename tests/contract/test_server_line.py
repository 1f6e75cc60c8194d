"""The line between an NVE and a server's agent: who may speak, what breaks, what is told once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from tests.contract.hypervisor_nodes import INTERFACE, LOOPBACK, VM, Pair, fake_nodes
from tests.contract.server_nodes import NVE, SECRET, ServerNode, at_servers
from tests.contract.waiting import until_true
from vmmobility.drivers.hypervisor import server_link
from vmmobility.drivers.hypervisor.fake import FakeHypervisor
from vmmobility.drivers.hypervisor.interface import GuestEvent, VmDefinition
from vmmobility.drivers.hypervisor.remote import RemoteHypervisor
from vmmobility.drivers.hypervisor.server_agent import ServerAgent
from vmmobility.drivers.hypervisor.server_link import ServerAddress, ServerLink
from vmmobility.engine.capacity import HostCapacity, Resources, ServerRoom
from vmmobility.engine.dataplane import port_name
from vmmobility.errors import DecodeError, HypervisorError
from vmmobility.wire import server_frames as frames
from vmmobility.wire.registry import GuestLife

DEFINITION = VmDefinition(VM, "qemu", (INTERFACE,), machine={"kernel": "/vmlinuz"})


PORT = port_name(VM, 0)


class Apart(Pair):
    """A pair whose nodes are servers."""

    source: ServerNode
    destination: ServerNode


Scenario = Callable[[Callable[[Apart], Awaitable[None]]], None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Scenario:
    monkeypatch.setattr(server_link, "UNSENT_S", 0.3)

    async def with_pair(test: Callable[[Apart], Awaitable[None]]) -> None:
        async with at_servers(DEFINITION, *fake_nodes()) as pair:
            for node in (pair.source, pair.destination):
                node.port = PORT
            await test(pair)  # type: ignore[arg-type]

    return lambda test: asyncio.run(with_pair(test))


def fake_at(node: ServerNode) -> FakeHypervisor:
    driver = node.driver()
    assert isinstance(driver, FakeHypervisor)
    return driver


def test_reports_of_a_broken_line_come_once_and_in_order(run: Scenario) -> None:
    async def scenario(pair: Apart) -> None:
        source = pair.source
        await pair.hold()
        before = source.noted("server.connected")
        assert source.agent._current is not None
        await source.agent._current.close()  # the path breaks
        await pair.source.hypervisor.switch_over(VM)
        await source.next(GuestEvent.ABOUT_TO_STOP)
        await until_true(lambda: source.noted("server.connected") > before)
        await source.hypervisor.proceed(VM)
        for event in (GuestEvent.STOPPED, GuestEvent.COMPLETED):
            await source.next(event)
        await pair.destination.next(GuestEvent.RESUMED)

    run(scenario)


def test_an_agent_that_does_not_answer_leaves_the_guest_unknown(run: Scenario) -> None:
    async def scenario(pair: Apart) -> None:
        source = pair.source
        await pair.start()
        await source.stop_agent()
        with pytest.raises(HypervisorError, match=r"server-1 does not answer"):
            await source.hypervisor.query(VM)
        with pytest.raises(HypervisorError, match=r"server-1 does not answer"):
            await source.hypervisor.adopt([pair.definition])
        assert source.reports.empty(), "nobody may say that it is gone"

    run(scenario)


SOUND = {"vm": [0, VM.vm_id], "event": "stopped", "detail": {}, "time_ns": 1}
NONSENSE: list[dict[str, Any]] = [
    {},
    {**SOUND, "event": "exploded"},
    {**SOUND, "event": ["gone"]},
    {**SOUND, "vm": [0]},
    {**SOUND, "vm": 7},
    {**SOUND, "vm": ["0", VM.vm_id]},
    {**SOUND, "vm": [0, "\ud800"]},
    {**SOUND, "detail": ["x"]},
    {**SOUND, "detail": {"reason": "\ud800"}},
    {**SOUND, "detail": {"downtime_ms": float("nan")}},
    {**SOUND, "event": "checkpoint", "detail": {"ok": True}},
    {**SOUND, "event": "checkpoint", "detail": {"ok": True, "number": 1, "age_ms": "old"}},
    {**SOUND, "event": "checkpoint-held", "detail": {"number": "one"}},
    {**SOUND, "time_ns": None},
    {key: value for key, value in SOUND.items() if key != "detail"},
]


def test_reports_that_nobody_understands_are_dropped_and_counted(run: Scenario) -> None:
    async def scenario(pair: Apart) -> None:
        source = pair.source
        await pair.start()
        connected = source.noted("server.connected")
        session = source.agent._session
        assert session is not None
        for report in NONSENSE:
            session.post({"of": "another version", **report})
        session.post(SOUND)
        await source.next(GuestEvent.STOPPED)
        assert source.link.dropped == source.noted("drop") == len(NONSENSE)
        assert source.link.connected
        assert source.noted("server.connected") == connected, "the line was kept"

    run(scenario)


@pytest.mark.parametrize("answer", ["EXPLODED", None, ["RUNNING"], 7])
def test_an_answer_that_makes_no_sense_is_an_error(
    run: Scenario, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    async def nonsense(agent: ServerAgent, arguments: object) -> object:
        return answer

    async def scenario(pair: Apart) -> None:
        await pair.start()
        for order in ("query", "orphans", "adopt", "prepare-incoming", "receive-checkpoints"):
            monkeypatch.setitem(ServerAgent._handlers, order, nonsense)
        hypervisor, vm = pair.source.hypervisor, pair.definition
        asked: list[Callable[[], Awaitable[object]]] = [
            lambda: hypervisor.query(VM),
            lambda: hypervisor.orphans([]),
            lambda: hypervisor.adopt([vm]),
            lambda: hypervisor.prepare_incoming(vm, [PORT], LOOPBACK),
            lambda: hypervisor.receive_checkpoints(vm, LOOPBACK),
        ]
        for ask in asked:
            with pytest.raises(HypervisorError, match="with nonsense"):
                await ask()

    run(scenario)


@pytest.mark.parametrize("order", [{"do": ["x"]}, {"do": "start", "with": 7}, {"with": {}}])
def test_an_order_that_makes_no_sense_ends_no_agent(run: Scenario, order: dict[str, Any]) -> None:
    async def scenario(pair: Apart) -> None:
        await until_true(lambda: pair.source.link.connected)
        assert pair.source.link._session is not None
        pair.source.link._session.post(order)
        assert await pair.source.hypervisor.query(VM) is GuestLife.NONE

    run(scenario)


def test_an_order_that_was_not_sent_is_never_carried_out_later(run: Scenario) -> None:
    async def scenario(pair: Apart) -> None:
        source = pair.source
        await until_true(lambda: source.link.connected)
        await source.stop_agent()
        await until_true(lambda: not source.link.connected)
        with pytest.raises(HypervisorError, match="does not answer"):
            await source.hypervisor.start(pair.definition, [source.port])
        source.inner.hypervisor = source.inner.reopen()
        await source.start_agent()
        assert await source.hypervisor.query(VM) is GuestLife.NONE
        assert source.taps.held == {}

    run(scenario)


def test_the_end_of_a_guest_waits_for_an_agent_that_is_away(run: Scenario) -> None:
    async def scenario(pair: Apart) -> None:
        source = pair.source
        await pair.start()
        await source.stop_agent()
        async with asyncio.TaskGroup() as group:
            stopping = group.create_task(source.hypervisor.stop(VM))
            await until_true(lambda: not source.link.connected)
            assert not stopping.done()
            source.inner.hypervisor = source.inner.reopen()
            await source.start_agent()
        assert await source.hypervisor.query(VM) is GuestLife.NONE
        assert source.taps.held == {}

    run(scenario)


def test_a_killed_agent_finds_the_guest_again(run: Scenario) -> None:
    async def scenario(pair: Apart) -> None:
        await pair.start()
        await pair.source.restart_agent()
        assert await pair.source.hypervisor.query(VM) is GuestLife.RUNNING
        await pair.source.hypervisor.pause(VM)
        assert pair.source.reports.empty()

    run(scenario)


def test_a_guest_that_ended_while_its_agent_was_away_is_reported(run: Scenario) -> None:
    async def scenario(pair: Apart) -> None:
        source = pair.source
        await pair.start()
        await source.stop_agent()
        fake_at(source).kill(VM)
        source.inner.hypervisor = source.inner.reopen()
        await source.start_agent()
        await source.next(GuestEvent.GONE)

    run(scenario)


def test_a_copy_whose_agent_was_killed_has_failed_and_the_guest_runs(run: Scenario) -> None:
    async def scenario(pair: Apart) -> None:
        await pair.hold()
        await pair.source.restart_agent()
        failed = await pair.source.next(GuestEvent.FAILED)
        assert failed.detail["running"] is True
        assert await pair.runs_at(pair.source)

    run(scenario)


def test_a_guest_that_resumed_while_its_agent_was_away_is_reported(run: Scenario) -> None:
    async def scenario(pair: Apart) -> None:
        await pair.hold()
        await pair.destination.stop_agent()
        await pair.switch()
        pair.destination.inner.hypervisor = pair.destination.inner.reopen()
        await pair.destination.start_agent()
        await pair.destination.next(GuestEvent.RESUMED)

    run(scenario)


def test_a_killed_nve_adopts_its_guests_anew(run: Scenario) -> None:
    async def scenario(pair: Apart) -> None:
        source = pair.source
        await pair.start()
        await source.restart_nve()
        assert await source.hypervisor.adopt([pair.definition]) == {VM: True}
        assert source.taps.held == {source.port: 4711}
        await source.hypervisor.stop(VM)
        assert source.taps.held == {}

    run(scenario)


def test_circuits_of_nobody_go_with_the_orphans(run: Scenario) -> None:
    async def scenario(pair: Apart) -> None:
        source = pair.source
        source.taps.held["vmt012345678.0"] = 5
        assert list(await source.hypervisor.orphans([])) == []
        assert source.taps.held == {}

    run(scenario)


# ---- who may speak -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "reason"),
    [(NVE, (1, bytes(32)), "bad-digest"), (NVE, (2, SECRET), "unknown-key"),
     ("nve-b", (1, SECRET), "wrong-receiver")],
)  # fmt: skip
def test_a_stranger_is_not_heard(
    run: Scenario, name: str, key: tuple[int, bytes], reason: str
) -> None:
    async def scenario(pair: Apart) -> None:
        source = pair.source
        await pair.start()
        address = ServerAddress(source.name, ip_address(LOOPBACK), source.port_number)
        link = ServerLink(name, address, lambda: key, lambda name, **detail: None)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(link.run())
            await until_true(lambda: source.agent.drops[reason])
            task.cancel()
        assert not link.connected
        assert source.link.connected, "the NVE's own line is not broken by a stranger"
        assert await pair.runs_at(source)

    run(scenario)


def test_a_recorded_connection_cannot_be_played_again(run: Scenario) -> None:
    async def scenario(pair: Apart) -> None:
        source = pair.source
        await pair.start()
        said = await _record(source)
        reader, writer = await asyncio.open_connection(LOOPBACK, source.port_number)
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            while await reader.read(1 << 16):
                pass
        writer.close()
        await until_true(lambda: source.agent.drops["bad-digest"])
        assert await pair.runs_at(source)

    run(scenario)


async def _record(source: ServerNode) -> bytes:
    """What an NVE says on a connection in which it ends the guest, without its agent hearing it."""
    said = bytearray()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Between them: everything is carried, and what the NVE says is kept."""
        there, back = await asyncio.open_connection(LOOPBACK, source.port_number)

        async def carry(one: asyncio.StreamReader, other: asyncio.StreamWriter, keep: bool) -> None:
            with contextlib.suppress(ConnectionError):
                while octets := await one.read(1 << 16):
                    if keep:
                        said.extend(octets)
                    other.write(octets)
            other.close()

        async with asyncio.TaskGroup() as group:
            group.create_task(carry(reader, back, True))
            group.create_task(carry(there, writer, False))

    server = await asyncio.start_server(relay, LOOPBACK, 0)
    address = ServerAddress(source.name, ip_address(LOOPBACK), server.sockets[0].getsockname()[1])
    await source.stop_link()
    link = ServerLink(NVE, address, lambda: (1, SECRET), source.note)
    async with server, asyncio.TaskGroup() as group:
        task = group.create_task(link.run())
        call = link.begin("pause", {"vm": [VM.vni, VM.vm_id]})
        await link.end(call)
        call = link.begin("resume", {"vm": [VM.vni, VM.vm_id]})
        await link.end(call)
        task.cancel()
    source.start_link()
    await source.hypervisor.adopt([DEFINITION])
    return bytes(said)


def test_frames_out_of_their_order_are_refused() -> None:
    sealer, opener = frames.Sealer(SECRET), frames.Opener(SECRET)
    first, second = (sealer.seal(b"{}")[4:] for _ in range(2))
    assert opener.open(first) == b"{}"
    for wrong in _wrong(first, second):
        with pytest.raises(DecodeError):
            opener.open(wrong)
    assert opener.open(second) == b"{}"


def _wrong(first: bytes, second: bytes) -> Iterator[bytes]:
    yield first  # again
    yield second[:-1]  # cut off
    yield second[:10]
    yield second[:8] + b"[]" + second[10:]  # changed
    skipping = frames.Sealer(SECRET)
    for _ in range(2):
        skipping.seal(b"{}")
    yield skipping.seal(b"{}")[4:]  # one is left out


def test_each_side_has_a_key_of_its_own() -> None:
    keys = frames.session_keys(SECRET, b"hello", b"you")
    others = [
        frames.session_keys(SECRET, b"hell", b"oyou"),
        frames.session_keys(SECRET, b"hello", b"me!"),
        frames.session_keys(bytes(32), b"hello", b"you"),
    ]
    made = [keys.nve, keys.server, *(k for other in others for k in (other.nve, other.server))]
    assert len(set(made)) == len(made)


def test_an_agent_tells_what_its_host_has_and_when_it_comes_and_goes(run: Scenario) -> None:
    async def scenario(pair: Apart) -> None:
        source, changes = pair.source, 0

        def changed() -> None:
            nonlocal changes
            changes += 1

        source.link.changed = changed
        await until_true(lambda: source.link.connected)
        remote = source.hypervisor
        assert isinstance(remote, RemoteHypervisor)
        told = await remote.room(used_vcpus=3)
        assert told == ServerRoom(
            "server-1", True, 8, HostCapacity(Resources(16, 4096, 100), Resources(13, 2048, 50))
        )
        source.agent._look = None  # an agent that measures nothing
        assert await remote.room(used_vcpus=3) == ServerRoom("server-1", True)
        before = changes
        await source.stop_agent()
        await until_true(lambda: not source.link.connected)
        assert changes == before + 1
        with pytest.raises(HypervisorError, match="server-1 does not answer"):
            await remote.room(used_vcpus=0)
        source.inner.hypervisor = source.inner.reopen()
        await source.start_agent()
        await until_true(lambda: source.link.connected)
        assert changes == before + 2

    run(scenario)
