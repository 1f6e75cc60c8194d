"""router.toml -> one frozen, checked value (the keys: docs/architecture.md).

Every error names the file, the key, what is wrong and the remedy.  Unknown keys are errors.
Not here: what all files share (node_config.py), peers (config.py).  Rests on both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmmobility.daemon.config import Peer, peers_of
from vmmobility.daemon.keys import MAX_NODE_NAME, ROLES
from vmmobility.daemon.node_config import (
    EndConfig,
    ListenerConfig,
    NodeTimers,
    end_keys,
    listener_keys,
    parse_file,
    timer_keys,
)
from vmmobility.daemon.toml_table import Table
from vmmobility.daemon.via_config import check_via
from vmmobility.wire.registry import Role

ROUTER_ROLES = {
    text: role for text, role in ROLES.items() if role in (Role.DEFAULT_ROUTER, Role.BORDER_ROUTER)
}


@dataclass(frozen=True, kw_only=True)
class RouterConfig(EndConfig, ListenerConfig):
    """router.toml.  role: DEFAULT_ROUTER or BORDER_ROUTER; timers.check_s: kernel and record are
    compared, and the manager is told, so often."""

    role: Role
    managers: tuple[Peer, ...]
    timers: NodeTimers


def load_router(path: Path) -> RouterConfig:
    """Raises ConfigError."""
    top = parse_file(path)
    node = top.table("node")
    node_id = node.name("id", MAX_NODE_NAME)
    config = RouterConfig(
        role=ROUTER_ROLES[node.choice("role", tuple(ROUTER_ROLES))],
        **listener_keys(path, node, node_id),
        managers=peers_of(top.tables("manager"), node_id, Role.MANAGER),
        timers=_timers(top.table("timers")),
        **end_keys(top, node, node_id),
    )
    for table in (node, top):
        table.finish()
    check_via(top, [(peer.id, peer.via) for peer in config.managers], config.napts)
    if not config.managers:
        raise top.wrong("manager", "is missing", "name a manager: [[manager]] id, addresses")
    return config


def _timers(timers: Table) -> NodeTimers:
    made = NodeTimers(**timer_keys(timers))
    timers.finish()
    return made
