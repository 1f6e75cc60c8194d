"""Commands that an engine ends later: each asker hears of its own, in time or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.contract.waiting import until_true
from vmmobility.daemon.commands import Commands
from vmmobility.engine.outputs import CommandDone
from vmmobility.errors import Conflict, Unavailable


class FakePump:
    def __init__(self) -> None:
        self.fed: list[int] = []

    def input(self, feed: Any) -> None:
        feed(1.0)


async def begun(commands: Commands, pump: FakePump, limit_s: float | None = None) -> Any:
    return await commands.run(pump, lambda number, now: pump.fed.append(number), limit_s)  # type: ignore[arg-type]


def test_each_asker_hears_of_its_own():
    async def run() -> list[Any]:
        commands, pump = Commands(), FakePump()
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(begun(commands, pump)) for _ in range(2)]
            await until_true(lambda: len(pump.fed) == 2)
            first, second = pump.fed
            commands.done(CommandDone(second, {"which": "second"}))
            commands.done(CommandDone(first, {"which": "first"}))
        return [task.result()["which"] for task in asked]

    assert asyncio.run(run()) == ["first", "second"]


def test_a_refusal_is_a_conflict_with_its_remedy():
    async def run() -> None:
        commands, pump = Commands(), FakePump()

        async def refused() -> None:
            with pytest.raises(Conflict, match="it is full") as caught:
                await begun(commands, pump)
            assert caught.value.remedy == "empty it"

        async with asyncio.TaskGroup() as group:
            group.create_task(refused())
            await until_true(lambda: pump.fed)
            commands.done(CommandDone(pump.fed[0], error="it is full", remedy="empty it"))

    asyncio.run(run())


def test_what_takes_too_long_is_given_up_and_its_end_is_no_news():
    async def run() -> None:
        commands, pump = Commands(), FakePump()
        with pytest.raises(Unavailable, match=r"within 0\.01 s"):
            await begun(commands, pump, 0.01)
        commands.done(CommandDone(pump.fed[0], {}))

    asyncio.run(run())


def test_an_asker_that_goes_away_leaves_nothing_behind():
    async def run() -> None:
        commands, pump = Commands(), FakePump()
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(begun(commands, pump))
            await until_true(lambda: pump.fed)
            asked.cancel()
        assert asked.cancelled()
        commands.done(CommandDone(pump.fed[0], {}))

    asyncio.run(run())
