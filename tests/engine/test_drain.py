"""When silence may end a redirect: only where the fabric leads no part of the VM's prefix here.

And a redirect that has ended is waited for by nobody.
"""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from tests.engine.network import World
from tests.engine.test_restarts import VM, moves, settle
from vmmobility.wire.values import Interface


@pytest.mark.parametrize(
    ("prefix", "stays"),
    [("10.1.0.7/32", True), ("10.1.0.0/16", True), ("10.8.0.7/32", False), ("fd01:1::/56", True)],
    ids=["inside the home prefix", "around it", "elsewhere", "IPv6, around it"],
)
def test_a_redirect_that_the_fabric_leads_to_outlives_silence(prefix: str, stays: bool) -> None:
    world = World(nve_settings={"drain_s": 5.0})
    world.start_vm(VM, "a", (Interface(b"\2\0\0\0\0\1", (ip_network(prefix),)),))
    world.run(1)
    world.move(VM, "b")
    settle(world)
    world.run(60)
    assert (VM in world.nodes["a"].kernel.held) is stays


def test_a_move_does_not_wait_for_a_redirect_that_has_drained() -> None:
    """A source whose kernel is slower than its silence is long has asked to let go before it could
    confirm; with it goes the last one that the move waited for."""
    world = World(nve_settings={"drain_s": 2.0})
    world.start_vm(VM, "a", (Interface(b"\2\0\0\0\0\1", (ip_network("10.8.0.7/32"),)),))
    world.run(1)
    world.nodes["a"].kernel.delay_s = 3.0
    world.move(VM, "b")
    world.run(20)
    (move,) = moves(world)
    assert (move.ok, move.reason) == (True, "")
    assert VM not in world.nodes["a"].kernel.held
