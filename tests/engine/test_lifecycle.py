"""A VM's whole life between real engines: three steps in, what follows, restarts, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from tests.engine import safety
from tests.engine.network import MANAGER, World
from vmmobility.engine.capacity import HostCapacity, Resources
from vmmobility.engine.fabric_record import RouterSite
from vmmobility.engine.lifecycle_record import Life, LifeRefused, VmRequest
from vmmobility.engine.lifecycle_transitions import (
    LIVE,
    ROWS,
    TABLE,
    LifeEvent,
    LifeState,
)
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.manager_move import GuestRefused, MoveRefused
from vmmobility.engine.outputs import Order
from vmmobility.wire.registry import Phase
from vmmobility.wire.values import Interface, VmKey

VM = VmKey(0, "web1")
SMALL = Resources(1, 512, 0)


def host(memory_mib: int, free_mib: int | None = None, vcpus: int = 16) -> HostCapacity:
    free = memory_mib if free_mib is None else free_mib
    return HostCapacity(Resources(vcpus, memory_mib, 10_000), Resources(vcpus, free, 10_000))


def world(**memory_mib: int) -> World:
    made = World(
        nve_settings={"heartbeat_s": 1.0},
        manager_settings={"offer_s": 30.0, **memory_mib.pop("settings", {})},  # type: ignore[dict-item]
    )
    for name, size in ({"a": 1000, "b": 2000, "c": 3000} | memory_mib).items():
        made.nodes[name].capacity = host(size)
    for name in "abc":
        made.edge(name)._measure_at = 0.0
    made.run(2.5)
    return made


def interface(number: int) -> Interface:
    mac = bytes((2, 0, 0, 0, 0, number))
    return Interface(
        mac, (ip_network(f"10.1.0.{number}/32"), ip_network(f"fd01:1::{number:x}/128"))
    )


def asked(
    vm: VmKey = VM, number: int = 5, key: str = "k1", definition: bytes = b"{}", **more: Any
) -> VmRequest:
    given: dict[str, Any] = {"resources": SMALL, **more}
    return VmRequest(
        key, f"digest of {key} {sorted(given)}", vm, (interface(number),), definition, **given
    )


def request(made: World, wanted: VmRequest) -> Life:
    found: list[Life] = []
    node = made.nodes[MANAGER]
    made.feed(node, lambda: found.append(made.manager.request_vm(wanted, made.now)))
    return found[0]


def confirm(made: World, vm: VmKey = VM, **more: Any) -> Life:
    found: list[Life] = []
    node = made.nodes[MANAGER]
    made.feed(node, lambda: found.append(made.manager.confirm_vm(vm, made.now, **more)))
    return found[0]


def do(made: World, action: Callable[[ManagerEngine, float], object]) -> None:
    made.feed(made.nodes[MANAGER], lambda: (action(made.manager, made.now), None)[1])


def order(made: World, verb: str, *, force: bool = False) -> None:
    do(made, lambda manager, now: manager.order_guest(VM, verb, now, force))


def state(made: World, vm: VmKey = VM) -> str:
    return made.manager.life_state(vm, made.now)


def until(made: World, wanted: str, vm: VmKey = VM) -> None:
    made.run_until(lambda: state(made, vm) == wanted)


def up(made: World, wanted: VmRequest | None = None) -> Life:
    """Through all three steps."""
    life = request(made, wanted or asked())
    confirm(made, life.vm)
    until(made, "running", life.vm)
    return life


# ---- the table ---------------------------------------------------------------------------------


def test_every_state_and_event_is_used_and_no_pair_has_two_rows():
    assert len(TABLE) == sum(len(row.states) for row in ROWS)
    assert {row.event for row in ROWS} == set(LifeEvent)
    reached = {row.becomes for row in ROWS} | {LifeState.REQUESTED}
    assert reached == set(LifeState)
    assert all(
        (state, LifeEvent.DELETE) in TABLE for state in LifeState if state.value != "deleted"
    )
    assert not [pair for pair in TABLE if pair[0] is LifeState.DELETED]
    assert LifeState.FAILED not in LIVE


# ---- the three steps ---------------------------------------------------------------------------


def test_a_vm_comes_to_be_in_three_steps():
    made = world()
    life = request(made, asked())
    assert (life.state, life.nve_id) == (LifeState.OFFERED, "a")
    assert made.manager.room_of("a")["memory_mib"] == 488
    assert VM not in made.manager.cache.bindings
    confirm(made)
    assert state(made) == "provisioning"
    until(made, "running")
    assert made.manager.cache.bindings[VM].nve.nve_id == "a"
    guests = made.nodes["a"].hypervisor
    assert guests is not None
    assert guests.life(VM) == "running"
    made.run(1.0)
    told = [e.detail["state"] for _, _, e in made.events if e.name == "vm.state"]
    assert told == ["offered", "confirmed", "provisioning", "running"]


def test_best_fit_leaves_large_rooms_whole():
    made = world()
    assert request(made, asked()).nve_id == "a"
    second = asked(VmKey(0, "web2"), 6, "k2", resources=Resources(1, 600, 0))
    assert request(made, second).nve_id == "b", "a has 488 left"
    third = asked(VmKey(0, "web3"), 7, "k3", resources=Resources(1, 2500, 0))
    assert request(made, third).nve_id == "c"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"resources": Resources(1, 4096, 0)}, "4096 MiB of memory wanted, most free 3000 at c"),
        ({"resources": Resources(17, 1, 0)}, "17 vCPUs wanted, most free 16 at"),
        ({"resources": Resources(1, 1, 10_001)}, "10001 MiB of storage wanted, most free 10000"),
        ({"threads": 20}, "20 vCPUs wanted, most free 16 at"),
        ({"resources": Resources(1, 1500, 0), "nves": ("a",)}, "most free 1000 at a; b: not asked"),
        ({"dc": "mars"}, "a: not in mars; b: not in mars"),
        ({"nves": ("nowhere",)}, "no NVE nowhere is known"),
    ],
)
def test_a_rejection_says_what_was_short_and_where(wanted: dict[str, Any], words: str):
    made = world()
    with pytest.raises(LifeRefused) as refused:
        request(made, asked(**wanted))
    assert words in refused.value.message
    assert refused.value.remedy
    assert not made.manager.lives
    assert not [key for key in made.nodes[MANAGER].disk if key.startswith("life/")]


def test_no_one_nve_has_all_of_it():
    made = world()
    made.nodes["c"].capacity = host(3000, vcpus=1)
    made.run(6.0)
    wanted = asked(resources=Resources(4, 2500, 0))
    with pytest.raises(LifeRefused) as refused:
        request(made, wanted)
    assert "b: 2500 MiB of memory wanted, 2000 free" in refused.value.message
    assert "c: 4 vCPUs wanted, 1 free" in refused.value.message


def test_what_others_use_of_a_host_is_not_given_out():
    made = world()
    made.nodes["a"].capacity = host(1000, free_mib=100)
    made.run(6.0)
    assert made.manager.room_of("a")["memory_mib"] == 100
    assert request(made, asked()).nve_id == "b"


def test_addresses_and_names_have_one_owner():
    made = world()
    up(made)
    with pytest.raises(LifeRefused, match=r"address in use: 10\.1\.0\.5/32 belongs to VM web1"):
        request(made, asked(VmKey(0, "web2"), 5, "k2"))
    with pytest.raises(LifeRefused, match="VM-ID web1 is taken: it is at a"):
        request(made, asked(VM, 6, "k3"))
    offered = request(made, asked(VmKey(0, "web3"), 7, "k4"))
    assert offered.state is LifeState.OFFERED
    with pytest.raises(LifeRefused, match="belongs to VM web3"):
        request(made, asked(VmKey(0, "web4"), 7, "k5"))


def test_members_of_a_group_share_an_address_and_no_nve():
    made = world()
    one, two = VmKey(0, "web1"), VmKey(0, "web2")
    do(made, lambda manager, now: manager.declare_group("web", 0, [(1, one), (2, two)], now))
    up(made)
    up(made, asked(two, 5, "k2"))
    nves = [made.manager.cache.bindings[vm].nve.nve_id for vm in (one, two)]
    assert nves == ["a", "b"]


def test_members_of_a_group_are_created_and_serve_together():
    made = world()
    first, second = VmKey(0, "web1"), VmKey(0, "web2")
    wanted = asked(first, definition=b'{"member":1}')
    with pytest.raises(LifeRefused, match="not member 1 of a group"):
        request(made, wanted)
    do(made, lambda m, now: m.declare_group("web", 0, [(1, first), (2, second)], now))
    with pytest.raises(LifeRefused, match="not member 1 of a group"):
        request(made, asked(second, key="k2", definition=b'{"member":1}'))
    up(made, wanted)
    up(made, asked(second, key="k3", definition=b'{"member":2}'))
    bindings = made.manager.cache.bindings
    assert bindings[first].nve != bindings[second].nve
    assert set(made.manager.groups["web"].present) == {first, second}


def test_silent_cordoned_and_crowded_nves_are_not_chosen():
    made = world()
    made.crash("a")
    made.run(5.0)
    made.manager._is_cordoned = lambda nve_id: nve_id == "b"
    assert request(made, asked()).nve_id == "c"
    other = asked(VmKey(0, "web2"), 6, "k2", apart=(VM,))
    with pytest.raises(LifeRefused) as refused:
        request(made, other)
    assert "a: it is dead; b: it is cordoned; c: VM web1 is there" in refused.value.message


def test_a_data_centre_can_be_asked_for():
    sites = (RouterSite("t1", False, ("a", "b"), "dc1"), RouterSite("t2", False, ("c",), "dc2"))
    made = World(nve_settings={"heartbeat_s": 1.0}, routers=sites)
    made.run(2.5)
    assert request(made, asked(dc="dc2")).nve_id == "c"


# ---- idempotency, offers' ends, adjustment ------------------------------------------------------


def test_the_same_request_gets_the_same_answer_also_after_a_restart():
    made = world()
    first = request(made, asked())
    assert request(made, asked()) is first
    made.run(1.0)
    made.restart(MANAGER)
    made.run(2.5)
    again = request(made, asked())
    assert (again.state, again.nve_id) == (LifeState.OFFERED, "a")
    assert made.manager.room_of("a")["memory_mib"] == 488, "reserved once"
    with pytest.raises(LifeRefused, match="was used for another request"):
        request(made, replace(asked(), digest="another body"))
    confirm(made)
    until(made, "running")
    assert request(made, asked()).state is LifeState.RUNNING
    confirm(made)
    assert len(made.manager.lives) == 1


def test_an_offer_that_nobody_takes_ends_and_frees_its_room():
    made = world()
    request(made, asked())
    made.run(32.0)
    assert made.manager.room_of("a")["memory_mib"] == 1000
    with pytest.raises(LifeRefused, match="no request or offer of VM web1"):
        confirm(made)
    assert not [key for key in made.nodes[MANAGER].disk if key.startswith("life/")]
    assert request(made, asked()).state is LifeState.OFFERED, "asked anew, it is offered anew"


def test_a_restart_grants_an_offer_its_time_again():
    made = world()
    request(made, asked())
    made.run(20.0)
    made.restart(MANAGER)
    made.run(20.0)
    assert state(made) == "offered"
    made.run(12.0)
    assert state(made) == ""


def test_a_confirmation_may_ask_for_less_and_never_for_more():
    made = world()
    request(made, asked())
    with pytest.raises(LifeRefused, match="was offered 1 vCPUs, 512 MiB"):
        confirm(made, less=Resources(1, 513, 0))
    life = confirm(made, less=Resources(1, 256, 0), definition=b'{"less":1}')
    assert life.request.definition == b'{"less":1}'
    assert made.manager.room_of("a")["memory_mib"] == 744
    until(made, "running")
    with pytest.raises(LifeRefused, match="cannot be adjusted any more"):
        confirm(made, less=Resources(1, 128, 0))
    assert made.manager.cache.bindings[VM].definition == b'{"less":1}'


def test_an_offer_at_an_nve_that_died_is_kept_elsewhere():
    made = world()
    assert request(made, asked()).nve_id == "a"
    made.crash("a")
    made.run(5.0)
    assert confirm(made).nve_id == "b"
    until(made, "running")


# ---- what follows ------------------------------------------------------------------------------


def test_its_state_follows_what_there_is():
    made = world()
    up(made)
    made.move(VM, "b")
    assert state(made) == "migrating"
    assert made.manager.room_of("b")["memory_mib"] == 1488, "counted at both ends"
    assert made.manager.room_of("a")["memory_mib"] == 488
    until(made, "running")
    made.run(5.0)
    assert made.manager.room_of("a")["memory_mib"] == 1000
    for verb, becomes in (("suspend", "suspended"), ("resume", "running")):
        order(made, verb)
        until(made, becomes)
    order(made, "stop", force=True)
    until(made, "stopped")
    assert made.manager.room_of("b")["memory_mib"] == 1488, "it may be started again"
    made.crash("b")
    made.run_until(lambda: state(made) == "failed", 10.0)
    assert made.manager.lives[VM].reason == "b is dead: its heartbeats have ceased"
    made.restart("b")
    until(made, "stopped")
    order(made, "delete")
    made.run_until(lambda: VM not in made.manager.cache.bindings)
    made.run(1.5)
    assert VM not in made.manager.lives
    assert made.manager.room_of("b")["memory_mib"] == 2000
    assert not [key for key in made.nodes[MANAGER].disk if key.startswith("life/")]


def test_a_vm_that_cannot_be_brought_up_has_failed_and_may_be_tried_again():
    made = world()
    guests = made.nodes["a"].hypervisor
    assert guests is not None
    guests.fail_next = {Order.START: ["no such kernel"]}
    request(made, asked())
    confirm(made)
    until(made, "failed")
    made.run(2.0)
    assert "no such kernel" in made.manager.lives[VM].reason
    assert made.manager.room_of("a")["memory_mib"] == 1000, "nothing is kept for it"
    confirm(made)
    until(made, "running")


def test_an_nve_that_dies_over_it_and_the_second_try_goes_elsewhere():
    made = world()
    request(made, asked())
    made.crash("a")
    confirm(made)
    until(made, "failed")
    assert made.manager.lives[VM].reason == "a is dead: its heartbeats have ceased"
    assert confirm(made).nve_id == "b"
    until(made, "running")
    made.restart("a")
    made.run(5.0)
    first = made.nodes["a"].hypervisor
    assert first is not None
    assert first.life(VM) == "none"
    assert made.manager.cache.bindings[VM].nve.nve_id == "b"


@pytest.mark.parametrize("step", ["offered", "provisioning", "failed"])
def test_it_can_be_deleted_at_any_step(step: str):
    made = world()
    request(made, asked())
    if step != "offered":
        guests = made.nodes["a"].hypervisor
        assert guests is not None
        guests.fail_next = {Order.START: ["no"]}
        confirm(made)
    if step == "failed":
        until(made, "failed")
        made.run(2.0)
    do(made, lambda manager, now: manager.delete_vm(VM, now))
    made.run(10.0)
    assert VM not in made.manager.lives
    assert VM not in made.manager.cache.bindings
    assert not made.manager.provisions
    assert made.manager.room_of("a")["memory_mib"] == 1000


def booting() -> tuple[World, str]:
    """VM is registered, and its guest is being booted, which is going to fail; and where."""
    made = world()
    request(made, asked())
    place = confirm(made).nve_id
    made.run_until(
        lambda: (
            VM in made.manager.cache.bindings
            and (VM in made.edge(place).entries and made.edge(place).entries[VM].booting)
        )
    )
    guests = made.nodes[place].hypervisor
    assert guests is not None
    guests.fail_next = {Order.START: ["disk full"]}
    assert VM in made.manager.provisions
    return made, place


@pytest.mark.parametrize("force", [False, True])
def test_one_that_is_being_brought_up_can_be_deleted(force: bool):
    made, place = booting()
    order(made, "delete", force=force)
    assert not made.manager.provisions
    made.run(10.0)
    assert VM not in made.manager.lives
    assert VM not in made.manager.cache.bindings
    assert safety.running(made, VM) == []
    assert made.edge(place).entries[VM].phase is Phase.NONE


def test_an_order_that_is_refused_leaves_the_bringing_up_alone():
    made, _ = booting()
    going = made.manager.provisions[VM]
    for verb in ("stop", "suspend", "start", "resume"):
        with pytest.raises(GuestRefused, match="is being brought up"):
            order(made, verb, force=True)
    assert made.manager.provisions[VM] is going


def test_one_that_is_being_brought_up_is_not_moved():
    made, place = booting()
    to = next(name for name in "abc" if name != place)
    with pytest.raises(MoveRefused, match=f"is being brought up at {place}"):
        do(made, lambda manager, now: manager.start_move(VM, to, now, 0))
    made.run(10.0)
    assert state(made) == "failed"


@pytest.mark.parametrize("after_s", [0.0, 0.0005, 0.002, 0.004, 0.006, 0.01])
def test_a_manager_that_restarts_while_it_is_brought_up_goes_on(after_s: float):
    made = world()
    request(made, asked())
    confirm(made)
    made.run(after_s)
    made.restart(MANAGER)
    made.run(2.5)
    if state(made) in ("", "offered"):  # nobody was told yet, for it was not durable
        request(made, asked())
        confirm(made)
    until(made, "running")


def test_strict_mode_takes_a_confirmed_vm_on_record_and_off_again():
    made = World(
        nve_settings={"heartbeat_s": 1.0}, manager_settings={"strict": True, "offer_s": 30.0}
    )
    made.run(2.5)
    up(made)
    assert VM in made.manager.onboarded
    made.restart(MANAGER)
    made.run(3.0)
    order(made, "delete", force=True)
    made.run_until(lambda: VM not in made.manager.lives, 20.0)
    assert VM not in made.manager.onboarded
    other = VmKey(0, "db1")
    do(made, lambda manager, now: manager.onboard(other, (interface(9),), ["c"], now))
    with pytest.raises(LifeRefused, match="not permitted: VM db1 may be at c only"):
        request(made, asked(other, 9, "k2", nves=("a",)))
    with pytest.raises(LifeRefused, match="has other addresses on record"):
        request(made, asked(other, 8, "k2"))
    assert request(made, asked(other, 9, "k2")).nve_id == "c"


def test_a_move_to_an_nve_without_room_is_refused_with_the_figures():
    made = world()
    up(made, asked(resources=Resources(1, 1800, 0)))
    with pytest.raises(MoveRefused) as refused:
        made.move(VM, "a")
    assert "a has 1000 MiB of memory left, 1800 are wanted, for VM web1" in str(refused.value)
    made.move(VM, "c")
    until(made, "running")
    assert made.manager.cache.bindings[VM].nve.nve_id == "c"


def test_vms_without_a_request_count_by_their_definitions():
    made = world()
    definition = b'{"kind":"qemu","vcpus":1,"memory_mib":900}'
    other = VmKey(0, "old")
    made._defined(other, (interface(8),))
    number = made._give(
        "a", lambda e, n, now: e.start_vm(n, other, (interface(8),), definition, made.now)
    )
    made.run_until(lambda: number in made.results)
    assert made.manager.room_of("a")["memory_mib"] == 100
    assert request(made, asked()).nve_id == "b"
