"""What an operator may set of the manager's engine.

Not here: how it is read (daemon/config.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vmmobility.engine.channel import Retransmission
from vmmobility.engine.fabric_record import RouterSite
from vmmobility.engine.origin import Napts


@dataclass(frozen=True, slots=True)
class ManagerSettings:
    """All in seconds.  lifetime_s: longest lifetime granted; ticket_s: life of a move's ticket;
    step_s: limit of one step of a move; copy_s: limit of its pre-copy; ask_s: how long an NVE may
    take to say how it stands; check_s: how often the silent ones are asked.
    strict: only onboarded VMs may attach; freeze_after changes of NVE without a ticket within
    freeze_s freeze a binding.
    routers: default and border routers; gate_s: how long a move waits for the fabric to lead to
    its destination, and gate_policy ("abort", "proceed") what then; max_host_routes: as many VM
    prefixes may a data centre's routers announce, 0 is any number.
    shortest_ipv4, shortest_ipv6: length in bits of the shortest prefixes that a VM may have.
    napts: NAPT boxes by name, and their public addresses; offer_s: an offer is held so long.
    protect_lease_s: how long a protected VM's refresh counts at its NVE; protect_margin_s: so much
    longer its standby waits, besides the clocks' rate."""

    node_id: str
    lifetime_s: float = 120.0
    ticket_s: float = 900.0
    step_s: float = 15.0
    copy_s: float = 600.0
    ask_s: float = 5.0
    check_s: float = 60.0
    strict: bool = False
    freeze_after: int = 5
    freeze_s: float = 180.0
    routers: tuple[RouterSite, ...] = ()
    gate_s: float = 5.0
    gate_policy: str = "abort"
    max_host_routes: int = 0
    shortest_ipv4: int = 16
    shortest_ipv6: int = 48
    retransmission: Retransmission = field(default_factory=Retransmission)
    napts: Napts = ()
    offer_s: float = 60.0
    protect_lease_s: float = 10.0
    protect_margin_s: float = 5.0
