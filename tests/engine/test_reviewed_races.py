"""Interleavings that a reviewer thought of, each of which broke an invariant once.

Answers that are older than what happened since, nodes that an operator gave up and that come back,
guests that hands let go on.  Not here: a manager set back to a backup (test_set_back_manager.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.fake_hypervisor import Pace
from tests.engine.network import MANAGER, Node, World
from tests.engine.test_contests import (
    a_move,
    binding_of,
    by_hand,
    carry,
    hand_of,
    phase_of,
    release,
)
from tests.engine.test_restarts import settle
from vmmobility.engine.manager_transitions import MoveState
from vmmobility.engine.outputs import Order, Send
from vmmobility.wire.authentication import TRAILER
from vmmobility.wire.message import Message, decode_part
from vmmobility.wire.registry import Kind, Phase, Purpose

VM = vm_key("vm1")
OWN = interfaces_of("vm1", 1, 1)


def lose(world: World, lost: Callable[[str, str, Message], bool]) -> None:
    """From now on the messages of which lost(sender, receiver, message) is true do not arrive."""
    send = world._send

    def sift(node: Node, output: Send) -> None:
        receiver = world.by_address[output.destination.address].node_id
        if not lost(node.node_id, receiver, decode_part(output.data, TRAILER).message):
            send(node, output)

    world._send = sift  # type: ignore[method-assign]


def all_delivered(world: World) -> bool:
    return all(walk.end == "delivered" for walk in safety.walks(world, VM))


def moved(world: World, to: str) -> None:
    move = world.manager.moves[world.move(VM, to)]
    settle(world)
    assert move.ok, move.reason


# ---- answers that are older than what happened since -------------------------------------------


def test_the_answer_that_a_guest_departed_does_not_outlive_its_coming_back() -> None:
    """It is lost, the guest is let go on where it was, and the repeated question gets the answer
    again from the cache of replies."""
    world = by_hand("a", "b")
    until = world.now + 1.0
    lose(
        world,
        lambda sender, _, message: (
            sender == "a"
            and (message.purpose, message.kind) == (Purpose.CHECK, Kind.REPLY)
            and world.now < until
        ),
    )
    carry(world, "a", "b")
    world.run_until(lambda: phase_of(world, "b") is Phase.ATTACHING)
    world.run(0.05)
    hand_of(world, "a").resume_by_hand(VM)
    world.run(20)
    assert binding_of(world).nve.nve_id == "a"
    assert hand_of(world, "b").life(VM) == "held"


def test_an_attach_that_was_deregistered_while_the_incumbent_was_asked_is_not_granted() -> None:
    world = World(nve_settings={"lifetime_s": 20.0})
    world.start_vm(VM, "a", OWN)
    world.run(1)
    world.power_cut("a")
    world.lose_state("a")
    world.start_vm(VM, "b", OWN)
    world.run(1)
    stop = world.stop_vm(VM, "b")
    world.run(1)
    assert stop in world.results
    world.restart("a")  # and says that it has no such guest
    world.run(10)
    assert phase_of(world, "b") is Phase.NONE
    assert binding_of(world).nve.nve_id == "a", "b would hold it for nobody"
    number = world.start_vm(VM, "b", OWN)
    world.run(10)
    assert not world.results[number].error


def test_three_nodes_that_know_three_epochs_do_not_send_packets_round() -> None:
    """b's guest is granted and does not hear of it; it still redirects to c, c to d, and d to b."""
    world = World(("a", "b", "c", "d"), nve_settings={"lifetime_s": 20.0, "drain_s": 1e5})
    for node in "abcd":
        world.expect_vm(VM, node, OWN)
    world.run(0.1)
    hand_of(world, "a").start_by_hand(VM)
    settle(world)
    for source, destination in ("ab", "bd", "db", "bc"):
        carry(world, source, destination)
        settle(world)
        world.run(60)
    epoch, deaf = binding_of(world).epoch, True

    def lost(sender: str, receiver: str, message: Message) -> bool:
        redirect = message.purpose is Purpose.REDIRECT and message.kind is Kind.REQUEST
        grant = message.purpose is Purpose.ATTACH and message.kind is Kind.REPLY
        late = receiver == "c" and redirect and message.epoch == epoch + 2
        return deaf and (late or (receiver == "b" and (redirect or grant)))

    lose(world, lost)
    carry(world, "c", "d")
    world.run_until(lambda: phase_of(world, "d") is Phase.SERVING)
    world.run(0.5)
    carry(world, "d", "b")
    world.run(3)
    assert (phase_of(world, "b"), binding_of(world).nve.nve_id) == (Phase.ATTACHING, "b")
    deaf = False
    settle(world)
    safety.check_settled(world)


