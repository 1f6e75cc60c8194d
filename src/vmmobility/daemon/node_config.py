"""What every daemon's TOML file has: the keys of [node] and [timers] that all, or most, share.

Every error names the file, the key, what is wrong and the remedy.
Not here: what the roles add (config.py, router_config.py, napt_config.py).  Rests on toml_table.py.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmmobility.daemon.toml_table import Table
from vmmobility.daemon.via_config import Napt, napts_of
from vmmobility.engine.channel import Retransmission
from vmmobility.errors import ConfigError
from vmmobility.wire.registry import UDP_PORT
from vmmobility.wire.values import Address

RECORD_MIB = 256  # a recording ends at this size
MAX_SOCKET_PATH = 107  # octets: sun_path without its closing zero


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTimers:
    check_s: float = 60  # what is on record is compared with what there is so often
    retransmit_s: float = 0.25  # first retransmission; then doubled each time
    retransmit_max_s: float = 8  # longest gap between two retransmissions

    @property
    def retransmission(self) -> Retransmission:
        return Retransmission(self.retransmit_s, self.retransmit_max_s)


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """What every daemon is given.  log_file: None is standard error."""

    file: Path
    state_dir: Path
    api_socket: Path
    keys_dir: Path
    port: int
    log_file: Path | None


@dataclass(frozen=True, kw_only=True)
class ListenerConfig(NodeConfig):
    """Of all but NVEs, which listen at their locators.  addresses: where it listens."""

    node_id: str
    addresses: tuple[Address, ...]


@dataclass(frozen=True, kw_only=True)
class EndConfig(NodeConfig):
    """Of all but NAPT boxes: boxes between it and its peers, and a recording of its engine.

    record: a file, or a folder, for the recording
    """

    napts: tuple[Napt, ...] = ()
    record: Path | None = None
    record_mib: int = RECORD_MIB


_TIMERS = NodeTimers()


def parse_file(path: Path) -> Table:
    """Raises ConfigError."""
    try:
        return Table(path, tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}",
            "check the path, or make one with `vmmob config init`",
        ) from None
    except (ValueError, RecursionError) as error:  # tomllib raises both, and its own
        raise ConfigError(f"{path}: no TOML: {error}", "correct that line") from None


def node_keys(path: Path, node: Table) -> dict[str, Any]:
    """The fields of NodeConfig.  Raises ConfigError, as all here."""
    return {
        "file": path,
        "state_dir": node.path("state_dir"),
        "api_socket": _socket_of(node),
        "keys_dir": node.path("keys_dir"),
        "port": node.integer("port", 1, 65535, UDP_PORT),
        "log_file": node.optional_path("log_file"),
    }


def listener_keys(path: Path, node: Table, node_id: str) -> dict[str, Any]:
    """The fields of ListenerConfig."""
    addresses = node.addresses("addresses", loopback=True)
    return {**node_keys(path, node), "node_id": node_id, "addresses": addresses}


def end_keys(top: Table, node: Table, node_id: str) -> dict[str, Any]:
    """The fields that EndConfig adds."""
    return {
        "napts": napts_of(top, node_id),
        "record": node.optional_path("record"),
        "record_mib": node.integer("record_mib", 1, 1 << 20, RECORD_MIB),
    }


def timer_keys(timers: Table) -> dict[str, Any]:
    """The fields of NodeTimers."""
    first = timers.seconds("retransmit_s", 0.01, 60, _TIMERS.retransmit_s)
    longest = timers.seconds("retransmit_max_s", 0.01, 600, _TIMERS.retransmit_max_s)
    if first > longest:
        raise timers.wrong("retransmit_max_s", f"{longest:g} s is below retransmit_s ({first:g} s)")
    return {
        "check_s": timers.seconds("check_s", 0.1, 86400, _TIMERS.check_s),
        "retransmit_s": first,
        "retransmit_max_s": longest,
    }


def _socket_of(node: Table) -> Path:
    path = node.path("api_socket")
    if len(str(path).encode()) > MAX_SOCKET_PATH:
        raise node.wrong(
            "api_socket", f"is longer than {MAX_SOCKET_PATH} octets", "choose a shorter path"
        )
    return path
