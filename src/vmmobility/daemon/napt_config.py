"""napt.toml -> one frozen, checked value (the keys: docs/architecture.md).

Every error names the file, the key, what is wrong and the remedy.  Unknown keys are errors.
Not here: `via` in the other daemons' files (via_config.py).  Rests on node_config.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from vmmobility.daemon.keys import MAX_NODE_NAME, ROLES, parse_node, role_text
from vmmobility.daemon.node_config import (
    ListenerConfig,
    NodeTimers,
    listener_keys,
    parse_file,
    timer_keys,
)
from vmmobility.daemon.toml_table import Table
from vmmobility.daemon.via_config import ipv4_of, overlap
from vmmobility.engine.napt_plane import PortMapping
from vmmobility.engine.napt_settings import NaptPolicy, NaptSettings
from vmmobility.errors import ConfigError
from vmmobility.wire.registry import Role
from vmmobility.wire.values import Address

SIDES = ("inside", "outside")
PROTOCOLS = {"tcp": 6, "udp": 17}


@dataclass(frozen=True, slots=True)
class NeighbourConfig:
    """A node that the box speaks to itself (engine/napt_settings.Neighbour)."""

    id: str
    role: Role
    inside: bool
    addresses: tuple[Address, ...]
    behind: tuple[tuple[str, Role], ...] = ()
    pool: tuple[IPv4Network, ...] = ()
    detour: IPv4Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NaptTimers(NodeTimers):
    """check_s: kernel and record are compared so often."""

    mapping_s: float = 3600  # a VM's mapping of which nothing was heard for so long ends
    quarantine_s: float = 600  # then nobody else gets its public address for so long
    move_s: float = 900  # a move under way keeps it so long at least
    linger_s: float = 30  # what was handed over is translated here so much longer
    hold_s: float = 60  # another box's mapping is held anew so often


@dataclass(frozen=True, kw_only=True)
class NaptConfig(ListenerConfig):
    """napt.toml.  addresses: those of both sides."""

    inside: tuple[IPv4Network, ...]
    pool: tuple[IPv4Network, ...]
    exempt: tuple[IPv4Network, ...]
    ports_pool: tuple[IPv4Address, ...]
    policy: NaptPolicy
    ports: tuple[PortMapping, ...]
    neighbours: tuple[NeighbourConfig, ...]
    timers: NaptTimers


_TIMERS = NaptTimers()


def load_napt(path: Path) -> NaptConfig:
    """Raises ConfigError."""
    top = parse_file(path)
    node, napt = top.table("node"), top.table("napt")
    node_id = node.name("id", MAX_NODE_NAME)
    policies = tuple(policy.value for policy in NaptPolicy)
    config = NaptConfig(
        **listener_keys(path, node, node_id),
        inside=ipv4_of(napt, "inside"),
        pool=ipv4_of(napt, "pool"),
        exempt=ipv4_of(napt, "exempt") if "exempt" in napt else (),
        ports_pool=_ipv4_addresses(napt, "ports_pool"),
        policy=NaptPolicy(napt.choice("policy", policies, NaptPolicy.KEEP.value)),
        ports=tuple(map(_port, top.tables("port"))) if "port" in top else (),
        neighbours=_neighbours(top, node_id),
        timers=_timers(top.table("timers")),
    )
    for table in (node, napt, top):
        table.finish()
    _check(top, napt, config)
    return config


def settings_of(config: NaptConfig) -> NaptSettings:
    """What the engine is told."""
    timers = config.timers
    return NaptSettings(
        config.node_id,
        config.inside,
        config.pool,
        config.exempt,
        config.ports,
        config.ports_pool,
        policy=config.policy,
        mapping_s=timers.mapping_s,
        quarantine_s=timers.quarantine_s,
        move_s=timers.move_s,
        hold_s=timers.hold_s,
        linger_s=timers.linger_s,
        retransmission=timers.retransmission,
    )


def _neighbours(top: Table, own: str) -> tuple[NeighbourConfig, ...]:
    found: dict[str, NeighbourConfig] = {}
    for table in top.tables("neighbour"):
        name = table.name("id", MAX_NODE_NAME)
        if name in found or name == own:
            what = "stands here twice" if name in found else "is this box's own id"
            raise table.wrong("id", f"{name!r} {what}", "every node has an id of its own")
        role = ROLES[table.choice("role", tuple(ROLES))]
        box = role is Role.NAPT
        found[name] = NeighbourConfig(
            name,
            role,
            table.choice("side", SIDES) == "inside",
            table.addresses("addresses", loopback=True),
            _behind(table) if box and "behind" in table else (),
            ipv4_of(table, "pool") if box else (),
            _detour(table) if box else None,
        )
        table.finish()
    return tuple(found.values())


def _behind(table: Table) -> tuple[tuple[str, Role], ...]:
    """["nve-b:nve", …]: originators that a neighbouring box speaks for."""
    found = []
    for text in table.texts("behind"):
        try:
            node = parse_node(text)
        except ConfigError as error:
            raise table.wrong("behind", error.message, error.remedy) from None
        if node.role is Role.NAPT:
            raise table.wrong("behind", f"{text}: a box is no originator", "name who is behind")
        found.append((node.name, node.role))
    return tuple(found)


def _detour(table: Table) -> IPv4Address | None:
    found = _ipv4_addresses(table, "detour")
    if len(found) > 1:
        raise table.wrong("detour", f"{len(found)} addresses", "traffic goes to one: name that")
    return found[0] if found else None


def _ipv4_addresses(table: Table, key: str) -> tuple[IPv4Address, ...]:
    found = table.addresses(key, loopback=True) if key in table else ()
    wrong = next((a for a in found if not isinstance(a, IPv4Address)), None)
    if wrong is not None:
        raise table.wrong(key, f"{wrong} is IPv6, which is never translated", "remove it")
    return tuple(a for a in found if isinstance(a, IPv4Address))


def _port(table: Table) -> PortMapping:
    protocol = PROTOCOLS[table.choice("protocol", tuple(PROTOCOLS))]
    private, public = (_one(table, key) for key in ("private", "public"))
    made = PortMapping(
        protocol,
        private,
        table.integer("private_port", 1, 65535),
        public,
        table.integer("public_port", 1, 65535),
    )
    table.finish()
    return made


def _one(table: Table, key: str) -> IPv4Address:
    text = table.text(key)
    try:
        return IPv4Address(text)
    except ValueError as error:
        raise table.wrong(key, str(error), "write one IPv4 address") from None


def _check(top: Table, napt: Table, config: NaptConfig) -> None:
    """What no single key can say."""
    for network in config.pool:
        private = next((n for n in config.inside if n.overlaps(network)), None)
        if private is not None:
            raise napt.wrong("pool", f"{network} overlaps inside {private}", "keep them apart")
        port = next((a for a in config.ports_pool if a in network), None)
        if port is not None:
            raise napt.wrong("ports_pool", f"{port} is in the pool {network}", "keep them apart")
    _check_public(napt, config)
    names: dict[str, str] = {}
    for neighbour in config.neighbours:
        own = [(neighbour.id, neighbour.role)] if neighbour.role is not Role.NAPT else []
        for name, role in (*own, *neighbour.behind):
            if name in names or name == config.node_id:
                there = names.get(name, "this box")
                what = f"{name} ({role_text(role)}) is behind {neighbour.id} and {there}"
                raise top.wrong("neighbour", what, "each originator has one way")
            names[name] = neighbour.id
    if {n.inside for n in config.neighbours} != {True, False}:
        raise top.wrong(
            "neighbour", "a box has neighbours on both sides", "add the [[neighbour]] that lacks"
        )


def _check_public(napt: Table, config: NaptConfig) -> None:
    """The pool is routed to the box, and each address of it is one NVE's or VM's: nobody else's."""
    apart = "keep them apart"
    taken = [(a, "is this box's own address") for a in config.addresses]
    taken += [(a, f"is {n.id}'s address") for n in config.neighbours for a in n.addresses]
    taken += [(p.public, "has a [[port]] mapping") for p in config.ports]
    for address, what in taken:
        if any(address in network for network in config.pool):
            raise napt.wrong("pool", f"{address} {what}", apart)
    inner = next((a for a in config.ports_pool if any(a in n for n in config.inside)), None)
    if inner is not None:
        raise napt.wrong("ports_pool", f"{inner} is inside", apart)
    boxes = [(config.node_id, config.pool), *((n.id, n.pool) for n in config.neighbours)]
    wrong = overlap(boxes)
    if wrong:
        raise napt.wrong("pool", wrong, apart)


def _timers(timers: Table) -> NaptTimers:
    made = NaptTimers(
        **timer_keys(timers),
        mapping_s=timers.seconds("mapping_s", 1, 31536000, _TIMERS.mapping_s),
        quarantine_s=timers.seconds("quarantine_s", 0, 31536000, _TIMERS.quarantine_s),
        move_s=timers.seconds("move_s", 1, 86400, _TIMERS.move_s),
        linger_s=timers.seconds("linger_s", 0.1, 86400, _TIMERS.linger_s),
        hold_s=timers.seconds("hold_s", 0.1, 86400, _TIMERS.hold_s),
    )
    timers.finish()
    return made
