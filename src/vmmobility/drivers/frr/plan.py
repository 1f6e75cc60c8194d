"""What FRR (or BIRD) shall do on one router, as values: interfaces, IGP, static routes, BGP.

Not here: the text (render.py; drivers/bird), its check (check.py), how a lab or an operator comes
to a plan.  Rests on wire.values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Literal

from vmmobility.errors import ConfigError
from vmmobility.wire.values import FAMILIES, Address, Prefix

Igp = Literal["ospf", "isis", "none"]
Part = Literal["active", "passive"]

HOST_TAG = 777
"""IGP tag of VMs' host routes that a router of this data centre announces."""
IMPORTED_TAG = 778
"""IGP tag of host routes that lead out of this data centre: never exported again."""
COVERING_TAG = 779
"""IGP tag of other networks' prefixes, learned by BGP."""
COMMUNITY = "65000:777"
"""BGP community of VMs' host routes: only routes that bear it are taken as such."""


@dataclass(frozen=True, slots=True)
class InterfacePlan:
    """One interface of the router.

    igp:    active: neighbours are sought there; passive: only its subnet is announced
    shared: more than two nodes are on it (a segment, not a wire)
    uplink: it leads to another autonomous system
    """

    name: str
    igp: Part
    shared: bool = False
    uplink: bool = False


@dataclass(frozen=True, slots=True)
class StaticRoute:
    """An NVE's home prefix, by its locator."""

    prefix: Prefix
    next_hop: Address


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A BGP neighbour.

    inside:       of the same operator; only such exchange host routes
    listens_only: a collector: it is told all that is told inside, and nothing is taken from it
    """

    address: Address
    asn: int
    inside: bool
    listens_only: bool = False


@dataclass(frozen=True, slots=True)
class BgpPlan:
    """BGP of one router.

    transit: it passes on whatever it hears and has no VMs of its own: the internet
    """

    asn: int
    neighbours: tuple[Neighbour, ...]
    community: str = COMMUNITY
    transit: bool = False


@dataclass(frozen=True, slots=True)
class RouterPlan:
    """One router.

    vm_prefixes: covering prefixes, of the whole operator, in which VMs' host routes may lie
    covering:    prefixes that this data centre announces to others
    """

    hostname: str
    router_id: IPv4Address
    interfaces: tuple[InterfacePlan, ...]
    igp: Igp = "ospf"
    static: tuple[StaticRoute, ...] = ()
    vm_prefixes: tuple[Prefix, ...] = ()
    covering: tuple[Prefix, ...] = ()
    bgp: BgpPlan | None = None

    def __post_init__(self) -> None:
        for family in FAMILIES:
            if not any(prefix.version == family for prefix in self.vm_prefixes):
                transit = self.bgp is not None and self.bgp.transit
                if not transit:
                    raise ConfigError(f"{self.hostname}: no IPv{family} prefix for host routes",
                                      "name the prefixes that VMs' addresses lie in")  # fmt: skip

    def uplinks(self) -> tuple[InterfacePlan, ...]:
        """The interfaces that lead to other autonomous systems."""
        return tuple(interface for interface in self.interfaces if interface.uplink)


def daemons(plan: RouterPlan) -> tuple[str, ...]:
    """FRR's daemons that the plan needs, in the order in which they start."""
    return tuple(_daemons(plan))


def _daemons(plan: RouterPlan) -> Iterator[str]:
    yield "zebra"
    yield "staticd"
    if plan.igp == "ospf":
        yield from ("ospfd", "ospf6d")
    elif plan.igp == "isis":
        yield "isisd"
    if plan.bgp is not None:
        yield "bgpd"
