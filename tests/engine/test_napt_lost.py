"""A NAPT box that lost its disk gives nobody what other boxes still hold of it."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network

import pytest

from tests.engine.napt_world import PRIVATE, PUBLIC, VM, NaptWorld, one_like
from vmmobility.engine.napt_plane import Flow
from vmmobility.engine.napt_pool import AddressPool
from vmmobility.engine.napt_settings import NaptPolicy, NaptSettings
from vmmobility.engine.outputs import Outbox, Persist
from vmmobility.wire.values import VmKey

VM2 = VmKey(0, "vm2")


def away(policy: NaptPolicy) -> NaptWorld:
    """VM has been behind y for a while; its address is x's."""
    world = NaptWorld(box_settings={"x": {"policy": policy, "linger_s": 5.0}})
    world.run(2.0)
    assert not world.begin().error
    assert world.moved("b").ok
    world.run(20.0)
    return world


def test_many_flows_do_not_stop_what_is_handed_back_to_a_box_that_lost_its_disk() -> None:
    """The first message of several has no mapping: of whose it is the owner knows nothing."""
    world = away(NaptPolicy.HAND_OVER)
    remote = (IPv4Address("192.0.2.9"), 4000)
    flows = [
        Flow(6, (PRIVATE, n), (IPv4Address(PUBLIC), n), remote, True, 300) for n in range(1, 600)
    ]
    world.boxes["y"].flows = list(flows)
    world.cut.add(frozenset(("x", "y")))
    world.lose_state("x")
    y = world.box("y")
    [mapping] = y.mappings.of_vm(VM)
    y._is_at(mapping, False, mapping.epoch + 1, world.now)
    world.cut.clear()
    world.restart("x")
    world.run_until(lambda: world.boxes["x"].static.get(str(PRIVATE)) == PUBLIC, 120.0)
    world.run_until(lambda: set(world.boxes["x"].flows) == set(flows), 60.0)
    assert world.boxes["y"].flows == []


@pytest.mark.parametrize("policy", list(NaptPolicy))
def test_what_another_box_holds_is_taken_up_again(policy: NaptPolicy) -> None:
    world = away(policy)
    world.lose_state("x")
    world.restart("x")
    world.run(5.0)
    [mapping] = world.box("x").mappings.of_vm(VM)
    assert (str(mapping.public), mapping.holder) == (PUBLIC, "y")
    kept = policy is NaptPolicy.KEEP
    assert (world.boxes["x"].static.get(str(PRIVATE)) == PUBLIC) is kept
    assert (world.boxes["x"].outward.get(str(PRIVATE)) == PUBLIC) is not kept
    world.run(60.0)  # until a's locator is mapped again
    assert world.moved("a").ok
    world.run(1.0)
    assert world.boxes["x"].static[str(PRIVATE)] == PUBLIC


def test_nothing_new_is_given_out_before_other_boxes_have_told() -> None:
    world = away(NaptPolicy.HAND_OVER)
    apart = frozenset(("x", "y"))
    world.cut.add(apart)
    world.lose_state("x")
    world.restart("x")
    world.run(2.0)
    refused = world.begin(VM2, "a", one_like(9, "10.1.0.88")).error
    assert "try-again: x: no public address for NVE a yet: its record was lost" in refused
    world.cut.discard(apart)
    world.run(60.0)
    assert not world.begin(VM2, "a", one_like(9, "10.1.0.88")).error
    assert PUBLIC not in world.boxes["x"].static.values()
    assert world.boxes["y"].static[str(PRIVATE)] == PUBLIC


def test_a_box_without_others_waits_for_nobody() -> None:
    world = NaptWorld()
    world.run(2.0)
    assert not world.begin().error
    x = world.box("x")
    for name in [n for n, found in x.neighbours.items() if n == "y"]:
        del x.neighbours[name]
    x._state_was_lost(world.now)
    assert str(x.mappings._free("VM vm9", world.now)) == "198.51.100.3"


def test_what_is_handed_back_to_a_box_that_lost_its_disk_is_taken_up_too() -> None:
    world = away(NaptPolicy.HAND_OVER)
    apart = frozenset(("x", "y"))
    world.cut.add(apart)
    world.lose_state("x")
    y = world.box("y")
    [mapping] = y.mappings.of_vm(VM)
    y._is_at(mapping, False, mapping.epoch + 1, world.now)
    world.cut.discard(apart)
    world.restart("x")
    world.run_until(lambda: world.boxes["x"].static.get(str(PRIVATE)) == PUBLIC, 120.0)


def test_what_somebody_else_has_by_now_is_not_taken_up() -> None:
    world = away(NaptPolicy.HAND_OVER)
    apart = frozenset(("x", "y"))
    world.cut.add(apart)
    world.lose_state("x")
    world.restart("x")
    x = world.box("x")
    world.run(70.0)
    for number in range(3):  # one of them gets it
        x.mappings.address(VmKey(0, f"vm{number + 5}"), IPv4Address(f"10.1.0.{number}"), world.now)
    before = dict(x.mappings.vms)
    assert PUBLIC in {str(m.public) for m in before.values()}
    world.cut.discard(apart)
    world.run(70.0)
    assert x.mappings.vms == before
    refused = [e for _, n, e in world.events if n == "y" and e.name == "mapping.refused"]
    assert refused[-1].detail["reason"] == "unknown-binding"


def test_the_pool_gives_out_what_was_free_for_longest() -> None:
    settings = NaptSettings("x", (), (IPv4Network("198.51.100.0/29"),))
    outbox = Outbox()
    pool = AddressPool(settings, {}, outbox)
    first, second, *others = list(pool)
    pool.give_back(second)
    pool.give_back(first)
    assert pool.choose([]) == others[0], "one that nobody has had"
    assert pool.choose(others) == second
    [record] = [o for o in outbox.flush() if isinstance(o, Persist)]
    again = AddressPool(settings, json.loads(json.dumps(dict(record.changes))), Outbox())
    assert again.choose(others) == second, "after a restart, too"
    assert again.choose([*others, second]) == first
    assert again.choose([*others, first, second]) is None
