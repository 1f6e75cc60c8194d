"""Mappings that end, come back, or pass between NAPT boxes: what the kernel holds at each step."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from tests.engine.napt_world import PRIVATE, PUBLIC, VM, NaptWorld, flow, handing_world, move_to
from vmmobility.engine.napt_plane import Flow, NaptState, PortMapping
from vmmobility.engine.napt_told import flow_option, told
from vmmobility.wire.message import Message
from vmmobility.wire.options import Epoch, VmId
from vmmobility.wire.registry import Purpose, Status
from vmmobility.wire.values import VmKey


def test_back_again_while_it_is_still_translated_there_needs_no_detour() -> None:
    world = handing_world(linger_s=30.0)
    move_to(world, "b")
    move_to(world, "a")
    [mapping] = world.box("y").mappings.of_vm(VM)
    assert mapping.lingers, "translated at y, until routes have turned"
    both: list[object] = []

    def look() -> bool:
        state = world.boxes["y"].state
        if {m.private for m in state.static} & {d.private for d in state.detours}:
            both.append(state)
        return move.ok is not None

    move = world.manager.moves[world.move(VM, "b")]
    world.run_until(look)
    assert move.ok, move.reason
    assert not both, "a static mapping and a detour of one address"
    world.run_until(
        lambda: world.boxes["y"].static.get(str(PRIVATE)) == PUBLIC and not mapping.lingers
    )


def test_a_restart_before_routes_have_turned_goes_on_translating() -> None:
    world = handing_world(linger_s=30.0)
    world.boxes["x"].flows = [flow()]
    move_to(world, "b")
    world.run(10.0)
    world.restart("x")
    world.run(29.0)
    assert world.boxes["x"].static[str(PRIVATE)] == PUBLIC, "a whole linger_s anew"
    assert world.boxes["x"].flows == [flow()]
    world.run(2.0)
    assert str(PRIVATE) not in world.boxes["x"].static
    assert world.boxes["x"].flows == []
    world.restart("x")
    world.run(0.1)
    assert str(PRIVATE) not in world.boxes["x"].static, "it is over for good"


def test_a_mapping_stays_while_flows_by_other_addresses_of_the_box_are_alive() -> None:
    """Answers to them would leave by the other box, with another source."""
    world = handing_world()
    own, other = flow(), flow("192.0.2.200", 8080)
    world.boxes["x"].flows = [own, other]
    assert world.moved("b").ok
    world.run(130.0)
    [mapping] = world.box("x").mappings.of_vm(VM)
    assert (mapping.standing, mapping.stays) == ("translated", "flows by 192.0.2.200 are alive")
    assert str(PRIVATE) not in world.boxes["y"].static
    said = [e for _, n, e in world.events if n == "x" and e.name == "handover.failed"]
    assert [e.detail["reason"] for e in said] == [mapping.stays], "it is said once"
    world.boxes["x"].flows = [own]
    world.run_until(lambda: str(PRIVATE) not in world.boxes["x"].static, 120.0)
    assert world.boxes["y"].flows == [own]
    assert mapping.stays == ""


def test_a_mapping_to_which_a_mapped_port_leads_stays() -> None:
    port = PortMapping(6, PRIVATE, 80, IPv4Address("192.0.2.200"), 8080)
    world = handing_world(ports=(port,))
    assert world.moved("b").ok
    world.run(70.0)
    [mapping] = world.box("x").mappings.of_vm(VM)
    assert (mapping.ours, mapping.stays) == (True, "a mapped port leads to it")
    assert str(PRIVATE) in {str(d.private) for d in world.boxes["y"].state.detours}
    assert world.moved("a").ok
    world.run(1.0)
    assert mapping.stays == ""


def test_a_hand_over_with_a_foreign_flow_changes_nothing() -> None:
    world = NaptWorld()
    world.run(2.0)
    world.begin()
    assert world.moved("b").ok
    world.run(1.0)
    [mapping] = world.box("y").mappings.of_vm(VM)
    state, x = world.boxes["y"].state, world.box("x")
    answers: list[Message] = []
    options = (VmId(VM), Epoch(mapping.epoch), told(mapping), flow_option(flow("192.0.2.200")))

    def hand() -> None:
        peer = x.neighbours["y"].peer
        answer = lambda reply, now: answers.append(reply)  # noqa: E731
        x.channel.request(peer, Purpose.HANDOVER, options, world.now, answer)

    world.feed(world.nodes["x"], hand)
    world.run_until(lambda: answers)
    assert answers[0].status is Status.MALFORMED
    assert not mapping.ours
    assert world.boxes["y"].state == state


def test_the_owner_forgets_flows_also_when_the_reply_to_its_hand_over_was_lost() -> None:
    world = handing_world(linger_s=5.0)
    world.boxes["x"].flows = [flow()]
    assert world.moved("b").ok
    world.run(0.1)
    [mapping] = world.box("x").mappings.of_vm(VM)
    world.box("x")._handing.clear()
    mapping.ours, mapping.lingers = True, 0.0
    world.feed(world.nodes["y"], lambda: world.box("y")._hold_all(world.now))
    world.run(0.5)
    assert mapping.lingers, "it says that it translates"
    world.run(6.0)
    assert world.boxes["x"].flows == []
    assert str(PRIVATE) not in world.boxes["x"].static


def last_state_before_drop(world: NaptWorld, box: str) -> NaptState:
    """What the kernel was last asked to hold before it was to forget the VM's flows."""
    orders = world.boxes[box].orders
    states = [o for o in orders[: orders.index(PRIVATE)] if isinstance(o, NaptState)]
    return states[-1]


