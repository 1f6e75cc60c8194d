"""Load-shared groups (Section 7, hot standby): two VMs with one address serve at once.

By real engines on virtual time; packets are walked by every way after each event (group_walks.py).
Not here: the records (test_group_record.py).
"""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest

from tests.engine import (
    safety,
)
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import MANAGER, World
from vmmobility.engine.binding_update_list import make_nve
from vmmobility.engine.fabric_record import RouterSite
from vmmobility.engine.fabric_routes import RouteAction
from vmmobility.engine.group_record import Group, GroupRefused
from vmmobility.engine.manager_move import Move, MoveRefused
from vmmobility.engine.manager_transitions import MoveState
from vmmobility.wire.registry import Mobility
from vmmobility.wire.values import VmKey

WEB1, WEB2, OTHER = vm_key("vm1"), vm_key("vm2"), vm_key("vm3")
ADDRESSES = interfaces_of("vm1", 1, 1)
BEATS = {"heartbeat_s": 1.0}
SITES = (
    RouterSite("ra", border=False, serves=("a", "d"), dc="one"),
    RouterSite("edge1", border=True, dc="one"),
    RouterSite("edge2", border=True, dc="two"),
    RouterSite("rb", border=False, serves=("b",), dc="two"),
    RouterSite("rc", border=False, serves=("c",), dc="two"),
)


def started(world: World, vm: VmKey, at: str) -> str:
    """Starts the VM; the words of a refusal, or ""."""
    number = world.start_vm(vm, at, ADDRESSES)
    world.run_until(lambda: number in world.results)
    return world.results[number].error


def a_group(routers: tuple[RouterSite, ...] = SITES, **settings: object) -> World:
    """vm1 at a, its home, and vm2 at b, members of "web", settled."""
    world = World(
        ("a", "b", "c", "d"), routers=routers, manager_settings=settings, nve_settings=BEATS
    )
    world.declare_group("web", (WEB1, WEB2))
    assert not started(world, WEB1, "a")
    assert not started(world, WEB2, "b")
    world.run(2.0)
    return world


def web(world: World) -> Group:
    return world.manager.groups["web"]


def ends(world: World) -> set[str]:
    """Where packets are delivered, from everywhere; no packet ends otherwise."""
    walks = safety.walks(world, WEB1)
    assert {walk.end for walk in walks} == {"delivered"}, list(map(safety.describe, walks))
    return {walk.path[-1] for walk in walks}


def announcing(world: World) -> set[str]:
    assert world.fabric is not None
    return {
        name
        for name, held in world.fabric.held.items()
        if any(held[vm].state is RouteAction.ANNOUNCE for vm in (WEB1, WEB2) if vm in held)
    }


def fall_silent(world: World, name: str) -> None:
    """The NVE's host dies, as far as the network shows it."""
    world.power_cut(name)
    world.run_until(lambda: world.manager._silent_since(name) is not None, limit_s=10.0)


# ---- two serve at once ---------------------------------------------------------------------------


def test_both_members_are_announced_and_each_node_reaches_the_nearer_one() -> None:
    world = a_group()
    assert announcing(world) == {"ra", "rb"}
    assert ends(world) == {"a", "b"}
    reached = {w.path[0]: w.path[-1] for w in safety.walks(world, WEB1)}
    assert (reached["edge1"], reached["edge2"], reached["c"]) == ("a", "b", "b")
    safety.check_settled(world)


def test_a_router_of_two_members_leads_to_both() -> None:
    together = (RouterSite("ra", border=False, serves=("a", "b", "c", "d")),)
    world = a_group(together)
    assert world.fabric is not None
    assert world.fabric.next_hops("ra", WEB1) == {"a", "b"}
    assert ends(world) == {"a", "b"}


def test_without_a_group_the_second_attach_of_an_address_is_refused() -> None:
    world = World(routers=())
    assert not started(world, WEB1, "a")
    assert "address-in-use" in started(world, WEB2, "b")


def test_nobody_else_may_have_the_address_of_a_group() -> None:
    world = a_group()
    assert "address-in-use" in started(world, OTHER, "c")


