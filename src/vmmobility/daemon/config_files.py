"""Any daemon's configuration file: which role's it is, and its value.

Not here: what each role's file holds (config.py, router_config.py).
"""

from __future__ import annotations

from pathlib import Path

from vmmobility.daemon.config import ManagerConfig, NveConfig, load_manager, load_nve
from vmmobility.daemon.napt_config import NaptConfig, load_napt
from vmmobility.daemon.node_config import parse_file
from vmmobility.daemon.router_config import RouterConfig, load_router
from vmmobility.daemon.server_config import ServerConfig, load_server

AnyConfig = ManagerConfig | NveConfig | RouterConfig | NaptConfig | ServerConfig


def load(path: Path) -> AnyConfig:
    """A router's file says its role, a NAPT box's has [napt], a server's [server]; one with
    [[manager]] or node.locators is an NVE's.

    Raises ConfigError.
    """
    top = parse_file(path)
    if "server" in top and not top.is_list("server"):
        return load_server(path)
    node = top.table("node")
    if "role" in node:
        return load_router(path)
    if "napt" in top and not top.is_list("napt"):
        return load_napt(path)
    is_nve = top.is_list("manager") or "locators" in node
    return load_nve(path) if is_nve else load_manager(path)


def role_of(config: AnyConfig) -> str:
    """What `vmmob ROLE run` runs with it."""
    if isinstance(config, RouterConfig):
        return "router"
    if isinstance(config, NaptConfig):
        return "napt"
    if isinstance(config, ServerConfig):
        return "server"
    return "manager" if isinstance(config, ManagerConfig) else "nve"
