"""The life state `protected`: from the first whole checkpoint on, and as long as one is of use."""

from __future__ import annotations

from tests.engine.network import MANAGER, World
from tests.engine.test_lifecycle import VM, asked, confirm, do, request, state, until, world
from vmmobility.engine.lifecycle_transitions import LifeState
from vmmobility.engine.manager_protection_record import ProtectionState
from vmmobility.engine.outputs import Order


def brought_up() -> tuple[World, str, str]:
    """The VM runs; where, and at which NVE else it can have a standby."""
    made = world()
    request(made, asked())
    confirm(made)
    until(made, "running")
    at = made.manager.cache.bindings[VM].nve.nve_id
    return made, at, next(name for name in "abc" if name != at)


def test_it_is_protected_from_its_first_checkpoint_on() -> None:
    made, _, other = brought_up()
    hypervisor = made.nodes[other].hypervisor
    assert hypervisor is not None
    hypervisor.fail_next[Order.RECEIVE] = ["no room"]
    made.protect(VM, other, lease_s=5.0)
    made.run(1.0)
    assert made.manager.protected[VM].number == 0
    assert state(made) == "running"  # nothing would be there to go on from
    until(made, "protected")
    assert made.manager.protected[VM].number > 0
    made.run(5.0)
    assert made.manager.lives[VM].state is LifeState.PROTECTED  # on record, for a restart
    made.restart(MANAGER)
    made.run(5.0)
    assert state(made) == "protected"
    made.unprotect(VM)
    until(made, "running")


def test_a_warm_move_is_a_migration_and_ends_the_protection() -> None:
    made, _, other = brought_up()
    made.protect(VM, other, lease_s=5.0)
    until(made, "protected")
    made.move(VM, other, mode="warm")
    assert state(made) == "migrating"
    until(made, "running")
    assert made.manager.cache.bindings[VM].nve.nve_id == other


def test_a_take_over_is_a_migration() -> None:
    made, at, other = brought_up()
    made.protect(VM, other, lease_s=5.0)
    until(made, "protected")
    made.power_cut(at)
    seen = set[str]()
    for _ in range(4000):
        made.run(0.01)
        protected = made.manager.protected.get(VM)
        if protected is None:
            break
        if protected.state is ProtectionState.TAKING_OVER:
            seen.add(state(made))
    assert seen == {"migrating"}
    until(made, "running")
    assert made.manager.cache.bindings[VM].nve.nve_id == other


def test_it_is_protected_no_more_once_its_standby_could_not_take_over() -> None:
    made, at, other = brought_up()
    made.protect(VM, other, lease_s=5.0)
    until(made, "protected")
    hypervisor = made.nodes[other].hypervisor
    assert hypervisor is not None
    hypervisor.fail_next[Order.ACTIVATE] = ["out of memory"]
    made.power_cut(at)
    made.run(40.0)
    assert made.manager.protected[VM].state is ProtectionState.FAILED
    assert state(made) == "failed"


def test_one_that_shuts_itself_down_is_stopped_though_a_standby_is_kept() -> None:
    made, at, other = brought_up()
    made.protect(VM, other, lease_s=5.0)
    until(made, "protected")
    hypervisor = made.nodes[at].hypervisor
    assert hypervisor is not None
    do(made, lambda manager, now: hypervisor.power_off(VM))
    until(made, "stopped")
    assert VM in made.manager.protected
