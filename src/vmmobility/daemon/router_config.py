"""router.toml -> one frozen, checked value (the keys: docs/architecture.md).

Every error names the file, the key, what is wrong and the remedy.  Unknown keys are errors.
Not here: the other daemons' files (config.py).  Rests on config.py and toml_table.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmmobility.daemon.config import (
    RECORD_MIB,
    Peer,
    parse_file,
    peers_of,
    retransmission_of,
    socket_of,
)
from vmmobility.daemon.keys import MAX_NODE_NAME, ROLES
from vmmobility.daemon.toml_table import Table
from vmmobility.daemon.via_config import Napt, check_via, napts_of
from vmmobility.wire.registry import UDP_PORT, Role
from vmmobility.wire.values import Address

ROUTER_ROLES = {
    text: role for text, role in ROLES.items() if role in (Role.DEFAULT_ROUTER, Role.BORDER_ROUTER)
}


@dataclass(frozen=True, slots=True)
class RouterTimers:
    check_s: float = 60  # kernel and record are compared, and the manager is told, so often
    retransmit_s: float = 0.25
    retransmit_max_s: float = 8


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """router.toml.  role: DEFAULT_ROUTER or BORDER_ROUTER; addresses: where it listens."""

    file: Path
    node_id: str
    role: Role
    state_dir: Path
    addresses: tuple[Address, ...]
    api_socket: Path
    keys_dir: Path
    port: int
    log_file: Path | None
    managers: tuple[Peer, ...]
    timers: RouterTimers
    napts: tuple[Napt, ...] = ()
    record: Path | None = None
    record_mib: int = RECORD_MIB


_TIMERS = RouterTimers()


def load_router(path: Path) -> RouterConfig:
    """Raises ConfigError."""
    top = parse_file(path)
    node = top.table("node")
    node_id = node.name("id", MAX_NODE_NAME)
    config = RouterConfig(
        file=path,
        node_id=node_id,
        role=ROUTER_ROLES[node.choice("role", tuple(ROUTER_ROLES))],
        state_dir=node.path("state_dir"),
        addresses=node.addresses("addresses", loopback=True),
        api_socket=socket_of(node),
        keys_dir=node.path("keys_dir"),
        port=node.integer("port", 1, 65535, UDP_PORT),
        log_file=node.optional_path("log_file"),
        managers=peers_of(top.tables("manager"), node_id, Role.MANAGER),
        timers=_timers(top.table("timers")),
        napts=napts_of(top, node_id),
        record=node.optional_path("record"),
        record_mib=node.integer("record_mib", 1, 1 << 20, RECORD_MIB),
    )
    for table in (node, top):
        table.finish()
    check_via(top, [(peer.id, peer.via) for peer in config.managers], config.napts)
    if not config.managers:
        raise top.wrong("manager", "is missing", "name a manager: [[manager]] id, addresses")
    return config


def _timers(timers: Table) -> RouterTimers:
    retransmit_s, retransmit_max_s = retransmission_of(timers)
    made = RouterTimers(
        check_s=timers.seconds("check_s", 0.1, 86400, _TIMERS.check_s),
        retransmit_s=retransmit_s,
        retransmit_max_s=retransmit_max_s,
    )
    timers.finish()
    return made
