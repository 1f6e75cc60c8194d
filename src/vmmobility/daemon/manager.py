"""The manager daemon: engine, journal, UDP endpoint and the service behind its API.

Assembly only.  Not here: decisions (engine/manager.py), HTTP (api/).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from vmmobility.daemon.assembly import (
    ServeApi,
    make_peers,
    note_recovery,
    on_hangup,
    on_signals,
    open_store,
    status_of,
)
from vmmobility.daemon.config import ManagerConfig, load_manager
from vmmobility.daemon.endpoint import UdpEndpoint
from vmmobility.daemon.event_log import EventLog
from vmmobility.daemon.pump import Pump
from vmmobility.daemon.recording.inputs import Origin
from vmmobility.daemon.recording.recorder import open_recorder
from vmmobility.engine.binding_cache import Binding
from vmmobility.engine.binding_update_list import interface_to_json
from vmmobility.engine.channel import Retransmission
from vmmobility.engine.manager import ManagerEngine, ManagerSettings
from vmmobility.engine.manager_move import CommandRefused, Move
from vmmobility.engine.outputs import Event, Output
from vmmobility.errors import ApiError, Conflict, NotFound
from vmmobility.wire.registry import Role
from vmmobility.wire.values import VmKey

Result = TypeVar("Result")
FINAL_EVENTS = frozenset({"move.done", "move.aborted", "move.failed"})


class Manager:
    """What the API serves (api/service.ManagerService)."""

    def __init__(
        self, engine: ManagerEngine, pump: Pump, endpoint: UdpEndpoint, log: EventLog
    ) -> None:
        self._engine = engine
        self._pump = pump
        self._endpoint = endpoint
        self._log = log
        self._since = time.monotonic()
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        log.subscribe(self._on_event)

    def status(self) -> dict[str, Any]:
        channel = self._engine.channel
        return {
            **status_of(channel, "manager", self._since, self._endpoint, self._log),
            "bindings": len(self._engine.cache.bindings),
            "moves": len(self._engine.moves),
        }

    def bindings(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        return [binding_view(b, now) for _, b in sorted(self._engine.cache.bindings.items())]

    def binding(self, vm: VmKey) -> dict[str, Any] | None:
        binding = self._engine.cache.bindings.get(vm)
        return None if binding is None else binding_view(binding, time.monotonic())

    def nves(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        served: dict[str, int] = {}
        for binding in self._engine.cache.bindings.values():
            served[binding.nve.nve_id] = served.get(binding.nve.nve_id, 0) + 1
        return [
            {
                "nve": peer.node_id,
                "addresses": [str(e.address) for e in peer.endpoints],
                "last_heard_s": None
                if peer.last_heard is None
                else round(now - peer.last_heard, 3),
                "vms": served.get(peer.node_id, 0),
            }
            for peer in self._engine.channel.peers.values()
            if peer.role is Role.NVE
        ]

    def moves(self) -> list[dict[str, Any]]:
        ordered = sorted(self._engine.moves.values(), key=lambda move: move.started_ns)
        return [move_view(move) for move in ordered]

    def move(self, id: str) -> dict[str, Any] | None:
        move = self._engine.moves.get(id)
        return None if move is None else move_view(move)

    async def start_move(self, vm: VmKey, to: str) -> dict[str, Any]:
        move = self._command(lambda now: self._engine.start_move(vm, to, now, time.time_ns()))
        return move_view(move)

    async def release(self, vm: VmKey) -> dict[str, Any]:
        binding = self._command(lambda now: self._engine.release(vm, now))
        return binding_view(binding, time.monotonic())

    def _command(self, feed: Callable[[float], Result]) -> Result:
        try:
            return self._pump.command(feed)
        except CommandRefused as refused:
            kind: type[ApiError] = Conflict if refused.kind == "conflict" else NotFound
            raise kind(refused.message, refused.remedy) from None

    async def wait_move(self, id: str, seconds: float) -> dict[str, Any] | None:
        move = self._engine.moves.get(id)
        if move is not None and move.ok is None:
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting = self._waiting.setdefault(id, [])
            waiting.append(ended)
            try:
                await asyncio.wait([ended], timeout=seconds)
            finally:
                waiting.remove(ended)
        return self.move(id)

    def _on_event(self, event: Event) -> None:
        if event.name in FINAL_EVENTS:
            for ended in list(self._waiting.pop(event.detail["move"], [])):
                if not ended.done():
                    ended.set_result(None)


def binding_view(binding: Binding, now: float) -> dict[str, Any]:
    """A binding as people see it (docs/architecture.md, API).  now: monotonic seconds."""
    left = None if binding.expires_at is None else round(binding.expires_at - now, 1)
    return {
        "vni": binding.vm.vni,
        "vm": binding.vm.vm_id,
        "nve": binding.nve.nve_id,
        "epoch": binding.epoch,
        "lifetime_s": binding.lifetime_s,
        "expires_in_s": left,
        "interfaces": [interface_to_json(i) for i in binding.interfaces],
        "previous": [
            {"nve": p.nve.nve_id, "acknowledged": p.acknowledged >= binding.epoch}
            for p in binding.previous.values()
        ],
        "state": binding.state,
    }


def move_view(move: Move) -> dict[str, Any]:
    """A move as people see it (docs/architecture.md, API)."""
    return {
        "id": move.move_id,
        "vni": move.vm.vni,
        "vm": move.vm.vm_id,
        "from": move.source.nve_id,
        "to": move.destination.nve_id,
        "mode": "hot",
        "state": move.state.value,
        "ok": move.ok,
        "reason": move.reason,
        "epoch": move.epoch,
        "started_ns": move.started_ns,
        "phases": [{"name": name, "at_ms": at_ms} for name, at_ms in move.phases],
        "measured": dict(move.measured),
    }


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


async def _serve(
    config: ManagerConfig,
    serve_api: ServeApi,
    store: Any,
    state: dict[str, Any],
    boot: int,
    log: EventLog,
) -> None:
    timers = config.timers
    settings = ManagerSettings(
        config.node_id,
        lifetime_s=timers.lifetime_s,
        ticket_s=timers.ticket_s,
        step_s=timers.step_s,
        copy_s=timers.copy_s,
        retransmission=Retransmission(timers.retransmit_s, timers.retransmit_max_s),
    )
    peers = make_peers(config.peers, config.keys_dir, config.node_id, config.port, config.file)
    loop = asyncio.get_running_loop()
    origin = Origin(Role.MANAGER, settings, peers, state, boot, loop.time())
    recorder = open_recorder(config.record, config.record_mib << 20, origin, log.note)
    engine = recorder.tee(
        ManagerEngine(settings, peers, state, boot, recorder.randomness, origin.now)
    )
    endpoint = UdpEndpoint(config.addresses, config.port)
    pump = Pump(engine, store, endpoint, log, _perform_nothing)
    service = Manager(engine, pump, endpoint, log)

    def reload() -> None:
        on_hangup(engine.channel, config.keys_dir, log)

    try:
        endpoint.bind()
        with on_signals(pump.stop, reload):
            # Address and socket come first: a second daemon, started by mistake, says nothing.
            async with serve_api(service, config.api_socket):
                pump.open()
                pump.input(engine.started)
                log.note("started", role="manager", boot=boot, bindings=len(engine.cache.bindings))
                await pump.run()
        log.note("stopped")
    finally:
        pump.close()
        recorder.close()


def _perform_nothing(output: Output) -> None:
    raise AssertionError(f"a manager has no {type(output).__name__}")


def run(path: Path, serve_api: ServeApi, record: Path | None = None) -> None:
    """`vmmob manager run`: raises VmMobilityError with a remedy for whatever is wrong.

    record: where to record, whatever the configuration says
    """
    config = load_manager(path)
    asyncio.run(serve(replace(config, record=record or config.record), serve_api))
