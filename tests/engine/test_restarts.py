"""A daemon crashes before each of its outputs in a move, and comes back: what must be true then.

Every node's every output of a move (there and back home) is a crash point.  The guests and what the
kernels hold outlive a daemon, so a complete copy always survives: the move must end in DONE or
ABORTED with exactly one guest running, where it is bound, and all packets reaching it; and a new
move must work.  With a power cut the guests of that machine die, too.
"""

from __future__ import annotations

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import MANAGER, Node, Weather, World
from vmmobility.engine.manager_moves import Move, MoveRefused
from vmmobility.engine.manager_transitions import MoveState
from vmmobility.engine.outputs import Output

VM = vm_key("vm1")
ROUTES = {"away from home": ("a", "b"), "mid-chain": ("b", "c"), "coming home": ("b", "a")}
AWAY_S = {"at once": 0.0005, "in a second": 1.0, "after the step's limit": 40.0}


def a_world(source: str, weather: Weather | None = None, seed: int = 1) -> World:
    """vm1, whose home is a, serves at `source`."""
    world = World(seed=seed, weather=weather)
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run(5)
    if source != "a":
        world.move(VM, source)
        settle(world)
    return world


def settle(world: World, limit_s: float = 300.0) -> None:
    """Until no request is outstanding and every move has ended; AssertionError if that never is."""
    end, quiet = world.now + limit_s, 0
    while quiet < 3:
        assert world.now < end, "\n".join(states(world))
        world.run(0.1)
        quiet = quiet + 1 if is_quiet(world) else 0


def is_quiet(world: World) -> bool:
    engines = [n.engine for n in world.nodes.values()]
    ended = all(move.ok is not None for move in moves(world))
    return ended and all(e is not None and e.channel.next_timer() is None for e in engines)


def moves(world: World) -> list[Move]:
    manager = world.nodes[MANAGER].manager
    assert manager is not None
    return list(manager.moves.values())


def states(world: World) -> list[str]:
    lines = [
        f"{m.source.nve_id}->{m.destination.nve_id} {m.state} {m.reason}" for m in moves(world)
    ]
    for name, node in world.nodes.items():
        entry = node.edge.entries.get(VM) if node.edge else None
        lines.append(f"{name} {entry.phase.name if entry else 'down'} {node.kernel.held.get(VM)}")
        lines.append(
            f"   outstanding {node.engine and list(node.engine.channel._outstanding.values())}"
        )
    return lines


def crash_at(world: World, name: str, count: int, away_s: float, power: bool = False) -> None:
    """From now on: before the node's output number `count`, once."""
    left = count

    def interrupt(node: Node, output: Output) -> bool:
        nonlocal left
        if node.node_id != name or left < 0:
            return False
        left -= 1
        if left >= 0:
            return False
        if power:
            world.power_cut(name)
        world.later(away_s, lambda: world.restart(name))
        return True

    world.interrupt = interrupt


def outputs_of_a_move(source: str, destination: str) -> dict[str, int]:
    """How many outputs each node has in an undisturbed move."""
    world = a_world(source)
    before = {name: node.carried for name, node in world.nodes.items()}
    world.move(VM, destination)
    settle(world)
    return {name: node.carried - before[name] for name, node in world.nodes.items()}


def disturbed(
    source: str, destination: str, name: str, count: int, away_s: float, power: bool = False
) -> World:
    world = a_world(source)
    crash_at(world, name, count, away_s, power)
    try:
        world.move(VM, destination)
    except MoveRefused:
        pytest.fail("the move cannot begin")
    world.run(max(60.0, away_s * 2))
    settle(world)
    return world


def then_moves_again(world: World) -> None:
    """From wherever the VM is now, a new move works."""
    [place] = safety.running(world, VM)
    target = "c" if place != "c" else "b"
    move_id = world.move(VM, target)
    settle(world)
    manager = world.nodes[MANAGER].manager
    assert manager is not None
    move = manager.moves[move_id]
    assert move.state is MoveState.DONE, move.reason
    assert safety.running(world, VM) == [target]
    safety.check_settled(world)


@pytest.mark.parametrize("away", AWAY_S)
@pytest.mark.parametrize("role", ["manager", "source", "destination"])
@pytest.mark.parametrize("route", ROUTES)
def test_a_daemon_may_crash_before_any_output(route: str, role: str, away: str) -> None:
    source, destination = ROUTES[route]
    name = {"manager": MANAGER, "source": source, "destination": destination}[role]
    for count in range(outputs_of_a_move(source, destination)[name]):
        try:
            world = disturbed(source, destination, name, count, AWAY_S[away])
            assert safety.running(world, VM), states(world)
            safety.check_settled(world)
            assert not any(move.state is MoveState.FAILED for move in moves(world)), states(world)
            then_moves_again(world)
        except AssertionError as error:
            raise AssertionError(f"crash before output {count} of {name}: {error}") from error


@pytest.mark.parametrize("role", ["source", "destination"])
@pytest.mark.parametrize("route", ROUTES)
def test_a_machine_may_lose_power_before_any_output(route: str, role: str) -> None:
    """At most one guest runs; if none does, the move has failed or the VM is deregistered."""
    source, destination = ROUTES[route]
    name = source if role == "source" else destination
    for count in range(outputs_of_a_move(source, destination)[name]):
        try:
            world = disturbed(source, destination, name, count, 1.0, power=True)
            safety.check_settled(world)
            if safety.running(world, VM):
                then_moves_again(world)
        except AssertionError as error:
            raise AssertionError(f"power cut before output {count} of {name}: {error}") from error


@pytest.mark.parametrize("seed", range(12))
def test_bad_weather_changes_nothing(seed: int) -> None:
    """Loss, repetition, reordering and a crash somewhere: the moves still end well."""
    weather = Weather(loss=0.25, repetition=0.25, delay_s=(0.001, 0.4))
    world = a_world("a", weather, seed)
    for target in ("b", "c", "a"):
        victim = world.chance.choice(list(world.nodes))
        crash_at(world, victim, world.chance.randrange(25), world.chance.choice((0.01, 3.0)))
        if safety.running(world, VM) != [target]:
            world.move(VM, target)
        world.run(30)
        settle(world)
        safety.check_settled(world)
    assert not any(move.state is MoveState.FAILED for move in moves(world))


@pytest.mark.parametrize("gone", ["a", "b"])
@pytest.mark.parametrize(
    "state", ["preparing", "copying", "delivering", "switching", "redirecting", "clearing"]
)
def test_a_node_taken_out_of_the_configuration_is_as_silent_as_a_dead_one(
    state: str, gone: str
) -> None:
    world = a_world("a")
    world.move(VM, "b")
    if state == "clearing":
        world.run(0.1)
        world.nodes["b"].hypervisor.kill(VM)  # type: ignore[union-attr]
    world.run_until(lambda: moves(world)[-1].state.value == state)
    world.run(0.0015)  # durable
    world.unconfigured = {gone}
    world.restart(MANAGER)
    world.run(60)
    with pytest.raises(MoveRefused):
        world.move(VM, gone)
    world.unconfigured = set()
    world.restart(MANAGER)
    settle(world)
    safety.check_settled(world)
    then_moves_again(world)


def test_a_vm_whose_node_was_taken_out_of_the_configuration_is_not_moved() -> None:
    world = a_world("a")
    world.unconfigured = {"a"}
    world.restart(MANAGER)
    with pytest.raises(MoveRefused, match="is not in the configuration"):
        world.move(VM, "b")