def test_two_members_are_never_at_one_nve() -> None:
    world = World(("a", "b"), routers=())
    world.declare_group("web", (WEB1, WEB2))
    assert not started(world, WEB1, "a")
    assert "VM vm1, serving here, has an address of it" in started(world, WEB2, "a")
    assert not started(world, WEB2, "b")
    with pytest.raises(MoveRefused, match="b has VM vm2 of the same group"):
        world.move(WEB1, "b")


@pytest.mark.parametrize(
    ("vm", "member", "words"),
    [
        (WEB2, 2, ""),
        (WEB2, 0, ""),
        (WEB2, 1, "VM vm2 is not member 1 of a group"),
        (OTHER, 1, "VM vm3 is not member 1 of a group"),
    ],
)
def test_who_says_that_it_is_a_member_must_be_that_one(vm: VmKey, member: int, words: str) -> None:
    world = World(("a", "b"), routers=())
    world.declare_group("web", (WEB1, WEB2))
    definition = json.dumps({"member": member}).encode()
    addresses = ADDRESSES if vm in (WEB1, WEB2) else interfaces_of("vm3", 2, 1)
    number = world._give("b", lambda edge, n, now: edge.start_vm(n, vm, addresses, definition, now))
    world.run_until(lambda: number in world.results)
    error = world.results[number].error
    assert words in error if words else not error
    if not words:
        standby = world.manager.cache.bindings[vm].mobility is Mobility.STANDBY
        assert standby is bool(member)


def test_one_member_never_runs_twice() -> None:
    world = a_group()
    assert "bound-elsewhere" in started(world, WEB1, "c")
    assert safety.running(world, WEB1) == ["a"]


# ---- the operator --------------------------------------------------------------------------------


def test_the_groups_epoch_rises_with_each_change_of_membership() -> None:
    world = World(("a", "b"), routers=())
    epochs = []
    world.declare_group("web", (WEB1, WEB2))
    epochs.append(web(world).epoch)
    for vm, at in ((WEB1, "a"), (WEB2, "b")):
        started(world, vm, at)
        epochs.append(web(world).epoch)
    world.stop_vm(WEB2, "b")
    world.run(2.0)
    epochs.append(web(world).epoch)
    assert epochs == sorted(set(epochs))
    assert web(world).present == (WEB1,)


def test_a_group_outlives_the_manager() -> None:
    world = a_group()
    before = web(world)
    world.restart(MANAGER)
    world.run(1.0)
    assert web(world) == before
    assert ends(world) == {"a", "b"}


def refused(world: World, *members: tuple[int, VmKey], name: str = "web") -> str:
    with pytest.raises(GroupRefused) as found:
        world.manager.declare_group(name, 0, members, world.now)
    return found.value.message


def test_what_is_no_group_is_refused() -> None:
    world = a_group()
    assert "0 members" in refused(world, name="none")
    assert "9 members" in refused(
        world, *((n, vm_key(f"vm{n}")) for n in range(1, 10)), name="many"
    )
    assert "different numbers" in refused(world, (1, OTHER), (1, vm_key("vm4")), name="twice")
    assert "member of group web" in refused(world, (1, WEB1), name="another")
    assert "serve 10.1.0.1/32 together" in refused(world, (1, WEB1))


def test_a_group_goes_when_no_two_share_an_address() -> None:
    world = a_group()
    with pytest.raises(GroupRefused, match=r"serve 10\.1\.0\.1/32 together"):
        world.manager.delete_group("web", world.now)
    with pytest.raises(GroupRefused, match="no group db"):
        world.manager.delete_group("db", world.now)
    world.stop_vm(WEB2, "b")
    world.run(2.0)
    world.manager.delete_group("web", world.now)
    world.feed(world.nodes[MANAGER], lambda: None)
    world.groups.clear()
    world.run(5.0)
    assert announcing(world) == set()  # it is at home: the covering prefix leads there
    safety.check_settled(world)


