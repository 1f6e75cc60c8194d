"""The NAPT daemon: engine, journal, endpoint on both sides, kernel translation and its API.

Assembly only.  What the kernel translates outlives it (fail static); `vmmob napt flush` ends that.
Not here: decisions (engine/napt.py), the kernel (drivers/linux/napt_driver.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vmmobility.daemon.assembly import (
    ServeApi,
    flush_kernel,
    is_proven,
    make_jitter,
    make_peers,
    on_hangup,
    run_to_end,
    status_of,
)
from vmmobility.daemon.config import Peer as PeerConfig
from vmmobility.daemon.event_log import EventLog
from vmmobility.daemon.napt_config import NaptConfig, load_napt, settings_of
from vmmobility.daemon.napt_worker import NaptWorker
from vmmobility.daemon.plane_daemon import PlaneDaemon, serve
from vmmobility.daemon.pump import Pump
from vmmobility.drivers.linux.napt_driver import LinuxNaptPlane
from vmmobility.engine.napt import NaptEngine
from vmmobility.engine.napt_mapping import words
from vmmobility.engine.napt_plane import Flow
from vmmobility.engine.napt_settings import Neighbour
from vmmobility.engine.outputs import DropFlows, ExportFlows, ImportFlows, Output, SetNapt
from vmmobility.errors import DataPlaneError


def make_neighbours(config: NaptConfig) -> list[Neighbour]:
    """The engine's neighbours from configuration and keys.  Raises ConfigError."""
    peers = [PeerConfig(n.id, n.role, n.addresses) for n in config.neighbours]
    made = make_peers(peers, config.keys_dir, config.node_id, config.port, config.file)
    return [
        Neighbour(peer, told.inside, told.behind, told.pool, told.detour)
        for peer, told in zip(made, config.neighbours, strict=True)
    ]


class NaptDaemon(PlaneDaemon):
    """One box put together, and what its API serves (api/service.NaptService)."""

    role, noun, work = "napt", "NAPT box", "translation"

    engine: NaptEngine
    _config: NaptConfig
    _plane: LinuxNaptPlane
    _worker: NaptWorker

    def __init__(self, config: NaptConfig, log: EventLog) -> None:
        super().__init__(config, LinuxNaptPlane(self._trouble), log)

    def prepare(self, store: Any, state: Mapping[str, Any], boot: int) -> None:
        config = self._config
        self.engine = NaptEngine(
            settings_of(config),
            make_neighbours(config),
            state,
            boot,
            make_jitter(),
            asyncio.get_running_loop().time(),
        )
        self.pump = Pump(self.engine, store, self._endpoint, self._log, self._perform)
        self._worker = NaptWorker(
            self._plane,
            self._applied,
            self._exported,
            self._imported,
            self._drifted,
            self._trouble,
            config.timers.check_s,
        )
        self._endpoint.bind()

    async def _resync(self) -> Callable[[], None]:
        failures = await self._plane.resync(self.engine.desired())
        # The engine knows it before it speaks: of what the kernel refuses it says to no other box
        # that it has it.
        now = asyncio.get_running_loop().time()
        self.engine.napt_applied(0, [str(failure) for failure in failures], now)
        return lambda: None

    def reload(self) -> None:
        engine = self.engine
        on_hangup(engine.channel, self._config.keys_dir, self._log, engine.set_secrets)

    # ---- the engine's outputs, and their answers -------------------------------------------------

    def _perform(self, output: Output) -> None:
        match output:
            case SetNapt() | ExportFlows() | ImportFlows() | DropFlows():
                self._worker.give(output)
            case _:
                raise AssertionError(f"a NAPT box has no {type(output).__name__}")

    def _applied(self, tag: int, failures: Sequence[str]) -> None:
        self.pump.input(lambda now: self.engine.napt_applied(tag, failures, now))

    def _exported(self, number: int, flows: Sequence[Flow], error: str) -> None:
        self.pump.input(lambda now: self.engine.flows_exported(number, flows, error, now))

    def _imported(self, number: int, failures: Sequence[str]) -> None:
        self.pump.input(lambda now: self.engine.flows_imported(number, failures, now))

    # ---- what the API serves ---------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        self._check_ready()
        channel, mappings = self.engine.channel, self.engine.mappings
        unproven = [
            f"{name} for {relay.node_id}"
            for relay in self.engine.relays.values()
            for name, peer in relay.peers.items()
            if not is_proven(peer)
        ]
        return {
            **status_of(channel, "napt", self._since, self._endpoint, self._log),
            "policy": self._config.policy.value,
            "counts": dict(self._counts),
            "unproven": unproven,
            "pool": [str(network) for network in self._config.pool],
            "pool_free": mappings.free_addresses(),
            "vms": sum(not m.ended for m in mappings.vms.values()),
            "nves": len(mappings.locators),
            "translation": await self._usage(),
        }

    async def _usage(self) -> dict[str, Any]:
        """What the kernel translates and has dropped; without it, why not."""
        try:
            found = asdict(await self._plane.usage())
        except (DataPlaneError, OSError) as error:
            return {"error": str(error)}
        rows = found.pop("pool")
        return {**found, "ports": [{**row, "public": str(row["public"])} for row in rows]}

    def mappings(self) -> list[dict[str, Any]]:
        """One row a mapping: NVEs first, then VMs."""
        self._check_ready()
        own, now = self._config.node_id, asyncio.get_running_loop().time()
        rows: list[dict[str, Any]] = [
            {
                "kind": "nve",
                "nve": m.nve_id,
                "private": str(m.private),
                "public": str(m.public),
                "owner": own,
                "state": "translated",
            }
            for _, m in sorted(self.engine.mappings.locators.items())
        ]
        for mapping in sorted(self.engine.mappings.vms.values(), key=lambda m: (m.vm, m.private)):
            rows.append(
                {
                    "kind": "vm",
                    **words(mapping),
                    "moving": mapping.moving,
                    "state": mapping.standing,
                    "stays": mapping.stays,
                    "due_s": round(mapping.due - now, 3),
                }
            )
        return rows

    def vm_count(self) -> int:
        return len(self.engine.mappings.vms)

    def record_count(self) -> int:
        return len(self.engine.mappings.vms) + len(self.engine.mappings.locators)


def run(path: Path, serve_api: ServeApi) -> None:
    """`vmmob napt run`: raises VmMobilityError with a remedy for whatever is wrong."""
    run_to_end(serve(NaptDaemon, load_napt(path), serve_api))


def flush(path: Path) -> None:
    """`vmmob napt flush`: remove everything of ours from this host's kernel."""
    flush_kernel(load_napt(path).state_dir, lambda: LinuxNaptPlane().remove_all())
