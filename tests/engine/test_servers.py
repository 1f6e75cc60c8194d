"""NVEs that stand apart from their servers: where VMs come, and that every order says so."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import Node, World
from tests.engine.test_restarts import settle
from vmmobility.engine.binding_update_list import Entry, entry_from_json, entry_to_json
from vmmobility.engine.nve import NveEngine
from vmmobility.engine.outputs import HypervisorOrder, Order, SetDataPlane
from vmmobility.wire.registry import Phase

SERVERS = ("s1", "s2")
VM, OTHER, THIRD = (vm_key(f"vm{n}") for n in (1, 2, 3))


class Apart:
    """Three NVEs with two servers each, and what is asked of their hosts."""

    def __init__(self) -> None:
        self.world = World(nve_settings={"servers": SERVERS})
        self.orders: list[tuple[str, Order, str]] = []
        self.states: dict[str, SetDataPlane] = {}
        self.world.observe = self._observe

    def _observe(self, node: Node, what: str, value: object) -> None:
        if isinstance(value, HypervisorOrder):
            self.orders.append((node.node_id, value.order, value.arguments.get("server", "")))
        elif isinstance(value, SetDataPlane):
            self.states[node.node_id] = value

    def edge(self, name: str) -> NveEngine:
        edge = self.world.nodes[name].edge
        assert edge is not None
        return edge

    def start(self, number: int, at: str = "a", server: str = "") -> str:
        """The server that the VM has come to."""
        vm, own = vm_key(f"vm{number}"), interfaces_of(f"vm{number}", 1, number)
        self.world.start_vm(vm, at, own, server)
        settle(self.world)
        return self.edge(at).entries[vm].server

    def move(self, to: str) -> None:
        self.world.move(VM, to)
        settle(self.world)
        safety.check_settled(self.world)
        assert safety.running(self.world, VM) == [to]


@pytest.fixture
def apart() -> Apart:
    return Apart()


def test_vms_come_to_the_server_with_the_fewest(apart: Apart) -> None:
    assert Counter(apart.start(number) for number in (1, 2, 3, 4)) == {"s1": 2, "s2": 2}


def test_people_may_choose_the_server(apart: Apart) -> None:
    assert [apart.start(number, server="s2") for number in (1, 2, 3)] == ["s2"] * 3
    assert apart.start(4) == "s1"


def test_every_order_and_state_names_the_server(apart: Apart) -> None:
    apart.start(1, server="s2")
    apart.move("b")
    assert {server for node, _, server in apart.orders if node == "a"} == {"s2"}
    assert {server for node, _, server in apart.orders if node == "b"} == {"s1"}
    assert apart.states["b"].state.server == "s1"
    assert apart.states["a"].state.server == "", "nothing is plugged in there any more"
    apart.move("a")


def test_the_server_outlives_a_crash(apart: Apart) -> None:
    apart.start(1, server="s2")
    apart.world.crash("a")
    apart.world.restart("a")
    settle(apart.world)
    assert apart.edge("a").places() == {VM: ("s2",)}
    assert safety.running(apart.world, VM) == ["a"]


def test_without_servers_no_order_names_any() -> None:
    world = World()
    orders: list[Any] = []
    world.observe = lambda node, what, value: orders.append(value)
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    settle(world)
    given = [order for order in orders if isinstance(order, HypervisorOrder)]
    assert given
    assert not any("server" in order.arguments for order in given)


def test_records_of_a_server() -> None:
    entry = Entry(VM, phase=Phase.SERVING, server="s1")
    assert entry_from_json(VM, entry_to_json(entry)).server == "s1"
    left = Entry(VM, leftover=True, server="s1", definition=b"{}")
    assert entry_from_json(VM, entry_to_json(left)).server == "s1"
    old = entry_to_json(Entry(VM, phase=Phase.SERVING))
    assert "server" not in old
    assert entry_from_json(VM, old).server == ""


def test_a_server_that_is_not_there_is_refused(apart: Apart) -> None:
    number = apart.world.start_vm(VM, "a", interfaces_of("vm1", 1, 1), "s3")
    settle(apart.world)
    assert "no server 's3'" in apart.world.results[number].error
    assert safety.running(apart.world, VM) == []


def test_what_is_left_of_a_vm_keeps_its_server(apart: Apart) -> None:
    entry = Entry(VM, server="s1", leftover=True)
    apart.edge("a").entries[VM] = entry
    apart.edge("a")._place(entry)
    assert entry.server == "s1"
    entry.leftover = False
    apart.edge("a")._place(entry, "s2")
    assert entry.server == "s2"
