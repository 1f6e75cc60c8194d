"""The manager daemon: engine, journal, UDP endpoint and its API.

Assembly only.  Not here: decisions (engine/manager.py), what the API serves (manager_service.py),
HTTP (api/).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmmobility.daemon.api_place import ApiPlace
from vmmobility.daemon.assembly import (
    ServeApi,
    check_recordable,
    make_peers,
    note_recovery,
    on_hangup,
    on_signals,
    open_store,
    pools_of,
)
from vmmobility.daemon.commands import Commands
from vmmobility.daemon.config import ManagerConfig, load_manager
from vmmobility.daemon.endpoint import UdpEndpoint
from vmmobility.daemon.event_log import EventLog
from vmmobility.daemon.manager_service import Manager
from vmmobility.daemon.pump import Pump
from vmmobility.daemon.recording.inputs import Origin
from vmmobility.daemon.recording.recorder import open_recorder
from vmmobility.engine.fabric_record import RouterSite
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.manager_settings import ManagerSettings
from vmmobility.engine.outputs import CommandDone, Output
from vmmobility.wire.registry import Role


async def serve(config: ManagerConfig, serve_api: ServeApi) -> None:
    """Run the manager until a signal, or the error that ended it."""
    store, state, boot = open_store(config.state_dir)
    log = EventLog(config.node_id, config.log_file)
    note_recovery(store, log)
    try:
        await _serve(config, serve_api, store, state, boot, log)
    finally:
        store.close()
        log.close()


def _settings(config: ManagerConfig) -> ManagerSettings:
    timers = config.timers
    return ManagerSettings(
        config.node_id,
        lifetime_s=timers.lifetime_s,
        ticket_s=timers.ticket_s,
        step_s=timers.step_s,
        copy_s=timers.copy_s,
        ask_s=timers.ask_s,
        check_s=timers.check_s,
        strict=config.strict,
        freeze_after=timers.freeze_after,
        freeze_s=timers.freeze_s,
        protect_lease_s=timers.protect_lease_s,
        protect_margin_s=timers.protect_margin_s,
        routers=_routers(config),
        gate_s=timers.gate_s,
        gate_policy=config.gate_policy,
        max_host_routes=config.max_host_routes,
        retransmission=timers.retransmission,
        napts=pools_of(config.napts),
        offer_s=timers.offer_s,
    )


def _routers(config: ManagerConfig) -> tuple[RouterSite, ...]:
    return tuple(
        RouterSite(peer.id, peer.role is Role.BORDER_ROUTER, peer.serves, peer.dc)
        for peer in config.peers
        if peer.role in (Role.DEFAULT_ROUTER, Role.BORDER_ROUTER)
    )


async def _serve(
    config: ManagerConfig,
    serve_api: ServeApi,
    store: Any,
    state: dict[str, Any],
    boot: int,
    log: EventLog,
) -> None:
    settings = _settings(config)
    peers = make_peers(
        config.peers, config.keys_dir, config.node_id, config.port, config.file, config.napts
    )
    check_recordable(config.record, peers, config.file)
    loop = asyncio.get_running_loop()
    origin = Origin(Role.MANAGER, settings, peers, state, boot, loop.time())
    recorder = open_recorder(config.record, config.record_mib << 20, origin, log.note)
    engine = recorder.tee(
        ManagerEngine(settings, peers, state, boot, recorder.randomness, origin.now)
    )
    endpoint = UdpEndpoint(config.addresses, config.port)
    commands = Commands()

    def perform(output: Output) -> None:
        if not isinstance(output, CommandDone):
            raise AssertionError(f"a manager has no {type(output).__name__}")
        commands.done(output)

    pump = Pump(engine, store, endpoint, log, perform)
    place = ApiPlace(config.api_socket, config.api, log.note)
    service = Manager(engine, pump, commands, endpoint, log, place.counts)

    def reload() -> None:
        on_hangup(engine.channel, config.keys_dir, log)

    try:
        endpoint.bind()
        with on_signals(pump.stop, reload):
            # Address and socket come first: a second daemon, started by mistake, says nothing.
            async with serve_api(service, place):
                pump.open()
                pump.input(lambda now: engine.tell_time(time.time_ns(), now))
                pump.input(engine.started)
                log.note("started", role="manager", boot=boot, bindings=len(engine.cache.bindings))
                await pump.run()
        log.note("stopped")
    finally:
        pump.close()
        recorder.close()


def run(path: Path, serve_api: ServeApi, record: Path | None = None) -> None:
    """`vmmob manager run`: raises VmMobilityError with a remedy for whatever is wrong.

    record: where to record, whatever the configuration says
    """
    config = load_manager(path)
    asyncio.run(serve(replace(config, record=record or config.record), serve_api))
