"""An NVE's lines to its servers: each a driver, kept up, looked through once it answers.

Not here: the line (drivers/hypervisor/server_link.py), which VM is where (engine/nve_servers.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from vmmobility.daemon.config import NveConfig
from vmmobility.daemon.event_log import EventLog
from vmmobility.daemon.keys import PeerKeys, load_keys
from vmmobility.daemon.server_config import ServerPeer
from vmmobility.drivers.hypervisor.interface import Hypervisor, Listener
from vmmobility.drivers.hypervisor.remote import CircuitOf, RemoteHypervisor
from vmmobility.drivers.hypervisor.server_link import ServerAddress, ServerLink
from vmmobility.drivers.linux.settings import ServerEnds
from vmmobility.engine.capacity import ServerRoom
from vmmobility.errors import ConfigError, HypervisorError
from vmmobility.wire.registry import Role

SWEEP_S = 2.0  # a server that could not be looked through is asked again after so long


def ends_of(servers: Sequence[ServerPeer]) -> dict[str, ServerEnds]:
    """The ends of the access links, for the data plane."""
    return {server.name: ServerEnds(server.address, server.own) for server in servers}


class ServerLinks:
    """All servers of one NVE.  drivers: by the server's name."""

    def __init__(
        self,
        config: NveConfig,
        log: EventLog,
        listener: Listener,
        circuit_of: CircuitOf,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """changed: told that a server answers, or does so no more."""
        self._config = config
        self._keys: dict[str, PeerKeys] = {}
        self._links: dict[str, ServerLink] = {}
        self._remotes: dict[str, RemoteHypervisor] = {}
        self._rooms = {server.name: ServerRoom(server.name, False) for server in config.servers}
        if config.servers:
            self.reload()
        for server in config.servers:
            address = ServerAddress(server.name, server.address, server.port)
            link = ServerLink(config.node_id, address, self._key_of(server.name), log.note)
            link.changed = changed
            self._links[server.name] = link
            self._remotes[server.name] = RemoteHypervisor(link, listener, circuit_of)
        self.drivers: dict[str, Hypervisor] = {**self._remotes}

    def reload(self) -> None:
        """Read the pairs' keys (SIGHUP).  Raises ConfigError, and then changes nothing."""
        found = (
            load_keys(self._config.keys_dir, self._config.node_id) if self._config.servers else {}
        )
        for server in self._config.servers:
            pair = found.get(server.name)
            if pair is None or pair.role is not Role.SERVER:
                raise ConfigError(
                    f"{self._config.keys_dir}: no key of {self._config.node_id} and its server "
                    f"{server.name}, which {self._config.file} names",
                    f"make it with `vmmob key new {self._config.node_id}:nve {server.name}:server`"
                    " and copy the file to both nodes",
                )
        self._keys = {server.name: found[server.name] for server in self._config.servers}

    def _key_of(self, name: str) -> Callable[[], tuple[int, bytes]]:
        def key() -> tuple[int, bytes]:
            pair = self._keys[name]
            return pair.signing, pair.secrets[pair.signing]

        return key

    def begin(self, group: asyncio.TaskGroup) -> None:
        """Connect, and stay so until the group ends."""
        for name, link in self._links.items():
            group.create_task(link.run(), name=f"line to {name}")

    def sweep(self, group: asyncio.TaskGroup, look: Callable[[str], Awaitable[None]]) -> None:
        """Have each server looked through for guests that nobody knows, once it answers."""

        async def until_done(name: str) -> None:
            while True:
                try:
                    return await look(name)
                except (HypervisorError, OSError):
                    await asyncio.sleep(SWEEP_S)

        for name in self._links:
            group.create_task(until_done(name), name=f"orphans of {name}")

    async def rooms(self, used_vcpus: Mapping[str, int]) -> list[ServerRoom]:
        """What each server has for VMs; of one that does not answer, what it had.

        used_vcpus: of the guests at each"""
        names = list(self._links)
        await asyncio.gather(*(self._measure(name, used_vcpus.get(name, 0)) for name in names))
        return [
            replace(self._rooms[name], answers=link.connected) for name, link in self._links.items()
        ]

    async def _measure(self, name: str, used: int) -> None:
        if self._links[name].connected:
            # An agent of an older version answers, and cannot tell.
            with suppress(HypervisorError):
                self._rooms[name] = await self._remotes[name].room(used)

    def rows(self) -> list[dict[str, Any]]:
        """How each server's agent stands, for people."""
        return [
            {"server": name, "connected": link.connected, "reason": link.reason}
            for name, link in self._links.items()
        ]

    def alarms(self) -> list[dict[str, Any]]:
        """Servers whose agents do not answer: what their guests do is not known."""
        return [
            {
                "alarm": "server.silent",
                "vni": 0,
                "vm": None,
                "nve": self._config.node_id,
                "for_s": None,
                "what": f"the agent of {name} does not answer: {link.reason}",
                "remedy": f"see `vmmob server run` on {name}, and its access link",
            }
            for name, link in self._links.items()
            if not link.connected
        ]
