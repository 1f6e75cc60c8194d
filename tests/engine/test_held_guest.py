"""A guest that serves and stops by itself is let go on: its disk's host had no more room, say."""

from __future__ import annotations

from tests.engine.fake_hypervisor import Hypervisor, Life
from tests.engine.network import World
from tests.engine.test_restarts import VM, a_world, settle
from vmmobility.engine.outputs import HypervisorOrder, Order
from vmmobility.wire.registry import GuestState


def hypervisor(world: World) -> Hypervisor:
    found = world.nodes["a"].hypervisor
    assert found is not None
    return found


def held(world: World) -> None:
    hypervisor(world).guests[VM].life = Life.PAUSED


def look(world: World) -> list[dict[str, str]]:
    number = world.check("a")
    settle(world)
    rows: list[dict[str, str]] = world.results[number].result["drift"]
    return rows


def test_the_next_comparison_says_so_and_lets_it_go_on():
    world = a_world("a")
    held(world)
    (row,) = look(world)
    assert (row["what"], row["expected"], row["found"]) == ("guest", "running", "held")
    assert hypervisor(world).running() == {VM: True}
    assert look(world) == []


def test_one_that_people_have_suspended_stays_so():
    world = a_world("a")
    world.order_guest(VM, "suspend")
    settle(world)
    assert world.edge("a").entries[VM].guest is GuestState.SUSPENDED
    assert look(world) == []
    assert hypervisor(world).running() == {VM: False}


def test_one_that_is_being_moved_is_left_to_its_move(monkeypatch):
    world = a_world("a")
    world.move(VM, "b")
    world.run_until(lambda: world.edge("a").entries[VM].ticket)
    held(world)
    orders = []
    carry = hypervisor(world).order

    def note(order: HypervisorOrder) -> None:
        orders.append(order.order)
        carry(order)

    monkeypatch.setattr(hypervisor(world), "order", note)
    world.check("a")
    world.run_until(lambda: world.edge("a").entries[VM].check is None)
    assert Order.QUERY in orders
    assert Order.RESUME not in orders
