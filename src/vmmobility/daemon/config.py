"""manager.toml or nve.toml -> one frozen, checked value (the keys: docs/architecture.md).

Every error names the file, the key, what is wrong and the remedy.  Unknown keys are errors.
Not here: what all files share (node_config.py), keys' files (keys.py), what the values do (the
engines).  Rests on node_config.py and toml_table.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Literal, cast

from vmmobility.daemon.api_place import SOCKET_ALONE, ApiConfig, api_of
from vmmobility.daemon.capacity_config import LIMITS, capacity_of
from vmmobility.daemon.hypervisor_config import HypervisorConfig, hypervisor_of
from vmmobility.daemon.keys import MAX_NODE_NAME, ROLES
from vmmobility.daemon.node_config import (
    EndConfig,
    ListenerConfig,
    NodeTimers,
    end_keys,
    listener_keys,
    node_keys,
    parse_file,
    timer_keys,
)
from vmmobility.daemon.server_config import ServerPeer, servers_of
from vmmobility.daemon.toml_table import Table
from vmmobility.daemon.via_config import check_via
from vmmobility.drivers.linux.host_capacity import CapacityLimits
from vmmobility.drivers.linux.outside import collapsed
from vmmobility.engine.dataplane import RedirectPolicy
from vmmobility.wire.registry import LIFETIME_UNIT_S, MAX_LIFETIME_UNITS, Role
from vmmobility.wire.values import Address, Nve, Prefix

Tunnel = Literal["auto", "kernel", "relay"]
GATE_POLICIES = ("abort", "proceed")
TUNNELS = ("auto", "kernel", "relay")
_HYPERVISOR = HypervisorConfig()


@dataclass(frozen=True, slots=True)
class Peer:
    """A node that may speak to this one, or a manager that this one speaks to.

    serves: the NVEs whose default router it is; dc: the data centre of a router; via: the NAPT
    box by which it is reached, whose addresses count then
    """

    id: str
    role: Role
    addresses: tuple[Address, ...]
    serves: tuple[str, ...] = ()
    dc: str = ""
    via: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerTimers(NodeTimers):
    """check_s: NVEs that are silent about a VM are asked about it so often."""

    lifetime_s: int = 120  # longest registration lifetime granted
    ticket_s: float = 900  # a move's ticket is void after this
    step_s: float = 15  # a step of a move may take so long
    copy_s: float = 600  # the copy before the switch may take so long
    ask_s: float = 5  # an NVE that is asked about a VM's guest has so long to answer
    freeze_after: int = 5  # so many unmanaged changes of NVE ...
    freeze_s: float = 180  # ... within so long freeze a binding
    offer_s: float = 60  # room that a VM was offered is held so long
    protect_lease_s: float = 10  # a VM that may fail over is paused so long after its last word
    protect_margin_s: float = 5  # its standby waits so much longer
    gate_s: float = 5  # a move waits so long for the fabric to lead to its destination


@dataclass(frozen=True, slots=True, kw_only=True)
class NveTimers(NodeTimers):
    """check_s: list, kernel and hypervisor are compared so often."""

    lifetime_s: int = 120  # registration lifetime asked for
    drain_s: float = 30  # a redirect is drained after so long without a packet
    redirect_alarm_s: float = 86400  # a redirect that lives longer is an alarm
    heartbeat_s: float = 1  # the manager is told so often that it lives


@dataclass(frozen=True, kw_only=True)
class ManagerConfig(EndConfig, ListenerConfig):
    """manager.toml.  strict: only onboarded VMs may register; gate_policy: what a move does when
    gate_s is over; max_host_routes: of a data centre, 0 is any; api: beside the unix socket.
    """

    peers: tuple[Peer, ...]
    strict: bool
    timers: ManagerTimers
    gate_policy: str = "abort"
    max_host_routes: int = 0
    api: ApiConfig = SOCKET_ALONE


@dataclass(frozen=True, kw_only=True)
class NveConfig(EndConfig):
    """nve.toml.  nve: its NVE-ID and locators, where it listens too; dc_prefixes: of all hosts in
    the data centres, VMs too, empty if not configured: then every sender counts as one of them;
    tunnel: who carries packets that are tunnelled; hypervisor: how guests run here; capacity: what
    VMs may have of this host; servers: those that it stands apart from, if any.
    """

    nve: Nve
    home_prefixes: tuple[Prefix, ...]
    redirect: RedirectPolicy
    managers: tuple[Peer, ...]
    timers: NveTimers
    dc_prefixes: tuple[Prefix, ...] = ()
    tunnel: Tunnel = "auto"
    hypervisor: HypervisorConfig = _HYPERVISOR
    capacity: CapacityLimits = LIMITS
    servers: tuple[ServerPeer, ...] = ()

    @property
    def node_id(self) -> str:
        return self.nve.nve_id

    @property
    def locators(self) -> tuple[Address, ...]:
        return self.nve.locators


_MANAGER = ManagerTimers()
_NVE = NveTimers()


def load_manager(path: Path) -> ManagerConfig:
    """Raises ConfigError."""
    top = parse_file(path)
    node, manager = top.table("node"), top.table("manager")
    node_id = node.name("id", MAX_NODE_NAME)
    config = ManagerConfig(
        **listener_keys(path, node, node_id),
        peers=peers_of(top.tables("peer"), node_id, None),
        strict=manager.boolean("strict", False),
        timers=_manager_timers(top.table("timers")),
        gate_policy=manager.choice("gate_policy", GATE_POLICIES, "abort"),
        max_host_routes=manager.integer("max_host_routes", 0, 1 << 24, 0),
        api=api_of(top.table("api")),
        **end_keys(top, node, node_id),
    )
    for table in (node, manager, top):
        table.finish()
    check_via(top, [(peer.id, peer.via) for peer in config.peers], config.napts)
    return config


def load_nve(path: Path) -> NveConfig:
    """Raises ConfigError."""
    top = parse_file(path)
    node = top.table("node")
    nve = _nve(node)
    policies = tuple(policy.value for policy in RedirectPolicy)
    config = NveConfig(
        **node_keys(path, node),
        nve=nve,
        home_prefixes=node.prefixes("home_prefixes"),
        redirect=RedirectPolicy(node.choice("redirect", policies, RedirectPolicy.AUTO.value)),
        managers=peers_of(top.tables("manager"), nve.nve_id, Role.MANAGER),
        timers=_nve_timers(top.table("timers")),
        **end_keys(top, node, nve.nve_id),
        dc_prefixes=_dc_prefixes(node, nve),
        tunnel=cast(Tunnel, node.choice("tunnel", TUNNELS, "auto")),
        hypervisor=hypervisor_of(top),
        capacity=capacity_of(top.table("capacity")),
        servers=servers_of(top, nve.nve_id),
    )
    for table in (node, top):
        table.finish()
    check_via(top, [(peer.id, peer.via) for peer in config.managers], config.napts)
    if not config.managers:
        raise top.wrong("manager", "is missing", "name a manager: [[manager]] id, addresses")
    return config


def _nve(node: Table) -> Nve:
    nve_id = node.name("id", MAX_NODE_NAME)
    found: dict[int, Address] = {}
    for index, locator in enumerate(node.addresses("locators", loopback=False)):
        if locator.version in found:
            raise node.wrong(
                f"locators[{index}]",
                f"{locator} is a second IPv{locator.version} locator, beside "
                f"{found[locator.version]}",
                "keep one a family",
            )
        found[locator.version] = locator
    ipv4, ipv6 = found.get(4), found.get(6)
    return Nve(nve_id, cast(IPv4Address | None, ipv4), cast(IPv6Address | None, ipv6))


def _dc_prefixes(node: Table, nve: Nve) -> tuple[Prefix, ...]:
    """Of every family that the NVE tunnels in: else it would drop that family's packets."""
    name = "dc_prefixes"
    if name not in node:
        return ()
    found = node.prefixes(name)
    leave_out = "remove the key: without it every sender counts as inside"
    if not found:
        raise node.wrong(name, "is empty: every sender would count as outside", leave_out)
    for whole in (prefix for prefix in collapsed(found) if prefix.prefixlen == 0):
        what = f"holds every IPv{whole.version} address: nobody would count as outside"
        raise node.wrong(name, what, leave_out)
    for index, prefix in enumerate(found):
        if prefix.is_multicast:
            raise node.wrong(f"{name}[{index}]", f"{prefix} is multicast", "no host sends from it")
    for locator in nve.locators:
        if all(prefix.version != locator.version for prefix in found):
            raise node.wrong(
                name,
                f"has no IPv{locator.version} prefix, and this NVE has the locator {locator}",
                f"add the data centres' IPv{locator.version} prefixes",
            )
    return found


