"""The NAPT worker: orders in their order, and flows forgotten again until they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from vmmobility.daemon import napt_worker as module
from vmmobility.daemon.napt_worker import NaptWorker
from vmmobility.drivers.fake_napt_plane import FakeNaptPlane
from vmmobility.engine.napt_plane import Flow, NaptState, StaticMapping
from vmmobility.engine.outputs import DropFlows, ImportFlows, SetNapt

A, B = IPv4Address("10.1.0.5"), IPv4Address("10.1.0.6")
PUBLIC, SECOND = IPv4Address("192.0.2.5"), IPv4Address("192.0.2.6")
WORLD = IPv4Address("198.51.100.7")
UDP = 17


def flow(private: IPv4Address, public: IPv4Address) -> Flow:
    return Flow(UDP, (private, 7), (public, 7), (WORLD, 9), True, 300)


class NotedPlane(FakeNaptPlane):
    """The twin; `noted` hears of every attempt to forget flows, after it."""

    def __init__(self, noted: Callable[..., None]) -> None:
        super().__init__()
        self._noted = noted

    async def drop_flows(self, private: IPv4Address, public: IPv4Address | None = None) -> int:
        try:
            return await super().drop_flows(private, public)
        finally:
            self._noted(private)


class Rig:
    """A worker in front of the twin, and all that it answers, as (name, …)."""

    def __init__(self) -> None:
        self.plane = NotedPlane(lambda *a: self._note("dropping", *a))
        self.answers: list[tuple[Any, ...]] = []
        self._changed = asyncio.Event()
        self.worker = NaptWorker(
            self.plane,
            lambda *a: self._note("applied", *a),
            lambda *a: self._note("exported", *a),
            lambda *a: self._note("imported", *a),
            lambda *a: self._note("drifted", *a),
            lambda *a: self._note("trouble", *a),
            60.0,
        )

    def _note(self, *what: Any) -> None:
        self.answers.append(what)
        self._changed.set()

    def count(self, name: str, *begins: Any) -> int:
        whole = (name, *begins)
        return sum(answer[: len(whole)] == whole for answer in self.answers)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await self._changed.wait()
                self._changed.clear()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.01)


def play(part: Callable[[Rig], Any]) -> None:
    async def whole() -> None:
        rig = Rig()
        await rig.plane.start()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(rig.worker.run())
            await part(rig)
            assert not task.done()
            task.cancel()

    asyncio.run(asyncio.wait_for(whole(), 10))


def test_flows_that_could_not_be_forgotten_are_told_and_forgotten_later() -> None:
    async def part(rig: Rig) -> None:
        rig.plane.flows = [flow(A, PUBLIC), flow(B, SECOND)]
        for _ in range(3):
            rig.plane.fail_next(f"drop {A}", "the flow table is busy")
        rig.worker.give(DropFlows(A))
        rig.worker.give(DropFlows(B))
        await rig.until(lambda: not rig.plane.flows)
        told = [a[1] for a in rig.answers if a[0] == "trouble"]
        assert told == [f"the flows of {A} are not forgotten: the flow table is busy"] * 3
        await rig.until(lambda: rig.count("dropping", A) == 4)
        assert rig.count("dropping", B) == 1, "what is done is not done again"

    play(part)


def overtaken_by(order: SetNapt | ImportFlows) -> None:
    """What comes after it says that the address has its flows, or may have, by right."""

    async def part(rig: Rig) -> None:
        rig.plane.flows = [flow(A, PUBLIC)]
        rig.plane.fail_next(f"drop {A}")
        rig.worker.give(DropFlows(A))
        rig.worker.give(order)
        rig.plane.fail_next(f"drop {B}")
        rig.worker.give(DropFlows(B))
        await rig.until(lambda: rig.count("dropping", B) == 2)
        assert rig.count("dropping", A) == 1
        assert rig.plane.flows == [flow(A, PUBLIC)]

    play(part)


def test_flows_of_a_mapping_that_lives_again_are_not_forgotten_late() -> None:
    overtaken_by(SetNapt(NaptState(static=(StaticMapping(A, PUBLIC),)), 1))


def test_flows_that_were_handed_over_again_are_not_forgotten_late() -> None:
    overtaken_by(ImportFlows(1, (flow(A, PUBLIC),)))


@pytest.mark.parametrize(
    "order",
    [
        SetNapt(NaptState(static=(StaticMapping(A, SECOND),)), 1),
        ImportFlows(1, (flow(A, SECOND),)),
    ],
)
def test_flows_of_another_public_address_overtake_nothing(order: SetNapt | ImportFlows) -> None:
    async def part(rig: Rig) -> None:
        rig.plane.flows = [flow(A, PUBLIC), replace(flow(A, SECOND), remote=(WORLD, 10))]
        rig.plane.fail_next(f"drop {A}")
        rig.worker.give(DropFlows(A, PUBLIC))
        rig.worker.give(order)
        await rig.until(lambda: rig.count("dropping", A) == 2)
        assert {flow.public[0] for flow in rig.plane.flows} == {SECOND}

    play(part)


def test_another_state_leaves_it_to_be_done() -> None:
    async def part(rig: Rig) -> None:
        rig.plane.flows = [flow(A, PUBLIC)]
        rig.plane.fail_next(f"drop {A}")
        rig.worker.give(DropFlows(A))
        mapping = StaticMapping(A, PUBLIC)
        rig.worker.give(SetNapt(NaptState(outward=(mapping,)), 1))
        rig.worker.give(SetNapt(NaptState(static=(StaticMapping(B, SECOND),)), 2))
        rig.worker.give(ImportFlows(1, (flow(B, SECOND),)))
        await rig.until(lambda: rig.plane.flows == [flow(B, SECOND)])

    play(part)
