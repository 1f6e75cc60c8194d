"""The router's engine: host routes that the manager orders, and what the fabric makes of them.

Section 7.2: "The default router interprets (source NVE, destination NVE) values in pairs as host
routes for virtual machines."  Border routers (Section 7.3) obey the same orders.

Inputs are methods that take the time (monotonic seconds); outputs come from `flush()` (outputs.py).
Peer input never raises.  Routes have no lifetime: with no manager none changes (invariant 9).
Not here: who decides where packets go (manager_fabric.py), the kernel (drivers/router_plane.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vmmobility.engine.admission import too_long
from vmmobility.engine.binding_update_list import (
    interface_from_json,
    interface_to_json,
    nve_from_json,
    nve_to_json,
)
from vmmobility.engine.channel import Channel, Peer, Received, Retransmission
from vmmobility.engine.fabric_routes import RouteAction, VmRoutes
from vmmobility.engine.fabric_routes import Sight as Seen
from vmmobility.engine.origin import Boxes, Napts
from vmmobility.engine.outputs import Endpoint, Event, Flushing, Outbox, SetRoutes
from vmmobility.engine.router_checks import RouterChecks
from vmmobility.errors import DecodeError
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    Epoch,
    GroupMember,
    GroupOption,
    Option,
    Route,
    ServingNve,
    Sight,
    VmId,
)
from vmmobility.wire.registry import Purpose, Role, RouteState, Status
from vmmobility.wire.values import Address, Interface, Nve, VmKey

# design, Rights: only the manager may "tell a router".
RIGHTS = {purpose: frozenset({Role.MANAGER}) for purpose in (Purpose.ROUTE, Purpose.CHECK)}
MAX_OTHERS = 16  # other members of a group, in a message of one datagram
RETRY_S = 5.0  # what the kernel refused is tried again after so long


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """report_s: how often the manager is told, unasked, of every VM that this router knows;
    napts: NAPT boxes by name, and their public addresses."""

    router_id: str
    report_s: float = 60.0
    retransmission: Retransmission = field(default_factory=Retransmission)
    napts: Napts = ()


@dataclass(slots=True)
class RouteEntry:
    """One VM here.  With state NONE only its epoch stays (the tombstone).

    group:   the load-shared group that it is a member of, "" if none, and the NVEs of the others
    request: the manager's, until the kernel holds what it asks for; sight: the last that the
    manager was told; report_at: when it is told again; tag: of the last SetRoutes (none durable)
    """

    vm: VmKey
    epoch: int = 0
    state: RouteState = RouteState.NONE
    interfaces: tuple[Interface, ...] = ()
    serving: Nve | None = None
    previous: Nve | None = None
    group: str = ""
    others: tuple[Nve, ...] = ()
    request: Received | None = None
    sight: Seen | None = None
    report_at: float | None = None
    tag: int = 0

    @property
    def key(self) -> str:
        """Its key in the store."""
        return f"route/{self.vm.vni}/{self.vm.vm_id}"

    def routes(self) -> VmRoutes:
        """What the kernel should hold."""
        prefixes = tuple(p for i in self.interfaces for p in i.prefixes)
        via, action = {
            RouteState.KEEP: (self.previous, RouteAction.HOLD),
            RouteState.LEAD: (self.serving, RouteAction.HOLD),
            RouteState.ANNOUNCE: (self.serving, RouteAction.ANNOUNCE),
        }.get(self.state, (None, RouteAction.NONE))
        return VmRoutes(self.vm, prefixes, via, action, self.serving, self.group, self.others)


class RouterEngine(RouterChecks, Flushing):
    """One router.  `state` is what the store held; `boot` is above every earlier start's."""

    def __init__(
        self,
        settings: RouterSettings,
        managers: Iterable[Peer],
        state: Mapping[str, Any],
        boot: int,
        jitter: random.Random,
    ) -> None:
        self.settings = settings
        self.outbox = Outbox()
        peers = list(managers)
        self.manager = peers[0]
        self.channel = Channel(
            settings.router_id,
            boot,
            peers,
            RIGHTS,
            self.outbox,
            jitter,
            settings.retransmission,
            Boxes(dict(settings.napts)),
        )
        self.channel.restore(state)
        self.channel.peer_lost_state = self._manager_lost_state
        self.jitter = jitter
        self.entries = {e.vm: e for e in load_routes(state)}
        self._retry: dict[VmKey, float] = {}
        self._explaining, self._questions = {}, 0

    # ---- inputs --------------------------------------------------------------------------------

    def started(self, now: float) -> None:
        """After a (re)start, when the kernel holds desired() again.  `sighted` follows, with all of
        watched(): what is not known is not reported."""
        self.channel.start(now)

    def datagram_received(
        self, data: bytes, source: Endpoint, local: Address | None, now: float
    ) -> None:
        received = self.channel.datagram(data, source, local, now)
        if received is None:
            return
        asked = received.message.purpose is Purpose.CHECK
        handler = self._check_requested if asked else self._ordered
        try:
            handler(received, now)
        except DecodeError as error:
            self.channel.drops[error.reason] += 1
            self.channel.reply(received, Status.MALFORMED, reason=str(error))

    def routes_applied(
        self, vm: VmKey, tag: int, failures: Sequence[str], sight: Seen, now: float
    ) -> None:
        """The kernel holds (or, with failures, does not) what was asked for under `tag`; sight:
        how the fabric stands with the VM then."""
        entry = self.entries.get(vm)
        if entry is None or tag != entry.tag:
            return
        self.outbox.emit(Event("routes", self._words(entry, failures)))
        if failures:
            self._retry[vm] = now + RETRY_S
        request, entry.request = entry.request, None
        if request is None:
            return
        status = Status.DATA_PLANE_FAILURE if failures else Status.ACCEPTED
        self._answer(request, entry, status, sight, "; ".join(failures))

    def sighted(self, sights: Mapping[VmKey, Seen], now: float) -> None:
        """How the fabric leads the VMs of watched() now."""
        for vm, sight in sights.items():
            entry = self.entries.get(vm)
            known = entry is not None and entry.state is not RouteState.NONE
            if entry is not None and known and sight != entry.sight:
                self._report(entry, sight, now)

    def next_timer(self) -> float | None:
        due = [self.channel.next_timer(), *self._retry.values()]
        due += [e.report_at for e in self.entries.values() if e.sight]
        return min((d for d in due if d is not None), default=None)

    def timer(self, now: float) -> None:
        self.channel.timer(now)
        for vm in [vm for vm, due in self._retry.items() if due <= now]:
            del self._retry[vm]
            self._set_routes(self.entries[vm])
        for entry in self._known():
            if entry.report_at is not None and entry.report_at <= now and entry.sight:
                self._report(entry, entry.sight, now)

    def desired(self) -> dict[VmKey, VmRoutes]:
        """What the kernel should hold of all VMs: for a resync at start."""
        return {e.vm: e.routes() for e in self._known()}

    def watched(self) -> list[VmRoutes]:
        """The VMs of which the manager wants to know how the fabric leads them."""
        return [e.routes() for e in self._known()]

    # ---- orders --------------------------------------------------------------------------------

    def _ordered(self, received: Received, now: float) -> None:
        message = received.message
        state, epoch = message.need(Route).state, message.epoch
        if message.vm.vni != 0:
            self.channel.reply(received, Status.VNI_NOT_SUPPORTED)
            return
        entry = self.entries.get(message.vm) or RouteEntry(message.vm)
        if self._stale(entry, epoch, state):
            self._answer(received, entry, Status.STALE_EPOCH, None)
            return
        serving, previous = _pair(message, state)
        long = too_long(message.interfaces, b"")
        if long:
            raise DecodeError("bad-value", long)
        self.entries[entry.vm] = entry
        if entry.request is not None:
            self._answer(entry.request, entry, Status.OUT_OF_SEQUENCE, None, "overtaken")
        entry.request, entry.epoch, entry.state = received, epoch, state
        entry.interfaces = message.interfaces if state else ()
        entry.serving, entry.previous = serving, previous
        entry.group, entry.others = _group(message) if state else ("", ())
        entry.report_at = None if state is RouteState.NONE else now + self._pause()
        entry.sight = None
        self.channel.withdraw_subject(self.manager, (entry.vm, "sight"))
        self._save(entry)
        self._set_routes(entry)

    @staticmethod
    def _stale(entry: RouteEntry, epoch: int, state: RouteState) -> bool:
        """design, Fencing: an order counts only above the highest obeyed; under the same epoch it
        is that order again, or none of this manager's."""
        return epoch < entry.epoch or (epoch == entry.epoch and state is not entry.state)

    def _set_routes(self, entry: RouteEntry) -> None:
        entry.tag += 1
        self._retry.pop(entry.vm, None)
        self.outbox.emit(SetRoutes(entry.routes(), entry.tag))

    def _answer(
        self,
        received: Received,
        entry: RouteEntry,
        status: Status,
        sight: Seen | None,
        reason: str = "",
    ) -> None:
        options: list[Option] = [VmId(entry.vm), Epoch(entry.epoch), Route(entry.state)]
        if sight is not None:
            entry.sight = sight
            options.append(Sight(sight.direct, sight.covered))
        self.channel.reply(received, status, options, reason=reason)

    # ---- reports -------------------------------------------------------------------------------

    def _report(self, entry: RouteEntry, sight: Seen, now: float) -> None:
        """Tell the manager how the fabric leads the VM's packets here."""
        entry.sight, entry.report_at = sight, now + self._pause()
        if entry.request is not None:
            return  # its answer tells
        options: list[Option] = [VmId(entry.vm), Epoch(entry.epoch), Route(entry.state)]
        led = entry.routes().serving
        options += [ServingNve(led)] if led is not None else []
        self.channel.request(
            self.manager,
            Purpose.SIGHT,
            [*options, Sight(sight.direct, sight.covered)],
            now,
            lambda reply, at: None,
            subject=(entry.vm, "sight"),
        )

    def _manager_lost_state(self, manager: Peer, now: float) -> None:
        """It may know nothing of what is held here: it is told at once."""
        for entry in self._known():
            entry.report_at = now

    def _pause(self) -> float:
        return self.settings.report_s * self.jitter.uniform(0.9, 1.0)

    # ---- records -------------------------------------------------------------------------------

    def _known(self) -> list[RouteEntry]:
        return [e for e in self.entries.values() if e.state is not RouteState.NONE]

    def _save(self, entry: RouteEntry) -> None:
        self.outbox.record(entry.key, route_to_json(entry))

    @staticmethod
    def _words(entry: RouteEntry, failures: Sequence[str]) -> dict[str, Any]:
        return {
            "vm": entry.vm.vm_id,
            "vni": entry.vm.vni,
            "epoch": entry.epoch,
            "state": entry.state.name.lower(),
            "serving": entry.serving.nve_id if entry.serving else None,
            **({"failures": list(failures)} if failures else {}),
        }


