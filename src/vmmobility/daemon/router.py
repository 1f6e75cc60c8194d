"""The router daemon: engine, journal, endpoint, kernel routes and its API.

Assembly only.  It runs beside a routing daemon, which announces what stands in the main table.
Routes outlive it (fail static); `vmmob router flush` removes them.  Not here: decisions
(engine/router.py, and the manager's), the kernel (drivers/linux/router_driver.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from vmmobility.daemon.assembly import (
    ServeApi,
    check_recordable,
    flush_kernel,
    is_proven,
    make_peers,
    pools_of,
    run_to_end,
    status_of,
)
from vmmobility.daemon.event_log import EventLog
from vmmobility.daemon.plane_daemon import PlaneDaemon, serve
from vmmobility.daemon.pump import Pump
from vmmobility.daemon.recording.inputs import Origin
from vmmobility.daemon.recording.recorder import NotRecording, Recorder, open_recorder
from vmmobility.daemon.router_config import RouterConfig, load_router
from vmmobility.daemon.router_worker import RouterWorker
from vmmobility.drivers.linux.router_driver import LinuxRouterPlane
from vmmobility.engine.fabric_routes import Sight
from vmmobility.engine.outputs import Explain, Output, SetRoutes
from vmmobility.engine.router import RouterEngine, RouterSettings
from vmmobility.errors import BadRequest, DataPlaneError
from vmmobility.wire.registry import RouteState
from vmmobility.wire.values import VmKey


class RouterDaemon(PlaneDaemon):
    """One router put together, and what its API serves (api/service.RouterService)."""

    role, noun, work = "router", "router", "routes"

    engine: RouterEngine
    _config: RouterConfig
    _plane: LinuxRouterPlane
    _worker: RouterWorker

    def __init__(self, config: RouterConfig, log: EventLog) -> None:
        super().__init__(config, LinuxRouterPlane(), log)
        self._recorder: Recorder | NotRecording = NotRecording()

    def prepare(self, store: Any, state: Mapping[str, Any], boot: int) -> None:
        config, timers = self._config, self._config.timers
        settings = RouterSettings(
            config.node_id,
            timers.check_s,
            timers.retransmission,
            pools_of(config.napts),
        )
        managers = make_peers(
            config.managers,
            config.keys_dir,
            config.node_id,
            config.port,
            config.file,
            config.napts,
        )
        check_recordable(config.record, managers, config.file)
        now = asyncio.get_running_loop().time()
        origin = Origin(config.role, settings, managers, state, boot, now)
        self._recorder = open_recorder(
            config.record, config.record_mib << 20, origin, self._log.note
        )
        self.engine = self._recorder.tee(
            RouterEngine(settings, managers, state, boot, self._recorder.randomness)
        )
        self.pump = Pump(self.engine, store, self._endpoint, self._log, self._perform)
        self._worker = RouterWorker(
            self._plane,
            lambda: self.engine.watched(),
            self._applied,
            self._sighted,
            self._drifted,
            self._trouble,
            timers.check_s,
        )
        self._endpoint.bind()

    async def _resync(self) -> Callable[[], None]:
        for failure in await self._plane.resync(self.engine.desired()):
            self._log.note("data-plane.failure", vm=str(failure.vm), reason=failure.reason)
        return lambda: self._sighted(self._plane.sights(self.engine.watched()))

    async def end(self) -> None:
        self._recorder.close()
        await super().end()

    # ---- the engine's outputs, and their answers -------------------------------------------------

    def _perform(self, output: Output) -> None:
        match output:
            case SetRoutes():
                self._worker.set(output)
            case Explain():
                self._explain(output)
            case _:
                raise AssertionError(f"a router has no {type(output).__name__}")

    def _applied(self, vm: VmKey, tag: int, failures: Sequence[str], sight: Sight) -> None:
        self.pump.input(lambda now: self.engine.routes_applied(vm, tag, failures, sight, now))

    def _explain(self, wanted: Explain) -> None:
        """How the kernel leads these addresses now, for people."""
        rows: list[dict[str, Any]] = []
        sight, error = None, ""
        try:
            for address in wanted.addresses:
                found = self._plane.explain(address)
                rows += [{"address": str(address), **row} for row in found]
            if wanted.watched is not None:
                sight = self._plane.sights([wanted.watched]).get(wanted.watched.vm)
        except (DataPlaneError, OSError) as failure:
            error = str(failure)
        self.pump.input(lambda now: self.engine.explained(wanted.number, rows, sight, error, now))

    def _sighted(self, sights: Mapping[VmKey, Sight]) -> None:
        self.pump.input(lambda now: self.engine.sighted(sights, now))

    # ---- what the API serves ---------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        self._check_ready()
        channel = self.engine.channel
        role = self._config.role.name.lower().replace("_", "-")
        return {
            **status_of(channel, role, self._since, self._endpoint, self._log),
            "counts": dict(self._counts),
            "unproven": [name for name, peer in channel.peers.items() if not is_proven(peer)],
            "routes": dict(self._plane.held()),
        }

    def routes(self) -> list[dict[str, Any]]:
        """One row a VM that this router knows."""
        self._check_ready()
        sights = self._plane.sights(self.engine.watched())
        rows = []
        for vm, entry in sorted(self.engine.entries.items()):
            if entry.state is RouteState.NONE:
                continue
            sight = sights.get(vm)
            rows.append(
                {
                    "vni": vm.vni,
                    "vm": vm.vm_id,
                    "state": entry.state.name.lower(),
                    "epoch": entry.epoch,
                    "prefixes": [str(p) for i in entry.interfaces for p in i.prefixes],
                    "serving": entry.serving.nve_id if entry.serving else None,
                    "previous": entry.previous.nve_id if entry.previous else None,
                    "direct": sight.direct if sight else None,
                    "covered": sight.covered if sight else None,
                }
            )
        return rows

    def vm_count(self) -> int:
        return len(self.engine.watched())

    def explain(self, address: str) -> list[dict[str, Any]]:
        """The rules and routes that lead this address here.  Raises BadRequest."""
        self._check_ready()
        try:
            wanted = ip_address(address)
        except ValueError as error:
            raise BadRequest(str(error), "write an IPv4 or IPv6 address") from None
        return list(self._plane.explain(wanted))


def run(path: Path, serve_api: ServeApi, record: Path | None = None) -> None:
    """`vmmob router run`: raises VmMobilityError with a remedy for whatever is wrong.

    record: where to record, whatever the configuration says
    """
    config = load_router(path)
    config = replace(config, record=record or config.record)
    run_to_end(serve(RouterDaemon, config, serve_api))


def flush(path: Path) -> None:
    """`vmmob router flush`: remove everything of ours from this host's kernel."""
    flush_kernel(load_router(path).state_dir, lambda: LinuxRouterPlane().remove_all())
