"""The contract of checkpoints, for the in-memory twin and for QEMU: what a standby has, and when.

What QEMU alone can show - disks, a full standby, a path that is cut - is in
test_qemu_checkpoints.py.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.checkpoint_talk import Protected
from tests.contract.hypervisor_nodes import (
    INTERFACE,
    LOOPBACK,
    TCG,
    VM,
    Pair,
    PairTest,
    Run,
    fake_nodes,
    guest_machine,
    qemu_node,
)
from tools.make_stream_certificates import Authority
from vmmobility.drivers.hypervisor.interface import GuestEvent, VmDefinition
from vmmobility.errors import HypervisorError
from vmmobility.wire.registry import GuestLife

QEMU = pytest.param("qemu", marks=[pytest.mark.qemu, pytest.mark.netns, pytest.mark.slow])
BY_TLS = pytest.param("qemu-tls", marks=QEMU.marks)


@pytest.fixture(params=["fake", QEMU, BY_TLS])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Run]:
    """Runs a coroutine with a Pair, and ends all its guests afterwards."""
    taps = [f"vmk{os.getpid() % 100000}{end}" for end in "ab"]
    real = request.param != "fake"
    settings = TCG
    if request.param == "qemu-tls":
        settings = replace(TCG, tls=Authority(tmp_path / "ca").issue(tmp_path / "tls", [LOOPBACK]))
    for tap in taps if real else ():
        subprocess.run(["ip", "tuntap", "add", "dev", tap, "mode", "tap"], check=True)

    async def with_pair(test: PairTest) -> None:
        machine = {"kernel": "/vmlinuz"}
        nodes = fake_nodes()
        if real:
            source, standby = ((taps[0], tmp_path / "a"), (taps[1], tmp_path / "b"))
            nodes = qemu_node(*source, settings), qemu_node(*standby, settings)
            machine = guest_machine()
        pair = Pair(VmDefinition(VM, "qemu", (INTERFACE,), machine=machine), *nodes)
        try:
            await test(pair)
        finally:
            for node in nodes:
                await node.hypervisor.stop(VM)
                await node.hypervisor.close()

    yield lambda test: asyncio.run(with_pair(test))
    for tap in taps if real else ():
        subprocess.run(["ip", "link", "del", tap], check=True)


def test_a_standby_serves_from_the_last_complete_checkpoint(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        guarded = Protected(pair)
        await pair.start()
        assert await guarded.receive() == 0
        first, second = await guarded.checkpoint(), await guarded.checkpoint()
        assert (first["number"], second["number"]) == (1, 2)
        assert (first["full"], second["full"]) == (True, False)
        assert await pair.runs_at(pair.source)
        assert await guarded.receive() == 2
        pair.source.kill()
        await pair.source.next(GuestEvent.GONE)
        await guarded.activate()
        assert await pair.runs_at(pair.destination)
        await guarded.standby.hypervisor.activate(pair.definition, [pair.destination.port])
        assert pair.destination.reports.empty()

    run(scenario)


def test_without_a_complete_checkpoint_nothing_is_activated(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        guarded = Protected(pair)
        await pair.start()
        await guarded.receive()
        with pytest.raises(HypervisorError, match="no checkpoint"):
            await pair.destination.hypervisor.activate(pair.definition, [pair.destination.port])
        assert await pair.destination.hypervisor.query(VM) is GuestLife.NONE
        assert await pair.runs_at(pair.source)

    run(scenario)


def test_a_standby_that_is_away_costs_nothing_but_the_checkpoint(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        guarded = Protected(pair)
        await pair.start()
        await guarded.receive()
        await guarded.checkpoint()
        await pair.destination.hypervisor.drop_checkpoints(pair.definition)
        await pair.destination.hypervisor.drop_checkpoints(pair.definition)
        assert "connect" in await guarded.fails()
        assert await pair.runs_at(pair.source)
        assert await guarded.receive() == 0
        assert (await guarded.checkpoint())["full"]

    run(scenario)


def test_both_daemons_restart_and_checkpoints_go_on(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        guarded = Protected(pair)
        await pair.start()
        await guarded.receive()
        await guarded.checkpoint()
        await pair.source.restart()
        await pair.destination.restart()
        assert await pair.runs_at(pair.source)
        assert await guarded.receive() == 1
        told = await guarded.checkpoint()
        assert (told["number"], told["full"]) == (2, False)
        await pair.destination.restart()
        await guarded.activate()

    run(scenario)


def test_the_last_checkpoint_of_a_planned_move_leaves_the_guest_stopped(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        guarded = Protected(pair)
        await pair.start()
        await guarded.receive()
        await guarded.checkpoint()
        await guarded.checkpoint(final=True)
        assert not await pair.runs_at(pair.source)
        assert await pair.source.hypervisor.query(VM) is GuestLife.DEPARTED
        await guarded.activate()
        assert await pair.runs_at(pair.destination)

    run(scenario)


def test_a_guest_that_ran_and_ended_is_not_activated_again(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        guarded = Protected(pair)
        await pair.start()
        await guarded.receive()
        await guarded.checkpoint()
        await guarded.activate()
        pair.destination.kill()
        await pair.destination.next(GuestEvent.GONE)
        with pytest.raises(HypervisorError, match="contract"):
            await pair.destination.hypervisor.activate(pair.definition, [pair.destination.port])

    run(scenario)


def test_who_is_protected_no_more_may_be_protected_again(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        guarded = Protected(pair)
        await pair.start()
        await guarded.receive()
        await guarded.checkpoint()
        await pair.source.hypervisor.unprotect(VM)
        await pair.source.hypervisor.unprotect(VM)
        await pair.destination.hypervisor.drop_checkpoints(pair.definition)
        assert await pair.runs_at(pair.source)
        await guarded.receive()
        await guarded.checkpoint()

    run(scenario)


def test_a_guest_is_not_protected_to_where_it_lives(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.start()
        with pytest.raises(HypervisorError, match="lives here"):
            await pair.source.hypervisor.receive_checkpoints(pair.definition, "127.0.0.1")

    run(scenario)
