"""A fabric as values: nodes, links, virtual machines, and what follows from them.

Not here: how they are read and checked (fabric.py, fabric_checks.py).  Rests on ipaddress.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface

from vmmobility.wire.values import Address, Prefix

IpInterface = IPv4Interface | IPv6Interface

PROBE_EVERY_MS = 5


@dataclass(frozen=True, slots=True)
class Node:
    """A router, NVE, server, manager, correspondent or collector: one namespace.

    software: what speaks routing protocols there: frr, bird, gobgp, or "".  Of routers only: role:
    default, border (a router agent runs there) or transit; dc: its data centre.  asn: its
    autonomous system, 0 if it speaks no BGP.  peers: the border routers whom a collector hears.
    nve: the NVE of a server, which is behind it.
    """

    name: str
    kind: str
    home_prefixes: tuple[Prefix, ...] = ()
    redirect: str = "auto"
    software: str = ""
    role: str = "transit"
    dc: str = ""
    asn: int = 0
    peers: tuple[str, ...] = ()
    nve: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """A node's end of a link: its interface's name there and its addresses with prefix length."""

    node: str
    interface: str
    addresses: tuple[IpInterface, ...]

    def address(self, version: int) -> Address:
        """The address of IP version 4 or 6."""
        return next(a.ip for a in self.addresses if a.version == version)


@dataclass(frozen=True, slots=True)
class Link:
    """A wire between two nodes, or a segment (a bridge) shared by more.

    mtu: of all its interfaces; 0: the fabric's
    """

    name: str
    prefixes: tuple[Prefix, ...]
    ends: tuple[End, ...]
    mtu: int = 0

    @property
    def shared(self) -> bool:
        return len(self.ends) > 2

    def end(self, node: str) -> End | None:
        """That node's end, if it is on this link."""
        return next((end for end in self.ends if end.node == node), None)


@dataclass(frozen=True, slots=True)
class Box:
    """A NAPT box in the namespace of the router `at`, and the public prefixes that lead to it.

    policy: its daemon's, of mappings whose VM is behind another box: keep or hand-over
    """

    name: str
    at: str
    publics: tuple[Prefix, ...]
    policy: str = "keep"


@dataclass(frozen=True, slots=True)
class Vm:
    """A virtual machine: a QEMU guest or a namespace that stands in for one.

    public: its static public IPv4 address at a NAPT box, to those outside
    kind: "guest", "netns", or "external": a QEMU guest that only by-hand steps start and move
    redirect: how NVEs that it has left lead its packets on; "": as each of them is set
    disk_mib: size of a disk that a guest writes records to all the time; 0: it has none
    requested: it is there once a scenario has asked the manager for it (step `life`)
    """

    name: str
    kind: str
    home: str
    mac: str
    addresses: tuple[IpInterface, ...]
    on_link: bool = False
    vcpus: int = 1
    memory_mib: int = 128
    dirty_mibps: int = 0
    redirect: str = ""
    public: Address | None = None
    disk_mib: int = 0
    requested: bool = False

    @property
    def is_started(self) -> bool:
        """Whether the lab starts it with the fabric."""
        return self.kind != "external" and not self.requested

    def address(self, version: int) -> Address:
        """The VM's address of IP version 4 or 6."""
        return next(a.ip for a in self.addresses if a.version == version)


@dataclass(frozen=True, slots=True)
class Group:
    """A load-shared group: VMs that have the first one's addresses, each at a home of its own."""

    name: str
    vms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fabric:
    """Everything that the lab builds, and the daemons' timers that differ from their own.

    tunnel: who carries tunnelled packets at every NVE (nve.toml)
    probe_every_ms: how often a correspondent sends to a VM, over each family
    copy_mib_per_s: every NVE's pace of copies (nve.toml); 0: its own
    host_memory_mib: what VMs may have of every host ([capacity]); 0: what it has
    """

    name: str
    description: str
    mtu: int
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    vms: tuple[Vm, ...]
    timers: tuple[tuple[str, float], ...] = ()
    igp: str = "ospf"
    gate_policy: str = "abort"
    tunnel: str = "auto"
    boxes: tuple[Box, ...] = ()
    probe_every_ms: int = PROBE_EVERY_MS
    copy_mib_per_s: int = 0
    groups: tuple[Group, ...] = ()
    host_memory_mib: int = 0

    @property
    def dynamic(self) -> bool:
        """Whether its routers speak routing protocols; else all routes are static."""
        return any(node.software for node in self.of_kind("router"))

    def of_kind(self, kind: str) -> tuple[Node, ...]:
        """All nodes of a kind."""
        return tuple(node for node in self.nodes if node.kind == kind)

    def node(self, name: str) -> Node:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)

    def vm(self, name: str) -> Vm:
        """The VM of that name."""
        return next(vm for vm in self.vms if vm.name == name)

    def mtu_at(self, node: str) -> int:
        """The MTU of the node's first link."""
        return next(link.mtu or self.mtu for link in self.links if link.end(node) is not None)

    def box(self, name: str) -> Box:
        """The NAPT box of that name."""
        return next(box for box in self.boxes if box.name == name)

    def end_towards(self, node: str, peer: str) -> End:
        """A node's end of the first link that it shares with a peer."""
        shared = (link for link in self.links if link.end(peer) is not None)
        return next(end for link in shared if (end := link.end(node)) is not None)

    def first_end(self, node: str) -> End:
        """The node's end of its first link: there its own address (an NVE's locator) lies."""
        return next(end for link in self.links for end in link.ends if end.node == node)

    def routers_of(self, node: str) -> tuple[Node, ...]:
        """The routers on a node's first link: those that it hangs on."""
        link = next(link for link in self.links if link.end(node) is not None)
        names = {end.node for end in link.ends} - {node}
        return tuple(router for router in self.of_kind("router") if router.name in names)

    def dc_of(self, node: str) -> str:
        """A node's data centre: a router's own, else that of the router that it hangs on."""
        found = self.node(node)
        if found.kind == "router":
            return found.dc
        return next((router.dc for router in self.routers_of(node)), "")

    @property
    def dc_prefixes(self) -> tuple[Prefix, ...]:
        """The prefixes of all that is in a data centre; () where nobody is outside of one.

        A link is inside if all its nodes are: the internet's links to border routers are not.
        """
        outside = [node for node in self.nodes if not self.dc_of(node.name)]
        if not outside or len(outside) == len(self.nodes):
            return ()
        names = {node.name for node in outside}
        links = [link for link in self.links if not names & {end.node for end in link.ends}]
        homes = [p for node in self.nodes for p in node.home_prefixes if node.name not in names]
        return (*homes, *(prefix for link in links for prefix in link.prefixes))

    def names(self) -> frozenset[str]:
        """All names that have a namespace of their own (guests live in their NVE's)."""
        vms = {vm.name for vm in self.vms if vm.kind == "netns"}
        shared = {link.name for link in self.links if link.shared}
        return frozenset({node.name for node in self.nodes} | vms | shared)
