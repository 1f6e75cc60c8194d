"""What a NAPT box's engine wants of its data plane: desired state, and the flows it hands over.

Section 9; the words are those of RFC 3022 (basic NAT, NAPT) and RFC 4787 (mapping, filtering).
Not here: how the kernel does it (drivers/napt_plane.py), who decides (engine/napt.py).
IPv6 is never translated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network


@dataclass(frozen=True, slots=True)
class StaticMapping:
    """Basic NAT (RFC 3022, 2.1): one private address is one public address, all protocols."""

    private: IPv4Address
    public: IPv4Address


@dataclass(frozen=True, slots=True)
class PortMapping:
    """One public port that leads to a private one whoever sends there (NAPT, RFC 3022, 2.2).

    protocol: 6 TCP, 17 UDP
    """

    protocol: int
    private: IPv4Address
    private_port: int
    public: IPv4Address
    public_port: int


@dataclass(frozen=True, slots=True)
class Detour:
    """An address that lives behind this box while its public mapping is kept at another one: what
    it sends outside leaves by that box, untranslated here."""

    private: IPv4Address
    box: IPv4Address


@dataclass(frozen=True, slots=True)
class NaptState:
    """Everything that a box's data plane should hold.

    inside:   private prefixes whose traffic to the outside is translated
    exempt:   destinations that are never translated (the operator's other data centres)
    static:   basic NAT, both ways; also where the VM is in another data centre just now (keep)
    ports:    public ports that lead to a private address and port
    pool:     public addresses of all else from inside (NAPT); () drops it
    detours:  addresses here whose mapping is kept elsewhere
    pool_ports: the pool's first and last public port (RFC 4787, REQ-3)
    publics:  public prefixes that are routed to this box; what comes to an address of theirs and
              is led nowhere is dropped, else it would go back by the default route, and round
    outward:  basic NAT of what goes out alone: the public address is routed to another box, which
              leads inside what comes to it, but what leaves here has no other source
    departing: public addresses that are routed to another box by now, whose flows are not forgotten
              here yet: what comes from them is led to static addresses without a flow.  One would
              clash with the old one, get another port, and be answered by a reset
    """

    inside: tuple[IPv4Network, ...] = ()
    exempt: tuple[IPv4Network, ...] = ()
    static: tuple[StaticMapping, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    pool: tuple[IPv4Address, ...] = ()
    detours: tuple[Detour, ...] = field(default=())
    pool_ports: tuple[int, int] = (1024, 65535)
    publics: tuple[IPv4Network, ...] = ()
    outward: tuple[StaticMapping, ...] = ()
    departing: tuple[IPv4Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Flow:
    """One translated flow that is alive, as two boxes hand it over.

    protocol: 1 ICMP, 6 TCP, 17 UDP (ports are 0 for others; ICMP's identifier is both ports)
    outgoing: whether the private side began it
    timeout_s: what is left until it is forgotten without a packet
    tcp_state: conntrack's name of it, "" for others
    """

    protocol: int
    private: tuple[IPv4Address, int]
    public: tuple[IPv4Address, int]
    remote: tuple[IPv4Address, int]
    outgoing: bool
    timeout_s: int
    tcp_state: str = ""
