"""A host that loses its power once its guest has gone on elsewhere: what it kept is old."""

from __future__ import annotations

import pytest

from tests.engine.network import World
from tests.engine.test_held_guest import hypervisor
from tests.engine.test_restarts import VM, a_world, settle
from vmmobility.wire.registry import Phase


def lose_power_in(phase: Phase) -> World:
    """a moves the VM to b, and dies in that phase, once the guest runs at b."""
    world = a_world("a")
    world.move(VM, "b")
    there = world.nodes["b"].hypervisor
    assert there is not None
    world.run_until(lambda: there.running().get(VM) and world.edge("a").entries[VM].phase is phase)
    world.power_cut("a")
    world.later(5.0, lambda: world.restart("a"))
    world.run(10.0)
    settle(world)
    return world


@pytest.mark.parametrize("phase", [Phase.SWITCHED, Phase.REDIRECTING])
def test_its_hypervisor_is_told_that_what_is_left_is_old(phase: Phase) -> None:
    world = lose_power_in(phase)
    assert VM in hypervisor(world).retired


def test_so_is_a_copy_that_came_to_a_host_that_died_before_it_was_taken() -> None:
    world = a_world("a")
    world.move(VM, "b")
    world.run_until(lambda: world.edge("b").entries.entry(VM).phase is Phase.DELIVERING)
    world.power_cut("b")
    world.later(30.0, lambda: world.restart("b"))
    world.run(40.0)
    settle(world)
    there = world.nodes["b"].hypervisor
    assert hypervisor(world).running() == {VM: True}
    assert there is not None
    assert VM in there.retired


def test_not_while_nobody_knows_whether_the_guest_runs_elsewhere() -> None:
    world = a_world("a")
    world.move(VM, "b")
    world.run_until(lambda: world.edge("a").entries[VM].phase is Phase.SWITCHED)
    world.power_cut("b")
    world.power_cut("a")
    world.later(5.0, lambda: world.restart("a"))
    world.later(5.0, lambda: world.restart("b"))
    world.run(10.0)
    settle(world)
    assert hypervisor(world).retired == []
