"""What the driver asks of its tunnels, whoever carries the packets; and what each costs, in words.

Two back ends keep to it: relay_tunnels.py (a process beside a TUN device) and kernel_tunnels.py
(ipip and ip6tnl devices).  IPv4 goes in IPv4, IPv6 in IPv6.  Not here: which one is used
(tunnel_choice.py), the routes into them (plan.py), the process that both have (relay_orders.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from vmmobility.drivers.dataplane import Failure
from vmmobility.drivers.linux.counters import Ledger
from vmmobility.drivers.linux.plan import Plan, TunnelWays
from vmmobility.drivers.linux.policy_rules import Rule
from vmmobility.drivers.linux.rtnetlink import Link
from vmmobility.wire.values import Prefix, VmKey

BackEnd = Literal["kernel", "relay"]

COSTS: dict[BackEnd, str] = {
    "kernel": "an outer header a packet, made in the kernel; no process in the packets' way",
    "relay": "every redirected or tunnelled packet passes one user-space process, one at a time: a "
    "fraction of the kernel's throughput, and one core when busy",
}
"""What each back end costs.  Figures, measured, belong here, and in docs/dataplane.md."""

_OUTER_HEADER = {4: 20, 6: 40}
LEAST_MTU = {4: 68, 6: 1280}
"""No link's MTU is smaller (RFC 791, RFC 8200 Section 5)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which back end is used, and why, in words."""

    back_end: BackEnd
    why: str

    @property
    def cost(self) -> str:
        """What it costs, in words."""
        return COSTS[self.back_end]


def inner_mtu(underlays: Iterable[Link], version: int) -> int:
    """The longest packet, in octets, that a tunnel of this IP version takes unfragmented."""
    least = min((underlay.mtu for underlay in underlays), default=1500)
    return max(least - _OUTER_HEADER[version], LEAST_MTU[version])


class Tunnels(Protocol):
    """One back end.  `start` comes first; `tell` and `retire` embrace the turn of the routes.

    Until the first `tell` what an earlier daemon has left works on.
    """

    @property
    def ways(self) -> TunnelWays:
        """How routes lead into these tunnels."""

    @property
    def indices(self) -> Mapping[str, int]:
        """The devices' interface indices by name, once made."""

    async def start(self, underlays: Sequence[Link]) -> None:
        """Have the devices, with honest MTUs; what exists and is right is left alone.

        The rules (`rules`) stand before.  Raises DataPlaneError.
        """

    async def ensure(self, underlays: Sequence[Link]) -> None:
        """Have the process beside, and settings that devices get only once they are in use."""

    def rules(self) -> list[Rule]:
        """The policy rules by which packets out of a tunnel see nothing but table 7700."""

    def forget(self) -> None:
        """Begin anew: the next `tell` says everything."""

    async def tell(self, plans: Sequence[Plan], everything: bool) -> list[Failure]:
        """Before routes turn: what must be known then.  everything: these plans are all."""

    async def retire(self, plans: Sequence[Plan]) -> list[Failure]:
        """After routes have turned: what could not be said before, and what is no longer so."""

    async def note(self, ledger: Ledger, counted: Mapping[VmKey, Sequence[Prefix]]) -> None:
        """Note what was sent on and what was dropped, in the ledger."""

    def settings(self, underlays: Sequence[Link]) -> dict[str, str]:
        """The devices' sysctls."""

    def device_faults(
        self, links: Mapping[str, Link], underlays: Sequence[Link]
    ) -> Iterator[tuple[str, str]]:
        """(item, what is wrong) with the devices, in words."""

    async def faults(self) -> list[tuple[str, str, str]]:
        """(VM name or "", item, what is wrong) beyond the devices, in words; repairs nothing."""