def peers_of(tables: Iterable[Table], own: str, role: Role | None) -> tuple[Peer, ...]:
    """role: what all of them are; None: each says its own."""
    found: dict[str, Peer] = {}
    for table in tables:
        name = table.name("id", MAX_NODE_NAME)
        if name in found or name == own:
            what = "stands here twice" if name in found else "is this node's own id"
            raise table.wrong("id", f"{name!r} {what}", "every node has an id of its own")
        is_what = role or ROLES[table.choice("role", tuple(ROLES))]
        if is_what is Role.NAPT:
            raise table.wrong("role", "a NAPT box is no such peer", "write it as [[napt]]")
        via = table.name("via", MAX_NODE_NAME) if "via" in table else ""
        addresses = () if via else table.addresses("addresses", loopback=True)
        routes = is_what in (Role.DEFAULT_ROUTER, Role.BORDER_ROUTER)
        serves = table.names("serves", MAX_NODE_NAME) if routes else ()
        found[name] = Peer(name, is_what, addresses, serves, table.text("dc", ""), via)
        table.finish()
    return tuple(found.values())


def _lifetime(timers: Table, default: int) -> int:
    most = MAX_LIFETIME_UNITS * LIFETIME_UNIT_S
    seconds = timers.integer("lifetime_s", LIFETIME_UNIT_S, most, default)
    if seconds % LIFETIME_UNIT_S:
        below = seconds - seconds % LIFETIME_UNIT_S
        raise timers.wrong(
            "lifetime_s",
            f"{seconds} s is no multiple of {LIFETIME_UNIT_S} s, the protocol's unit",
            f"write {max(below, LIFETIME_UNIT_S)} or {below + LIFETIME_UNIT_S}",
        )
    return seconds