def test_two_members_at_one_nve_are_no_group_whatever_its_locators_are() -> None:
    world = World(("a", "b"), routers=())
    for vm, number in ((WEB1, 1), (OTHER, 3)):
        command = world.start_vm(vm, "a", interfaces_of(vm.vm_id, number, 1))
        world.run_until(lambda at=command: at in world.results)  # type: ignore[misc]
    held = world.manager.cache.bindings[OTHER]
    held.nve = make_nve("a", (ip_address("192.0.2.77"),))  # it was renumbered in between
    assert "are both at a" in refused(world, (1, WEB1), (2, OTHER))


# ---- a member that fails -------------------------------------------------------------------------


def test_a_silent_member_goes_out_and_all_reach_the_other() -> None:
    world = a_group()
    before = web(world).epoch
    fall_silent(world, "b")
    world.run(0.2)
    assert web(world).out == {WEB2: "b is silent"}
    assert web(world).epoch > before
    assert announcing(world) == {"ra"}
    walks = [w for w in safety.walks(world, WEB1) if w.path[0] != "b"]
    assert {(w.path[-1], w.end) for w in walks} == {("a", "delivered")}


def test_the_last_one_is_never_withdrawn() -> None:
    world = a_group()
    fall_silent(world, "b")
    world.crash("a")
    world.run(10.0)
    assert world.manager._silent_since("a") is not None
    assert announcing(world) == {"ra"}
    assert web(world).present == (WEB1,)


def test_who_speaks_again_takes_over_from_the_silent_last_one() -> None:
    world = a_group()
    world.crash("b")
    world.run(10.0)
    world.crash("a")
    world.run(10.0)
    assert web(world).present == (WEB1,)
    world.restart("b")
    world.run(2.0)
    assert web(world).present == (WEB2,)
    assert announcing(world) == {"rb"}


def test_a_member_that_is_back_is_in_again_under_a_fresh_epoch() -> None:
    world = a_group()
    world.crash("b")
    world.run(10.0)
    assert web(world).present == (WEB1,)
    before = world.manager.cache.bindings[WEB2].epoch
    world.restart("b")
    world.run(90.0)
    assert web(world).present == (WEB1, WEB2)
    assert world.manager.cache.bindings[WEB2].epoch > before
    assert world.edge("b").entries[WEB2].granted == world.manager.cache.bindings[WEB2].epoch
    assert announcing(world) == {"ra", "rb"}
    assert ends(world) == {"a", "b"}
    safety.check_settled(world)


def test_that_a_member_is_out_outlives_the_manager() -> None:
    world = a_group()
    fall_silent(world, "b")
    world.run(1.0)
    epoch = web(world).epoch
    world.restart(MANAGER)
    for _ in range(44):  # until its three heartbeats have not come anew, and long after
        world.run(0.25)
        assert web(world).present == (WEB1,)
        assert announcing(world) == {"ra"}
    assert web(world).out == {WEB2: "b is silent"}
    assert web(world).epoch == epoch


def test_who_is_out_when_the_manager_restarts_is_in_again_when_it_is_heard() -> None:
    world = a_group()
    world.crash("b")  # its guest runs on
    world.run(10.0)
    assert web(world).out == {WEB2: "b is silent"}
    world.crash(MANAGER)
    world.restart("b")
    world.run(1.0)
    world.restart(MANAGER)
    world.run(4.0)
    assert web(world).out == {}
    assert announcing(world) == {"ra", "rb"}


@pytest.mark.parametrize("what", ["lost", "departed"])
def test_a_member_that_is_not_there_stays_out_over_a_restart(what: str) -> None:
    world = a_group()
    setattr(world.manager.cache.bindings[WEB2], what, True)  # as its NVE has said
    world.run(2.0)
    before = web(world).out
    assert list(before) == [WEB2]
    world.restart(MANAGER)
    world.run(2.0)  # heartbeats of its NVE have come: they say nothing of the guest
    assert web(world).out == before
    world.run(120.0)  # its NVE has refreshed it: it holds it
    assert web(world).present == (WEB1, WEB2)


