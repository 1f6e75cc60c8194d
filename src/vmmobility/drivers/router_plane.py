"""The interface of a router's kernel driver, and its in-memory twin's contract.

A driver is given desired state, one VmRoutes a VM, and reconciles the router's routes with it.  It
knows what is ours (protocol number, own table), touches only what differs, isolates failures item
by item and starts with a resync.  It also shows how the router's main table, which its routing
daemon fills, leads a VM's packets.  Not here: the NVE's data plane (dataplane.py), from which
Failure and Drift come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from vmmobility.drivers.dataplane import Drift, Failure
from vmmobility.engine.fabric_routes import Sight, VmRoutes
from vmmobility.wire.values import Address, VmKey


class RouterPlane(Protocol):
    """What the router daemon needs of the kernel."""

    async def start(self) -> None:
        """Check the environment, set sysctls and rules, read the routing table and follow it.

        Raises EnvironmentProblem naming what is missing.
        """

    async def resync(self, desired: Mapping[VmKey, VmRoutes]) -> Sequence[Failure]:
        """Make the kernel hold exactly `desired`: repair, add, and remove leftovers of ours."""

    async def apply(self, desired: Sequence[VmRoutes]) -> Sequence[Failure]:
        """Make each VM's state so, returning once the kernel has it; returns what failed.

        Members of one load-shared group may want one prefix: it leads to all of them that are
        announced (else, to all that are held), and a flow stays with one while they do not change.
        Of others that want the same the one of the later apply has it.
        One batch.  A VM is led here before it is announced, and is led on until its announcement
        is gone.  Where a route cannot be (its NVE's locator leads nowhere, the kernel refuses it)
        what stood there stays, and it is tried again when the main table changes.
        """

    def watch(self, changed: Callable[[], None]) -> None:
        """Have `changed` called on the event loop after the main table changed, also by us.

        Many changes may make one call.
        """

    def sights(self, wanted: Sequence[VmRoutes]) -> Mapping[VmKey, Sight]:
        """How the main table leads each VM, whatever its state here; of now, and cheap.

        Neither direct nor covered where the table cannot be read, or no NVE is named.
        """

    async def audit(self) -> Sequence[Drift]:
        """Compare the kernel with what was last asked for, repair what differs, tell it.

        While nothing differs nothing is written.  Before the first resync nothing is known to be
        desired, and nothing is found.  Raises DataPlaneError where the kernel cannot be read.
        """

    def held(self) -> Mapping[str, int]:
        """VMs that are `announced`, and VMs that are `held` without; for people."""

    def explain(self, address: Address) -> list[dict[str, Any]]:
        """What leads an address here, in the kernel's order of look-up: one JSON row a rule.

        priority, table: of the rule; `only`: its selector in words, "" where it is for all packets
        prefix, metric, protocol, kind, ours, next_hops: of the table's best route; prefix None
        where it has none
        leads: true on the row that packets for the address follow, unless a selector has its way
        """

    async def close(self) -> None:
        """Stop using the kernel; leave what is installed (fail static)."""

    async def remove_all(self) -> None:
        """Remove everything of ours from the kernel; sysctls stay."""
