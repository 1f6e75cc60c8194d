"""A fabric: racks, routers, NVEs, virtual machines and correspondents, read from TOML.

Reads and numbers.  Not here: the values (fabric_values.py), what must hold among them
(fabric_checks.py), routes (routing.py, frr_plans.py), namespaces (namespaces.py).  The format is
in docs/lab.md.  Rests on toml_table and ipaddress.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import resources
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from vmmobility.daemon.config import GATE_POLICIES, TUNNELS, ManagerTimers, NveTimers
from vmmobility.errors import LabError
from vmmobility.lab import fat_tree, many_vms
from vmmobility.lab.fabric_checks import check_fabric
from vmmobility.lab.fabric_values import PROBE_EVERY_MS
from vmmobility.lab.fabric_values import Box as Box
from vmmobility.lab.fabric_values import End as End
from vmmobility.lab.fabric_values import Fabric as Fabric
from vmmobility.lab.fabric_values import Group as Group
from vmmobility.lab.fabric_values import IpInterface as IpInterface
from vmmobility.lab.fabric_values import Link as Link
from vmmobility.lab.fabric_values import Node as Node
from vmmobility.lab.fabric_values import Vm as Vm
from vmmobility.lab.toml_table import Table, load, whole
from vmmobility.wire.values import FAMILIES, Address, Prefix

NODE_KINDS = ("router", "nve", "server", "manager", "correspondent", "collector")
VM_KINDS = ("guest", "netns", "external")
IGPS = ("ospf", "isis")
SOFTWARE = ("frr", "bird")
COLLECTOR_SOFTWARE = ("gobgp",)
ROLES = ("default", "border", "transit")
MAX_ASN = 4294967294
LEAST_MTU, MOST_MTU = 1280, 65535
NAPT_POLICIES = ("keep", "hand-over")
REDIRECTS = ("auto", "host-route", "tunnel")
SETTINGS: dict[str, tuple[str, ...]] = {
    "tunnel": TUNNELS, "redirect": REDIRECTS, "probe_every_ms": (), "step_s": (),
}  # fmt: skip
"""What `--set` knows, and the values; none: a number."""
MOST_PROBE_MS = 1000
LAB_TIMERS = {"drain_s": 2.0, "step_s": 15.0}
MANAGER_TIMERS = frozenset(field.name for field in dataclasses.fields(ManagerTimers))
NVE_TIMERS = frozenset(field.name for field in dataclasses.fields(NveTimers))
_NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")


def built_in() -> dict[str, Path]:
    """The fabrics that come with the lab: name -> file."""
    folder = Path(str(resources.files("vmmobility.lab") / "fabrics"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find(name: str, beside: Path | None = None) -> Path:
    """The fabric file for a built-in name or a path (relative to the file `beside`)."""
    if name in built_in():
        return built_in()[name]
    if fat_tree.is_name(name) or many_vms.is_name(name):
        return Path(name)  # of no file: made when it is loaded
    path = Path(name) if beside is None else beside.parent / name
    try:
        there = path.is_file()
    except OSError:  # a name that no file can have
        there = False
    if not there:
        known = ", ".join([*built_in(), fat_tree.PATTERN, many_vms.PATTERN])
        raise LabError(f"no fabric {name!r}", f"give a TOML file or one of: {known}")
    return path


def load_fabric(path: Path) -> Fabric:
    """Read and check a fabric file, or make one that is made by its name."""
    return parse_fabric(_read(path), str(path), path.stem, beside=path)


def _read(path: Path) -> dict[str, Any]:
    if many_vms.is_name(str(path)):
        return many_vms.data(path.name)
    return fat_tree.data(path.name) if fat_tree.is_name(str(path)) else load(path)


def with_settings(fabric: Fabric, settings: Mapping[str, str]) -> Fabric:
    """The fabric with these of its settings changed: `tunnel`, `probe_every_ms`, `redirect` of
    every NVE, and `step_s` among its timers."""
    for key, value in settings.items():
        known = SETTINGS.get(key)
        if known is None:
            raise LabError(f"there is no setting {key!r}", f"settings: {', '.join(SETTINGS)}")
        if known and value not in known:
            raise LabError(f"{key} cannot be {value!r}", f"use one of: {', '.join(known)}")
    given = settings.get("probe_every_ms", str(fabric.probe_every_ms))
    every_ms = _every_ms(int(given) if given.isdecimal() else 0, "--set")
    redirect = settings.get("redirect", "")
    nodes = tuple(
        replace(node, redirect=redirect) if redirect and node.kind == "nve" else node
        for node in fabric.nodes
    )
    tunnel = settings.get("tunnel", fabric.tunnel)
    timers = dict(fabric.timers) | _step(settings)
    return replace(
        fabric,
        nodes=nodes,
        tunnel=tunnel,
        probe_every_ms=every_ms,
        timers=tuple(sorted(timers.items())),
    )


def _step(settings: Mapping[str, str]) -> dict[str, float]:
    given = settings.get("step_s", "")
    if given and not (given.isdecimal() and int(given)):
        raise LabError(f"step_s cannot be {given!r}", "give seconds, a whole number above 0")
    return {"step_s": float(given)} if given else {}


def _every_ms(value: int, where: str) -> int:
    if not 1 <= value <= MOST_PROBE_MS:
        what = f"{where}: probe_every_ms must be 1 to {MOST_PROBE_MS}"
        raise LabError(what, f"the default is {PROBE_EVERY_MS}; slow machines need more")
    return value


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
    inherited = _with_base(_read(path), str(path), path)
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
        igp_given = table.has("igp")
        igp = table.choice("igp", IGPS, "ospf")
        gate_policy = table.choice("gate_policy", GATE_POLICIES, "abort")
        tunnel = table.choice("tunnel", TUNNELS, "auto")
        nodes = tuple(_nodes(table))
        links = tuple(_links(table, nodes))
        every_ms = _every_ms(table.take("probe_every_ms", int, PROBE_EVERY_MS), where)
        boxes = tuple(_boxes(table))
        copy_mib_per_s = table.take("copy_mib_per_s", int, 0)
        host_memory_mib = table.take("host_memory_mib", int, 0)
        groups = tuple(_groups(table))
        vms = tuple(_vms(table, {node.name: node for node in nodes}, groups))
    fabric = Fabric(
        name, description, mtu, nodes, links, vms, timers, igp, gate_policy, tunnel, boxes,
        every_ms, copy_mib_per_s, groups, host_memory_mib,
    )  # fmt: skip
    check_fabric(fabric, where)
    if igp_given and not fabric.dynamic:
        raise LabError(f"{where}: `igp` without FRR", "add `frr = true` to every router")
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
            elif kind == "router":
                yield _router(name, entry)
            elif kind == "server":
                yield Node(name, kind, nve=entry.take("nve", str))
            elif kind == "collector":
                software = entry.choice("software", COLLECTOR_SOFTWARE, COLLECTOR_SOFTWARE[0])
                asn, peers = _asn(entry), entry.strings("peers")
                yield Node(name, kind, software=software, asn=asn, peers=peers)
            else:
                yield Node(name, kind)


def _router(name: str, entry: Table) -> Node:
    asn = _asn(entry)
    dc = entry.take("dc", str, "")
    if dc and not _NAME.fullmatch(dc):
        raise LabError(f"{entry.where}: dc {dc!r}", "use a-z, 0-9 and -, at most 20 characters")
    role = entry.choice("role", ROLES, "transit")
    frr = entry.take("frr", bool, False)
    software = entry.choice("software", SOFTWARE, "frr") if frr or entry.has("software") else ""
    if frr and software != "frr":
        raise LabError(f"{entry.where}: both `frr` and {software}", "leave `frr = true` out")
    return Node(name, "router", software=software, role=role, dc=dc, asn=asn)


def _asn(entry: Table) -> int:
    asn = entry.take("asn", int, 0)
    if not 0 <= asn <= MAX_ASN:
        raise LabError(f"{entry.where}: asn {asn}", "give an AS number such as 65001")
    return asn


def _boxes(table: Table) -> Iterable[Box]:
    for entry in table.tables("napt"):
        publics = tuple(_network(p, entry) for p in entry.strings("publics"))
        if not publics or any(p.version != 4 for p in publics):
            raise LabError(f"{entry.where}: publics", "give IPv4 prefixes; IPv6 is not translated")
        policy = entry.choice("policy", NAPT_POLICIES, NAPT_POLICIES[0])
        yield Box(_name(entry), entry.take("at", str), publics, policy)


def _public(entry: Table) -> Address | None:
    if not entry.has("public"):
        return None
    address = _address(entry.take("public", str), entry).ip
    if address.version != 4:
        raise LabError(f"{entry.where}: public {address}", "give an IPv4 address")
    return address


def _link_entries(table: Table, nodes: Iterable[Node]) -> Iterable[Table]:
    """Those that are given, then one from each collector to each of its peers."""
    yield from table.tables("link")
    for node in nodes:
        for peer in node.peers:
            data = {"nodes": [peer, node.name]}
            yield Table(data, f"{table.where}: collector {node.name}: peers")


def _links(table: Table, nodes: tuple[Node, ...]) -> Iterable[Link]:
    used: dict[str, set[str]] = {}
    names = {node.name for node in nodes}
    for number, entry in enumerate(_link_entries(table, nodes), 1):
        members = entry.strings("nodes")
        if len(set(members)) != len(members) or len(members) < 2 or not set(members) <= names:
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
        yield Link(name, prefixes, tuple(ends), _mtu(entry))


def _mtu(entry: Table) -> int:
    if not entry.has("mtu"):
        return 0
    mtu: int = entry.take("mtu", int)
    if not LEAST_MTU <= mtu <= MOST_MTU:
        raise LabError(f"{entry.where}: mtu {mtu}", f"give {LEAST_MTU} (IPv6) to {MOST_MTU}")
    return mtu


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


def _groups(table: Table) -> Iterable[Group]:
    for entry in table.tables("group"):
        yield Group(_name(entry), entry.strings("vms"))


def _vms(table: Table, nodes: dict[str, Node], groups: tuple[Group, ...]) -> Iterable[Vm]:
    shared = {vm for group in groups for vm in group.vms[1:]}
    for entry in table.tables("vm"):
        name = _name(entry)
        home = entry.take("home", str)
        if home not in nodes or nodes[home].kind != "nve":
            raise LabError(f"{entry.where}: home {home!r} is no NVE", "name one of the [[nve]]")
        addresses = tuple(_address(a, entry) for a in entry.strings("addresses"))
        prefixes = (
            [p for n in nodes.values() for p in n.home_prefixes]
            if name in shared
            else (nodes[home].home_prefixes)
        )
        if sorted(a.version for a in addresses) != list(FAMILIES):
            raise LabError(f"{entry.where}: addresses", "give one IPv4 and one IPv6 address")
        for address in addresses:
            if not any(address.ip in prefix for prefix in prefixes):
                raise LabError(f"{entry.where}: {address.ip} is not in {home}'s prefixes",
                               f"choose one in {', '.join(map(str, prefixes))}")  # fmt: skip
        if entry.has("on_link") and entry.has("kind") and entry.peek("kind") != "netns":
            raise LabError(f"{entry.where}: on_link of a guest", 'use kind = "netns" for it')
        if entry.has("disk_mib") and entry.peek("kind") != "guest":
            raise LabError(f"{entry.where}: disk_mib", 'only a VM of kind = "guest" has a disk')
        if entry.has("requested") and (entry.peek("kind") == "external" or entry.has("disk_mib")):
            raise LabError(f"{entry.where}: requested", "a guest without a disk, or a light VM, is")
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
            entry.choice("redirect", REDIRECTS, "") if entry.has("redirect") else "",
            _public(entry),
            entry.take("disk_mib", int, 0),
            entry.take("requested", bool, False),
        )


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
