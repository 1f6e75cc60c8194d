"""The interface of the data plane driver, and its in-memory twin's contract.

A driver is given desired state, one VmDataPlane a VM, and reconciles the world with it.  It knows
what is ours (route protocol number, name prefix, own nftables table), touches only what differs,
isolates failures item by item and starts with a resync.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vmmobility.engine.dataplane import VmDataPlane
from vmmobility.wire.values import VmKey


@dataclass(frozen=True, slots=True)
class Failure:
    """One item that the data plane could not do: which VM, what, why."""

    vm: VmKey
    item: str
    reason: str


@dataclass(frozen=True, slots=True)
class Drift:
    """One item that other hands have changed: whose it is, what, and how it was found.

    vm:       None where the item is the node's own (a rule, the TUN) or nobody's (a stray)
    item:     its kind and its name, `route 10.77.0.5/32`; the kind is the first word
    found:    in words, what stood there and what should
    repaired: False where it still differs after the repair
    """

    vm: VmKey | None
    item: str
    found: str
    repaired: bool = True

    @property
    def kind(self) -> str:
        """`route`, `tap`, `neighbour`, `filter`, `sysctl`, …: what is counted."""
        return self.item.partition(" ")[0]

    def __str__(self) -> str:
        return f"{self.item} {self.found}" + (
            "" if self.repaired else ", and could not be repaired"
        )


@dataclass(frozen=True, slots=True)
class Traffic:
    """Packets counted for one VM at this node since its entry was made (monotonic per entry).

    delivered:  packets routed towards the VM's taps (also those that wait in a tap's queue)
    consumed:   packets the guest side has taken out of the taps
    redirected: packets sent on towards the redirect's target, by tunnel or by host route
    dropped:    packets for or from the VM that were dropped here (filter, guards)
    outside:    of those, the ones dropped because a host outside the data centres sent them, and
                a tunnel would have carried them
    """

    delivered: int = 0
    consumed: int = 0
    redirected: int = 0
    dropped: int = 0
    outside: int = 0


class DataPlane(Protocol):
    """What the NVE daemon needs of the kernel."""

    async def start(self) -> None:
        """Check the environment, set the sysctls, read what the kernel holds of ours.

        Raises EnvironmentProblem naming what is missing.
        """

    async def resync(self, desired: Mapping[VmKey, VmDataPlane]) -> Sequence[Failure]:
        """Make the world hold exactly `desired`: repair, add, and remove leftovers of ours."""

    async def apply(self, desired: Sequence[VmDataPlane]) -> Sequence[Failure]:
        """Make each VM's state so, returning once the kernel has it; returns what failed.

        Order within one VM: taps before local routes, new routes before old are removed, so that
        no packet meets a hole.  A VM whose state is (not plugged, NONE) leaves nothing behind.
        """

    async def audit(self, vms: Collection[VmKey] | None = None) -> Sequence[Drift]:
        """Compare what is held with what was last asked for, repair what differs, tell it.

        vms: compare only these and what is the node's own; None: everything, strays of ours
        included.  Where something differs, all is compared and told.  A state that is just being
        made is not drift.  While nothing differs nothing is written.  Before the first resync
        nothing is known to be desired, and nothing is found.
        Raises DataPlaneError where the kernel cannot be read.
        """

    async def traffic(self) -> Mapping[VmKey, Traffic]:
        """Counters of every VM that this node holds something for."""

    async def close(self) -> None:
        """Stop using the kernel; leave what is installed (fail static)."""

    async def remove_all(self) -> None:
        """Remove everything of ours from the kernel, the relay process included."""
