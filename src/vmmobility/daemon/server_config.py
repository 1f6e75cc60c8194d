"""server.toml, and [[server]] in nve.toml: hypervisor hosts that stand apart from their NVE.

Every error names the file, the key, what is wrong and the remedy.  Unknown keys are errors.
Not here: what all daemons' files share (node_config.py).  Rests on toml_table.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmmobility.daemon.capacity_config import capacity_of
from vmmobility.daemon.hypervisor_config import HypervisorConfig, hypervisor_of
from vmmobility.daemon.keys import MAX_NODE_NAME
from vmmobility.daemon.node_config import parse_file
from vmmobility.daemon.toml_table import Table
from vmmobility.drivers.linux.host_capacity import CapacityLimits
from vmmobility.errors import ConfigError
from vmmobility.wire.server_frames import SERVER_PORT
from vmmobility.wire.values import Address

MOST_SERVERS = 256  # of one NVE: so many fit its heartbeat


@dataclass(frozen=True, slots=True)
class ServerPeer:
    """A server, as its NVE knows it.  address: of the server, own: of the NVE, both on their access
    link; port: where its agent listens (TCP)."""

    name: str
    address: Address
    own: Address
    port: int


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """server.toml.  name: this server's; nve: its NVE's; address, nve_address: the two ends of
    their access link, of one IP version; hypervisor, capacity: as in nve.toml."""

    file: Path
    name: str
    nve: str
    address: Address
    nve_address: Address
    port: int
    state_dir: Path
    keys_dir: Path
    log_file: Path | None
    hypervisor: HypervisorConfig
    capacity: CapacityLimits

    @property
    def node_id(self) -> str:
        return self.name


def servers_of(top: Table, own_name: str) -> tuple[ServerPeer, ...]:
    """The [[server]] of nve.toml.  Raises ConfigError."""
    if "server" not in top:
        return ()
    found: dict[str, ServerPeer] = {}
    for table in top.tables("server"):
        name = table.name("name", MAX_NODE_NAME)
        if name in found or name == own_name:
            what = "stands here twice" if name in found else "is this NVE's own id"
            raise table.wrong("name", f"{name!r} {what}", "every node has a name of its own")
        address, own = table.address("address", loopback=True), table.address("own", loopback=True)
        first = next(iter(found.values()), None)
        if address.version != own.version or (first and first.address.version != address.version):
            raise table.wrong(
                "address",
                f"{address} and {own} are not of the IP version of every access link",
                "give all servers addresses of one IP version: circuits turn between them",
            )
        if any(address in (other.address, other.own) for other in found.values()):
            raise table.wrong("address", f"{address} is another server's", "correct one of them")
        if len(found) >= MOST_SERVERS:
            what = f"{name!r} is one more than the {MOST_SERVERS} servers that an NVE has"
            raise table.wrong("name", what, "give some of them another NVE")
        found[name] = ServerPeer(name, address, own, table.integer("port", 1, 65535, SERVER_PORT))
        table.finish()
    return tuple(found.values())


def load_server(path: Path) -> ServerConfig:
    """Raises ConfigError."""
    top = parse_file(path)
    server = top.table("server")
    config = ServerConfig(
        file=path,
        name=server.name("name", MAX_NODE_NAME),
        nve=server.name("nve", MAX_NODE_NAME),
        address=server.address("address", loopback=True),
        nve_address=server.address("nve_address", loopback=True),
        port=server.integer("port", 1, 65535, SERVER_PORT),
        state_dir=server.path("state_dir"),
        keys_dir=server.path("keys_dir"),
        log_file=server.optional_path("log_file"),
        hypervisor=hypervisor_of(top),
        capacity=capacity_of(top.table("capacity")),
    )
    for table in (server, top):
        table.finish()
    if config.address.version != config.nve_address.version:
        raise ConfigError(
            f"{path}: server.nve_address {config.nve_address} is of another IP version than "
            f"server.address {config.address}",
            "name both ends of the access link in one IP version",
        )
    return config
