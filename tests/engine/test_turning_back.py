"""A fabric that is turned back: no packet goes round, nothing stale stays (draft Section 7.3).

By real engines on virtual time.  Not here: for whom a move waits forward (test_gate.py), the whole
conversations (scenarios/fabric_abort.txt and its like).
"""

from __future__ import annotations

import random

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of
from tests.engine.network import World
from tests.engine.test_gate import SITES, VM
from vmmobility.engine.manager_move import Move
from vmmobility.engine.manager_transitions import MoveState

GATE_S = 2.0


def world_with(places: list[str], seed: int, slow: float = 1.0) -> World:
    """The VM at the last of these, its home the first; the fabric is at rest.

    slow: so many times as long as else the fabric's words take
    """
    world = World(
        routers=SITES,
        manager_settings={"gate_s": GATE_S},
        seed=seed,
        fabric_delay_s=(0.02 * slow, 0.1 * slow),
    )
    number = world.start_vm(VM, places[0], interfaces_of("vm1", 1, 1))
    world.run_until(lambda: number in world.results)
    for place in places[1:]:
        ended(world, world.manager.moves[world.move(VM, place)])
        world.run(2.0)
    return world


def ended(world: World, move: Move) -> None:
    """Once it has."""
    world.run_until(lambda: move.ok is not None)


def turning(world: World, to: str, after_s: float, state: str = "announcing") -> Move:
    """A move, so long after it came to a state in which the fabric turns."""
    move = world.manager.moves[world.move(VM, to)]
    world.run_until(lambda: move.state.value == state)
    world.run(after_s)
    return move


def held(world: World) -> dict[str, str]:
    """What routers hold of the VM."""
    assert world.fabric is not None
    tables = world.fabric.held.items()
    return {name: table[VM].state.value for name, table in tables if VM in table}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("places", "to", "state"),
    [
        ("a", "b", "announcing"),
        ("a", "c", "announcing"),
        ("ab", "c", "withdrawing"),
        ("ac", "b", "withdrawing"),
        ("ac", "a", "withdrawing"),
        ("ab", "a", "withdrawing"),
    ],
)
def test_nothing_goes_round_when_a_move_is_given_up(
    places: str, to: str, state: str, seed: int
) -> None:
    world = world_with(list(places), seed, slow=4)
    after_s = random.Random(f"{places} {to} {seed}").uniform(0.01, 0.1)
    move = turning(world, to, after_s, state)
    assert move.state.value == state, "the move went on too soon"
    world.manager.abort_move(move, world.now)
    before = held(world)
    for _ in range(500):
        world.run(0.01)
        lost = [safety.describe(w) for w in safety.walks(world, VM) if w.end != "delivered"]
        assert lost == [], f"{world.now:.3f}, given up while {before}"
    assert move.state is MoveState.ABORTED
    safety.check_settled(world)


def test_a_router_that_is_silent_is_not_waited_for_for_ever() -> None:
    world = world_with(["a"], 0)
    move = turning(world, "c", 0.05)
    world.crash("edge1")
    world.manager.abort_move(move, world.now)
    world.run(GATE_S - 0.1)
    assert held(world)["rc"] == "announce"  # edge1 might still send packets there
    world.run(2 * GATE_S)
    assert held(world) == {"edge1": "hold"}  # as it was told before it died
    world.restart("edge1")
    world.run(1.0)
    assert held(world) == {}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("to", ["c", "b"])
def test_a_move_may_begin_while_the_fabric_still_turns_back(to: str, seed: int) -> None:
    world = world_with(["a"], seed, slow=12)
    first = turning(world, "c", 0.4)
    world.manager.abort_move(first, world.now)
    ended(world, first)
    assert "rc" in held(world)
    second = world.manager.moves[world.move(VM, to)]
    while second.ok is None:
        world.run(0.01)
        ends = {walk.end for walk in safety.walks(world, VM)}
        assert ends <= {"delivered", "waits"}, ends
    world.run(5.0)
    assert second.ok, second.reason
    assert held(world) == {f"r{to}": "announce"}
    safety.check_settled(world)


def test_a_restarted_manager_goes_on_turning_back() -> None:
    world = world_with(["a"], 0)
    move = turning(world, "c", 0.05)
    world.manager.abort_move(move, world.now)
    world.run(0.03)
    assert held(world)["rc"] in ("announce", "hold")
    world.crash("manager")
    world.run(1.0)
    assert held(world)["rc"] in ("announce", "hold")  # nobody else decides
    world.restart("manager")
    world.run(10.0)
    assert held(world) == {}
    safety.check_settled(world)


def test_a_silent_router_holds_up_other_moves_for_no_longer_than_itself() -> None:
    world = world_with(["a"], 1)
    first = turning(world, "c", 0.05)
    world.crash("edge2")  # would have to lead to a before rc withdraws
    world.manager.abort_move(first, world.now)
    began = world.now
    ended(world, first)
    goes = False
    while not goes:
        move = world.manager.moves[world.move(VM, "b")]
        ended(world, move)
        goes = bool(move.ok)
        assert world.now < began + 4 * GATE_S, move.reason


def test_where_no_router_leads_to_the_vm_border_routers_do_not_either() -> None:
    sites = tuple(site for site in SITES if site.router_id != "rc")
    world = World(routers=sites, manager_settings={"gate_s": GATE_S})
    number = world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: number in world.results)
    move = world.manager.moves[world.move(VM, "c")]
    ended(world, move)
    for _ in range(50):
        world.run(0.1)
        assert held(world) == {}
    assert move.ok
    late = [
        event.name for _, _, event in world.events if event.name.endswith((".late", ".timeout"))
    ]
    assert late == []


def test_an_attach_without_a_move_turns_the_border_routers_at_once() -> None:
    world = world_with(["a"], 0)
    world.power_cut("a")
    world.run(130.0)  # its lease ends
    world.manager.release(VM, world.now, "a")
    number = world.start_vm(VM, "c", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: number in world.results)
    began = world.now
    world.run_until(lambda: held(world).get("edge2") == "hold")
    assert not held(world).keys() & {"edge1", "edge3"}  # the VM's own data centre is the first
    world.run_until(lambda: held(world).keys() >= {"edge1", "edge3"})
    assert world.now < began + 0.02  # sooner than any word of the fabric
    world.run(3 * GATE_S)
    assert held(world) == {"rc": "announce"}
