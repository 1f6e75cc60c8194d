"""The agent's daemon: a server's hypervisors and circuits, offered to its NVE.

Assembly only.  Guests and circuits outlive it; `vmmob server flush` removes the circuits.
Not here: the agent (drivers/hypervisor/server_agent.py), circuits (drivers/linux).
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from vmmobility.daemon.assembly import Stopped, on_signals, run_to_end
from vmmobility.daemon.event_log import EventLog
from vmmobility.daemon.hypervisor_config import hypervisors
from vmmobility.daemon.keys import load_keys
from vmmobility.daemon.server_config import ServerConfig, load_server
from vmmobility.daemon.state_lock import alone
from vmmobility.daemon.stream_certificates import tell_certificates
from vmmobility.drivers.hypervisor import process
from vmmobility.drivers.hypervisor.interface import Hypervisor
from vmmobility.drivers.hypervisor.server_agent import ServerAgent
from vmmobility.drivers.linux.host_capacity import measure, threads
from vmmobility.drivers.linux.server_circuits import ServerCircuits
from vmmobility.drivers.linux.survivors import held_taps
from vmmobility.engine.capacity import ServerRoom
from vmmobility.errors import ConfigError, StoreError
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
    found = measure(config.capacity, config.hypervisor.disks or config.state_dir, used)
    return ServerRoom(config.name, True, threads(), found)


async def serve(config: ServerConfig) -> None:
    """Run the agent until a signal, or the error that ended it."""
    with alone(config.state_dir):
        await _serve(config)


async def _serve(config: ServerConfig) -> None:
    log = EventLog(config.name, config.log_file)
    circuits = ServerCircuits(config.address, config.nve_address)
    drivers: dict[str, Hypervisor] = {}
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
        guests = config.state_dir / "guests"
        drivers = hypervisors(config.hypervisor, guests, agent.report, log.note)
        agent.hypervisors = drivers
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
        for hypervisor in drivers.values():
            await hypervisor.close()
        circuits.close()
        log.close()


def run(path: Path) -> None:
    """`vmmob server run`: raises VmMobilityError with a remedy for whatever is wrong."""
    run_to_end(serve(load_server(path)))


def refuse_guests(state_dir: Path) -> None:
    """Guests would lose their taps.  Raises StoreError naming those that live here."""
    living = [str(vm) for vm in process.living(state_dir / "guests")]
    held = living or [str(tap) for tap in held_taps()]
    if held:
        raise StoreError(
            f"guests live on this server: {', '.join(held)}",
            "move them away, or end them; then flush again",
        )


def flush(path: Path) -> None:
    """`vmmob server flush`: remove every circuit from this host, where no agent and no guest lives.

    Raises StoreError where one does.
    """
    config = load_server(path)

    async def remove() -> None:
        circuits = ServerCircuits(config.address, config.nve_address)
        await circuits.start()
        await circuits.remove_all()
        circuits.close()

    with alone(config.state_dir):
        refuse_guests(config.state_dir)
        asyncio.run(remove())
