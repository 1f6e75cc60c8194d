"""A standby that takes over: what others ask of it before its guest runs, and its door."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.fake_hypervisor import Pace
from tests.engine.network import MANAGER, World
from tests.engine.test_protection import VM, at, number, protected, state
from vmmobility.engine.manager_protection_record import ProtectionState
from vmmobility.engine.outputs import Order
from vmmobility.wire.message import Message, definition_options
from vmmobility.wire.options import (
    Epoch,
    InterfaceGroup,
    Option,
    PhaseOption,
    PreviousNve,
    Protection,
    ServingNve,
    Ticket,
    VmId,
)
from vmmobility.wire.registry import Phase, Purpose, Status


def activating() -> World:
    """The guest at b is about to run, and a waits for what becomes of that."""
    world = protected(pace=Pace(order_s=0.3))
    world.hand_over(VM)
    edge = world.edge("b")
    world.run_until(lambda: VM in edge.standbys and edge.standbys[VM].ordered, 20.0)
    return world


def ask(world: World, purpose: Purpose, *options: Option) -> list[Status]:
    """The manager asks b; the statuses of its answers, as they come."""
    said: list[Status] = []
    engine = world.manager

    def heard(reply: Message, now: float) -> None:
        said.append(reply.status)

    def request() -> None:
        peer = engine.channel.peers["b"]
        engine.channel.request(peer, purpose, [VmId(VM), *options], world.now, heard)

    world.feed(world.nodes[MANAGER], request)
    return said


@pytest.mark.parametrize("what", ["redirect", "remove", "clear", "prepare"])
def test_a_standby_whose_guest_is_about_to_run_does_not_turn_away(what: str) -> None:
    world = activating()
    epoch = Epoch(world.edge("b").entries[VM].epoch + 2)
    there = world.nodes["a"].nve
    ticket = Ticket(b"\7" * 16)
    asked: dict[str, tuple[Purpose, tuple[Option, ...]]] = {
        "redirect": (Purpose.REDIRECT, (epoch, ServingNve(there))),
        "remove": (Purpose.DEREGISTER, (epoch,)),
        "clear": (Purpose.DEREGISTER, (epoch, ticket)),
        "prepare": (
            Purpose.PREPARE,
            (
                epoch,
                PhaseOption(Phase.PREPARED),
                *(InterfaceGroup(i) for i in interfaces_of("vm1", 1, 1)),
                PreviousNve(there),
                ticket,
            ),
        ),
    }
    purpose, options = asked[what]
    said = ask(world, purpose, *options)
    world.run(0.1)
    assert said == [Status.WRONG_PHASE]
    assert state(world) is ProtectionState.TAKING_OVER
    world.run_until(at(world, "b"), 10.0)


def test_a_kernel_that_fails_while_the_guest_is_about_to_run_ends_nothing() -> None:
    world = activating()
    node, edge = world.nodes["b"], world.edge("b")
    node.kernel.fail_next.append("no memory")
    world.feed(node, lambda: edge._set_data_plane(edge.entries[VM]))
    world.run_until(at(world, "b"), 10.0)
    world.run(5.0)
    assert at(world, "b")()
    assert not [e for _, _, e in world.events if e.name == "standby.failed"]


MATE = vm_key("vm2")


def a_group(mate_at: str) -> World:
    """Two VMs that share an address: one at a, its mate elsewhere."""
    world = World(manager_settings={"protect_margin_s": 2.0})
    world.declare_group("web", (VM, MATE))
    one, two = interfaces_of("vm1", 1, 1), interfaces_of("vm2", 2, 1)
    shared = tuple(replace(t, prefixes=o.prefixes) for o, t in zip(one, two, strict=True))
    world.start_vm(VM, "a", one)
    world.start_vm(MATE, mate_at, shared)
    world.run_until(lambda: safety.running(world, MATE) == [mate_at])
    world.run_until(lambda: safety.running(world, VM) == ["a"])
    return world


def test_an_nve_with_a_mate_of_the_vm_is_no_standby_of_it() -> None:
    world = a_group("b")
    said = ask(
        world,
        Purpose.PROTECT,
        Epoch(9),
        PhaseOption(Phase.STANDBY),
        *(InterfaceGroup(i) for i in interfaces_of("vm1", 1, 1)),
        *definition_options(b"{}"),
        ServingNve(world.nodes["a"].nve),
        Protection(True, 1000, 3000, "t"),
    )
    world.run(1.0)
    assert said == [Status.ADDRESS_IN_USE]
    assert VM not in world.edge("b").standbys


def test_a_standby_does_not_take_over_beside_a_mate() -> None:
    world = a_group("c")
    world.protect(VM, "b", lease_s=3.0)
    world.run_until(lambda: number(world) >= 2, 20.0)
    edge = world.edge("b")
    mate = edge.entries.entry(MATE)  # it has come there meanwhile
    mate.interfaces, mate.phase = interfaces_of("vm1", 1, 1), Phase.PREPARED
    record = edge.standbys[VM]
    order = (Epoch(record.epoch + 5), PhaseOption(Phase.ATTACHING), Ticket(b"\7" * 16))
    said = ask(world, Purpose.PROTECT, *order)
    world.run(0.5)
    assert said == [Status.ADDRESS_IN_USE]
    assert edge.standbys[VM] is record
    mate.phase = Phase.NONE
    said = ask(world, Purpose.PROTECT, *order)
    world.run(0.5)
    assert said == [Status.HYPERVISOR_FAILURE]
    assert edge.entries[VM].phase is Phase.NONE, "the primary goes on since it was refused"


def test_a_door_that_did_not_open_after_a_restart_is_opened_again() -> None:
    world = protected()
    hypervisor = world.nodes["b"].hypervisor
    assert hypervisor is not None
    hypervisor.fail_next[Order.RECEIVE] = ["its monitor is not ready"] * 2
    world.restart("b")
    world.run(5.0)
    assert hypervisor.fail_next[Order.RECEIVE] == []
    failed = [e.detail["reason"] for _, _, e in world.events if e.name == "order.failed"]
    assert failed == ["its monitor is not ready"] * 2
    before = number(world)
    world.run(5.0)
    assert number(world) > before
    assert state(world) is ProtectionState.ACTIVE
