"""VMs with many addresses: each has its mapping, and each box owns up to each."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_network

import pytest

from tests.engine.napt_world import POOLS, VM, NaptWorld
from tests.engine.network import MANAGER
from vmmobility.engine import napt_crossing
from vmmobility.wire.values import Interface


def with_addresses(count: int) -> tuple[Interface, ...]:
    """In groups of 50: an interface has at most 56."""
    return tuple(
        Interface(
            bytes((2, 0, 0, 0, group, 1)),
            tuple(ip_network(f"10.1.{group}.{n}/32") for n in range(1, 51)),
        )
        for group in range(1, 1 + count // 50)
    )


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> NaptWorld:
    monkeypatch.setitem(POOLS, "x", "198.50.0.0/22")
    made = NaptWorld(box_settings={"x": {"pool": (IPv4Network("198.50.0.0/22"),)}})
    made.run(2.0)
    return made


def test_a_vm_with_two_hundred_addresses_is_registered_and_moves(world: NaptWorld) -> None:
    assert not world.begin(VM, "a", with_addresses(200)).error
    assert world.moved("b").ok
    assert world.edge("b").entries[VM].interfaces == with_addresses(200)
    assert "bad-translation" not in world.drops(MANAGER)


def test_a_box_refuses_in_words_what_no_receiver_would_look_at(
    world: NaptWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(napt_crossing, "UNDOABLE", 100)
    free = world.box("x").mappings.free_addresses()
    refused = world.begin(VM, "a", with_addresses(150)).error
    assert "insufficient-resources: x: 151 addresses to translate in one message" in refused
    assert world.box("x").mappings.free_addresses() == free - 1, "but for the NVE's own"