def test_a_guest_that_is_about_to_boot_is_not_said_to_be_gone() -> None:
    """The hypervisor was asked just before, and the guest's stop fails afterwards."""
    world = World(pace=Pace(order_s=0.1))
    held: list[tuple[Node, Send]] = []
    send = world._send

    def delay(node: Node, output: Send) -> None:
        message = decode_part(output.data, TRAILER).message
        if not asked and node.node_id == MANAGER and message.purpose is Purpose.ATTACH:
            held.append((node, output))
        else:
            send(node, output)

    world._send = delay  # type: ignore[method-assign]
    asked: list[bool] = []
    world.start_vm(VM, "a", OWN)
    world.run_until(lambda: VM in world.manager.cache.bindings)
    other = world.start_vm(VM, "b", OWN)
    edge = world.nodes["a"].edge
    assert edge is not None
    world.run_until(lambda: edge.entries[VM].contests)
    world.run(0.05)
    asked.append(True)
    send(*held[0])
    world.run_until(lambda: phase_of(world, "a") is Phase.SERVING)
    hand_of(world, "a").fail_next[Order.STOP] = ["busy"]
    world.stop_vm(VM, "a")
    world.run(30)
    assert "bound-elsewhere" in world.results[other].error
    assert safety.running(world, VM) == ["a"]


# ---- guests that hands let go on ---------------------------------------------------------------


@pytest.mark.parametrize("daemon", ["up", "down"])
def test_a_refused_guest_that_hands_let_go_on_is_stopped_again(daemon: str) -> None:
    world = by_hand("a", "b")
    hand_of(world, "b").start_by_hand(VM)
    world.run(3)
    assert hand_of(world, "b").life(VM) == "held"
    if daemon == "down":
        world.crash("b")
    hand_of(world, "b").resume_by_hand(VM)
    if daemon == "down":
        world.restart("b")
    world.run(10)
    assert hand_of(world, "b").life(VM) == "held"
    assert safety.running(world, VM) == ["a"]


def test_a_guest_that_is_brought_back_while_the_one_before_it_is_deregistered_is_not_ended() -> (
    None
):
    """Its NVE lost its power, and its daemon restarts once more in between."""
    world = by_hand("b", "a")
    carry(world, "b", "a")
    world.power_cut("b")
    world.run(1)
    world.restart("b")
    world.cut.add(frozenset(("b", MANAGER)))
    carry(world, "a", "b")
    world.run(1)
    world.restart("b")
    world.run(1)
    world.cut.clear()
    world.run(100)
    settle(world)
    assert safety.running(world, VM) == ["b"]
    assert binding_of(world).nve.nve_id == "b"
    safety.check_settled(world)


# ---- fail static -------------------------------------------------------------------------------


def test_a_destination_whose_daemon_restarts_twice_does_not_cut_the_vm_off() -> None:
    """Coming home, while memory is copied, and there is no manager to turn back."""
    world = World(pace=Pace(copy_s=30.0))
    world.start_vm(VM, "a", OWN)
    world.run(1)
    moved(world, "c")
    move = world.manager.moves[world.move(VM, "a")]
    world.run_until(lambda: move.state is MoveState.COPYING)
    world.crash(MANAGER)
    for _ in range(2):
        world.restart("a")
        world.run(2)
        assert phase_of(world, "a") is Phase.FAILED
        assert all_delivered(world)
    world.restart(MANAGER)
    settle(world)
    assert safety.running(world, VM) == ["c"]
    safety.check_settled(world)


# ---- nodes that an operator gave up, and that come back ----------------------------------------


def test_a_source_that_was_given_up_in_the_switch_learns_where_the_vm_went_since() -> None:
    world = World(nve_settings={"lifetime_s": 20.0})
    a_move(world, MoveState.SWITCHING)
    world.run_until(lambda: phase_of(world, "b") is Phase.ATTACHING)
    world.power_cut("a")
    world.run(60)
    assert binding_of(world).nve.nve_id == "b"
    release(world, "a")
    world.move(VM, "c")
    world.run(30)
    assert binding_of(world).nve.nve_id == "c"
    world.restart("a")
    assert phase_of(world, "a") is Phase.SWITCHED
    world.run(100)
    assert phase_of(world, "a") is Phase.REDIRECTING
    settle(world)
    safety.check_settled(world)


