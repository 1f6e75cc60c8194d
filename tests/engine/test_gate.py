"""For which routers a move waits (draft Section 7.2), by real engines on virtual time."""

from __future__ import annotations

import pytest

from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import World
from vmmobility.engine.fabric_record import RouterSite
from vmmobility.engine.manager_move import Move

VM = vm_key("vm1")
SITES = (
    RouterSite("ra", border=False, serves=("a",), dc="one"),
    RouterSite("rb", border=False, serves=("b",), dc="one"),
    RouterSite("rc", border=False, serves=("c",), dc="two"),
    RouterSite("edge1", border=True, dc="one"),
    RouterSite("edge2", border=True, dc="two"),
    RouterSite("edge3", border=True, dc="three"),
)


def moved(dead: str, to: str, **settings: object) -> Move:
    """A move of the VM from a, its home, with one router dead; once it has ended."""
    world = World(routers=SITES, manager_settings={"gate_s": 2.0, **settings})
    number = world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: number in world.results)
    world.crash(dead)
    move = world.manager.moves[world.move(VM, to)]
    world.run_until(lambda: move.ok is not None)
    return move


@pytest.mark.parametrize(("dead", "to"), [("edge3", "b"), ("edge2", "b"), ("edge3", "c")])
def test_a_border_router_of_another_data_centre_holds_nothing_up(dead: str, to: str) -> None:
    move = moved(dead, to)
    assert move.ok, move.reason


@pytest.mark.parametrize(("dead", "to"), [("edge1", "b"), ("edge2", "c"), ("ra", "b"), ("rb", "b")])
def test_a_router_of_either_end_is_waited_for(dead: str, to: str) -> None:
    move = moved(dead, to)
    assert move.ok is False
    assert "the fabric does not lead to the destination: " in move.reason
    assert dead in move.reason


def test_by_policy_a_move_goes_on_without_it() -> None:
    assert moved("edge1", "b", gate_policy="proceed").ok
