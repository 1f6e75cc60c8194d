"""The end of a lease is an alarm; another NVE takes the VM only after an operator's word."""

from __future__ import annotations

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import MANAGER, World
from vmmobility.engine.binding_cache import Binding
from vmmobility.engine.manager_move import ReleaseRefused

VM = vm_key("vm1")
A_KEY = f"binding/{VM.vni}/{VM.vm_id}"


def a_world() -> World:
    world = World(nve_settings={"lifetime_s": 20.0})
    started(world, "a")
    return world


def started(world: World, node: str) -> str:
    """Why the VM could not be started at that node; empty if it could."""
    number = world.start_vm(VM, node, interfaces_of("vm1", 1, 1))
    world.run_until(lambda: number in world.results)
    return world.results[number].error


def binding_of(world: World) -> Binding:
    return world.manager.cache.bindings[VM]


def release(world: World) -> None:
    world.feed(world.nodes[MANAGER], lambda: _release(world))
    world.run(0.01)


def _release(world: World) -> None:
    world.manager.release(VM, world.now, "a")


def cut_off(world: World) -> None:
    world.cut.add(frozenset(("a", MANAGER)))
    world.run(60)
    assert binding_of(world).state == "expired"


def test_a_guest_that_is_only_cut_off_keeps_its_vm() -> None:
    world = a_world()
    cut_off(world)
    assert "try-again: a, which serves it, does not answer" in started(world, "b")
    assert safety.running(world, VM) == ["a"]


def test_a_lease_that_lives_is_not_released() -> None:
    world = a_world()
    with pytest.raises(ReleaseRefused, match="lives for another") as refused:
        release(world)
    assert refused.value.kind == "conflict"


def test_an_unknown_vm_is_not_released() -> None:
    with pytest.raises(ReleaseRefused) as refused:
        release(World())
    assert refused.value.kind == "unknown-vm"


def test_a_vm_that_is_being_moved_is_not_released() -> None:
    world = a_world()
    cut_off(world)
    world.move(VM, "b")
    with pytest.raises(ReleaseRefused, match="does not wait for a"):
        release(world)


def test_a_release_outlives_the_manager() -> None:
    world = a_world()
    world.power_cut("a")
    world.run(60)
    release(world)
    world.restart(MANAGER)
    assert binding_of(world).state == "released"
    assert started(world, "b") == ""
    assert binding_of(world).state == "serving"
    assert not world.nodes[MANAGER].disk[A_KEY]["released"]
    assert safety.running(world, VM) == ["b"]


def test_the_serving_nves_refresh_takes_a_release_back() -> None:
    world = a_world()
    cut_off(world)
    release(world)
    assert world.nodes[MANAGER].disk[A_KEY]["released"]
    world.cut.clear()
    world.run(15)
    assert binding_of(world).state == "serving"
    assert not world.nodes[MANAGER].disk[A_KEY]["released"]
    assert "bound-elsewhere" in started(world, "b")


def test_the_serving_nves_new_attach_takes_a_release_back() -> None:
    world = a_world()
    world.power_cut("a")
    world.run(60)
    release(world)
    world.nodes["a"].disk.clear()
    world.restart("a")
    assert started(world, "a") == ""
    assert binding_of(world).state == "serving"
    assert "bound-elsewhere" in started(world, "b")
