"""The agent's daemon: a server's hypervisors and circuits, offered to its NVE.

Assembly only.  Guests and circuits outlive it; `vmmob server flush` removes the circuits.
Not here: the agent (drivers/hypervisor/server_agent.py), circuits (drivers/linux).
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import cast

from vmmobility.daemon.assembly import Stopped, on_signals, run_to_end
from vmmobility.daemon.config import Accelerator
from vmmobility.daemon.event_log import EventLog
from vmmobility.daemon.keys import load_keys
from vmmobility.daemon.server_config import ServerConfig, load_server
from vmmobility.daemon.stream_certificates import refused_to, tell_certificates
from vmmobility.drivers.hypervisor.external import ExternalHypervisor
from vmmobility.drivers.hypervisor.interface import Hypervisor
from vmmobility.drivers.hypervisor.light import LightHypervisor
from vmmobility.drivers.hypervisor.qemu import QemuHypervisor
from vmmobility.drivers.hypervisor.server_agent import ServerAgent
from vmmobility.drivers.hypervisor.settings import MIB, QemuSettings
from vmmobility.drivers.hypervisor.streams import Streams
from vmmobility.drivers.linux.host_capacity import measure, threads
from vmmobility.drivers.linux.server_circuits import ServerCircuits
from vmmobility.engine.capacity import ServerRoom
from vmmobility.errors import ConfigError
from vmmobility.wire.registry import Role


def secrets_of(config: ServerConfig) -> dict[int, bytes]:
    """The keys that this server shares with its NVE, by number.  Raises ConfigError."""
    pair = load_keys(config.keys_dir, config.name).get(config.nve)
    if pair is None or pair.role is not Role.NVE:
        raise ConfigError(
            f"{config.keys_dir}: no key of {config.name} and its NVE {config.nve}",
            f"make it with `vmmob key new {config.nve}:nve {config.name}:server` and copy the file "
            "to both nodes",
        )
    return dict(pair.secrets)


class _Keys:
    """The pair's keys, as they were last read."""

    def __init__(self, config: ServerConfig, log: EventLog) -> None:
        self._config, self._log = config, log
        self._secrets = secrets_of(config)

    def secret(self, number: int) -> bytes | None:
        return self._secrets.get(number)

    def reload(self) -> None:
        """SIGHUP."""
        try:
            self._log.reopen()
            self._secrets = secrets_of(self._config)
            self._log.note("keys.reloaded")
        except ConfigError as error:
            self._log.note("keys.refused", reason=str(error))


def look(config: ServerConfig, used: int) -> ServerRoom:
    """What VMs may have of this host."""
    found = measure(config.capacity, config.disks or config.state_dir, used)
    return ServerRoom(config.name, True, threads(), found)


async def serve(config: ServerConfig) -> None:
    """Run the agent until a signal, or the error that ended it."""
    config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = EventLog(config.name, config.log_file)
    circuits = ServerCircuits(config.address, config.nve_address)
    hypervisors: dict[str, Hypervisor] = {}
    try:
        keys = _Keys(config, log)
        agent = ServerAgent(
            config.name,
            config.nve,
            str(config.address),
            circuits,
            keys.secret,
            log.note,
            partial(look, config),
        )
        # The address comes first: an agent that is started beside another touches nothing.
        server = await asyncio.start_server(agent.accept, str(config.address), config.port)
        await circuits.start()
        settings = QemuSettings(
            accelerator=cast(Accelerator, config.accelerator),
            copy_bytes_per_s=config.copy_mib_per_s * MIB,
            disks=config.disks,
            tls=config.tls,
            disk_hang_limit_s=config.disk_hang_s,
        )
        refused = refused_to(log.note)
        guests = config.state_dir / "guests"
        hypervisors |= {
            "qemu": QemuHypervisor(guests, agent.report, settings, refused),
            "netns": LightHypervisor(guests, agent.report, Streams.of(settings, refused)),
            "external": ExternalHypervisor(agent.report, log.note),
        }
        agent.hypervisors = hypervisors
        async with asyncio.TaskGroup() as group:
            stopped = asyncio.Event()
            with on_signals(stopped.set, keys.reload):
                task = group.create_task(agent.run(server), name="agent")
                log.note("started", role="server", nve=config.nve)
                tell_certificates(config, log.note)
                await stopped.wait()
                task.cancel()
            raise Stopped
    except* Stopped:
        log.note("stopped")
    finally:
        for hypervisor in hypervisors.values():
            await hypervisor.close()
        circuits.close()
        log.close()


def run(path: Path) -> None:
    """`vmmob server run`: raises VmMobilityError with a remedy for whatever is wrong."""
    run_to_end(serve(load_server(path)))


def flush(path: Path) -> None:
    """`vmmob server flush`: remove every circuit from this host; guests lose their taps."""
    config = load_server(path)

    async def remove() -> None:
        circuits = ServerCircuits(config.address, config.nve_address)
        await circuits.start()
        await circuits.remove_all()
        circuits.close()

    asyncio.run(remove())
