"""Nothing begins on a mapping that the kernel of a NAPT box does not hold, however it says so."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from tests.engine.napt_world import PRIVATE, VM, NaptWorld
from vmmobility.engine.napt_crossing import rests_on
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
