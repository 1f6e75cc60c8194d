"""A fabric: racks, routers, NVEs, virtual machines and correspondents, read from TOML.

Values only, fully checked and numbered.  Not here: routes (routing.py), namespaces
(namespaces.py).  The format is in docs/lab.md.  Rests on toml_table and ipaddress.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from ipaddress import (
    IPv4Interface,
    IPv6Interface,
    ip_address,
    ip_interface,
    ip_network,
)
from pathlib import Path
from typing import Any

from vmmobility.daemon.config import ManagerTimers, NveTimers
from vmmobility.errors import LabError
from vmmobility.lab.toml_table import Table, load, whole
from vmmobility.wire.values import FAMILIES, Address, Prefix

IpInterface = IPv4Interface | IPv6Interface

NODE_KINDS = ("router", "nve", "manager", "correspondent")
VM_KINDS = ("guest", "netns", "external")
REDIRECTS = ("auto", "host-route", "tunnel")
LAB_TIMERS = {"drain_s": 2.0, "step_s": 15.0}
MANAGER_TIMERS = frozenset(field.name for field in dataclasses.fields(ManagerTimers))
NVE_TIMERS = frozenset(field.name for field in dataclasses.fields(NveTimers))
_NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")


@dataclass(frozen=True, slots=True)
class Node:
    """A router, NVE, manager or correspondent: one namespace."""

    name: str
    kind: str
    home_prefixes: tuple[Prefix, ...] = ()
    redirect: str = "auto"


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
    """A wire between two nodes, or a segment (a bridge) shared by more."""

    name: str
    prefixes: tuple[Prefix, ...]
    ends: tuple[End, ...]

    @property
    def shared(self) -> bool:
        return len(self.ends) > 2

    def end(self, node: str) -> End | None:
        """That node's end, if it is on this link."""
        return next((end for end in self.ends if end.node == node), None)


@dataclass(frozen=True, slots=True)
class Vm:
    """A virtual machine: a QEMU guest or a namespace that stands in for one.

    kind: "guest", "netns", or "external": a QEMU guest that only by-hand steps start and move
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

    def address(self, version: int) -> Address:
        """The VM's address of IP version 4 or 6."""
        return next(a.ip for a in self.addresses if a.version == version)


@dataclass(frozen=True, slots=True)
class Fabric:
    """Everything that the lab builds, and the daemons' timers that differ from their own."""

    name: str
    description: str
    mtu: int
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    vms: tuple[Vm, ...]
    timers: tuple[tuple[str, float], ...] = ()

    def of_kind(self, kind: str) -> tuple[Node, ...]:
        """All nodes of a kind."""
        return tuple(node for node in self.nodes if node.kind == kind)

    def node(self, name: str) -> Node:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)

    def vm(self, name: str) -> Vm:
        """The VM of that name."""
        return next(vm for vm in self.vms if vm.name == name)

    def first_end(self, node: str) -> End:
        """The node's end of its first link: there its own address (an NVE's locator) lies."""
        return next(end for link in self.links for end in link.ends if end.node == node)

    def names(self) -> frozenset[str]:
        """All names that have a namespace of their own (guests live in their NVE's)."""
        vms = {vm.name for vm in self.vms if vm.kind == "netns"}
        shared = {link.name for link in self.links if link.shared}
        return frozenset({node.name for node in self.nodes} | vms | shared)


