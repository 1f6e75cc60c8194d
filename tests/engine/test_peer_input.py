"""Whatever an authentic peer sends, no engine raises; tickets open exactly one door."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import MANAGER, World
from tests.engine.test_restarts import VM, a_world, settle
from vmmobility.engine.binding_update_list import Entry, make_nve
from vmmobility.engine.channel import Received
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    AttachId,
    Definition,
    Endpoint,
    Epoch,
    InterfaceGroup,
    Measurements,
    MobilityKind,
    Option,
    PhaseOption,
    PreviousNve,
    Route,
    ServingNve,
    Ticket,
    VmId,
)
from vmmobility.wire.registry import Mobility, Phase, Purpose, RouteState, Status
from vmmobility.wire.values import Interface, Nve, VmKey

NVES = [make_nve(n, (ip_address(f"10.0.{i}.2"),)) for i, n in enumerate("abc", 1)]
OPTIONS = st.one_of(
    st.sampled_from([VmId(VM), VmId(VmKey(0, "vm2")), VmId(VmKey(5, "vm1"))]),
    st.sampled_from([InterfaceGroup(i) for i in interfaces_of("vm1", 1, 2)]),
    st.just(InterfaceGroup(Interface(b"\2\0\0\0\0\1", (ip_network("10.1.0.0/24"),)))),
    st.sampled_from([ServingNve(n) for n in [*NVES, make_nve("b", ())]]),
    st.sampled_from([PreviousNve(n) for n in [*NVES, make_nve("z", ())]]),
    st.integers(0, 6).map(Epoch),
    st.sampled_from([Ticket(bytes(16)), Ticket(b"\1" * 16)]),
    st.integers(0, 2).map(AttachId),
    st.sampled_from(Mobility).map(MobilityKind),
    st.sampled_from(Phase).map(PhaseOption),
    st.binary(min_size=1, max_size=9).map(Definition),
    st.just(Endpoint(ip_address("10.0.2.2"), 49001)),
)
MESSAGES = st.tuples(
    st.sampled_from(Purpose), st.lists(OPTIONS, max_size=8, unique_by=type), st.integers(0, 3)
)


@pytest.mark.parametrize(("sender", "receiver"), [(MANAGER, "a"), (MANAGER, "b"), ("b", MANAGER)])
@settings(max_examples=40)
@given(messages=st.lists(MESSAGES, max_size=6))
def test_no_message_raises(
    sender: str, receiver: str, messages: list[tuple[Purpose, list[Option], int]]
) -> None:
    world = a_world("a")
    world.watch = lambda world: None  # a lying manager can do anything but make a node fall over
    engine = world.nodes[sender].engine
    assert engine is not None
    peer = engine.channel.peers[receiver]
    for purpose, options, lifetime in messages:
        engine.channel.request(peer, purpose, options, world.now, lambda reply, now: None, lifetime)
        world.feed(world.nodes[sender], lambda: None)
        world.run(0.2)


def attach(
    world: World, sender: str, *options: Option, vm: VmKey = VM, nve: Nve | None = None
) -> Message:
    """What the manager answers to an attach from this node."""
    node = world.nodes[sender]
    assert node.edge is not None
    edge, replies = node.edge, list[Message]()
    given = [
        VmId(vm),
        *(InterfaceGroup(i) for i in interfaces_of("vm1", 1, 1)),
        ServingNve(nve or node.nve),
        MobilityKind(Mobility.HOT),
        *options,
    ]
    edge.channel.request(
        edge.manager, Purpose.ATTACH, given, world.now, lambda r, t: replies.append(r), 30
    )
    world.feed(node, lambda: None)
    world.run_until(lambda: replies)
    return replies[0]


def ticket_of(world: World) -> Ticket:
    manager = world.nodes[MANAGER].manager
    assert manager is not None
    return Ticket(list(manager.moves.values())[-1].ticket)


def test_an_unknown_ticket_opens_nothing() -> None:
    world = a_world("a")
    assert attach(world, "b", AttachId(7), Ticket(bytes(16))).status is Status.INVALID_TICKET


def test_a_used_ticket_opens_nothing_but_the_same_attach_is_granted_again() -> None:
    world = a_world("a")
    world.move(VM, "b")
    settle(world)
    ticket, edge = ticket_of(world), world.nodes["b"].edge
    assert edge is not None
    assert attach(world, "b", AttachId(7), ticket).status is Status.INVALID_TICKET
    assert attach(world, "c", AttachId(8), ticket).status is Status.INVALID_TICKET
    again = attach(world, "b", AttachId(edge.entries[VM].attach_id), ticket)
    assert (again.status, again.epoch) == (Status.ACCEPTED, 2)
    world.restart(MANAGER)
    again = attach(world, "b", AttachId(edge.entries[VM].attach_id), ticket)
    assert (again.status, again.epoch) == (Status.ACCEPTED, 2), "also after a crash"


@pytest.mark.parametrize(
    "figures",
    [b'{"gap_ms":NaN,"rounds":2}', b'{"gap_ms":1e999,"rounds":2}', b"[" * 1024,
     b'{"gap_ms":' + b"9" * 400 + b',"rounds":2}'],
)  # fmt: skip
def test_figures_that_no_record_can_hold_are_left_out(figures: bytes) -> None:
    world = a_world("a")
    world.move(VM, "b")
    world.run(0.1)
    source = world.nodes["a"].edge
    assert source is not None
    report: list[Option] = [
        VmId(VM), Epoch(2), PhaseOption(Phase.CONVERGED), ticket_of(world),
    ]  # fmt: skip
    source.channel.request(
        source.manager,
        Purpose.SWITCH,
        [*report, Measurements(figures)],
        world.now,
        lambda r, t: None,
    )
    world.feed(world.nodes["a"], lambda: None)
    world.run(1)
    manager = world.nodes[MANAGER].manager
    assert manager is not None
    [move] = manager.moves.values()
    json.dumps(world.nodes[MANAGER].disk, allow_nan=False)
    assert move.measured.get("rounds") == (2 if b"rounds" in figures else None)
    assert "gap_ms" not in move.measured


def test_a_ticket_serves_neither_another_node_nor_another_vm_nor_too_early() -> None:
    world = a_world("a")
    world.move(VM, "b")
    world.run(0.1)
    ticket = ticket_of(world)
    assert attach(world, "c", AttachId(7), ticket).status is Status.INVALID_TICKET
    assert attach(world, "b", AttachId(7), ticket).status is Status.INVALID_TICKET, "still copying"
    other = attach(world, "b", AttachId(7), ticket, vm=vm_key("vm2"))
    assert other.status is Status.ADDRESS_IN_USE
    settle(world)
    assert world.nodes["b"].edge


def test_an_expired_ticket_ends_nothing_before_the_switch() -> None:
    world = World(manager_settings={"ticket_s": 0.1})
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run(1)
    world.move(VM, "b")
    world.run_until(lambda: state_of(world) == "delivering")
    assert attach(world, "b", AttachId(7), ticket_of(world)).status is Status.INVALID_TICKET


def state_of(world: World) -> str:
    manager = world.nodes[MANAGER].manager
    assert manager is not None
    return list(manager.moves.values())[-1].state.value


def test_an_nve_attaches_under_its_own_name_only() -> None:
    world = a_world("a")
    foreign = world.nodes["a"].nve
    reply = attach(world, "b", AttachId(7), nve=foreign)
    assert reply.status is Status.ADMINISTRATIVELY_PROHIBITED


def test_another_vni_is_rejected_until_it_is_isolated() -> None:
    world = a_world("a")
    reply = attach(world, "b", AttachId(7), vm=VmKey(7, "vm1"))
    assert reply.status is Status.VNI_NOT_SUPPORTED


def test_an_nve_that_answers_as_a_router_has_not_answered() -> None:
    world = World()
    number = world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run_until(lambda: number in world.results)
    nve = world.nodes["a"].edge
    assert nve is not None

    def lie(received: Received, entry: Entry) -> None:
        words: list[Option] = [VmId(VM), Epoch(1), Route(RouteState.NONE)]
        nve.channel.reply(received, Status.ACCEPTED, words)

    nve._check_requested = lie  # type: ignore[method-assign]
    world.feed(world.nodes[MANAGER], lambda: world.manager.check(99, world.now))
    world.run(10.0)
    assert world.results[99].result["unanswered"] == ["a"]
    assert world.manager.cache.bindings[VM].nve.nve_id == "a"
