"""A mapping that passes among three NAPT boxes, with all flows.

x owns it; a, b, c are behind x, y, z.
"""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Address

import pytest

from tests.engine.napt_world import PRIVATE, PUBLIC, VM, NaptWorld
from tests.engine.network import Weather
from vmmobility.engine.napt_plane import Flow
from vmmobility.engine.napt_settings import NaptPolicy


def flow(port: int, public: str = PUBLIC) -> Flow:
    remote = (IPv4Address("192.0.2.9"), 4000)
    return Flow(6, (PRIVATE, port), (IPv4Address(public), port), remote, False, 300)


def begun(x_lingers_s: float = 30.0) -> NaptWorld:
    each = {"policy": NaptPolicy.HAND_OVER}
    x = {**each, "linger_s": x_lingers_s}
    made = NaptWorld(three=True, box_settings={"x": x, "y": each, "z": each})
    made.run(2.0)
    assert not made.begin().error
    made.boxes["x"].flows = [flow(1)]
    return made


@pytest.fixture
def world() -> NaptWorld:
    """All hand over; VM runs at a and has a flow."""
    return begun()


def translated(world: NaptWorld) -> set[str]:
    return {name for name, box in world.boxes.items() if str(PRIVATE) in box.static}


def ports(world: NaptWorld, box: str) -> set[int]:
    return {f.private[1] for f in world.boxes[box].flows}


def go(world: NaptWorld, to: str, box: str) -> None:
    """Until that box alone translates it."""
    move = world.moved(to)
    assert move.ok, move.reason
    world.run_until(lambda: translated(world) == {box}, 200.0)
    world.run(1.0)


def apart(world: NaptWorld, box: str) -> None:
    world.cut |= {frozenset((box, other)) for other in world.boxes if other != box}


def test_flows_that_began_at_the_second_go_to_the_third(world: NaptWorld) -> None:
    go(world, "b", "y")
    world.boxes["y"].flows.append(flow(2))
    go(world, "c", "z")
    assert ports(world, "z") == {1, 2}
    assert ports(world, "x") == ports(world, "y") == set()
    assert world.boxes["z"].state.detours == ()
    go(world, "b", "y")
    go(world, "a", "x")
    assert ports(world, "x") == {1, 2}


def test_the_third_gets_nothing_before_the_second_has_given_it_back(world: NaptWorld) -> None:
    """A mapping without its flows would end them."""
    go(world, "b", "y")
    at_z: list[tuple[bool, set[int]]] = []

    def look() -> bool:
        at_z.append(("z" in translated(world), ports(world, "z")))
        return move.ok is not None and at_z[-1][0]

    move = world.manager.moves[world.move(VM, "c")]
    world.run_until(look, 60.0)
    assert not [ports for has_it, ports in at_z if has_it and ports != {1}]


def test_what_begins_while_routes_turn_follows(world: NaptWorld) -> None:
    assert world.moved("b").ok
    world.run(1.0)
    assert translated(world) == {"x", "y"}
    world.boxes["x"].flows.append(flow(2))
    world.run(40.0)
    assert translated(world) == {"y"}
    assert ports(world, "y") == {1, 2}
    assert ports(world, "x") == set()


def test_only_what_began_meanwhile_is_sent_again(world: NaptWorld) -> None:
    """What has ended at the other does not live again there."""
    assert world.moved("b").ok
    world.run(1.0)
    world.boxes["y"].flows = []
    world.boxes["x"].flows.append(flow(2))
    world.run(40.0)
    assert ports(world, "y") == {2}


def test_what_begins_at_the_second_while_routes_turn_follows_to_the_third() -> None:
    world = begun(x_lingers_s=5.0)
    go(world, "b", "y")
    assert world.moved("c").ok
    world.run_until(lambda: str(PRIVATE) in world.boxes["z"].static)
    world.run(10.0)
    assert translated(world) == {"y", "z"}, "x passes on what comes now"
    world.boxes["y"].flows += [flow(n) for n in range(2, 600)]
    world.run(40.0)
    assert ports(world, "z") == set(range(1, 600))
    assert ports(world, "x") == ports(world, "y") == set()


