"""Cold moves: a daemon crashes before each of its outputs, and comes back; machines lose power.

Whatever dies, the VM is at one place, in its state: where the move led, or where it was.
Not here: the conversations (scenarios/cold_moves*.txt).
"""

from __future__ import annotations

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.fake_hypervisor import Pace
from tests.engine.network import MANAGER, World
from tests.engine.test_restarts import crash_at, moves, settle
from vmmobility.engine.manager_move import move_from_json, move_to_json
from vmmobility.engine.manager_transitions import MoveState
from vmmobility.wire.registry import GuestState, Phase

VM = vm_key("vm1")
STATES = {
    "suspended": ("suspend", GuestState.SUSPENDED),
    "stopped": ("stop", GuestState.STOPPED),
    "running": ("", GuestState.RUNNING),
}
OUTPUTS = 14  # of a cold move, at each node: every one is a crash point


def a_world(state: str) -> World:
    """vm1, whose home is a, has been at c and is at b now."""
    world = World()
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run(1)
    for place in ("c", "b"):
        world.move(VM, place)
        settle(world)
    verb = STATES[state][0]
    if verb:
        world.order_guest(VM, verb)
        settle(world)
    return world


def place_of(world: World) -> str:
    """Where the VM is bound; its guest there is as the manager says, and nowhere else."""
    safety.check_settled(world)
    return world.manager.cache.bindings[VM].nve.nve_id


@pytest.mark.parametrize("name", [MANAGER, "a", "b"])
@pytest.mark.parametrize("state", STATES)
def test_a_daemon_may_crash_before_any_output(state: str, name: str) -> None:
    wanted = STATES[state][1]
    for count in range(OUTPUTS):
        world = a_world(state)
        crash_at(world, name, count, 0.5)
        world.move(VM, "a", mode="cold")
        world.run(40)
        settle(world)
        place, ended = place_of(world), [m.state for m in moves(world)][-1]
        assert world.manager.cache.bindings[VM].guest is wanted, (count, ended)
        assert place == ("a" if ended is MoveState.DONE else "b") or (name, count) == (MANAGER, 0)
        if wanted is not GuestState.RUNNING:
            world.order_guest(VM, "start" if wanted is GuestState.STOPPED else "resume")
            settle(world)
        assert safety.running(world, VM) == [place], count
        safety.check_settled(world)


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_machine_may_lose_power_before_any_output(name: str) -> None:
    """Of a stopped VM nothing is lost: its disks are where it is bound, and it starts there."""
    for count in range(OUTPUTS):
        world = a_world("stopped")
        crash_at(world, name, count, 0.5, power=True)
        world.move(VM, "a", mode="cold")
        world.run(40)
        settle(world)
        assert world.manager.cache.bindings[VM].guest is GuestState.STOPPED
        place = place_of(world)
        world.order_guest(VM, "start")
        settle(world)
        assert safety.running(world, VM) == [place], count


def test_of_the_way_that_it_took_nothing_is_left_that_need_not_be() -> None:
    """a is its home: b, that it leaves, drains by itself, and c at once."""
    world = a_world("stopped")
    world.move(VM, "a", mode="cold")
    world.run(5)
    phases = {name: world.edge(name).entries[VM].phase for name in "abc"}
    assert phases == {"a": Phase.STOPPED, "b": Phase.REDIRECTING, "c": Phase.NONE}
    world.run(60)
    assert world.edge("b").entries[VM].phase is Phase.NONE
    assert not world.manager.cache.bindings[VM].previous


def test_how_long_it_was_stopped_is_told() -> None:
    world = a_world("running")
    world.move(VM, "a", mode="cold")
    settle(world)
    move = moves(world)[-1]
    assert move.state is MoveState.DONE
    assert 0 < move.measured["stopped_ms"] < 2000
    names = [name for name, _ in move.phases]
    assert names.index("suspended") < names.index("ticketed") < names.index("awake")


@pytest.mark.parametrize("after_s", [0.0, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008])
def test_one_that_is_given_up_while_its_guest_is_being_suspended_lets_it_go_on(
    after_s: float,
) -> None:
    """Whichever comes first, the hypervisor's word that it is held or the order to go on."""
    world = World(pace=Pace(order_s=0.005))
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run(1)
    world.move(VM, "b", mode="cold")
    world.run(after_s)
    move = moves(world)[-1]
    assert move.state.value == "suspending"
    world.feed(world.nodes[MANAGER], lambda: world.manager.abort_move(move, world.now))
    world.run(10)
    settle(world)
    assert move.state is MoveState.ABORTED
    assert world.manager.cache.bindings[VM].guest is GuestState.RUNNING
    assert safety.running(world, VM) == [place_of(world)] == ["a"]


def test_a_move_survives_its_journey_through_the_store() -> None:
    world = a_world("running")
    world.move(VM, "a", mode="cold")
    move = moves(world)[-1]
    again = move_from_json(move.move_id, move_to_json(move))
    assert (again.mode, again.wakes, again.state) == ("cold", True, MoveState.SUSPENDING)
    old = {k: v for k, v in move_to_json(move).items() if k not in ("mode", "wakes")}
    assert move_from_json(move.move_id, old).mode == "hot"