def test_flows_are_forgotten_after_the_mapping_that_would_begin_them_anew() -> None:
    world = handing_world(linger_s=5.0)
    world.boxes["x"].flows = [flow()]
    move_to(world, "b")
    world.run_until(lambda: PRIVATE in world.boxes["x"].orders, 20.0)
    assert PRIVATE not in {m.private for m in last_state_before_drop(world, "x").static}


def test_a_mapping_that_ends_takes_its_flows_along() -> None:
    world = NaptWorld()
    world.run(2.0)
    world.begin()
    world.boxes["x"].flows = [flow()]
    number = world.stop_vm(VM, "a")
    world.run_until(lambda: number in world.results, 60.0)
    world.run(1.0)
    assert world.boxes["x"].flows == []
    assert PRIVATE not in {m.private for m in last_state_before_drop(world, "x").static}


def test_a_locator_that_has_changed_takes_the_old_one_s_flows_along() -> None:
    world = NaptWorld()
    world.run(2.0)
    world.begin()
    old, new = IPv4Address("10.0.1.2"), IPv4Address("10.0.1.200")
    x, remote = world.box("x"), (IPv4Address("192.0.2.9"), 0)
    tunnel = Flow(4, (old, 0), (IPv4Address("198.51.100.1"), 0), remote, True, 300)
    world.boxes["x"].flows = [tunnel, flow()]

    def change() -> None:
        x.mappings.locator("a", new, world.now)
        x._settle()

    world.feed(world.nodes["x"], change)
    world.run(0.5)
    assert world.boxes["x"].static[str(new)] == "198.51.100.1"
    assert world.boxes["x"].flows == [flow()]


def test_a_restart_before_the_flows_were_forgotten_forgets_them() -> None:
    world = NaptWorld()
    world.run(2.0)
    world.begin()
    number = world.stop_vm(VM, "a")
    world.run_until(lambda: number in world.results, 60.0)
    world.run(1.0)
    world.boxes["x"].flows = [flow()]
    world.restart("x")
    world.run(0.1)
    assert world.boxes["x"].flows == []


def test_a_restart_leaves_the_flows_of_what_lives() -> None:
    world = NaptWorld()
    world.run(2.0)
    world.begin()
    world.boxes["x"].flows = [flow()]
    world.restart("x")
    world.run(1.0)
    assert world.boxes["x"].flows == [flow()]


def test_a_mapping_that_ended_lives_again_when_a_box_says_that_it_has_the_vm() -> None:
    world = NaptWorld()
    world.run(2.0)
    world.begin()
    assert world.moved("b").ok
    world.run(1.0)
    x = world.box("x")
    [mapping] = x.mappings.of_vm(VM)
    world.feed(world.nodes["x"], lambda: x.mappings.end(mapping, "nothing was heard", world.now))
    world.feed(world.nodes["y"], lambda: world.box("y")._hold_all(world.now))
    world.run(0.5)
    assert (mapping.ended, mapping.holder) == (False, "y")
    assert world.boxes["x"].static[str(PRIVATE)] == PUBLIC


def test_a_mapping_whose_address_is_another_s_by_now_does_not_live_again() -> None:
    world = NaptWorld()
    world.run(2.0)
    world.begin()
    assert world.moved("b").ok
    world.run(1.0)
    x, other = world.box("x"), VmKey(0, "vm2")
    [mapping] = x.mappings.of_vm(VM)

    def another() -> None:
        x.mappings.end(mapping, "nothing was heard", world.now)
        x.mappings.address(other, PRIVATE, world.now)

    world.feed(world.nodes["x"], another)
    world.feed(world.nodes["y"], lambda: world.box("y")._hold_all(world.now))
    world.run(0.5)
    assert mapping.ended
    said = [e for _, n, e in world.events if n == "y" and e.name == "mapping.refused"]
    assert said[-1].detail["reason"] == "address-in-use"