def _pair(message: Message, state: RouteState) -> tuple[Nve | None, Nve | None]:
    """Section 7.2's pair: the destination, and the source where it is told."""
    if state is RouteState.NONE:
        return None, None
    previous = message.previous[0] if message.previous else None
    if state is RouteState.KEEP and previous is None:
        raise DecodeError("missing-option", "ROUTE to KEEP needs the previous NVE")
    if not any(i.prefixes for i in message.interfaces):
        raise DecodeError("missing-option", "ROUTE needs an address of the VM")
    return message.need(ServingNve).nve, previous


def _group(message: Message) -> tuple[str, tuple[Nve, ...]]:
    """Section 7: the load-shared group of the VM, and where its other members are."""
    group = message.find(GroupOption)
    others = [option.nve for option in message.options if isinstance(option, GroupMember)]
    if group is None and others:
        raise DecodeError("missing-option", "Group Member without Group")
    if len(others) > MAX_OTHERS:
        raise DecodeError("bad-value", f"more than {MAX_OTHERS} other members")
    return (group.name if group else ""), tuple(dict.fromkeys(others))


def route_to_json(entry: RouteEntry) -> dict[str, Any]:
    """The durable part of an entry; a tombstone is its epoch alone."""
    value: dict[str, Any] = {"epoch": entry.epoch, "state": entry.state.name}
    if entry.state is not RouteState.NONE:
        value["interfaces"] = [interface_to_json(i) for i in entry.interfaces]
        value["serving"] = nve_to_json(entry.serving)
        value["previous"] = nve_to_json(entry.previous)
        if entry.group:
            value["group"] = [entry.group, [nve_to_json(nve) for nve in entry.others]]
    return value


def load_routes(state: Mapping[str, Any]) -> Iterable[RouteEntry]:
    """All entries of a store."""
    for key, value in state.items():
        kind, _, rest = key.partition("/")
        if kind != "route":
            continue
        vni, _, vm_id = rest.partition("/")
        entry = RouteEntry(VmKey(int(vni), vm_id), value["epoch"], RouteState[value["state"]])
        if entry.state is not RouteState.NONE:
            entry.interfaces = tuple(interface_from_json(i) for i in value["interfaces"])
            entry.serving = nve_from_json(value["serving"])
            entry.previous = nve_from_json(value["previous"]) if value["previous"] else None
            entry.group, others = value.get("group", ("", ()))
            entry.others = tuple(nve_from_json(nve) for nve in others)
        yield entry
