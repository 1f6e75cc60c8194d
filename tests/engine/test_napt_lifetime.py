"""How long a NAPT box's mappings live: what is heard keeps them, and silence of a manager does."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, ip_network

from tests.engine.napt_world import PRIVATE, PUBLIC, VM, NaptWorld, one_like
from tests.engine.network import MANAGER
from vmmobility.engine.outputs import Order
from vmmobility.wire.registry import Purpose
from vmmobility.wire.values import Interface, VmKey


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


def test_what_a_refused_attach_brought_is_forgotten_at_once() -> None:
    """Else it would bar the address's rightful user from it."""
    world = NaptWorld(manager_settings={"strict": True})
    world.run(2.0)
    assert "not onboarded" in world.begin(VmKey(0, "typo"), "c", one_like(9, "10.1.0.88")).error
    assert world.box("x").mappings.of_vm(VmKey(0, "typo")) == []
    assert "10.1.0.88" not in world.boxes["x"].static
    refused = world.begin(VmKey(0, "vm2"), "a", one_like(9, "10.1.0.88")).error
    assert "vm2 is not onboarded" in refused, "the box lets it pass"


def test_refused_attaches_exhaust_no_pool() -> None:
    world = begun()
    free = world.box("x").mappings.free_addresses()
    for number in range(20):
        wrong = Interface(
            bytes((2, 0, 0, 0, 1, number)),
            (ip_network(f"10.1.0.{100 + number}/32"), ip_network("fd01:1::77/128")),
        )
        assert "fd01:1::77" in world.begin(VmKey(0, f"other{number}"), "c", (wrong,)).error
        world.run(0.1)  # the kernel has let go of its taps
    assert world.box("x").mappings.free_addresses() == free - 1, "but for the NVE's own"


def test_a_refusal_takes_nothing_away_that_was_granted() -> None:
    """c says that it has what a has."""
    world = begun()
    [mapping] = world.box("x").mappings.of_vm(VM)
    assert world.begin(VM, "c").error
    assert world.box("x").mappings.of_vm(VM) == [mapping]
    assert world.boxes["x"].static[str(PRIVATE)] == PUBLIC


def test_a_refusal_takes_nothing_from_a_later_attach_that_is_under_way() -> None:
    world = begun()
    x = world.box("x")
    [first] = [c.message for c in x._crossings.values() if c.message.purpose is Purpose.ATTACH]
    [mapping] = x.mappings.of_vm(VM)
    mapping.here, mapping.epoch = False, 0
    later = replace(first, sequence=first.sequence + 1)
    key = ("a", MANAGER, Purpose.ATTACH, later.sequence)
    x._crossings[key] = replace(next(iter(x._crossings.values())), message=later)
    x._refused(first, True)
    assert x.mappings.of_vm(VM) == [mapping]
    x._refused(later, True)
    assert x.mappings.of_vm(VM) == []


def test_what_a_refused_preparation_brought_is_forgotten_at_once() -> None:
    world = begun()
    hypervisor = world.nodes["b"].hypervisor
    assert hypervisor is not None
    hypervisor.fail_next[Order.PREPARE_INCOMING] = ["no memory"]
    assert not world.moved("b").ok
    world.run(1.0)
    assert world.box("y").mappings.of_vm(VM) == []
    assert world.boxes["y"].state.detours == ()


def test_a_vm_with_more_addresses_than_the_pool_has_takes_none() -> None:
    world = begun(pool=(IPv4Network("198.51.100.0/29"),))
    free = world.box("x").mappings.free_addresses()
    prefixes = tuple(ip_network(f"10.1.0.{n}/32") for n in range(100, 110))
    many = (Interface(bytes((2, 0, 0, 0, 1, 9)), prefixes),)
    assert "is exhausted" in world.begin(VmKey(0, "vm2"), "a", many).error
    assert world.box("x").mappings.free_addresses() == free