def test_a_guest_that_died_is_out_at_once() -> None:
    world = a_group()
    hypervisor = world.nodes["b"].hypervisor
    assert hypervisor is not None
    hypervisor.kill(WEB2)
    world.run(0.5)
    assert web(world).present == (WEB1,)
    assert ends(world) == {"a"}
    safety.check_settled(world)


def ordered(world: World, vm: VmKey, verb: str) -> None:
    world.manager.order_guest(vm, verb, world.now)
    world.feed(world.nodes[MANAGER], lambda: None)


def test_a_member_that_is_suspended_is_out_before_and_in_again_after() -> None:
    world = a_group()
    ordered(world, WEB2, "suspend")
    assert web(world).out == {WEB2: "its guest is told to stop"}
    world.run(3.0)
    assert web(world).out == {WEB2: "its guest is suspended"}
    assert announcing(world) == {"ra"}
    ordered(world, WEB2, "resume")
    world.run(3.0)
    assert web(world).present == (WEB1, WEB2)
    assert ends(world) == {"a", "b"}


def test_the_last_one_that_people_suspend_stays_announced() -> None:
    world = a_group()
    ordered(world, WEB2, "suspend")
    world.run(3.0)
    ordered(world, WEB1, "suspend")
    world.run(3.0)
    assert web(world).present == (WEB1,)
    assert announcing(world) == {"ra"}


# ---- a member that moves -------------------------------------------------------------------------


def moved(world: World, to: str) -> Move:
    move = world.manager.moves[world.move(WEB1, to)]
    world.run_until(lambda: move.ok is not None)
    world.run(2.0)
    return move


@pytest.mark.parametrize("to", ["c", "d"])
def test_a_member_moves_without_loss_while_the_other_serves(to: str) -> None:
    world = a_group()
    world.lossless |= {WEB1, WEB2}
    move = moved(world, to)
    assert move.state is MoveState.DONE, move.reason
    assert announcing(world) == ({"rb", "rc"} if to == "c" else {"ra", "rb"})
    assert ends(world) == {"b", to}
    world.lossless.clear()
    world.run(60.0)
    safety.check_settled(world)
    back = moved(world, "a")
    assert back.state is MoveState.DONE, back.reason
    assert ends(world) == {"a", "b"}


def test_two_members_that_move_at_once_do_not_let_go_of_each_other() -> None:
    """Each one's old router leads to the other's until it has heard that this one leaves, too."""
    sites = (
        RouterSite("r5", border=False, serves=("d",)),
        RouterSite("r2", border=False, serves=("c",)),
        RouterSite("r1", border=False, serves=("e",)),
        RouterSite("r3", border=False, serves=("a", "b")),
    )
    for seed in range(4):
        world = World(
            ("a", "b", "c", "d", "e"),
            seed,
            routers=sites,
            nve_settings=BEATS,
            fabric_delay_s=(0.001, 0.5),
        )
        world.declare_group("web", (WEB1, WEB2))
        assert not started(world, WEB1, "d")
        assert not started(world, WEB2, "a")
        world.run(5.0)
        world.lossless |= {WEB1, WEB2}
        world.move(WEB1, "c")
        world.move(WEB2, "e")
        world.run(20.0)
        world.lossless.clear()
        assert ends(world) == {"c", "e"}
        safety.check_settled(world)


def test_a_move_that_is_given_up_leaves_both_where_they_were() -> None:
    world = a_group(gate_s=1.0)
    world.crash("rc")
    move = moved(world, "c")
    assert move.ok is False
    world.restart("rc")
    world.run(5.0)
    assert announcing(world) == {"ra", "rb"}
    assert ends(world) == {"a", "b"}


def test_where_a_member_has_been_no_other_goes_until_that_has_drained() -> None:
    world = a_group()
    assert moved(world, "c").ok
    if "a" in world.manager.cache.bindings[WEB1].previous:
        with pytest.raises(MoveRefused, match="a still redirects to VM vm1"):
            world.move(WEB2, "a")
    world.run(60.0)
    move = world.manager.moves[world.move(WEB2, "a")]
    world.run_until(lambda: move.ok is not None)
    assert move.state is MoveState.DONE, move.reason
    world.run(2.0)
    assert ends(world) == {"a", "c"}
