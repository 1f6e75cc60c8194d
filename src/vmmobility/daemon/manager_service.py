"""What the manager's API serves: bindings, moves, records, comparisons, alarms.

It is api/service.ManagerService.  Not here: the daemon's own work (manager.py), HTTP (api/),
decisions (engine/manager.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from vmmobility.daemon.alarm_watch import Watch
from vmmobility.daemon.alarms import manager_alarms
from vmmobility.daemon.assembly import is_proven, standing_of, status_of
from vmmobility.daemon.commands import Commands
from vmmobility.daemon.drain_service import DrainService
from vmmobility.daemon.endpoint import UdpEndpoint
from vmmobility.daemon.event_feed import EventFeed, Reader, Wanted
from vmmobility.daemon.event_log import EventLog
from vmmobility.daemon.group_view import group_view
from vmmobility.daemon.protection_service import ProtectionService
from vmmobility.daemon.pump import Pump
from vmmobility.daemon.server_view import capacity_view, server_rows
from vmmobility.daemon.trace import Tracer
from vmmobility.daemon.vm_requests import adjusted, life_view, request_of, unbound_view
from vmmobility.drivers.hypervisor.definition import decode_interfaces
from vmmobility.engine.binding_cache import Binding
from vmmobility.engine.binding_update_list import interface_to_json
from vmmobility.engine.lifecycle_record import Life
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.manager_guests import GRACE_S
from vmmobility.engine.manager_move import CommandRefused, Move
from vmmobility.engine.manager_onboarding import Onboarded
from vmmobility.engine.outputs import Event
from vmmobility.errors import ApiError, BadRequest, Conflict, DecodeError, NotFound
from vmmobility.wire.move_terms import NO_TERMS, MoveTerms, terms_to_json
from vmmobility.wire.options import Mapping
from vmmobility.wire.registry import Role, RouteState
from vmmobility.wire.values import Address, VmKey

Result = TypeVar("Result")
FINAL_EVENTS = frozenset({"move.done", "move.aborted", "move.failed"})


class Manager(DrainService, ProtectionService):
    """What the API serves (api/service.ManagerService)."""

    def __init__(
        self,
        engine: ManagerEngine,
        pump: Pump,
        commands: Commands,
        endpoint: UdpEndpoint,
        log: EventLog,
        api_counts: Counter[str],
    ) -> None:
        """api_counts: what the API has refused, by reason."""
        self._engine = engine
        self._pump = pump
        self._commands = commands
        self._endpoint = endpoint
        self._tracer = Tracer(engine, self._ask_nodes)
        self._log = log
        self._api_counts = api_counts
        self._since = time.monotonic()
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._waiting_drains = {}
        self._feed = EventFeed(engine.channel.boot, Watch(engine).look)
        log.subscribe(self._on_event)
        log.subscribe(self._feed.on_event)

    def status(self) -> dict[str, Any]:
        channel = self._engine.channel
        return {
            **status_of(channel, "manager", self._since, self._endpoint, self._log),
            **standing_of(self._engine),
            "onboarded": len(self._engine.onboarded),
            "strict": self._engine.settings.strict,
            "bindings": len(self._engine.cache.bindings),
            "moves": len(self._engine.moves),
            "api_refused": dict(self._api_counts),
            "events_cut_off": self._feed.cut_off,
            "protected": len(self._engine.protected),
            "stale_s": self.stalest_s(),
        }

    def bindings(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        return [self._view(b, now) for _, b in sorted(self._engine.cache.bindings.items())]

    def binding(self, vm: VmKey) -> dict[str, Any] | None:
        binding = self._engine.cache.bindings.get(vm)
        return None if binding is None else self._view(binding, time.monotonic())

    def nves(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        served: dict[str, int] = {}
        for binding in self._engine.cache.bindings.values():
            served[binding.nve.nve_id] = served.get(binding.nve.nve_id, 0) + 1
        return [
            {
                "nve": peer.node_id,
                "addresses": [str(e.address) for e in peer.endpoints],
                **({"via": peer.via} if peer.via else {}),
                "last_heard_s": None
                if peer.last_heard is None
                else round(now - peer.last_heard, 3),
                "proven": is_proven(peer),
                "vms": served.get(peer.node_id, 0),
                **self._liveness(peer.node_id, now),
                "cordoned": peer.node_id in self._engine.cordons,
            }
            for peer in self._engine.channel.peers.values()
            if peer.role is Role.NVE
        ]

    def _liveness(self, nve_id: str, now: float) -> dict[str, Any]:
        pulse = self._engine.pulses.get(nve_id)
        if pulse is None:
            none: dict[str, Any] = {"silent_s": None, "boot": None, "capacity": None}
            return {"liveness": "none", **none, "servers": []}
        return {
            "liveness": self._engine.liveness_of(nve_id, now),
            "silent_s": round(now - pulse.heard, 3),
            "boot": pulse.boot,
            "capacity": capacity_view(pulse.capacity),
            "servers": server_rows(self._engine, nve_id, now),
        }

    def routers(self) -> list[dict[str, Any]]:
        """One row a router of the configuration."""
        now, engine = time.monotonic(), self._engine
        rows = []
        for site in engine.settings.routers:
            peer = engine.channel.peers[site.router_id]
            told = [entry.routers.get(site.router_id) for entry in engine.fabric.values()]
            leads = [t for t in told if t is not None and t.lead is not None]
            rows.append(
                {
                    "router": site.router_id,
                    "role": peer.role.name.lower().replace("_", "-"),
                    "dc": site.dc,
                    "serves": list(site.serves),
                    "last_heard_s": None
                    if peer.last_heard is None
                    else round(now - peer.last_heard, 3),
                    "proven": is_proven(peer),
                    "vms": len(leads),
                    "announced": sum(t.lead.state is RouteState.ANNOUNCE for t in leads if t.lead),
                    "unanswered": sum(t is not None and not t.acknowledged for t in told),
                }
            )
        return rows

    def routes(self) -> list[dict[str, Any]]:
        """One row a VM and router: what the router was told, and what it says of the fabric."""
        return [
            {
                "vni": vm.vni,
                "vm": vm.vm_id,
                "router": name,
                "state": told.lead.state.name.lower() if told.lead else "none",
                "serving": told.lead.serving.nve_id if told.lead else None,
                "epoch": told.epoch,
                "acknowledged": told.acknowledged,
                "direct": told.direct,
            }
            for vm, entry in sorted(self._engine.fabric.items())
            for name, told in sorted(entry.routers.items())
        ]

    def moves(self) -> list[dict[str, Any]]:
        ordered = sorted(self._engine.moves.values(), key=lambda move: move.started_ns)
        return [move_view(move) for move in ordered]

    def move(self, id: str) -> dict[str, Any] | None:
        move = self._engine.moves.get(id)
        return None if move is None else move_view(move)

    async def start_move(
        self, vm: VmKey, to: str, terms: MoveTerms = NO_TERMS, mode: str = "", server: str = ""
    ) -> dict[str, Any]:
        move = self._command(
            lambda now: self._engine.start_move(vm, to, now, time.time_ns(), terms, mode, server)
        )
        return move_view(move)

    async def abort_move(self, id: str) -> dict[str, Any]:
        move = self._engine.moves.get(id)
        if move is None:
            raise NotFound(f"no move {id}", "list them with `vmmob move list`")
        self._command(lambda now: self._engine.abort_move(move, now))
        return move_view(move)

    async def order_guest(
        self, vm: VmKey, verb: str, force: bool, grace_s: int | None
    ) -> dict[str, Any]:
        grace = GRACE_S if grace_s is None else grace_s
        unbound = vm in self._engine.lives and vm not in self._engine.cache.bindings
        if verb == "delete" and unbound:
            life = self._command(lambda now: self._engine.delete_vm(vm, now))
            return unbound_view(life, self._engine.liveness_of(life.nve_id, time.monotonic()))
        binding = self._command(lambda now: self._engine.order_guest(vm, verb, now, force, grace))
        return self._view(binding, time.monotonic())

    async def release(self, vm: VmKey, fenced: str) -> dict[str, Any]:
        binding = self._command(lambda now: self._engine.release(vm, now, fenced))
        return self._view(binding, time.monotonic())

    def _view(self, binding: Binding, now: float) -> dict[str, Any]:
        nve_id = binding.nve.nve_id
        lives = self._engine.liveness_of(nve_id, now)
        return binding_view(
            binding, now, lives, self._engine.server_liveness(nve_id, binding.server)
        )

    def lives(self) -> list[dict[str, Any]]:
        return [self._life(life) for _, life in sorted(self._engine.lives.items())]

    def life(self, vm: VmKey) -> dict[str, Any] | None:
        life = self._engine.lives.get(vm)
        return None if life is None else self._life(life)

    def unbound(self) -> list[dict[str, Any]]:
        engine, now = self._engine, time.monotonic()
        return [
            unbound_view(life, engine.liveness_of(life.nve_id, now))
            for vm, life in sorted(engine.lives.items())
            if vm not in engine.cache.bindings
        ]

    async def create_vm(self, body: dict[str, Any]) -> dict[str, Any]:
        asked = request_of(body)
        return self._life(self._command(lambda now: self._engine.request_vm(asked, now)))

    async def confirm_vm(self, vm: VmKey, body: dict[str, Any]) -> dict[str, Any]:
        life = self._engine.lives.get(vm)
        less, definition = (adjusted(life, body) if life else None) or (None, b"")
        return self._life(
            self._command(lambda now: self._engine.confirm_vm(vm, now, less, definition))
        )

    def _life(self, life: Life) -> dict[str, Any]:
        now = time.monotonic()
        state = self._engine.life_state(life.vm, now) or life.state.value
        return life_view(life, state, self._engine.place_of(life.vm), now)

    def onboarded(self) -> list[dict[str, Any]]:
        return [onboarded_view(record) for _, record in sorted(self._engine.onboarded.items())]

    async def onboard(self, vm: VmKey, interfaces: object, nves: list[str]) -> dict[str, Any]:
        try:
            wanted = decode_interfaces(interfaces)
        except DecodeError as error:
            raise BadRequest(str(error), "correct the VM's definition") from None
        record = self._command(lambda now: self._engine.onboard(vm, wanted, nves, now))
        return onboarded_view(record)

    async def offboard(self, vm: VmKey) -> dict[str, Any]:
        record = self._engine.onboarded.get(vm)
        self._command(lambda now: self._engine.offboard(vm, now))
        assert record is not None, "the engine refuses to offboard what is not there"
        return onboarded_view(record)

    def groups(self) -> list[dict[str, Any]]:
        found = sorted(self._engine.groups.items())
        return [group_view(group, self._engine.cache.bindings) for _, group in found]

    async def declare_group(self, name: str, vni: int, members: dict[str, int]) -> dict[str, Any]:
        numbered = tuple((number, VmKey(vni, vm_id)) for vm_id, number in members.items())
        group = self._command(lambda now: self._engine.declare_group(name, vni, numbered, now))
        return group_view(group, self._engine.cache.bindings)

    async def delete_group(self, name: str) -> dict[str, Any]:
        group = self._command(lambda now: self._engine.delete_group(name, now))
        return group_view(group, self._engine.cache.bindings)

    async def check(self, limit_s: float) -> dict[str, Any]:
        found = await self._commands.run(self._pump, self._engine.check, limit_s)
        return {**found, "repaired": sum(bool(row["repaired"]) for row in found["drift"])}

    async def trace(self, address: str, start: str, seconds: float) -> dict[str, Any]:
        return await self._tracer.trace(address, start, seconds)

    async def _ask_nodes(
        self, vm: VmKey | None, address: Address, nodes: Sequence[str], seconds: float
    ) -> dict[str, Any]:
        found = await self._commands.run(
            self._pump,
            lambda number, now: self._engine.ask_nodes(number, vm, address, nodes, seconds, now),
        )
        answers: dict[str, Any] = found["answers"]
        return answers

    def alarms(self) -> list[dict[str, Any]]:
        return manager_alarms(self._engine, time.monotonic())

    def _command(self, feed: Callable[[float], Result]) -> Result:
        try:
            return self._pump.command(feed)
        except CommandRefused as refused:
            kinds: dict[str, type[ApiError]] = {"conflict": Conflict, "bad-terms": BadRequest}
            kind = kinds.get(refused.kind, NotFound)
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

    def follow(
        self,
        after: str,
        kinds: frozenset[str],
        vm: tuple[int, str] | None,
        move: str,
        audit: bool,
        afar: str | None,
    ) -> Reader:
        return self._feed.follow(after, Wanted(kinds, vm, move, audit), afar)

    def _on_event(self, event: Event) -> None:
        self._drain_event(event)
        if event.name in FINAL_EVENTS:
            for ended in list(self._waiting.pop(event.detail["move"], [])):
                if not ended.done():
                    ended.set_result(None)


def binding_view(binding: Binding, now: float, liveness: str, server: str = "") -> dict[str, Any]:
    """A binding as people see it (docs/api.md).  now: monotonic seconds; liveness:
    of its NVE, server: of its server.  That one is dead proves nothing of the guest: its lease
    goes on."""
    state = binding.state
    if state == "serving" and "dead" in (liveness, server):
        state = "nve-dead" if liveness == "dead" else "server-dead"
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
        "state": state,
        "server": binding.server or None,
        "nve_liveness": liveness,
        "guest": binding.guest.name.lower(),
        "guest_ordered": binding.order.state.name.lower() if binding.order else None,
        "guest_error": binding.guest_error,
        **({"mappings": [_mapping(m) for m in binding.mappings]} if binding.mappings else {}),
    }


def _mapping(mapping: Mapping) -> dict[str, str]:
    """An address of a VM that a NAPT box has mapped."""
    return {
        "box": mapping.box,
        "private": str(mapping.private),
        "public": str(mapping.public),
    }


def move_view(move: Move) -> dict[str, Any]:
    """A move as people see it (docs/api.md)."""
    return {
        "id": move.move_id,
        "vni": move.vm.vni,
        "vm": move.vm.vm_id,
        "from": move.source.nve_id,
        "to": move.destination.nve_id,
        "from_server": move.server_from or None,
        "to_server": move.server or None,
        "mode": move.mode,
        "state": move.state.value,
        "ok": move.ok,
        "reason": move.reason,
        "epoch": move.epoch,
        "started_ns": move.started_ns,
        "phases": [{"name": name, "at_ms": at_ms} for name, at_ms in move.phases],
        "measured": dict(move.measured),
        "terms": terms_to_json(move.terms),
        "progress": dict(move.progress),
    }


def onboarded_view(record: Onboarded) -> dict[str, Any]:
    """A VM on record as people see it (docs/api.md)."""
    return {
        "vni": record.vm.vni,
        "vm": record.vm.vm_id,
        "interfaces": [interface_to_json(i) for i in record.interfaces],
        "nves": list(record.nves),
    }
