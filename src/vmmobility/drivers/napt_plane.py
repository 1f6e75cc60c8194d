"""The interface of a NAPT box's data plane, and its in-memory twin's contract.

A driver is given desired state, one NaptState, and reconciles the world with it.  It knows what is
ours (own nftables table, own rules and routing tables), touches only what differs, never forgets a
flow that is alive unless it is told to, isolates failures item by item and starts with a resync.
Not here: the values (engine/napt_plane.py), messages that cross a box, IPv6, which is never
translated.  Drift is dataplane.py's, always without a VM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Protocol

from vmmobility.drivers.dataplane import Drift
from vmmobility.engine.napt_plane import Flow, NaptState


@dataclass(frozen=True, slots=True)
class NaptFailure:
    """One item that the data plane could not do: what, why.

    item: its kind and its name: `static 10.1.0.5`, `outward 10.1.0.5`, `port tcp 192.0.2.1:80`,
          `pool 192.0.2.9`, `detour 10.1.0.5`, `flow udp 10.1.0.5:53 198.51.100.7:9`;
          `rules`: the whole rule set
    """

    item: str
    reason: str

    def __str__(self) -> str:
        return f"{self.item}: {self.reason}"


@dataclass(frozen=True, slots=True)
class PoolUse:
    """How much of one public address of the pool is taken, over all protocols.

    flows: flows from inside that have it as their source and are alive
    ports: different (protocol, public port) pairs that they use
    """

    public: IPv4Address
    flows: int = 0
    ports: int = 0


@dataclass(frozen=True, slots=True)
class NaptUsage:
    """What a box translates now, and what it has dropped (packets; they grow until remove_all).

    flows, limit:      entries in the kernel's flow table (all, also untranslated), and its size
    static_flows, port_flows, pool_flows: translated flows that are alive, by what translates them
    pool:              one row an address of the pool, in its order
    no_pool:           from inside to the outside, and there is no pool
    exhausted:         no free public port towards that destination, or the flow could not be
                       entered for another reason (netfilter's insert_failed: an upper bound)
    table_full:        the flow table was full
    unknown:           in the middle of a TCP connection from inside that this box does not know:
                       a new public port would break it
    unmapped:          to a public address of ours, and nothing there leads inside
    untranslated:      would have left with a private source address (invalid, and nothing static)
    """

    flows: int = 0
    limit: int = 0
    static_flows: int = 0
    port_flows: int = 0
    pool_flows: int = 0
    pool: tuple[PoolUse, ...] = field(default=())
    no_pool: int = 0
    exhausted: int = 0
    table_full: int = 0
    unknown: int = 0
    unmapped: int = 0
    untranslated: int = 0


class NaptPlane(Protocol):
    """What the NAPT daemon needs of the kernel."""

    async def start(self) -> None:
        """Check the environment and set the sysctls.  Raises EnvironmentProblem naming what is
        missing.  Translates nothing yet, and ends nothing that an earlier process left.
        """

    async def resync(self, desired: NaptState) -> Sequence[NaptFailure]:
        """Make the world hold exactly `desired`: repair, add, and remove leftovers of ours.

        Writes only what differs; flows live on.
        """

    async def apply(self, desired: NaptState) -> Sequence[NaptFailure]:
        """Make the state so, returning once the kernel has it; returns what failed.

        The translation changes as a whole, without a moment in between.  Flows that are alive keep
        the mapping that they were begun with, also where the state no longer has it, until
        drop_flows or their end.  What contradicts itself (two privates with one public, a static
        public that is in the pool or has a port mapping) fails alone, the later one.
        Raises DataPlaneError before start() and where the kernel cannot be read.
        """

    async def audit(self) -> Sequence[Drift]:
        """Compare what is held with what was last asked for, repair what differs, tell it.

        While nothing differs nothing is written.  Before the first resync nothing is known to be
        desired, and nothing is found.  Raises DataPlaneError where the kernel cannot be read.
        """

    async def export_flows(self, private: IPv4Address) -> tuple[Flow, ...]:
        """Translated flows of a private address that are alive, in a stable order.

        They live on here, too, until drop_flows.  Flows to exempt destinations, which are not
        translated, are not among them.
        """

    async def import_flows(self, flows: Sequence[Flow]) -> Sequence[NaptFailure]:
        """Continue flows of another box here: same public address and port, both ways.

        To be called before the addresses are routed to this box, and again for flows that have
        begun since: what is here as it should be is left alone, a flow of the same two ends with
        another mapping is replaced.  A flow whose public side another one has here fails alone.
        """

    async def drop_flows(self, private: IPv4Address, public: IPv4Address | None = None) -> int:
        """Forget the translated flows of a private address; how many there were.

        public: those alone that it has by this address; its flows by others live on.
        Raises DataPlaneError where the kernel refuses; some may be forgotten then.
        """

    async def usage(self) -> NaptUsage:
        """Flows, pool use and drops.  Raises DataPlaneError where the kernel cannot be read."""

    async def close(self) -> None:
        """Stop using the kernel; leave what is installed (fail static)."""

    async def remove_all(self) -> None:
        """Remove everything of ours from the kernel, and forget every translated flow; sysctls
        stay.  Also without start(): nothing is made first.
        """
