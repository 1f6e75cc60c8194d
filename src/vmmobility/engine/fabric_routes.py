"""What the manager wants of a router for one VM, and how the fabric stands there: values only.

The drivers' router plane makes it so (drivers/router_plane.py).  Not here: who decides it
(router.py, manager_fabric.py).  Rests on wire.values.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from vmmobility.wire.values import Nve, Prefix, VmKey


class RouteAction(Enum):
    """What a router does for a VM."""

    NONE = "none"  # it holds no route of ours
    HOLD = "hold"  # it leads the VM's packets to the serving NVE, and announces nothing
    ANNOUNCE = "announce"  # the same, and its routing daemon announces host routes


@dataclass(frozen=True, slots=True)
class VmRoutes:
    """A router's desired state for one VM.

    prefixes: of all the VM's interfaces, both families
    serving:  the NVE to which this router itself leads its packets; None where state is NONE
    goal:     the NVE to which the fabric should lead them, as the sight tells; None: nobody asks
    group:    the load-shared group whose member it is, "" if none: members of one group may have
              the same prefixes, and a router that leads to several of them shares the load
    others:   the NVEs of its other members in service: the fabric may lead there as well
    """

    vm: VmKey
    prefixes: tuple[Prefix, ...]
    serving: Nve | None
    state: RouteAction
    goal: Nve | None = None
    group: str = ""
    others: tuple[Nve, ...] = ()


@dataclass(frozen=True, slots=True)
class Sight:
    """How a router's own table leads a VM's packets, whatever this project has put before it.

    direct:  where it leads those for the serving NVE's locator (draft Section 7.2's gate); of a
             member of a group: only where it leads those for its or the other members' locators
    covered: so would the routes that are shorter than the VM's prefixes: it is at home there
    """

    direct: bool
    covered: bool
