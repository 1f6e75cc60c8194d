"""The light hypervisor keeps the Hypervisor contract: the same tests as QEMU and its twin."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.contract.hypervisor_nodes import INTERFACE, VM, Node, Pair, PairTest
from tests.contract.test_hypervisor_contract import (
    test_a_copy_that_a_dead_daemon_has_held_is_over,
    test_a_destination_that_dies_leaves_the_guest_here,
    test_a_guest_that_ends_is_reported,
    test_a_guests_life_is_told_at_every_step,
    test_a_held_move_is_cancelled_and_can_be_repeated,
    test_a_hot_move_reports_each_phase_in_order,
    test_a_move_is_cancelled_at_the_last_moment,
    test_a_moved_out_guest_can_be_brought_back,
    test_an_unknown_guest_is_named,
    test_guests_of_its_own_are_not_watched,
    test_guests_outlive_the_daemon,
    test_nobody_listens,
    test_orders_can_be_repeated,
    test_orphans_are_found_and_can_be_ended,
    test_pause_and_resume,
)
from vmmobility.drivers.hypervisor.interface import VmDefinition
from vmmobility.drivers.hypervisor.light import LightHypervisor

pytestmark = [pytest.mark.netns]

__all__ = [
    "test_a_copy_that_a_dead_daemon_has_held_is_over",
    "test_a_destination_that_dies_leaves_the_guest_here",
    "test_a_guest_that_ends_is_reported",
    "test_a_guests_life_is_told_at_every_step",
    "test_a_held_move_is_cancelled_and_can_be_repeated",
    "test_a_hot_move_reports_each_phase_in_order",
    "test_a_move_is_cancelled_at_the_last_moment",
    "test_a_moved_out_guest_can_be_brought_back",
    "test_an_unknown_guest_is_named",
    "test_guests_of_its_own_are_not_watched",
    "test_guests_outlive_the_daemon",
    "test_nobody_listens",
    "test_orders_can_be_repeated",
    "test_orphans_are_found_and_can_be_ended",
    "test_pause_and_resume",
]

STATES = {"running": "running", "handed": "moved-out", "waiting": "incoming"}


class LightPair(Pair):
    """A pair whose states have the contract's names."""

    async def state_at(self, node: Node) -> str:
        assert isinstance(node.hypervisor, LightHypervisor)
        await node.hypervisor.adopt([self.definition])
        return STATES[node.hypervisor.state(VM)]


def light_node(port: str, folder: Path) -> Node:
    node = Node(port)
    node.reopen = partial(LightHypervisor, folder, node.hear)
    node.hypervisor = node.reopen()

    def kill() -> None:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() + b"/light/" in command:
                os.kill(int(process.name), signal.SIGKILL)

    node.kill = kill
    return node


@pytest.fixture
def run() -> Iterator[Callable[[PairTest], None]]:
    """Runs a coroutine with a pair of light nodes in this namespace."""
    unique = f"vml{os.getpid() % 100000}"
    taps = [f"{unique}{end}" for end in "ab"]
    lines = [f"tuntap add dev {tap} mode tap\nlink set {tap} up\n" for tap in taps]
    subprocess.run(["ip", "-batch", "-"], input="".join(lines), text=True, check=True)
    inner = f"netns add {unique}\n"
    subprocess.run(["ip", "-batch", "-"], input=inner, text=True, check=True)
    subprocess.run(["ip", "-n", unique, "tuntap", "add", "eth0", "mode", "tap"], check=True)

    async def with_pair(test: PairTest, folder: Path) -> None:
        machine = {"namespace": unique}
        definition = VmDefinition(VM, "netns", (INTERFACE,), machine=machine)
        nodes = [light_node(tap, folder / tap) for tap in taps]
        try:
            await test(LightPair(definition, *nodes))
        finally:
            for node in nodes:
                await node.hypervisor.adopt([definition])
                await node.hypervisor.stop(VM)
                await node.hypervisor.close()

    with tempfile.TemporaryDirectory(prefix="vml") as short:
        yield lambda test: asyncio.run(with_pair(test, Path(short)))
    lines = [f"netns del {unique}\n", *(f"link del {tap}\n" for tap in taps)]
    subprocess.run(["ip", "-batch", "-"], input="".join(lines), text=True, check=True)
