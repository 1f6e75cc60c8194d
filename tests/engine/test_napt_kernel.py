"""Nothing begins on a mapping that the kernel of a NAPT box does not hold, however it says so.

Not here: hand-overs that the kernel bears (test_napt_handover.py).
"""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from tests.engine.napt_world import PRIVATE, PUBLIC, VM, NaptWorld, flow, handing_world, move_to
from vmmobility.engine.napt_crossing import rests_on
from vmmobility.engine.peer import Received
from vmmobility.wire.message import Message
from vmmobility.wire.options import PhaseOption
from vmmobility.wire.registry import Phase


@pytest.fixture
def world() -> NaptWorld:
    made = NaptWorld()
    made.run(2.0)
    return made


@pytest.mark.parametrize("failure", ["rules: nft: no such table", "conntrack cannot be read"])
def test_a_kernel_that_takes_nothing_registers_nothing(world: NaptWorld, failure: str) -> None:
    world.boxes["x"].fail_all = failure
    for _ in range(2):
        done = world.begin()
        assert f"x: the kernel refused: {failure}" in done.error
    assert VM not in world.manager.cache.bindings
    world.boxes["x"].fail_all = ""
    world.run(6.0)
    assert not world.begin().error


def test_what_lives_lives_on_while_the_kernel_takes_nothing(world: NaptWorld) -> None:
    assert not world.begin().error
    world.boxes["x"].fail_all = "rules: nft: no such table"
    world.box("x").mappings.version += 1
    world.run(300.0)  # more than two lifetimes
    assert not world.manager.cache.bindings[VM].expired


def test_asked_again_a_refused_address_is_refused_again(world: NaptWorld) -> None:
    world.boxes["x"].fail_next = ["static 10.1.0.77: it is somebody's"]
    for _ in range(2):
        assert "the kernel refused: static 10.1.0.77" in world.begin().error
    assert VM not in world.manager.cache.bindings


def test_no_vm_moves_to_where_its_address_has_no_way_out(world: NaptWorld) -> None:
    assert not world.begin().error
    world.boxes["y"].fail_all = f"detour {PRIVATE}: no route leads to the box 10.0.50.2"
    move = world.moved("b")
    assert not move.ok
    assert "y: the kernel refused: detour 10.1.0.77" in move.reason
    assert world.edge("a").entries[VM].phase is Phase.SERVING


@pytest.mark.parametrize(
    ("addresses", "failure", "rests"),
    [
        ((PRIVATE,), "static 10.1.0.77: it is somebody's", True),
        ((PRIVATE,), "static 10.1.0.7: it is somebody's", False),
        ((PRIVATE,), "rules: 10.1.0.7 cannot be", True),
        ((PRIVATE,), ": nothing to say", True),
        ((), "rules: nft: no such table", False),
    ],
)
def test_what_rests_on_a_failure(
    addresses: tuple[IPv4Address, ...], failure: str, rests: bool
) -> None:
    assert rests_on(failure, addresses) is rests


def refusing(kind: str) -> NaptWorld:
    """VM is behind y, whose kernel refuses its static mapping since y has said so to x."""
    world = handing_world()
    move = world.manager.moves[world.move(VM, "b")]
    y = world.box("y")
    world.run_until(lambda: any(m.here for m in y.mappings.of_vm(VM)))
    world.boxes["y"].fail_all = kind
    world.run_until(lambda: move.ok is not None)
    world.run(10.0)
    return world


@pytest.mark.parametrize("words", [f"static {PRIVATE}: no", "rules: nft: no such table"])
def test_the_owner_keeps_what_the_other_box_s_kernel_refuses(words: str) -> None:
    world = refusing(words)
    [mapping] = world.box("y").mappings.of_vm(VM)
    assert not mapping.ours
    assert world.boxes["x"].static[str(PRIVATE)] == PUBLIC
    said = [e for _, n, e in world.events if n == "x" and e.name == "handover.failed"]
    assert f"insufficient-resources: y: the kernel refused: {words}" in str(said[-1].detail)
    world.boxes["y"].fail_all = ""
    world.run(70.0)  # it is asked again
    assert world.boxes["y"].static[str(PRIVATE)] == PUBLIC
    assert mapping.ours
    world.run(60.0)
    assert str(PRIVATE) not in world.boxes["x"].static


def test_a_box_that_starts_under_a_kernel_that_refuses_does_not_say_that_it_translates() -> None:
    """The reply to x's HANDOVER was lost: x has it still, and is to keep it."""
    world = handing_world(linger_s=5.0)
    move_to(world, "b")
    x = world.box("x")
    [mapping] = x.mappings.of_vm(VM)
    x.mappings.note(mapping, ours=True, lingers=0.0)
    world.boxes["y"].fail_all = f"static {PRIVATE}: no"
    asked: list[Message] = []
    honest = x._hold_asked

    def listen(received: Received, now: float) -> None:
        asked.append(received.message)
        honest(received, now)

    x._hold_asked = listen  # type: ignore[method-assign]
    world.restart("y")
    world.run(70.0)
    assert asked
    assert not [m for m in asked if m.find(PhaseOption) is not None]
    assert mapping.ours
    assert world.boxes["x"].static[str(PRIVATE)] == PUBLIC


def test_flows_of_a_hand_over_that_failed_are_forgotten() -> None:
    world = handing_world()
    world.boxes["x"].flows = [flow()]
    move = world.manager.moves[world.move(VM, "b")]
    world.run_until(lambda: any(m.here for m in world.box("y").mappings.of_vm(VM)))
    world.boxes["y"].fail_all = f"static {PRIVATE}: no"
    world.run_until(lambda: move.ok is not None)
    world.run(10.0)
    assert world.boxes["x"].flows == [flow()]
    assert world.boxes["y"].flows == []


def test_a_restart_while_the_kernel_is_asked_leaves_the_mapping_where_it_was() -> None:
    world = handing_world()
    y = world.box("y")
    world.move(VM, "b")
    world.run_until(lambda: any(m.tried for m in y.mappings.of_vm(VM)))
    world.restart("y")
    [mapping] = world.box("y").mappings.of_vm(VM)
    assert not mapping.ours, "the kernel had not said yes"
    world.run_until(lambda: mapping.ours, 120.0)
    world.run(40.0)
    assert str(PRIVATE) not in world.boxes["x"].static
