"""The fabric at the manager: which router leads which VM where.

What each router should do follows from the binding and its move (`_leads`); whatever differs from
what it was told is told, and told again until it is done.  Routers answer how the fabric leads the
VM's packets there, and say so unasked when that changes.
Not here: what follows from that, as the gate of a move (manager_gate.py), redirects of NVEs
(manager_redirects.py), the records (fabric_record.py), the routers themselves (router.py).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from vmmobility.engine.fabric_record import (
    FabricEntry,
    Lead,
    RouterSite,
    Told,
    fabric_to_json,
    load_fabric,
)
from vmmobility.engine.manager_holding import ManagerHolding
from vmmobility.engine.manager_move import Release
from vmmobility.engine.manager_transitions import Happening, MoveState
from vmmobility.engine.manager_withdrawal import NEVER
from vmmobility.engine.outputs import Event
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    Epoch,
    InterfaceGroup,
    Option,
    PreviousNve,
    Reason,
    Route,
    ServingNve,
    Sight,
    VmId,
)
from vmmobility.wire.registry import Purpose, RouteState, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmmobility.engine.binding_cache import Binding, BindingCache
    from vmmobility.engine.channel import Channel, Received
    from vmmobility.engine.manager_move import Move
    from vmmobility.engine.manager_settings import ManagerSettings
    from vmmobility.engine.outputs import Outbox
    from vmmobility.wire.values import VmKey

ROUTE_RETRY_S = 5.0  # a refused order is sent again after so long
MAX_STRAYS = 1000  # VMs that are not bound, and of which routers are told so at once
_S, _M = RouteState, MoveState
# While a move is in one of these its destination's routers take part, too.
ROUTED = frozenset({_M.ANNOUNCING, _M.DELIVERING, _M.WITHDRAWING, _M.SWITCHING, _M.ENDING_GUEST})


class ManagerFabric(ManagerHolding):
    """Routers; a part of ManagerEngine."""

    if TYPE_CHECKING:
        cache: BindingCache
        channel: Channel
        outbox: Outbox
        settings: ManagerSettings
        _current: dict[VmKey, Move]
        _new_epoch: Callable[[], int]
        _heed_epoch: Callable[[Message, float], None]
        _redirect_previous: Callable[[Binding, float], None]
        _learn_home: Callable[[Binding], None]

        def _happen(self, move: Move, happening: Happening, now: float, why: str = "") -> None: ...

    _fabric: dict[VmKey, FabricEntry]
    _sites: dict[str, RouterSite]
    _route_retry: dict[VmKey, float]

    def _load_fabric(self, state: Mapping[str, Any]) -> None:
        self._fabric, self._route_retry = load_fabric(state), {}
        self._withdrawals, self._withdrawals_at = {}, NEVER
        self._load_sites()

    # ---- what each router should do --------------------------------------------------------------

    def _is_routed(self, move: Move) -> bool:
        """Whether routers take part in a move at all."""
        return bool(self.routers_of(move.source.nve_id) or self.routers_of(move.destination.nve_id))

    def _leads(self, binding: Binding | None) -> dict[str, Lead]:
        """What every router should do for the VM now; those not named do nothing."""
        if binding is None or binding.ending:
            return {}
        move = self._turning(binding)
        if move is not None and move.state is _M.ENDING_GUEST:
            return self._as_told(binding.vm)  # which end has the guest is not known: fail static
        if move is not None:
            return self._leads_in_move(binding, move)
        return self._leads_at_rest(binding)

    def _turning(self, binding: Binding) -> Move | None:
        """The VM's move, while routers are told of its destination and the source still has it."""
        move = self._current.get(binding.vm)
        if move is None or move.state not in ROUTED:
            return None
        if move.state is _M.ANNOUNCING and not move.relaying:
            return None
        return move if binding.nve.nve_id == move.source.nve_id else None

    def _is_at_rest(self, binding: Binding) -> bool:
        return not binding.ending and self._turning(binding) is None

    def _as_told(self, vm: VmKey) -> dict[str, Lead]:
        entry = self._fabric.get(vm)
        told = entry.routers.items() if entry else ()
        return {name: one.lead for name, one in told if one.lead is not None}

    def _follow_routes(self, binding: Binding, now: float) -> None:
        """Tell the routers what has changed for a VM."""
        self._tell(binding.vm, self._leads(binding), binding, now)
        while self._advance_withdrawal(binding, now):
            self._tell(binding.vm, self._leads(binding), binding, now)

    def _end_routes(self, vm: VmKey, now: float) -> None:
        """The VM is no more, and nothing has to turn to it."""
        self._withdrawals.pop(vm, None)
        self._tell(vm, {}, None, now)

    def _tell(
        self, vm: VmKey, leads: Mapping[str, Lead], binding: Binding | None, now: float
    ) -> None:
        entry = self._fabric.get(vm)
        if entry is None:
            if not leads:
                return
            entry = self._fabric[vm] = FabricEntry(vm, ())
        if binding is not None:
            entry.interfaces = binding.interfaces
        names = dict.fromkeys([*leads, *entry.routers])
        changed = [n for n in names if self._has_changed(entry, n, leads.get(n))]
        if not changed:
            return
        epoch = self._new_epoch()
        for name in changed:
            before = entry.routers.get(name, Told(None, 0))
            entry.routers[name] = before.then(leads.get(name), epoch)
            self._order(entry, name, now)
        self._save_fabric(entry)

    @staticmethod
    def _has_changed(entry: FabricEntry, name: str, lead: Lead | None) -> bool:
        told = entry.routers.get(name)
        return told is None or told.lead != lead or not told.epoch

    def _order(self, entry: FabricEntry, name: str, now: float) -> None:
        """Section 7.2: the management node "exchanges VM Mobility Registration Request/Reply
        messages with the default router"."""
        peer, told = self.channel.peers.get(name), entry.routers[name]
        told.heard = now
        if peer is None or not peer.endpoints or not told.epoch:
            return
        options: list[Option] = [VmId(entry.vm), Epoch(told.epoch)]
        if told.lead is None:
            options.append(Route(_S.NONE))
        else:
            options += [Route(told.lead.state), *(InterfaceGroup(i) for i in entry.interfaces)]
            binding = self.cache.bindings.get(entry.vm)
            options += binding.mappings if binding else ()
            options.append(ServingNve(told.lead.serving))
            options += [PreviousNve(told.lead.previous)] if told.lead.previous else []
            options += self._group_options(told.lead)
        self.channel.request(
            peer,
            Purpose.ROUTE,
            options,
            now,
            partial(self._ordered, entry, name, told.epoch),
            subject=(entry.vm, "route"),
        )

    def _group_options(self, lead: Lead) -> list[Option]:
        """The load-shared group of which the VM is a member (manager_group_routes.py)."""
        return []

    # ---- what routers say ----------------------------------------------------------------------

    def _ordered(
        self, entry: FabricEntry, name: str, epoch: int, reply: Message, now: float
    ) -> None:
        told = entry.routers.get(name)
        if told is None or told.epoch != epoch:
            return
        if not reply.status.accepted:
            self._order_refused(entry, name, reply, now)
            return
        if told.lead is None:
            del entry.routers[name]
        else:
            told.done()
            sight = reply.find(Sight)
            if told.direct is None and sight is not None:
                told.direct = sight.direct  # what it has said since is newer
        self._save_fabric(entry)
        self._routes_changed(entry, now)

    def _order_refused(self, entry: FabricEntry, name: str, reply: Message, now: float) -> None:
        told, words = entry.routers[name], reply.find(Reason)
        why = reply.status.name.lower().replace("_", "-") + (f": {words.text}" if words else "")
        detail = {"vm": entry.vm.vm_id, "vni": entry.vm.vni, "router": name, "reason": why}
        self.outbox.emit(Event("route.refused", detail))
        if reply.status is Status.STALE_EPOCH:
            # It has heard a later order than this manager remembers.
            self._heed_epoch(reply, now)
            told.epoch = self._new_epoch()
            self._save_fabric(entry)
            self._order(entry, name, now)
            return
        self._route_retry[entry.vm] = now + ROUTE_RETRY_S
        move = self._current.get(entry.vm)
        if move is not None and told.lead is not None and told.lead.state is not _S.WATCH:
            self._happen(move, Happening.UNROUTED, now, f"{name}: {why}")

    def _sighted(self, received: Received, now: float) -> None:
        """SIGHT: how the fabric leads a VM's packets at a router now."""
        message, name = received.message, received.peer.node_id
        epoch, sight = message.epoch, message.need(Sight)
        self._heed_epoch(message, now)
        entry = self._fabric.get(message.vm)
        told = entry.routers.get(name) if entry else None
        if entry is None or told is None or not told.epoch:
            self.channel.reply(received, Status.UNKNOWN_BINDING)
            self._unknown_route(message, name, now)
            return
        self.channel.reply(received, Status.ACCEPTED, [VmId(message.vm)])
        told.heard = now
        if epoch == told.epoch and told.lead is not None:
            told.direct = sight.direct
            self._routes_changed(entry, now)

    def _unknown_route(self, message: Message, name: str, now: float) -> None:
        """A router leads packets of a VM of which this manager has told it nothing (any more)."""
        strays = sum(vm not in self.cache.bindings for vm in self._fabric)
        if message.vm not in self.cache.bindings and strays >= MAX_STRAYS:
            return
        # What a router says of itself counts only where records are lost: else they know better.
        lost = self._doubt_left(now) > 0
        binding, led = self.cache.bindings.get(message.vm), message.find(ServingNve)
        led = led if lost else None
        interfaces = binding.interfaces if binding else ()
        entry = self._fabric.setdefault(message.vm, FabricEntry(message.vm, interfaces))
        told = entry.routers[name] = Told(None, 0, held=(led.nve,) if led else ())
        if self._doubtful_routes(message.vm, now):
            self._save_fabric(entry)
            return
        if binding is not None and led is not None:
            self._learn_led(binding, now)
            self._save_binding(binding)
            self._redirect_previous(binding, now)
        told.lead, told.epoch = self._leads(binding).get(name), self._new_epoch()
        self._save_fabric(entry)
        self._order(entry, name, now)

    def _routes_lost(self, name: str, now: float) -> None:
        """A router came back without its memory: it is told all anew."""
        for entry in [e for e in self._fabric.values() if name in e.routers]:
            entry.routers[name] = Told(entry.routers[name].lead, self._new_epoch())
            self._order(entry, name, now)
            self._save_fabric(entry)
            self._routes_changed(entry, now)

    def _doubtful_routes(self, vm: VmKey, now: float) -> bool:
        """Whether a VM that is not bound may be bound where it was (lost state): fail static."""
        return vm not in self.cache.bindings and self._doubt_left(now) > 0

    if TYPE_CHECKING:
        _doubt_left: Callable[[float], float]

    def _routes_changed(self, entry: FabricEntry, now: float) -> None:
        """A router has done what it was told, or sees the fabric otherwise than before."""
        move, binding = self._current.get(entry.vm), self.cache.bindings.get(entry.vm)
        turning = move is not None and (
            move.state is _M.WITHDRAWING or move.release is Release.FORCED
        )
        if binding is not None and (turning or entry.vm in self._withdrawals):
            self._follow_routes(binding, now)
        if move is not None:
            self._try_gate(move, now)
        if binding is not None and not binding.ending:
            self._follow_fabric(binding, now)

    # ---- time, restart, records ----------------------------------------------------------------

    def _next_route_timer(self) -> float | None:
        due = min(self._route_retry.values(), default=NEVER)
        return None if (due := min(due, self._withdrawals_at)) == NEVER else due

    def _route_timer(self, now: float) -> None:
        self._withdrawals_timer(now)
        for vm in [vm for vm, due in self._route_retry.items() if due <= now]:
            del self._route_retry[vm]
            entry = self._fabric.get(vm)
            if entry is None:
                continue
            for name in [n for n, told in entry.routers.items() if not told.acknowledged]:
                self._order(entry, name, now)

    def _check_routes(self, now: float) -> None:
        """A router that is silent may have lost all it was told, and so know of no VM to report."""
        for entry in self._fabric.values():
            for name, told in entry.routers.items():
                if told.acknowledged and now - told.heard > 2 * self.settings.check_s:
                    self._order(entry, name, now)

    def _resume_routes(self, now: float) -> None:
        """After a restart: all that stands is told again, for the answers say how the fabric is."""
        for vm, entry in list(self._fabric.items()):
            binding = self.cache.bindings.get(vm)
            if binding is not None:
                self._follow_routes(binding, now)
            elif not self._doubtful_routes(vm, now):
                self._end_routes(vm, now)
            for name in list(entry.routers):
                self._order(entry, name, now)

    def _save_fabric(self, entry: FabricEntry) -> None:
        if not entry.routers:
            self._fabric.pop(entry.vm, None)
        self.outbox.record(entry.key, fabric_to_json(entry))


__all__ = ["ManagerFabric", "RouterSite"]
