"""Guests that others run: what is reported of them, for the in-memory twin and for QEMU by hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.contract.hand_hosts import VM, FakeHost, Pair, QemuHost, Run, play
from vmmobility.drivers.hypervisor.interface import GuestEvent
from vmmobility.errors import HypervisorError
from vmmobility.wire.registry import GuestLife

# What a report may take from the operator's own sight of it; this machine may be busy.
PROMPT_S = 2.0


@pytest.fixture(params=["fake", pytest.param("qemu", marks=pytest.mark.qemu)])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Runs a coroutine with a Pair, and ends what it has left."""
    make = QemuHost if request.param == "qemu" else lambda folder: FakeHost()
    return lambda test: play(make, tmp_path, test)


def test_a_guest_that_is_started_by_hand_arrives(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        node = pair.source
        assert await node.life() is GuestLife.NONE
        await node.hands.boot()
        assert await node.next(GuestEvent.ARRIVED) == {"migrated": False}
        assert await node.life() is GuestLife.RUNNING
        await node.watch()  # once more: it is told again
        await node.next(GuestEvent.ARRIVED)
        await node.quiet()

    run(scenario)


def test_a_move_by_hand_departs_and_arrives(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        await source.boot()
        await destination.hands.await_copy()
        await destination.quiet()
        assert await destination.life() is GuestLife.HELD
        await source.hands.migrate(destination.hands)
        seen = time.monotonic()
        departed = await source.next(GuestEvent.DEPARTED)
        assert departed["migration"] == "completed"
        assert await destination.next(GuestEvent.ARRIVED) == {"migrated": True}
        assert time.monotonic() - seen < PROMPT_S
        assert await source.life() is GuestLife.DEPARTED
        assert await destination.life() is GuestLife.ARRIVED
        await source.hands.kill()
        assert (await source.next(GuestEvent.GONE))["life"] == "departed"
        assert await source.life() is GuestLife.NONE
        # And back again.
        await source.hands.await_copy()
        assert await source.life() is GuestLife.HELD
        await destination.hands.migrate(source.hands)
        await destination.next(GuestEvent.DEPARTED)
        assert await source.next(GuestEvent.ARRIVED) == {"migrated": True}
        assert source.notes == destination.notes == []

    run(scenario)


def test_a_guest_that_hands_resume_where_it_departed_arrives_again(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.migrated()
        await pair.source.hands.cont()
        assert await pair.source.next(GuestEvent.ARRIVED) == {"migrated": False}
        assert await pair.source.life() is GuestLife.RUNNING
        await pair.destination.quiet()

    run(scenario)


def test_the_end_of_a_process_is_told_at_each_end(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.migrated()
        for node, life in ((pair.destination, "running"), (pair.source, "departed")):
            await node.hands.kill()
            told = await node.next(GuestEvent.GONE)
            assert told["life"] in (life, "arrived")
            with pytest.raises(HypervisorError, match="by-hand"):
                await node.hypervisor.pause(VM)
        await pair.source.boot()

    run(scenario)


def test_what_we_order_is_not_told_as_somebody_elses(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        node = pair.source
        await node.boot()
        for order, runs in (("pause", 0), ("pause", 0), ("resume", 1), ("resume", 1)):
            await getattr(node.hypervisor, order)(VM)
            assert (await node.hands.status() == "running") is bool(runs)
        await node.hypervisor.announce(VM)
        await node.quiet()
        await node.hypervisor.pause(VM)
        await node.hands.cont()
        await node.next(GuestEvent.ARRIVED)
        await node.hands.pause()
        await node.quiet()
        assert await node.life() is GuestLife.HELD

    run(scenario)


def test_a_departed_guest_is_not_resumed_nor_a_waiting_one(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.migrated()
        with pytest.raises(HypervisorError, match="run by others"):
            await pair.source.hypervisor.resume(VM)
        await pair.source.hypervisor.pause(VM)
        assert await pair.source.life() is GuestLife.DEPARTED
        await pair.source.hands.kill()
        await pair.source.next(GuestEvent.GONE)
        await pair.source.hands.await_copy()
        with pytest.raises(HypervisorError, match="run by others"):
            await pair.source.hypervisor.resume(VM)
        await pair.source.hypervisor.pause(VM)  # and it still waits
        await pair.destination.hands.migrate(pair.source.hands)
        await pair.source.next(GuestEvent.ARRIVED)

    run(scenario)


def test_stop_pauses_and_goes_on_watching(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        node = pair.source
        await node.hypervisor.stop(VM)  # nothing is here
        await node.boot()
        await node.hypervisor.stop(VM)
        assert await node.hands.status() == "paused"
        assert await node.life() is GuestLife.HELD
        await node.hypervisor.stop(VM)
        await node.quiet()
        await node.hands.cont()
        await node.next(GuestEvent.ARRIVED)

    run(scenario)


def test_a_guest_that_is_watched_no_more(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        node = pair.source
        await node.boot()
        for _ in range(2):
            await node.hypervisor.unwatch(VM)
        assert await node.hands.status() == "running"
        assert await node.life() is GuestLife.NONE
        await node.hands.kill()
        await node.quiet()

    run(scenario)


def test_a_restart_finds_what_has_happened(run: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        assert await source.restart() == {}
        await source.boot()
        assert await source.restart() == {VM: True}
        await source.next(GuestEvent.ARRIVED)
        await destination.hands.await_copy()
        assert await destination.restart() == {VM: False}
        await destination.quiet()
        await destination.hypervisor.close()
        await source.hypervisor.close()
        await source.hands.migrate(destination.hands)
        assert await source.restart() == {VM: False}
        await source.next(GuestEvent.DEPARTED)
        assert await destination.restart() == {VM: True}
        await destination.next(GuestEvent.ARRIVED)
        await source.hypervisor.close()
        await source.hands.kill()
        assert await source.restart() == {}
        await source.quiet()

    run(scenario)


@pytest.mark.parametrize("order", ["start", "prepare_incoming", "copy_out", "switch_over"])
def test_what_only_their_owners_do_is_refused(run: Run, order: str) -> None:
    async def scenario(pair: Pair) -> None:
        node = pair.source
        arguments: dict[str, list[Any]] = {
            "start": [node.definition, ["tap"]],
            "prepare_incoming": [node.definition, ["tap"], "127.0.0.1"],
            "copy_out": [VM, "127.0.0.1", 1],
            "switch_over": [VM],
        }
        with pytest.raises(HypervisorError, match="VM by-hand is run by others") as caught:
            await getattr(node.hypervisor, order)(*arguments[order])
        assert "virsh or QEMU" in caught.value.remedy
        assert await node.hypervisor.orphans(()) == ()

    run(scenario)
