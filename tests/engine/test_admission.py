"""What a VM may be: addresses, lengths, previous NVEs - and that its messages always fit."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.conversation import interfaces_of
from tests.engine.network import MANAGER, World
from tests.engine.test_restarts import VM, a_world, settle
from vmmobility.engine.admission import (
    MAX_PREFIXES,
    MAX_PREVIOUS,
    MAX_VM_OCTETS,
    not_a_vm_s,
    too_long,
)
from vmmobility.engine.binding_cache import Binding, Previous
from vmmobility.engine.binding_update_list import make_nve
from vmmobility.engine.manager_moves import MoveRefused
from vmmobility.wire.authentication import TRAILER
from vmmobility.wire.message import Message, definition_options, encode_parts
from vmmobility.wire.options import (
    AttachId,
    Endpoint,
    Epoch,
    InterfaceGroup,
    Measurements,
    MobilityKind,
    Option,
    PhaseOption,
    PreviousNve,
    ServingNve,
    Ticket,
    VmId,
)
from vmmobility.wire.registry import MAX_DATAGRAM, MAX_PARTS, Kind, Mobility, Phase, Purpose
from vmmobility.wire.values import Interface, VmKey

WIDEST = make_nve("n" * 32, (ip_address("10.0.0.1"), ip_address("fd00::1")))
MAC = b"\2\0\0\0\0\1"


def with_prefixes(*texts: str) -> Interface:
    return Interface(MAC, tuple(ip_network(t) for t in texts))


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0/0", "0.0.0.0/32", "127.0.0.1/32", "169.254.7.0/24", "224.0.0.5/32",
        "255.255.255.255/32", "10.0.0.0/15", "::/0", "::/128", "::1/128", "fe80::1/128",
        "ff02::1/128", "::ffff:10.0.0.1/128", "fd00::/47",
    ],
)  # fmt: skip
def test_addresses_of_no_vm_are_refused(text: str) -> None:
    assert not_a_vm_s([with_prefixes("10.1.0.7/32", text)], 16, 48) == ip_network(text)
    world = World()
    number = world.start_vm(VM, "a", (with_prefixes(text),))
    world.run(1)
    assert f"no VM may have {ip_network(text)}" in world.results[number].error


@pytest.mark.parametrize("text", ["10.0.0.0/16", "10.1.0.7/32", "fd00::/48", "2001:db8::1/128"])
def test_addresses_of_vms_are_taken(text: str) -> None:
    assert not_a_vm_s([with_prefixes(text)], 16, 48) is None


def test_shorter_prefixes_may_be_configured() -> None:
    world = World(manager_settings={"shortest_ipv4": 8})
    number = world.start_vm(VM, "a", (with_prefixes("10.0.0.0/8"),))
    world.run(1)
    assert not world.results[number].error


SIZES = st.lists(st.integers(0, MAX_PREFIXES), max_size=40)


@given(counts=SIZES, four=st.booleans())
def test_whatever_is_admitted_fits_a_message(counts: list[int], four: bool) -> None:
    """The longest messages about the largest VM that has these interfaces."""
    prefix = ip_network("10.0.0.1/32") if four else ip_network("fd00::1/128")
    interfaces = [Interface(MAC, (prefix,) * n) for n in counts]
    definition = b""
    while not too_long(interfaces, definition + bytes(100)):
        definition += bytes(100)
    if too_long(interfaces, definition):
        return
    groups = [InterfaceGroup(i) for i in interfaces]
    vm = VmId(VmKey(0, "v" * 64))
    previous = [PreviousNve(WIDEST)] * (MAX_PREVIOUS + 1)
    prepare: list[Option] = [
        vm, Epoch(1), Ticket(bytes(16)), PhaseOption(Phase.PREPARED), *groups, *previous,
        MobilityKind(Mobility.HOT), *definition_options(definition),
    ]  # fmt: skip
    attach: list[Option] = [
        vm, *groups, ServingNve(WIDEST), AttachId(1), MobilityKind(Mobility.HOT),
        *definition_options(definition), Measurements(bytes(1024)),
        Endpoint(ip_address("fd00::1"), 1),
    ]  # fmt: skip
    for options in (prepare, attach):
        message = Message(Kind.REQUEST, Purpose.PREPARE, 1, tuple(options))
        assert len(encode_parts(message, MAX_DATAGRAM, TRAILER)) <= MAX_PARTS


def test_a_definition_that_is_too_long_is_refused_at_the_start() -> None:
    world = World()
    edge = world.nodes["a"].edge
    assert edge is not None
    world.feed(
        world.nodes["a"],
        lambda: edge.start_vm(
            1, VM, interfaces_of("vm1", 1, 1), b'"' + b"x" * MAX_VM_OCTETS + b'"', 0.0
        ),
    )
    world.run(1)
    assert f"at most {MAX_VM_OCTETS} octets" in world.results[1].error
    assert not edge.entries[VM].phase


def test_a_vm_with_as_many_previous_nves_as_messages_hold_moves_only_to_one_of_them() -> None:
    world = a_world("a")
    manager = world.nodes[MANAGER].manager
    assert manager is not None
    binding: Binding = manager.cache.bindings[VM]
    binding.previous = {
        n: Previous(make_nve(n, ()), binding.epoch)
        for n in ["b", *(f"n{i}" for i in range(MAX_PREVIOUS - 1))]
    }
    with pytest.raises(MoveRefused, match=f"{MAX_PREVIOUS} previous NVEs"):
        world.move(VM, "c")
    world.move(VM, "b")
    settle(world)
    assert manager.cache.bindings[VM].nve.nve_id == "b"