def _manager_timers(timers: Table) -> ManagerTimers:
    made = ManagerTimers(
        **timer_keys(timers),
        lifetime_s=_lifetime(timers, _MANAGER.lifetime_s),
        ticket_s=timers.seconds("ticket_s", 1, 86400, _MANAGER.ticket_s),
        step_s=timers.seconds("step_s", 0.1, 3600, _MANAGER.step_s),
        copy_s=timers.seconds("copy_s", 1, 86400, _MANAGER.copy_s),
        ask_s=timers.seconds("ask_s", 0.1, 3600, _MANAGER.ask_s),
        freeze_after=timers.integer("freeze_after", 2, 1000, _MANAGER.freeze_after),
        freeze_s=timers.seconds("freeze_s", 1, 86400, _MANAGER.freeze_s),
        protect_lease_s=timers.seconds("protect_lease_s", 2, 3600, _MANAGER.protect_lease_s),
        protect_margin_s=timers.seconds("protect_margin_s", 1, 3600, _MANAGER.protect_margin_s),
        gate_s=timers.seconds("gate_s", 0.1, 3600, _MANAGER.gate_s),
        offer_s=timers.seconds("offer_s", 1, 86400, _MANAGER.offer_s),
    )
    timers.finish()
    return made


def _nve_timers(timers: Table) -> NveTimers:
    made = NveTimers(
        **timer_keys(timers),
        lifetime_s=_lifetime(timers, _NVE.lifetime_s),
        drain_s=timers.seconds("drain_s", 0.1, 86400, _NVE.drain_s),
        redirect_alarm_s=timers.seconds("redirect_alarm_s", 1, 31536000, _NVE.redirect_alarm_s),
        heartbeat_s=timers.seconds("heartbeat_s", 0.05, 3600, _NVE.heartbeat_s),
    )
    timers.finish()
    return made
