"""People's commands at an NVE: each ends exactly once, whatever comes between."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.fake_hypervisor import Pace
from tests.engine.network import MANAGER, Node, World
from tests.engine.test_restarts import settle
from vmmobility.engine.nve_transitions import Trigger
from vmmobility.engine.outputs import CommandDone, Event, HypervisorOrder, Order
from vmmobility.wire.registry import Phase

VM = vm_key("vm1")
OWN = interfaces_of("vm1", 1, 1)


class Desk:
    """A world, the endings of its commands, and the orders given."""

    def __init__(self, **options: Any) -> None:
        self.world = World(**options)
        self.endings: Counter[int] = Counter()
        self.orders: list[Order] = []
        self.world.observe = self._observe

    def _observe(self, node: Node, what: str, value: object) -> None:
        if isinstance(value, CommandDone):
            self.endings[value.command] += 1
        elif isinstance(value, HypervisorOrder):
            self.orders.append(value.order)

    def start(self) -> int:
        return self.world.start_vm(VM, "a", OWN)

    def stop(self) -> int:
        return self.world.stop_vm(VM, "a")

    def error(self, number: int) -> str:
        return self.world.results[number].error

    def settled(self, *numbers: int) -> None:
        """All have ended, each once, and the VM is where the binding says."""
        settle(self.world)
        assert self.endings == dict.fromkeys(numbers, 1)
        safety.check_settled(self.world)

    @property
    def running(self) -> list[str]:
        return safety.running(self.world, VM)

    @property
    def phase(self) -> Phase:
        edge = self.world.nodes["a"].edge
        assert edge is not None
        return edge.entries[VM].phase


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.mark.parametrize("wait_s", [0.0, 0.003, 0.0065])
def test_a_second_start_waits_for_the_guest_too(desk: Desk, wait_s: float) -> None:
    first = desk.start()
    desk.world.run(wait_s)
    second = desk.start()
    assert second not in desk.world.results
    desk.settled(first, second)
    assert not desk.error(first)
    assert not desk.error(second)
    assert desk.orders.count(Order.START) == 1


@pytest.mark.parametrize("at_ms", range(12))
def test_a_stop_ends_a_start_that_is_under_way(desk: Desk, at_ms: int) -> None:
    """At every step of the start: afterwards nothing runs and nothing is bound."""
    first = desk.start()
    desk.world.run(at_ms / 1000)
    done = first in desk.world.results
    second = desk.stop()
    desk.settled(first, second)
    assert bool(desk.error(first)) is not done
    assert not desk.error(second)
    assert not desk.running
    manager = desk.world.nodes[MANAGER].manager
    assert manager is not None
    assert not manager.cache.bindings


def test_a_second_stop_waits_as_well_and_a_start_meanwhile_is_refused(desk: Desk) -> None:
    first = desk.start()
    desk.world.run(1)
    second, third, fourth = desk.stop(), desk.stop(), desk.start()
    desk.settled(first, second, third, fourth)
    assert "is being stopped" in desk.error(fourth)
    assert not desk.error(second)
    assert not desk.error(third)
    assert desk.orders.count(Order.STOP) == 1
    assert not desk.running
    again = desk.start()
    desk.settled(first, second, third, fourth, again)
    assert desk.running == ["a"]


@pytest.mark.parametrize("failing", ["start", "data plane", "refused"])
def test_every_waiting_start_hears_of_a_failure(desk: Desk, failing: str) -> None:
    node = desk.world.nodes["a"]
    assert node.hypervisor is not None
    if failing == "start":
        node.hypervisor.fail_next[Order.START] = ["no memory"]
    elif failing == "data plane":
        node.kernel.fail_next.append("no tap")
    else:
        desk.world.start_vm(VM, "b", OWN)
        desk.world.run(1)
        desk.endings.clear()
    first, second = desk.start(), desk.start()
    settle(desk.world)
    assert desk.endings == {first: 1, second: 1}
    assert desk.error(first)
    assert desk.error(second)
    assert desk.phase is Phase.NONE


@pytest.mark.parametrize("at_ms", range(8))
def test_an_interrupted_stop_is_finished(desk: Desk, at_ms: int) -> None:
    """The daemon dies at any point of it."""
    desk.start()
    desk.world.run(1)
    desk.stop()
    desk.world.run(at_ms / 1000)
    desk.world.restart("a")
    settle(desk.world)
    recorded = at_ms > 0  # else nobody has heard of it
    assert desk.running == ([] if recorded else ["a"])
    assert bindings(desk.world) == (set() if recorded else {VM})


def test_a_guest_that_cannot_be_stopped_stays_registered(desk: Desk) -> None:
    first = desk.start()
    desk.world.run(1)
    hypervisor = desk.world.nodes["a"].hypervisor
    assert hypervisor is not None
    hypervisor.fail_next[Order.STOP] = ["busy"]
    second, third = desk.stop(), desk.stop()
    desk.settled(first, second, third)
    assert "did not end: busy" in desk.error(second)
    assert "did not end: busy" in desk.error(third)
    assert desk.running == ["a"]
    fourth = desk.stop()
    desk.settled(first, second, third, fourth)
    assert not desk.running


def test_nobody_else_starts_a_vm_before_its_guest_has_ended() -> None:
    desk = Desk(pace=Pace(order_s=0.5))
    desk.start()
    desk.world.run(2)
    desk.stop()
    desk.world.run(0.1)
    other = desk.world.start_vm(VM, "b", OWN)
    desk.world.run(0.2)
    assert other not in desk.world.results
    desk.world.run(5)
    assert desk.error(other) == ""
    assert safety.running(desk.world, VM) == ["b"]


def test_a_running_guest_whose_attach_the_manager_calls_ended_is_attached_anew(desk: Desk) -> None:
    desk.start()
    desk.world.run(1)
    manager, edge = desk.world.nodes[MANAGER].manager, desk.world.nodes["a"].edge
    assert manager is not None
    assert edge is not None
    manager.cache.remove(VM)
    manager._ended.add("a", VM, edge.entries[VM].attach_id)
    desk.world.restart("a")
    desk.world.run(5)
    assert desk.running == ["a"]
    assert bindings(desk.world) == {VM}
    safety.check_settled(desk.world)


def bindings(world: World) -> set[object]:
    manager = world.nodes[MANAGER].manager
    assert manager is not None
    return set(manager.cache.bindings)


def test_a_lost_guest_ends_the_commands_and_the_binding(desk: Desk) -> None:
    first = desk.start()
    desk.world.run(1)
    hypervisor = desk.world.nodes["a"].hypervisor
    assert hypervisor is not None
    hypervisor.kill(VM)
    desk.settled(first)
    assert not bindings(desk.world)
    lost = [event for _, _, event in desk.world.events if event.name == "guest.lost"]
    assert len(lost) == 1
    assert isinstance(lost[0], Event)


def test_a_guest_that_could_not_be_ended_after_its_move_is_ended_again(desk: Desk) -> None:
    first = desk.start()
    desk.settled(first)
    hypervisor = desk.world.nodes["a"].hypervisor
    assert hypervisor is not None
    hypervisor.fail_next[Order.STOP] = ["QEMU hangs"] * 3
    desk.world.move(VM, "b")
    settle(desk.world)
    assert VM in hypervisor.guests
    assert desk.world.nodes["a"].kernel.held[VM].plugged, "a guest that may live keeps its taps"
    desk.world.run(5)
    assert VM not in hypervisor.guests
    assert not desk.world.nodes["a"].kernel.held[VM].plugged


def test_a_superseded_guest_is_ended_with_its_redirect(desk: Desk) -> None:
    """Kept, it would be taken for the VM itself by a later start, with its old memory."""
    first = desk.start()
    desk.settled(first)
    world = desk.world
    a = world.nodes["a"]
    assert a.edge is not None
    assert a.hypervisor is not None
    world.watch = lambda world: None  # for a moment it is bound elsewhere and runs here
    manager = world.nodes[MANAGER].manager
    assert manager is not None
    binding = manager.cache.bindings[VM]
    binding.nve, binding.epoch = world.nodes["b"].nve, manager.cache.next_epoch()
    a.edge.entries[VM].refresh_at = world.now
    world.feed(a, lambda: None)
    world.run(1)
    edge = a.edge
    assert edge.entries[VM].phase.name == "REDIRECTING"
    assert a.hypervisor.running() == {VM: False}
    world.feed(a, lambda: edge._fire(edge.entries[VM], Trigger.DRAIN_ACCEPTED, None, world.now))
    world.run(1)
    assert edge.entries[VM].phase.name == "NONE"
    assert not a.hypervisor.running()
