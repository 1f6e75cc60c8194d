"""What a NAPT box is told at its start: its addresses, its policy, its neighbours on both sides.

Not here: files (daemon/napt_config.py).  Rests on napt_plane.py and peer.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv4Network

from vmmobility.engine.channel import Retransmission
from vmmobility.engine.napt_plane import PortMapping
from vmmobility.engine.peer import Peer
from vmmobility.wire.registry import Role


class NaptPolicy(Enum):
    """Where a VM's public mapping is while another data centre's box has the VM behind it."""

    KEEP = "keep"
    HAND_OVER = "hand-over"


@dataclass(frozen=True, slots=True)
class NaptSettings:
    """One box.

    inside:       private prefixes of this data centre
    pool:         public addresses for NVEs and VMs, each the whole address of one (RFC 3022, 2.1);
                  they are routed to the box: what leads nowhere there is dropped
    exempt, ports, ports_pool, pool_ports: as in NaptState
    mapping_s:    a VM's mapping of which nothing was heard for so long ends
    quarantine_s: what has ended keeps its public address for so long: it is nobody else's
    move_s:       a move under way keeps a mapping for so long at least
    linger_s:     a mapping that was handed over is translated here so much longer, until the public
                  address is routed to the other box
    hold_s:       a box tells the mapping's owner so often that the VM is behind it
    """

    box_id: str
    inside: tuple[IPv4Network, ...]
    pool: tuple[IPv4Network, ...]
    exempt: tuple[IPv4Network, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    ports_pool: tuple[IPv4Address, ...] = ()
    pool_ports: tuple[int, int] = (1024, 65535)
    policy: NaptPolicy = NaptPolicy.KEEP
    mapping_s: float = 3600.0
    quarantine_s: float = 600.0
    move_s: float = 900.0
    hold_s: float = 60.0
    linger_s: float = 30.0
    retransmission: Retransmission = field(default_factory=Retransmission)


@dataclass(slots=True)
class Neighbour:
    """A node that the box speaks to itself.

    peer:   with the keys of the hop
    inside: on which side it is
    behind: originators that it speaks for, and their roles, if it is a box
    pool:   its public addresses, if it is a box
    detour: where traffic of VMs whose mapping it keeps leaves, if it is a box
    """

    peer: Peer
    inside: bool
    behind: tuple[tuple[str, Role], ...] = ()
    pool: tuple[IPv4Network, ...] = ()
    detour: IPv4Address | None = None

    @property
    def name(self) -> str:
        return self.peer.node_id

    @property
    def originators(self) -> tuple[tuple[str, Role], ...]:
        return self.behind if self.peer.role is Role.NAPT else ((self.name, self.peer.role),)
