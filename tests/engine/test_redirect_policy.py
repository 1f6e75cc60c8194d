"""A VM's own redirect policy: in its definition, which every NVE at which it was holds.

Not here: what the data plane makes of a policy (tests/contract/test_dataplane_redirect.py).
"""

from __future__ import annotations

import pytest

from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import World
from vmmobility.engine.dataplane import Forwarding, RedirectPolicy, policy_of

VM = vm_key("vm1")


def redirected_by(world: World, name: str) -> RedirectPolicy:
    """The policy by which that NVE's kernel redirects the VM."""
    held = world.nodes[name].kernel.held[VM]
    assert held.forwarding is Forwarding.REDIRECT
    return held.policy


def away(definition: bytes) -> World:
    """The VM, whose home is a, has gone by b to c."""
    world = World(seed=1)
    world._defined(VM, interfaces_of("vm1", 1, 1))
    world._give(
        "a", lambda e, n, now: e.start_vm(n, VM, interfaces_of("vm1", 1, 1), definition, now)
    )
    world.run(5)
    for place in "bc":
        world.move(VM, place)
        world.run(2)
    return world


@pytest.mark.parametrize("policy", RedirectPolicy)
def test_every_previous_nve_redirects_as_the_vm_says(policy: RedirectPolicy) -> None:
    world = away(b'{"redirect":"%s"}' % policy.value.encode())
    assert [redirected_by(world, name) for name in "ab"] == [policy, policy]


def test_it_is_known_after_a_restart() -> None:
    world = away(b'{"redirect":"tunnel"}')
    world.crash("a")
    world.nodes["a"].kernel.lose_all()
    world.restart("a")
    world.run(1)
    assert redirected_by(world, "a") is RedirectPolicy.TUNNEL


@pytest.mark.parametrize(
    "definition", [b"", b"{}", b"[]", b'{"redirect":"sideways"}', b'{"redirect":[]}', b"[" * 9999]
)
def test_without_one_the_nve_decides(definition: bytes) -> None:
    assert policy_of(definition) is None


def test_the_nves_own_policy_holds_where_the_vm_has_none() -> None:
    world = away(b"{}")
    assert redirected_by(world, "a") is world.edge("a").settings.policy
