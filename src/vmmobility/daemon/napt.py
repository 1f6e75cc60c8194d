"""The NAPT daemon: engine, journal, endpoint on both sides, kernel translation and its API.

Assembly only.  What the kernel translates outlives it (fail static); `vmmob napt flush` ends that.
Not here: decisions (engine/napt.py), the kernel (drivers/linux/napt_driver.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vmmobility.daemon.assembly import (
    ServeApi,
    Stopped,
    is_proven,
    make_jitter,
    make_peers,
    note_recovery,
    on_hangup,
    on_signals,
    open_store,
    run_to_end,
    status_of,
)
from vmmobility.daemon.config import Peer as PeerConfig
from vmmobility.daemon.endpoint import UdpEndpoint
from vmmobility.daemon.event_log import EventLog
from vmmobility.daemon.napt_config import NaptConfig, load_napt, settings_of
from vmmobility.daemon.napt_worker import NaptWorker
from vmmobility.daemon.pump import Pump
from vmmobility.drivers.dataplane import Drift
from vmmobility.drivers.linux.napt_driver import LinuxNaptPlane
from vmmobility.engine.napt import NaptEngine
from vmmobility.engine.napt_mapping import words
from vmmobility.engine.napt_plane import Flow
from vmmobility.engine.napt_settings import Neighbour
from vmmobility.engine.outputs import DropFlows, ExportFlows, ImportFlows, Output, SetNapt
from vmmobility.errors import DataPlaneError, Unavailable


def make_neighbours(config: NaptConfig) -> list[Neighbour]:
    """The engine's neighbours from configuration and keys.  Raises ConfigError."""
    peers = [PeerConfig(n.id, n.role, n.addresses) for n in config.neighbours]
    made = make_peers(peers, config.keys_dir, config.node_id, config.port, config.file)
    return [
        Neighbour(peer, told.inside, told.behind, told.pool, told.detour)
        for peer, told in zip(made, config.neighbours, strict=True)
    ]


class NaptDaemon:
    """One box put together, and what its API serves (api/service.NaptService)."""

    def __init__(self, config: NaptConfig, log: EventLog) -> None:
        self._config = config
        self._log = log
        self._since = time.monotonic()
        self._plane = LinuxNaptPlane(lambda what: log.note("data-plane.failure", reason=what))
        self._endpoint = UdpEndpoint(config.addresses, config.port)
        self._counts: Counter[str] = Counter()
        self._ready = False

    def prepare(self, store: Any, state: Mapping[str, Any], boot: int) -> None:
        """Engine, pump and addresses; nothing in the kernel is touched yet."""
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
            lambda what: self._log.note("data-plane.failure", reason=what),
            config.timers.check_s,
        )
        self._endpoint.bind()

    async def begin(self, group: asyncio.TaskGroup) -> None:
        """Make the kernel hold what is on record, and begin to speak."""
        await self._plane.start()
        failures = await self._plane.resync(self.engine.desired())
        self.pump.open()
        self._applied(0, [str(failure) for failure in failures])
        self.pump.input(self.engine.started)
        group.create_task(self._worker.run(), name="translation")
        self._ready = True

    async def end(self) -> None:
        """Let go of everything, leaving the translation as it is."""
        if hasattr(self, "pump"):
            self.pump.close()
        await self._plane.close()

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

    def _drifted(self, drift: Drift) -> None:
        self._counts["drift.kernel"] += 1
        self._log.note(
            "drift",
            node=self._config.node_id,
            what="kernel",
            expected="as wanted",
            found=f"{drift.item}: {drift.found}",
            repaired=drift.repaired,
        )

    # ---- what the API serves ---------------------------------------------------------------------

    def _check_ready(self) -> None:
        if not self._ready:
            raise Unavailable("the NAPT box is starting", "ask again in a moment")

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

    async def check(self, limit_s: float) -> dict[str, Any]:
        """Compare the kernel with the record, and repair it."""
        self._check_ready()
        try:
            async with asyncio.timeout(limit_s):
                found = await self._worker.audit()
        except TimeoutError:
            raise Unavailable(
                f"not ended within {limit_s:g} s", "ask with a longer --timeout"
            ) from None
        drift = [
            {
                "vni": None,
                "vm": None,
                "nve": self._config.node_id,
                "what": "kernel",
                "expected": "as wanted",
                "found": f"{each.item}: {each.found}",
                "repaired": each.repaired,
            }
            for each in found
        ]
        mappings = self.engine.mappings
        return {
            "checked": len(mappings.vms) + len(mappings.locators),
            "drift": drift,
            "repaired": sum(each.repaired for each in found),
            "unanswered": [],
        }


async def serve(config: NaptConfig, serve_api: ServeApi) -> None:
    """Run the box until a signal, or the error that ended it."""
    store, state, boot = open_store(config.state_dir)
    log = EventLog(config.node_id, config.log_file)
    note_recovery(store, log)
    daemon = NaptDaemon(config, log)
    try:
        daemon.prepare(store, state, boot)
        with on_signals(daemon.pump.stop, daemon.reload):
            # Address and socket come first: a second daemon, started by mistake, touches nothing.
            async with serve_api(daemon, config.api_socket), asyncio.TaskGroup() as group:
                await daemon.begin(group)
                log.note("started", role="napt", boot=boot, vms=len(daemon.engine.mappings.vms))
                await daemon.pump.run()
                raise Stopped
    except* Stopped:
        log.note("stopped")
    finally:
        await daemon.end()
        store.close()
        log.close()


def run(path: Path, serve_api: ServeApi) -> None:
    """`vmmob napt run`: raises VmMobilityError with a remedy for whatever is wrong."""
    run_to_end(serve(load_napt(path), serve_api))


def flush(path: Path) -> None:
    """`vmmob napt flush`: remove everything of ours from this host's kernel."""
    config = load_napt(path)

    async def remove() -> None:
        store, _, _ = open_store(config.state_dir)  # refuses while the daemon runs
        try:
            await LinuxNaptPlane().remove_all()
        finally:
            store.close()

    asyncio.run(remove())
