"""Messages that come late, or of another move: each is refused, and nothing changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of
from tests.engine.network import MANAGER, Node, World
from tests.engine.test_peer_input import attach
from tests.engine.test_restarts import VM, a_world, settle
from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.manager_moves import Move, MoveRefused
from vmmobility.engine.manager_transitions import MoveState
from vmmobility.engine.outputs import HypervisorOrder, Order, Send
from vmmobility.wire.authentication import TRAILER
from vmmobility.wire.message import Message, decode_part
from vmmobility.wire.options import AttachId, Epoch, Option, PhaseOption, ServingNve, Ticket, VmId
from vmmobility.wire.registry import Kind, Phase, Purpose, Status

WRONG = Ticket(b"\1" * 16)


def entry_of(world: World, name: str) -> Entry:
    return world.edge(name).entries[VM]


def last_move(world: World) -> Move:
    return list(world.manager.moves.values())[-1]


def ask(world: World, target: str, purpose: Purpose, *options: Option) -> Message:
    """The reply to a request that the manager would not send."""
    node, replies = world.nodes[MANAGER], list[Message]()
    channel = world.manager.channel
    channel.request(
        channel.peers[target], purpose, [VmId(VM), *options], world.now,
        lambda reply, now: replies.append(reply),
    )  # fmt: skip
    world.feed(node, lambda: None)
    world.run_until(lambda: replies)
    return replies[0]


def moving(until: Callable[[World], object]) -> World:
    world = a_world("a")
    world.move(VM, "b")
    world.run_until(lambda: until(world))
    return world


def a_phase(name: str, phase: Phase) -> Callable[[World], object]:
    return lambda world: (
        VM in world.edge(name).entries
        and (entry_of(world, name).phase is phase and entry_of(world, name).request is None)
    )


STEPS = [
    ("b", Phase.PREPARED, Purpose.PREPARE, Phase.PREPARED),
    ("b", Phase.PREPARED, Purpose.SWITCH, Phase.DELIVERING),
    ("b", Phase.PREPARED, Purpose.SWITCH, Phase.FAILED),
    ("a", Phase.COPYING, Purpose.PREPARE, Phase.COPYING),
    ("a", Phase.COPYING, Purpose.SWITCH, Phase.SERVING),
    ("a", Phase.CONVERGED, Purpose.SWITCH, Phase.SWITCHED),
    ("b", Phase.DELIVERING, Purpose.SWITCH, Phase.FAILED),
    ("a", Phase.SWITCHED, Purpose.SWITCH, Phase.SERVING),
]


@pytest.mark.parametrize(("node", "held", "purpose", "asked"), STEPS)
def test_a_step_with_another_ticket_is_refused(
    node: str, held: Phase, purpose: Purpose, asked: Phase
) -> None:
    world = moving(a_phase(node, held))
    epoch = entry_of(world, node).move_epoch
    reply = ask(world, node, purpose, PhaseOption(asked), Epoch(epoch), WRONG)
    assert reply.status is Status.INVALID_TICKET
    settle(world)
    assert last_move(world).state is MoveState.DONE


@pytest.mark.parametrize(("node", "held", "purpose", "asked"), STEPS)
def test_a_step_of_an_older_move_is_stale(
    node: str, held: Phase, purpose: Purpose, asked: Phase
) -> None:
    world = moving(a_phase(node, held))
    epoch = entry_of(world, node).move_epoch - 1
    reply = ask(world, node, purpose, PhaseOption(asked), Epoch(epoch), WRONG)
    assert reply.status is Status.STALE_EPOCH
    settle(world)
    assert last_move(world).state is MoveState.DONE


@pytest.mark.parametrize("ticket", [(), (WRONG,)], ids=["remove", "clear"])
def test_the_end_of_an_older_move_or_binding_ends_no_newer_preparation(
    ticket: tuple[Ticket, ...],
) -> None:
    world = moving(a_phase("b", Phase.PREPARED))
    older = Epoch(entry_of(world, "b").move_epoch - 1)
    assert ask(world, "b", Purpose.DEREGISTER, older, *ticket).status is Status.STALE_EPOCH
    world.restart("b")
    assert ask(world, "b", Purpose.DEREGISTER, older, *ticket).status is Status.STALE_EPOCH, (
        "the move's epoch is durable"
    )


def test_a_roll_back_in_serving_takes_the_fresh_epoch_for_good() -> None:
    """The copy had failed at the source itself; the roll-back finds it serving."""
    world = a_world("a")
    reply = ask(world, "a", Purpose.SWITCH, PhaseOption(Phase.SERVING), Epoch(9), WRONG)
    assert (reply.status, reply.epoch) == (Status.ACCEPTED, 9)
    world.restart("a")
    assert (entry_of(world, "a").epoch, entry_of(world, "a").granted) == (9, 9)
    stale = ask(world, "a", Purpose.SWITCH, PhaseOption(Phase.SERVING), Epoch(8), WRONG)
    assert stale.status is Status.STALE_EPOCH


# ---- registration ------------------------------------------------------------------------------


def test_a_deregistered_attach_is_not_bound_again() -> None:
    """Its first datagram comes after the deregistration."""
    world = World()
    held: list[Send] = []

    def hold_back(node: Node, what: str, value: object) -> None:
        if node.node_id == "a" and isinstance(value, Send):
            held.append(value)

    world.observe = hold_back
    world.cut.add(frozenset(("a", MANAGER)))
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run(0.01)
    world.stop_vm(VM, "a")
    world.run(0.01)
    world.cut.clear()
    settle(world)
    late = held[0]
    assert decode_part(late.data, TRAILER).message.purpose is Purpose.ATTACH
    node = world.nodes[MANAGER]
    source = world.edge("a").settings.own.locators[0]
    world.feed(
        node,
        lambda: world.manager.datagram_received(
            late.data, late.destination._replace(address=source), None, world.now
        ),
    )
    world.run(1)
    assert not world.manager.cache.bindings
    rejected = [e.detail["status"] for _, _, e in world.events if e.name == "rejected"]
    assert rejected == ["out_of_sequence"]


def test_an_nve_ends_only_its_own_attaches() -> None:
    world = World()
    edge = world.edge("b")
    edge.channel.request(
        edge.manager, Purpose.DEREGISTER, [VmId(VM), AttachId(7), Epoch(0)], 0.0, lambda r, t: None
    )
    world.feed(world.nodes["b"], lambda: None)
    world.run(1)
    assert attach(world, "b", AttachId(7)).status is Status.OUT_OF_SEQUENCE
    assert attach(world, "a", AttachId(7)).status is Status.ACCEPTED


def superseding(world: World, epoch: int) -> None:
    """The manager answers the outstanding registration of a so."""
    edge = world.edge("a")
    asked = next(iter(edge.channel._outstanding.values()))
    serving = ServingNve(world.nodes["c"].nve)
    reply = Message(
        Kind.REPLY, asked.message.purpose, asked.message.sequence, (serving, Epoch(epoch)),
        status=Status.SUPERSEDED,
    )  # fmt: skip
    channel = world.manager.channel
    endpoint = channel.peers["a"].endpoints[0]
    world.cut.clear()
    channel._send(channel.peers["a"], reply, endpoint, None)
    world.feed(world.nodes[MANAGER], lambda: None)
    world.run(0.01)


@pytest.fixture
def attaching() -> World:
    world = World()
    world.cut.add(frozenset(("a", MANAGER)))
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run(0.01)
    return world


def test_superseded_while_attaching_ends_the_command(attaching: World) -> None:
    attaching.watch = lambda world: None  # the manager lies
    superseding(attaching, 5)
    assert "c serves" in attaching.results[1].error
    assert entry_of(attaching, "a").phase is Phase.REDIRECTING


def test_an_attach_superseded_by_an_old_epoch_is_tried_again(attaching: World) -> None:
    superseding(attaching, 0)
    settle(attaching)
    attaching.run(2)
    assert not attaching.results[1].error
    safety.check_settled(attaching)


def test_superseded_while_copying_cancels_the_copy() -> None:
    world = moving(a_phase("a", Phase.COPYING))
    orders: list[Order] = []
    world.observe = lambda node, what, value: (
        orders.append(value.order)
        if node.node_id == "a" and isinstance(value, HypervisorOrder)
        else None
    )
    world.watch = lambda world: None  # the manager lies
    world.cut.add(frozenset(("a", MANAGER)))
    edge = world.edge("a")
    world.feed(world.nodes["a"], lambda: edge._refresh(edge.entries[VM], world.now))
    world.run(0.01)
    superseding(world, 99)
    assert orders == [Order.CANCEL, Order.PAUSE]
    assert entry_of(world, "a").phase is Phase.REDIRECTING


# ---- people ------------------------------------------------------------------------------------


def test_giving_up_says_when_it_is_too_late() -> None:
    world = a_world("a")
    hypervisor = world.nodes["a"].hypervisor
    assert hypervisor is not None
    hypervisor.break_next.add("switch")
    world.move(VM, "b")
    world.run_until(lambda: last_move(world).state is MoveState.TURNING_BACK)
    with pytest.raises(MoveRefused, match="cannot be given up"):
        world.manager.abort_move(last_move(world), world.now)
    settle(world)
    with pytest.raises(MoveRefused, match="is aborted"):
        world.manager.abort_move(last_move(world), world.now)


def test_a_move_out_right_after_an_attach_whose_answer_was_lost_waits_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = a_world("a")
    send, deaf = World._send, [True]

    def lossy(self: World, node: Node, output: Send) -> None:
        answer = (output.data[1], output.data[2]) == (Kind.REPLY, Purpose.ATTACH)
        if not (answer and deaf[0] and world.by_address[output.destination.address].node_id == "b"):
            send(self, node, output)

    monkeypatch.setattr(World, "_send", lossy)
    world.move(VM, "b")
    world.run_until(lambda: last_move(world).state is MoveState.DONE)
    assert entry_of(world, "b").phase is Phase.ATTACHING
    world.move(VM, "c")
    world.run(2)
    assert last_move(world).ok is None
    deaf[0] = False
    settle(world)
    assert (last_move(world).state, last_move(world).reason) == (MoveState.DONE, "")
    safety.check(world)
