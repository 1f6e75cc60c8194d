"""The terms of a move reach both ends and outlive a manager; progress is heard, and only from its
source.

Not here: what hypervisors make of them (tests/contract), the option's octets (tests/unit).
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest

from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import MANAGER, World
from tests.engine.test_restarts import settle
from vmmobility.engine.manager_move import Move, MoveRefused, move_from_json, move_to_json
from vmmobility.engine.outputs import HypervisorOrder, Order
from vmmobility.wire.move_terms import NO_TERMS, MoveTerms
from vmmobility.wire.registry import CopyStorage, OnTimeout, Phase

VM = vm_key("vm1")
TERMS = MoveTerms(20, OnTimeout.FORCE, 50, 300, CopyStorage.NONE)
FIGURES = {"memory_bytes": 5, "memory_total_bytes": 9, "disk_bytes": 1, "disk_total_bytes": 2}


def a_world() -> tuple[World, dict[str, list[MoveTerms]]]:
    """The VM at a; each node's terms, as its hypervisor gets them."""
    world = World()
    told: dict[str, list[MoveTerms]] = {"a": [], "b": []}

    def note(name: str, order: HypervisorOrder) -> None:
        if order.order in (Order.COPY_OUT, Order.PREPARE_INCOMING):
            told[name].append(order.arguments.get("terms", NO_TERMS))

    for name in told:
        hypervisor = world.nodes[name].hypervisor
        assert hypervisor is not None
        hypervisor.heard = partial(note, name)
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run(1)
    return world, told


def the_move(world: World, identity: str) -> Move:
    return world.manager.moves[identity]


@pytest.mark.parametrize("terms", [TERMS, NO_TERMS], ids=["said", "none"])
def test_both_ends_are_told_the_same_terms(terms: MoveTerms) -> None:
    world, told = a_world()
    moved = world.move(VM, "b", terms)
    settle(world)
    assert told == {"a": [terms], "b": [terms]}
    assert the_move(world, moved).ok


def test_terms_outlive_a_managers_restart() -> None:
    world, told = a_world()
    moved = world.move(VM, "b", TERMS)
    world.run_until(lambda: the_move(world, moved).state.value == "preparing")
    world.run(0.002)
    world.restart(MANAGER)
    assert the_move(world, moved).terms == TERMS
    settle(world)
    assert set(told["a"]) == set(told["b"]) == {TERMS}


def test_a_record_of_before_there_were_terms_still_loads() -> None:
    world, _ = a_world()
    record: dict[str, Any] = json.loads(
        json.dumps(move_to_json(the_move(world, world.move(VM, "b", TERMS))))
    )
    assert move_from_json("m", record).terms == TERMS
    del record["terms"]
    assert move_from_json("m", record).terms == NO_TERMS


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        (MoveTerms(on_timeout=OnTimeout.FORCE), "there is no timeout_s"),
        (MoveTerms(timeout_s=10**9), "timeout_s is 1 to 604800 seconds"),
        (MoveTerms(downtime_ms=-1), "downtime_ms is 1 to 60000 milliseconds"),
    ],
)
def test_terms_without_sense_begin_no_move(terms: MoveTerms, words: str) -> None:
    world, _ = a_world()
    with pytest.raises(MoveRefused, match=words):
        world.move(VM, "b", terms)
    assert world.manager.moves == {}


@pytest.mark.parametrize(
    ("terms", "limit_s"),
    [
        (NO_TERMS, 600.0),
        (MoveTerms(timeout_s=900), 915.0),
        (MoveTerms(timeout_s=900, on_timeout=OnTimeout.FORCE), 1500.0),
    ],
)
def test_a_source_that_says_nothing_is_waited_for_longer_than_its_own_time(
    terms: MoveTerms, limit_s: float
) -> None:
    world, _ = a_world()
    moved = world.move(VM, "b", terms)
    world.run_until(lambda: the_move(world, moved).state.value == "copying")
    deadline = the_move(world, moved).deadline
    assert deadline is not None
    assert limit_s - 1 < deadline - world.now <= limit_s


def copying(world: World) -> Move:
    moved = world.move(VM, "b")
    world.run_until(lambda: world.edge("a").entries[VM].phase is Phase.COPYING)
    world.run(0.1)
    return the_move(world, moved)


def tell(world: World, name: str, detail: dict[str, Any]) -> None:
    edge, node = world.edge(name), world.nodes[name]
    world.feed(node, lambda: edge.guest_report(VM, "progress", detail, world.now))


def test_progress_comes_to_the_manager_and_is_not_durable() -> None:
    world, _ = a_world()
    move = copying(world)
    tell(world, "a", {**FIGURES, "memory_total_bytes": 9.5, "else": 1})
    world.run(0.05)
    assert move.progress == {k: v for k, v in FIGURES.items() if k != "memory_total_bytes"}
    tell(world, "a", FIGURES)
    world.run(0.05)
    assert move.progress == FIGURES
    assert "progress" not in move_to_json(move)
    settle(world)
    assert move.ok
    assert "memory_bytes" not in move.measured


def test_new_progress_is_dropped_while_older_is_on_its_way() -> None:
    world, _ = a_world()
    move = copying(world)
    world.cut.add(frozenset(("a", MANAGER)))
    for done in range(5):
        tell(world, "a", {"memory_bytes": done, "memory_total_bytes": 9})
    world.run(0.1)
    world.cut.clear()
    settle(world)
    assert move.progress["memory_bytes"] == 0
    assert move.ok


def test_the_destination_and_a_move_that_is_over_say_nothing() -> None:
    world, _ = a_world()
    move = copying(world)
    tell(world, "b", FIGURES)
    world.run(0.05)
    assert move.progress == {}
    settle(world)
    tell(world, "a", FIGURES)
    settle(world)
    assert move.progress == {}
