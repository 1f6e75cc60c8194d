"""How long a NAPT box's mappings live: what is heard keeps them, and silence of a manager does."""

from __future__ import annotations

from tests.engine.napt_world import PRIVATE, VM, NaptWorld
from tests.engine.network import MANAGER

PUBLIC = "198.51.100.2"  # of VM: a's locator takes the pool's first


def begun(**box: object) -> NaptWorld:
    world = NaptWorld(box_settings={"x": box})
    world.run(2.0)
    assert not world.begin().error
    world.run(10.0)
    return world


def test_what_lives_is_translated_while_no_manager_is_there() -> None:
    world = begun(mapping_s=900.0)
    world.crash(MANAGER)
    world.run(2000.0)
    assert world.boxes["x"].static[str(PRIVATE)] == PUBLIC
    world.restart(MANAGER)
    world.run(2000.0)
    assert world.boxes["x"].static[str(PRIVATE)] == PUBLIC, "and it is heard of again"


def test_a_restart_while_no_manager_is_there_ends_nothing_either() -> None:
    world = begun(mapping_s=300.0)
    world.crash(MANAGER)
    world.run(400.0)
    world.restart("x")
    world.run(1000.0)
    assert world.boxes["x"].static[str(PRIVATE)] == PUBLIC


def test_after_the_silence_each_mapping_has_its_whole_time_anew() -> None:
    world = begun(mapping_s=900.0)
    world.crash(MANAGER)
    world.run(2000.0)
    world.restart(MANAGER)
    [mapping] = world.box("x").mappings.of_vm(VM)
    world.run_until(lambda: mapping.due > world.now + 800.0, 200.0)
    assert not mapping.ended


def test_an_ended_mapping_lives_again_when_its_vm_is_refreshed() -> None:
    """In its quarantine the address is still the VM's own."""
    world = begun()
    x = world.box("x")
    [mapping] = x.mappings.of_vm(VM)
    world.feed(world.nodes["x"], lambda: x.mappings.end(mapping, "nothing was heard", world.now))
    world.run(0.1)
    waits_until = mapping.due
    x.mappings.touch(mapping, world.now)
    assert mapping.due == waits_until, "what has ended does not last longer by what is heard"
    world.run(130.0)  # a refresh
    assert not mapping.ended
    assert mapping.here
    assert world.boxes["x"].static[str(PRIVATE)] == PUBLIC