def test_a_vm_that_is_home_is_translated_though_the_other_box_is_silent() -> None:
    world = handing_world()
    world.boxes["x"].flows = [flow()]
    move_to(world, "b")
    world.run(60.0)
    assert str(PRIVATE) not in world.boxes["x"].static
    silent = frozenset(("x", "y"))
    world.cut.add(silent)
    assert world.moved("a").ok
    world.run(1.0)
    assert world.boxes["x"].static[str(PRIVATE)] == PUBLIC
    world.cut.discard(silent)
    world.run_until(lambda: world.boxes["x"].flows == [flow()], 200.0)
    assert world.boxes["x"].static[str(PRIVATE)] == PUBLIC
    world.run_until(lambda: str(PRIVATE) not in world.boxes["y"].static, 200.0)


def test_a_hand_over_that_ends_when_the_vm_is_home_again_takes_nothing_away() -> None:
    world = handing_world()
    assert world.moved("b").ok
    x = world.box("x")
    [mapping] = x.mappings.of_vm(VM)
    world.run_until(lambda: mapping.key in x._handing)
    x._is_at(mapping, True, mapping.epoch, world.now)
    world.run_until(lambda: mapping.key not in x._handing)
    assert mapping.ours
    assert not mapping.lingers


def test_the_pool_is_routed_to_the_box_but_for_what_was_handed_over() -> None:
    world = handing_world(linger_s=5.0)

    def is_routed_here(box: str) -> bool:
        return any(IPv4Address(PUBLIC) in network for network in world.boxes[box].state.publics)

    assert is_routed_here("x")
    move_to(world, "b")
    world.run(10.0)
    assert not is_routed_here("x")
    assert not is_routed_here("y"), "its mapping says so there"
    kept = sum(network.num_addresses for network in world.boxes["x"].state.publics)
    assert kept == 15, "of 16"
    move_to(world, "a")
    assert is_routed_here("x")


def test_an_address_departs_before_its_flows_are_forgotten_and_not_after() -> None:
    """Else what comes from there meanwhile would begin flows that clash with the old ones."""
    world = handing_world(linger_s=5.0)
    box = world.boxes["x"]
    move_to(world, "b")
    begin = len(box.orders)
    world.run(10.0)
    seen = [
        ("departs" if IPv4Address(PUBLIC) in order.departing else "left")
        if isinstance(order, NaptState)
        else "forgets"
        for order in box.orders[begin:]
    ]
    assert seen == ["departs", "forgets", "left"]


def test_what_a_vm_sends_by_its_owner_leaves_with_its_own_address_wherever_it_is() -> None:
    """Else it would get one of `ports_pool`, and keep that."""
    world = handing_world(linger_s=5.0)
    move_to(world, "b")
    lost: list[float] = []

    def look() -> bool:
        box = world.boxes["x"]
        if {**box.static, **box.outward}.get(str(PRIVATE)) != PUBLIC:
            lost.append(world.now)
        return bool(move and move.ok is not None)

    move = None
    world.run(10.0)
    assert world.boxes["x"].outward == {str(PRIVATE): PUBLIC}
    assert str(PRIVATE) not in world.boxes["x"].static
    assert world.boxes["y"].outward == {}
    move = world.manager.moves[world.move(VM, "a")]
    world.run_until(look)
    assert move.ok, move.reason
    assert not lost
    world.run(0.1)
    assert world.boxes["x"].outward == {}


def test_flows_by_a_mapped_port_live_on_when_the_mapping_has_gone() -> None:
    world = handing_world(linger_s=5.0)
    move_to(world, "b")
    other = flow("192.0.2.200", 8080)
    world.boxes["x"].flows.append(other)
    world.run(10.0)
    assert str(PRIVATE) not in world.boxes["x"].static
    assert world.boxes["x"].flows == [other]


def test_what_is_no_more_in_the_pool_ends_at_the_start_and_it_says_so() -> None:
    world = NaptWorld()
    world.run(2.0)
    world.begin()
    world.boxes["x"].flows = [flow()]
    world.box_settings["x"] = {"pool": (IPv4Network("198.51.100.8/29"),)}
    world.restart("x")
    world.run(0.1)
    said = [e for _, n, e in world.events if n == "x" and e.name == "mapping.ended"]
    assert {str(e.detail["reason"]) for e in said} == {
        "198.51.100.1 is no more in the pool",
        f"{PUBLIC} is no more in the pool",
    }
    assert not [key for key in world.nodes["x"].disk if key.startswith("map/")]
    assert world.boxes["x"].flows == []
    assert PUBLIC not in world.boxes["x"].static.values()
