"""The in-memory hypervisor's own: it fails, and breaks moves, where a test tells it to."""

from __future__ import annotations

import asyncio

import pytest

from tests.contract.hypervisor_nodes import (
    LOOPBACK,
    VM,
    Pair,
    definition,
    fake_nodes,
)
from vmmobility.drivers.hypervisor.fake import FakeHypervisor
from vmmobility.drivers.hypervisor.interface import (
    GuestEvent,
)
from vmmobility.errors import HypervisorError


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("start", 2), ("prepare_incoming", 3), ("stop", 1), ("pause", 1), ("copy_out", 3)],
)
def test_the_twin_fails_once_when_told_to(method: str, arguments: int) -> None:
    async def scenario() -> None:
        fake = FakeHypervisor(lambda report: None)
        fake.fail_next[method] = "no room"
        first = definition() if method in ("start", "prepare_incoming") else VM
        extra: tuple[object, ...] = (["tap"], LOOPBACK)
        rest = extra[: arguments - 1]
        with pytest.raises(HypervisorError, match="contract: no room"):
            await getattr(fake, method)(first, *rest)
        assert fake.fail_next == {}

    asyncio.run(scenario())


def test_the_twin_s_destination_ends_while_it_loads() -> None:
    async def scenario() -> None:
        source, destination = fake_nodes()
        pair = Pair(definition(), source, destination)
        assert isinstance(source.hypervisor, FakeHypervisor)
        source.hypervisor.break_next["loading"] = "killed"
        await pair.hold()
        await pair.hand_over()
        failed = await destination.next(GuestEvent.FAILED)
        assert failed.detail["running"] is False
        await destination.next(GuestEvent.GONE)
        await source.hypervisor.resume(VM)
        assert await pair.runs_at(source)
        assert source.hypervisor.announced == [VM]

    asyncio.run(scenario())


@pytest.mark.parametrize("phase", ["copying", "held", "switching"])
def test_the_twin_breaks_a_move_in_each_phase(phase: str) -> None:
    async def scenario() -> None:
        source, destination = fake_nodes()
        pair = Pair(definition(), source, destination)
        await pair.start()
        assert isinstance(source.hypervisor, FakeHypervisor)
        source.hypervisor.break_next[phase] = "path cut"
        await source.hypervisor.copy_out(VM, *await pair.prepare())
        if phase != "copying":
            await source.next(GuestEvent.CONVERGED)
        if phase == "switching":
            await pair.switch()
        failed = await source.next(GuestEvent.FAILED)
        assert failed.detail == {"reason": "path cut", "running": True}
        assert await pair.runs_at(source)
        assert not await pair.runs_at(destination)

    asyncio.run(scenario())
