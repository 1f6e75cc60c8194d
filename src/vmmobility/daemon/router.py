"""The router daemon: engine, journal, endpoint, kernel routes and its API.

Assembly only.  It runs beside a routing daemon, which announces what stands in the main table.
Routes outlive it (fail static); `vmmob router flush` removes them.  Not here: decisions
(engine/router.py, and the manager's), the kernel (drivers/linux/router_driver.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from vmmobility.daemon.assembly import (
    ServeApi,
    Stopped,
    check_recordable,
    is_proven,
    make_peers,
    note_recovery,
    on_hangup,
    on_signals,
    open_store,
    pools_of,
    run_to_end,
    status_of,
)
from vmmobility.daemon.endpoint import UdpEndpoint
from vmmobility.daemon.event_log import EventLog
from vmmobility.daemon.pump import Pump
from vmmobility.daemon.recording.inputs import Origin
from vmmobility.daemon.recording.recorder import NotRecording, Recorder, open_recorder
from vmmobility.daemon.router_config import RouterConfig, load_router
from vmmobility.daemon.router_worker import RouterWorker
from vmmobility.drivers.dataplane import Drift
from vmmobility.drivers.linux.router_driver import LinuxRouterPlane
from vmmobility.engine.channel import Retransmission
from vmmobility.engine.fabric_routes import Sight
from vmmobility.engine.outputs import Explain, Output, SetRoutes
from vmmobility.engine.router import RouterEngine, RouterSettings
from vmmobility.errors import BadRequest, DataPlaneError, Unavailable
from vmmobility.wire.registry import RouteState
from vmmobility.wire.values import VmKey


class RouterDaemon:
    """One router put together, and what its API serves (api/service.RouterService)."""

    def __init__(self, config: RouterConfig, log: EventLog) -> None:
        self._config = config
        self._log = log
        self._since = time.monotonic()
        self._plane = LinuxRouterPlane()
        self._endpoint = UdpEndpoint(config.addresses, config.port)
        self._recorder: Recorder | NotRecording = NotRecording()
        self._counts: Counter[str] = Counter()
        self._ready = False

    def prepare(self, store: Any, state: Mapping[str, Any], boot: int) -> None:
        """Engine, pump and addresses; nothing in the kernel is touched yet."""
        config, timers = self._config, self._config.timers
        settings = RouterSettings(
            config.node_id,
            timers.check_s,
            Retransmission(timers.retransmit_s, timers.retransmit_max_s),
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
            lambda what: self._log.note("data-plane.failure", reason=what),
            timers.check_s,
        )
        self._endpoint.bind()

    async def begin(self, group: asyncio.TaskGroup) -> None:
        """Make the kernel hold what is on record, and begin to speak."""
        await self._plane.start()
        for failure in await self._plane.resync(self.engine.desired()):
            self._log.note("data-plane.failure", vm=str(failure.vm), reason=failure.reason)
        self.pump.open()
        self.pump.input(self.engine.started)
        self._sighted(self._plane.sights(self.engine.watched()))
        group.create_task(self._worker.run(), name="routes")
        self._ready = True

    async def end(self) -> None:
        """Let go of everything, leaving the routes as they are."""
        if hasattr(self, "pump"):
            self.pump.close()
        self._recorder.close()
        await self._plane.close()

    def reload(self) -> None:
        on_hangup(self.engine.channel, self._config.keys_dir, self._log)

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

    def _drifted(self, drift: Drift) -> None:
        self._counts["drift.kernel"] += 1
        vm = {"vm": drift.vm.vm_id, "vni": drift.vm.vni} if drift.vm else {}
        self._log.note(
            "drift",
            node=self._config.node_id,
            what="kernel",
            expected="as wanted",
            found=f"{drift.item}: {drift.found}",
            repaired=drift.repaired,
            **vm,
        )

    # ---- what the API serves ---------------------------------------------------------------------

    def _check_ready(self) -> None:
        if not self._ready:
            raise Unavailable("the router is starting", "ask again in a moment")

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
                "vni": each.vm.vni if each.vm else None,
                "vm": each.vm.vm_id if each.vm else None,
                "nve": self._config.node_id,
                "what": "kernel",
                "expected": "as wanted",
                "found": f"{each.item}: {each.found}",
                "repaired": each.repaired,
            }
            for each in found
        ]
        repaired = sum(each.repaired for each in found)
        checked = len(self.engine.watched())
        return {"checked": checked, "drift": drift, "repaired": repaired, "unanswered": []}

    def explain(self, address: str) -> list[dict[str, Any]]:
        """The rules and routes that lead this address here.  Raises BadRequest."""
        self._check_ready()
        try:
            wanted = ip_address(address)
        except ValueError as error:
            raise BadRequest(str(error), "write an IPv4 or IPv6 address") from None
        return list(self._plane.explain(wanted))


async def serve(config: RouterConfig, serve_api: ServeApi) -> None:
    """Run the router until a signal, or the error that ended it."""
    store, state, boot = open_store(config.state_dir)
    log = EventLog(config.node_id, config.log_file)
    note_recovery(store, log)
    daemon = RouterDaemon(config, log)
    try:
        daemon.prepare(store, state, boot)
        with on_signals(daemon.pump.stop, daemon.reload):
            # Address and socket come first: a second daemon, started by mistake, touches nothing.
            async with serve_api(daemon, config.api_socket), asyncio.TaskGroup() as group:
                await daemon.begin(group)
                log.note("started", role="router", boot=boot, vms=len(daemon.engine.watched()))
                await daemon.pump.run()
                raise Stopped
    except* Stopped:
        log.note("stopped")
    finally:
        await daemon.end()
        store.close()
        log.close()


def run(path: Path, serve_api: ServeApi, record: Path | None = None) -> None:
    """`vmmob router run`: raises VmMobilityError with a remedy for whatever is wrong.

    record: where to record, whatever the configuration says
    """
    config = load_router(path)
    run_to_end(serve(replace(config, record=record or config.record), serve_api))


def flush(path: Path) -> None:
    """`vmmob router flush`: remove everything of ours from this host's kernel."""
    config = load_router(path)

    async def remove() -> None:
        store, _, _ = open_store(config.state_dir)  # refuses while the daemon runs
        try:
            await LinuxRouterPlane().remove_all()
        finally:
            store.close()

    asyncio.run(remove())