def test_a_second_that_is_dead_costs_the_third_one_interval(world: NaptWorld) -> None:
    go(world, "b", "y")
    apart(world, "y")
    assert world.moved("c").ok
    world.run(30.0)
    assert "z" not in translated(world), "it might come yet"
    world.run_until(lambda: "z" in translated(world), 40.0)
    world.boxes["y"].flows.append(flow(2))
    world.cut.clear()
    world.run_until(lambda: translated(world) == {"z"}, 200.0)
    world.run(1.0)
    assert ports(world, "z") == {1, 2}, "and its flows follow when it is back"


def test_a_hand_over_to_one_that_is_dead_bars_no_other(world: NaptWorld) -> None:
    move = world.manager.moves[world.move(VM, "b")]
    x = world.box("x")
    world.run_until(lambda: x._handing)
    apart(world, "y")
    world.run_until(lambda: move.ok is not None)
    assert move.ok, move.reason
    go(world, "c", "z")
    assert ports(world, "z") == {1}


def test_flows_that_come_while_they_are_handed_on_go_along(world: NaptWorld) -> None:
    go(world, "b", "y")
    x = world.box("x")
    move = world.manager.moves[world.move(VM, "c")]
    world.run_until(lambda: x._handing)
    [handing] = x._handing.values()
    world.boxes["x"].flows.append(flow(2))
    handing.again = True
    world.run_until(lambda: move.ok is not None and not x._handing)
    assert ports(world, "z") == {1, 2}


def test_a_reply_that_was_lost_loses_no_flow(world: NaptWorld) -> None:
    """x has not heard that y has it, and flows begin at x."""
    assert world.moved("b").ok
    x, y = world.box("x"), world.box("y")
    world.run_until(lambda: y.mappings.of_vm(VM)[0].ours)
    [mapping] = x.mappings.of_vm(VM)
    for handing in list(x._handing.values()):
        x._give_up(handing)
    x.mappings.note(mapping, ours=True, lingers=0.0)
    world.boxes["x"].flows.append(flow(2))
    world.feed(world.nodes["y"], partial(y._hold_all, world.now))
    world.run(1.0)
    assert mapping.lingers
    assert ports(world, "y") == {1, 2}


def test_flows_that_the_kernel_refuses_stop_no_hand_over(world: NaptWorld) -> None:
    world.boxes["y"].fail_import = "flow 10.1.0.77: no"
    go(world, "b", "y")
    said = [e for _, n, e in world.events if n == "y" and e.name == "flow.refused"]
    assert said


def test_flows_that_cannot_be_read_do(world: NaptWorld) -> None:
    world.boxes["x"].fail_export = "conntrack cannot be read"
    assert world.moved("b").ok
    world.run(70.0)
    assert translated(world) == {"x"}
    world.boxes["x"].fail_export = ""
    world.run_until(lambda: translated(world) == {"y"}, 200.0)
    assert ports(world, "y") == {1}


@pytest.mark.parametrize("box", ["x", "y", "z"])
def test_a_restart_in_mid_hand_over_loses_no_mapping(world: NaptWorld, box: str) -> None:
    go(world, "b", "y")
    move = world.manager.moves[world.move(VM, "c")]
    world.run_until(lambda: world.box("x").mappings.of_vm(VM)[0].holder == "z")
    world.restart(box)
    world.run_until(lambda: move.ok is not None)
    world.run_until(lambda: translated(world) == {"z"}, 300.0)
    assert world.manager.cache.bindings[VM].nve.nve_id == "c"


@pytest.mark.parametrize("seed", range(6))
def test_loss_and_repetition_lose_neither_mapping_nor_flows(seed: int) -> None:
    weather = Weather(loss=0.15, repetition=0.2, delay_s=(0.001, 0.05))
    each = {"policy": NaptPolicy.HAND_OVER}
    settings = {"x": each, "y": each, "z": each}
    world = NaptWorld(three=True, box_settings=settings, weather=weather, seed=seed)
    world.run(5.0)
    assert any(not world.begin().error for _ in range(20))
    [mapping] = world.box("x").mappings.of_vm(VM)
    world.boxes["x"].flows = [flow(1, str(mapping.public))]
    for to in ("b", "c", "b", "a", "c"):
        world.moved(to)
        world.run(3.0)
    box = world.site(world.manager.cache.bindings[VM].nve.nve_id)
    world.run_until(lambda: translated(world) == {box}, 600.0)
    world.run(5.0)
    assert ports(world, box) == {1}
    assert world.boxes[box].state.detours == ()