def test_packets_of_a_previous_nve_that_was_given_up_are_taken_again() -> None:
    """Its daemon was down, and it has missed a move."""
    world = World(nve_settings={"lifetime_s": 20.0})
    world.start_vm(VM, "a", OWN)
    world.run(1)
    moved(world, "b")
    world.crash("a")
    release(world, "a")
    world.move(VM, "c")
    world.run(30)
    world.restart("a")
    world.run(100)
    settle(world)
    assert list(binding_of(world).previous) == ["a"]
    assert all_delivered(world)


def test_no_redirect_is_let_go_by_a_manager_that_has_lost_its_state() -> None:
    """Another previous NVE, cut off, may still send there."""
    world = World(nve_settings={"lifetime_s": 60.0, "drain_s": 5.0})
    world.start_vm(VM, "a", OWN)
    world.run(1)
    moved(world, "b")
    moved(world, "c")
    assert phase_of(world, "b") is Phase.REDIRECTING
    world.cut.add(frozenset(("c", MANAGER)))
    world.lose_state(MANAGER)
    world.restart(MANAGER)
    world.run(30)
    assert phase_of(world, "b") is Phase.REDIRECTING
    world.cut.clear()
    world.run(60)
    settle(world)
    safety.check_settled(world)


# ---- moves that a manager has forgotten, or remembers too well -----------------------------------


@pytest.mark.parametrize(
    "state", [MoveState.PREPARING, MoveState.COPYING, MoveState.DELIVERING, MoveState.SWITCHING]
)
@pytest.mark.parametrize("to", ["b", "a"])
def test_a_move_that_a_manager_forgot_leaves_nothing_behind(state: MoveState, to: str) -> None:
    world = World(nve_settings={"lifetime_s": 20.0})
    world.start_vm(VM, "a", OWN)
    world.run(1)
    if to == "a":
        moved(world, "b")
    for _ in range(50):  # moves of other VMs
        world.manager._new_epoch()
    move = world.manager.moves[world.move(VM, to)]
    world.run_until(lambda: move.state is state)
    world.lose_state(MANAGER)
    world.restart(MANAGER)
    world.run(200)
    settle(world)
    edges = [node.edge for node in world.nodes.values() if node.edge]
    phases = {edge.entries[VM].phase for edge in edges if VM in edge.entries}
    assert phases <= {Phase.SERVING, Phase.REDIRECTING, Phase.NONE}
    [place] = safety.running(world, VM)
    assert binding_of(world).nve.nve_id == place
    safety.check_settled(world)
    moved(world, "c")


@pytest.mark.parametrize("since", ["", "a", "c", "ca"])
@pytest.mark.parametrize("state", [MoveState.COPYING, MoveState.DELIVERING, MoveState.SWITCHING])
def test_a_manager_set_back_into_a_move_that_has_long_ended(state: MoveState, since: str) -> None:
    world = World(nve_settings={"lifetime_s": 20.0})
    move = a_move(world, state)
    world.run(0.01)
    disk = json.loads(json.dumps(world.nodes[MANAGER].disk))
    settle(world)
    assert move.ok
    for to in since:
        moved(world, to)
    [place] = safety.running(world, VM)
    world.crash(MANAGER)
    world.nodes[MANAGER].disk = disk
    world.restart(MANAGER)
    world.run(200)
    settle(world)
    assert safety.running(world, VM) == [place]
    assert binding_of(world).nve.nve_id == place
    safety.check_settled(world)
    moved(world, "c" if place != "c" else "b")


@pytest.mark.parametrize("phase", [Phase.PREPARED, Phase.DELIVERING])
def test_a_destination_that_is_set_back_into_its_move(phase: Phase) -> None:
    """It loses its power and its guest; nothing goes round, and the VM can be started anew."""
    world = World(nve_settings={"lifetime_s": 20.0})
    world.start_vm(VM, "a", OWN)
    world.run(1)
    world.move(VM, "b")
    key = f"vm/{VM.vni}/{VM.vm_id}"
    disk = world.nodes["b"].disk
    world.run_until(lambda: key in disk and Phase(disk[key]["phase"]) is phase)
    disk = json.loads(json.dumps(disk))
    settle(world)
    world.run(3)
    world.power_cut("b")
    world.nodes["b"].disk = disk
    world.restart("b")
    world.run(200)
    settle(world)
    assert phase_of(world, "b") in (Phase.NONE, Phase.REDIRECTING)
    number = world.start_vm(VM, "c", OWN)
    world.run(30)
    assert not world.results[number].error
    safety.check_settled(world)