def built_in() -> dict[str, Path]:
    """The fabrics that come with the lab: name -> file."""
    folder = Path(str(resources.files("vmmobility.lab") / "fabrics"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find(name: str, beside: Path | None = None) -> Path:
    """The fabric file for a built-in name or a path (relative to the file `beside`)."""
    if name in built_in():
        return built_in()[name]
    path = Path(name) if beside is None else beside.parent / name
    try:
        there = path.is_file()
    except OSError:  # a name that no file can have
        there = False
    if not there:
        known = ", ".join(built_in())
        raise LabError(f"no fabric {name!r}", f"give a TOML file or one of: {known}")
    return path


def load_fabric(path: Path) -> Fabric:
    """Read and check a fabric file."""
    return parse_fabric(load(path), str(path), path.stem, beside=path)


def _with_base(data: dict[str, Any], where: str, beside: Path | None) -> dict[str, Any]:
    """The fabric that `like` names, with the keys that are given here in place of its own."""
    base = data.get("like")
    if base is None:
        return data
    if not isinstance(base, str):
        raise LabError(f"{where}: `like` is {base!r}", "give a fabric's name or path")
    path = find(base, beside)
    if beside is not None and path.resolve() == beside.resolve():
        raise LabError(f"{where}: `like` names this fabric itself", "name another")
    inherited = _with_base(load(path), str(path), path)
    inherited.pop("name", None)
    own = {key: value for key, value in data.items() if key != "like"}
    return {**inherited, **own}


def parse_fabric(
    data: dict[str, Any], where: str, default_name: str = "fabric", beside: Path | None = None
) -> Fabric:
    """A fabric out of TOML data; every mistake is a LabError that names the place."""
    with whole(_with_base(data, where, beside), where) as table:
        name = table.take("name", str, default_name)
        description = table.take("description", str, "")
        mtu = table.take("mtu", int, 1600)
        timers = _timers(table)
        nodes = tuple(_nodes(table))
        links = tuple(_links(table, {node.name for node in nodes}))
        vms = tuple(_vms(table, {node.name: node for node in nodes}))
    fabric = Fabric(name, description, mtu, nodes, links, vms, timers)
    _check(fabric, where)
    return fabric


def _timers(table: Table) -> tuple[tuple[str, float], ...]:
    """The daemons' timers that differ from the lab's; a daemon gets those that it has."""
    given = table.take("timers", dict, {})
    timers: dict[str, float] = {**LAB_TIMERS}
    for key, value in given.items():
        if key not in MANAGER_TIMERS | NVE_TIMERS:
            known = ", ".join(sorted(MANAGER_TIMERS | NVE_TIMERS))
            raise LabError(f"{table.where}: timers: unknown key `{key}`", f"known: {known}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise LabError(f"{table.where}: timers: `{key}` is {value!r}", "give a number above 0")
        timers[key] = value
    return tuple(sorted(timers.items()))


def _nodes(table: Table) -> Iterable[Node]:
    for kind in NODE_KINDS:
        for entry in table.tables(kind):
            name = _name(entry)
            if kind == "nve":
                prefixes = tuple(_network(p, entry) for p in entry.strings("prefixes", ()))
                yield Node(name, kind, prefixes, entry.choice("redirect", REDIRECTS, "auto"))
            else:
                yield Node(name, kind)


def _links(table: Table, nodes: set[str]) -> Iterable[Link]:
    used: dict[str, set[str]] = {}
    for number, entry in enumerate(table.tables("link"), 1):
        members = entry.strings("nodes")
        if len(set(members)) != len(members) or len(members) < 2 or not set(members) <= nodes:
            raise LabError(f"{entry.where}: nodes are {list(members)}", "name two or more nodes")
        name = _name(entry, default="--".join(members))
        auto = (f"10.0.{number}.0/24", f"fd00:0:{number:x}::/64")
        prefixes = tuple(_network(p, entry) for p in entry.strings("prefixes", auto))
        if {p.version for p in prefixes} != set(FAMILIES) or len(prefixes) != 2:
            raise LabError(f"{entry.where}: prefixes", "give one IPv4 and one IPv6 prefix")
        given = entry.take("addresses", dict, {})
        if set(given) - set(members):
            raise LabError(f"{entry.where}: addresses of a node not on it", "name its nodes only")
        ends = []
        for position, member in enumerate(members, 1):
            peer = name if len(members) > 2 else members[2 - position]
            interface = _interface_name(peer, used.setdefault(member, set()))
            addresses = _end_addresses(entry, prefixes, position, given.get(member))
            ends.append(End(member, interface, addresses))
        yield Link(name, prefixes, tuple(ends))


def _end_addresses(
    entry: Table, prefixes: tuple[Prefix, ...], position: int, given: Any
) -> tuple[IpInterface, ...]:
    if given is None:
        for prefix in prefixes:
            if position >= prefix.num_addresses:
                raise LabError(f"{entry.where}: {prefix} is too small", "give a shorter prefix")
        return tuple(ip_interface(f"{p[position]}/{p.prefixlen}") for p in prefixes)
    result = []
    for prefix in prefixes:
        try:
            address = next(a for a in map(ip_address, given) if a in prefix)
        except (ValueError, TypeError, StopIteration) as error:
            raise LabError(
                f"{entry.where}: addresses {given!r}", f"give one address inside {prefix}"
            ) from error
        result.append(ip_interface(f"{address}/{prefix.prefixlen}"))
    return tuple(result)


def _vms(table: Table, nodes: dict[str, Node]) -> Iterable[Vm]:
    for entry in table.tables("vm"):
        name = _name(entry)
        home = entry.take("home", str)
        if home not in nodes or nodes[home].kind != "nve":
            raise LabError(f"{entry.where}: home {home!r} is no NVE", "name one of the [[nve]]")
        addresses = tuple(_address(a, entry) for a in entry.strings("addresses"))
        prefixes = nodes[home].home_prefixes
        if sorted(a.version for a in addresses) != list(FAMILIES):
            raise LabError(f"{entry.where}: addresses", "give one IPv4 and one IPv6 address")
        for address in addresses:
            if not any(address.ip in prefix for prefix in prefixes):
                raise LabError(f"{entry.where}: {address.ip} is not in {home}'s prefixes",
                               f"choose one in {', '.join(map(str, prefixes))}")  # fmt: skip
        if entry.has("on_link") and entry.has("kind") and entry.peek("kind") != "netns":
            raise LabError(f"{entry.where}: on_link of a guest", 'use kind = "netns" for it')
        yield Vm(
            name,
            entry.choice("kind", VM_KINDS),
            home,
            _mac(entry, name),
            addresses,
            entry.take("on_link", bool, False),
            entry.take("vcpus", int, 1),
            entry.take("memory_mib", int, 128),
            entry.take("dirty_mibps", int, 0),
        )


def _check(fabric: Fabric, where: str) -> None:
    names = [node.name for node in fabric.nodes] + [vm.name for vm in fabric.vms]
    names += [link.name for link in fabric.links]
    for name in names:
        if names.count(name) > 1:
            raise LabError(f"{where}: the name {name!r} is used twice", "rename one")
    linked = {end.node for link in fabric.links for end in link.ends}
    for node in fabric.nodes:
        if node.name not in linked:
            raise LabError(f"{where}: {node.name} is on no link", "add a [[link]] with it")
    if len(fabric.of_kind("manager")) > 1:
        raise LabError(f"{where}: more than one manager", "leave one [[manager]]")
    _check_overlap(fabric, where)


def _check_overlap(fabric: Fabric, where: str) -> None:
    prefixes = [p for link in fabric.links for p in link.prefixes]
    prefixes += [p for node in fabric.nodes for p in node.home_prefixes]
    for index, one in enumerate(prefixes):
        for other in prefixes[index + 1 :]:
            if one.version == other.version and one.overlaps(other):
                raise LabError(f"{where}: {one} and {other} overlap", "renumber one of them")
    addresses = [a.ip for vm in fabric.vms for a in vm.addresses]
    addresses += [a.ip for link in fabric.links for end in link.ends for a in end.addresses]
    for address in addresses:
        if addresses.count(address) > 1:
            raise LabError(f"{where}: {address} is used twice", "change one of them")


def _name(entry: Table, default: str | None = None) -> str:
    name = entry.take("name", str) if default is None else entry.take("name", str, default)
    if default != name and not _NAME.fullmatch(name):
        raise LabError(f"{entry.where}: name {name!r}", "use a-z, 0-9 and -, at most 20 characters")
    return name


def _network(text: str, entry: Table) -> Prefix:
    try:
        return ip_network(text)
    except ValueError as error:
        raise LabError(f"{entry.where}: {error}", "write a prefix such as 10.1.0.0/24") from error


def _address(text: str, entry: Table) -> IpInterface:
    try:
        address = ip_interface(text)
    except ValueError as error:
        raise LabError(f"{entry.where}: {error}", "write an address such as 10.1.0.5") from error
    if address.network.prefixlen != address.max_prefixlen:
        raise LabError(f"{entry.where}: {text} has a prefix length",
                       "leave it out; `on_link = true` gives the VM its subnet")  # fmt: skip
    return address


def _mac(entry: Table, name: str) -> str:
    mac = entry.take("mac", str, "02:" + hashlib.sha256(name.encode()).digest()[:5].hex(":"))
    if not re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", mac) or int(mac[:2], 16) & 1:
        raise LabError(f"{entry.where}: mac {mac!r}", "write a unicast MAC like 02:00:00:00:00:05")
    return mac


def _interface_name(peer: str, used: set[str]) -> str:
    """The peer's (or the segment's) name, cut to the kernel's 15 characters and unique."""
    name = peer[:15]
    number = 2
    while name in used or name == "lo":
        name = f"{peer[:13]}.{number}"
        number += 1
    used.add(name)
    return name
