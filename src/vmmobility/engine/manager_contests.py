"""Attaches without a ticket of a VM that is bound elsewhere: settled with the incumbent.

design, "Moves it did not start": "a conflicting attach is granted after the incumbent was asked
(bounded time) or its lease has ended".  A lease's end proves nothing about a guest that is only cut
off, so it counts only for a guest whose memory came from another host: its hypervisor had stopped
it there.  Not here: how NVEs are asked (manager_checks.py), tickets (manager_moves.py).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vmmobility.engine.admission import MAX_PREVIOUS
from vmmobility.engine.manager_checks import HOLDS
from vmmobility.engine.outputs import Event
from vmmobility.wire.message import Message
from vmmobility.wire.options import Epoch, Guest, GuestStateOption, PhaseOption, Route, ServingNve
from vmmobility.wire.registry import GuestLife, GuestState, Phase, Role, RouteState, Status
from vmmobility.wire.values import VmKey

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmmobility.engine.binding_cache import Binding, BindingCache
    from vmmobility.engine.channel import Channel, Received
    from vmmobility.engine.fabric_record import FabricEntry, RouterSite
    from vmmobility.engine.manager_checks import Listener
    from vmmobility.engine.manager_settings import ManagerSettings
    from vmmobility.engine.outputs import Outbox
    from vmmobility.wire.options import Option

RUNS = (GuestLife.RUNNING, GuestLife.ARRIVED)
CANNOT_RUN = (GuestLife.NONE, GuestLife.DEPARTED)


class ManagerContests:
    """Conflicting attaches; a part of ManagerEngine."""

    if TYPE_CHECKING:
        cache: BindingCache
        channel: Channel
        outbox: Outbox
        settings: ManagerSettings
        _save_binding: Callable[[Binding], None]
        _in_switch: Callable[[VmKey], bool]
        _attach: Callable[[Received, float], None]
        _take: Callable[[Received, Binding | None, float], None]
        _may_take: Callable[[Binding, str], bool]
        _in_doubt: Callable[[Binding | None, Message, float], bool]
        _doubt_left: Callable[[float], float]
        _leap: Callable[[], None]
        _note_router: Callable[..., None]
        _fabric: dict[VmKey, FabricEntry]
        _sites: dict[str, RouterSite]
        _refusal: Callable[[Received, VmKey], tuple[Status, str] | None]

        def _question(
            self,
            vm: VmKey,
            node: str,
            now: float,
            listener: Listener,
            claim: GuestLife | None = None,
        ) -> None: ...

        def _reject(
            self,
            received: Received,
            status: Status,
            why: str,
            options: Sequence[Option] = (),
        ) -> None: ...

    def _contest(self, received: Received, binding: Binding, now: float) -> None:
        """Ask the incumbent - at once, for an older answer may not know of the guest's leaving."""
        node = received.peer.node_id
        if binding.ending or self._in_switch(binding.vm):
            self._bound_elsewhere(received, binding)
        elif binding.frozen:
            why = f"too many changes of NVE in {self.settings.freeze_s:.0f} s"
            self._reject(received, Status.FROZEN, f"{why}: an operator must release it")
        elif binding.is_full(node):
            why = f"{MAX_PREVIOUS} previous NVEs still redirect"
            self._reject(received, Status.INSUFFICIENT_RESOURCES, why)
        else:
            detail = {"vm": binding.vm.vm_id, "vni": binding.vm.vni, "by": node}
            self.outbox.emit(Event("binding.contested", {**detail, "nve": binding.nve.nve_id}))
            settle = partial(self._contest_answered, received, binding.epoch)
            claim = _life(received.message)
            self._question(binding.vm, binding.nve.nve_id, now, settle, claim)

    def _bound_elsewhere(self, received: Received, binding: Binding) -> None:
        options = (ServingNve(binding.nve), Epoch(binding.epoch))
        why = f"{binding.nve.nve_id} serves it"
        self._reject(received, Status.BOUND_ELSEWHERE, why, options)

    def _contest_answered(
        self, received: Received, epoch: int, reply: Message | None, now: float
    ) -> None:
        vm, node = received.message.vm, received.peer.node_id
        binding = self.cache.bindings.get(vm)
        if binding is None:
            self._attach(received, now)  # it was removed meanwhile
            return
        changed = binding.epoch != epoch or binding.nve.nve_id == node
        if changed or binding.ending or binding.frozen or self._in_switch(vm):
            self._reject(received, Status.TRY_AGAIN, "the binding has changed meanwhile")
            return
        refusal = self._refusal(received, vm)
        if refusal is not None:
            self._reject(received, *refusal)
            return
        incumbent = binding.nve.nve_id
        asker = _life(received.message)
        if reply is None:
            moved_in = asker is GuestLife.ARRIVED and (binding.expires_at or 0.0) <= now
            if moved_in or binding.released:
                self._take_over(received, binding, now)
                return
            why = f"{incumbent}, which serves it, does not answer"
            self._reject(received, Status.TRY_AGAIN, why)
            return
        has_it = asker in RUNS or _is_held(received.message)
        if has_it and _moved_there(received.message, reply):
            self._take_over(received, binding, now)
        elif _life(reply) in CANNOT_RUN:
            if asker is GuestLife.NONE and self._in_doubt(binding, reply, now):
                self._ask_everyone(received, binding, now)
            else:
                self._take_over(received, binding, now)
        else:
            if asker in RUNS:
                self._note_duplicate(binding, node, now)
            self._bound_elsewhere(received, binding)

    def _note_duplicate(self, binding: Binding, node: str, now: float) -> None:
        """A second copy: told once, and remembered for as long as its NVE asks for it."""
        if node not in binding.current_duplicates(now):
            detail = {"vm": binding.vm.vm_id, "vni": binding.vm.vni, "nve": binding.nve.nve_id}
            self.outbox.emit(Event("vm.duplicate", {**detail, "also": node}))
        binding.duplicates[node] = now

    def _take_over(self, received: Received, binding: Binding, now: float) -> None:
        """Grant it; alternating too often freezes the binding where it is then (design: "Five
        unmanaged attaches by alternating NVEs in 180 s")."""
        recent = [at for at in binding.takeovers if at > now - self.settings.freeze_s] + [now]
        self._take(received, binding, now)
        taken = self.cache.bindings[received.message.vm]
        taken.takeovers = recent
        if len(recent) >= self.settings.freeze_after:
            taken.frozen = True
            self._save_binding(taken)
            detail = {"vm": taken.vm.vm_id, "vni": taken.vm.vni, "nve": taken.nve.nve_id}
            self.outbox.emit(Event("binding.frozen", {**detail, "changes": len(recent)}))

    # ---- a manager that has lost its state, or was set back --------------------------------------

    def _ask_everyone(self, received: Received, binding: Binding | None, now: float) -> None:
        """A VM of which too little may be known.  One that is to be booted: no NVE may have it, or
        be silent, nor a router lead to who knows where.  One that has arrived is granted above the
        epochs that others tell, and NVEs behind a silent router redirect to it."""
        vm = received.message.vm
        arrived = _life(received.message) is GuestLife.ARRIVED
        routers = [*self._sites] if self._doubt_left(now) else []
        nves = [peer.node_id for peer in self.channel.peers.values() if peer.role is Role.NVE]
        others = [node for node in (*nves, *routers) if node != received.peer.node_id]
        epoch, waiting = binding.epoch if binding else 0, set(others)

        def answered(node: str, reply: Message | None, at: float) -> None:
            if node not in waiting:
                return
            waiting.discard(node)
            self._note_router(node, silent=reply is None)
            if reply is None and not arrived:
                waiting.clear()
                left = self._doubt_left(at)
                why = (
                    f"this manager has no earlier records, and {node} has not said what it knows"
                    " of the VM" + (f": that counts for {left:.0f} s more" if left else "")
                )
                self._reject(received, Status.TRY_AGAIN, why)
                return
            objection = self._objection(vm, node, reply, arrived) if reply else None
            if objection is not None:
                waiting.clear()
                self._reject(received, *objection)
            else:
                if reply is None and node not in self._sites:
                    self._leap()
                if not waiting:
                    self._nobody_has_it(received, epoch, at)

        for node in others:
            self._question(vm, node, now, partial(answered, node), GuestLife.NONE)
        if not others:
            self._nobody_has_it(received, epoch, now)

    def _objection(
        self, vm: VmKey, node: str, reply: Message, arrived: bool
    ) -> tuple[Status, str] | None:
        """What stands against an attach, by the answer of an NVE or a router."""
        if self.channel.peers[node].role is Role.NVE:
            stands = _stands_against(reply, arrived)
            return (Status.BOUND_ELSEWHERE, f"{node} serves it") if stands else None
        route = reply.need(Route)
        entry = self._fabric.get(vm)
        known = entry is not None and node in entry.routers
        if arrived or known or route.state in (RouteState.NONE, RouteState.WATCH):
            return None
        return Status.TRY_AGAIN, f"router {node} has yet to tell this manager where it leads it"

    def _nobody_has_it(self, received: Received, epoch: int, now: float) -> None:
        vm = received.message.vm
        refusal = self._refusal(received, vm)
        binding = self.cache.bindings.get(vm)
        changed = (binding.epoch if binding else 0) != epoch or self._in_switch(vm)
        if refusal is not None:
            self._reject(received, *refusal)
        elif changed or (binding and (binding.ending or binding.frozen)):
            self._reject(received, Status.TRY_AGAIN, "the binding has changed meanwhile")
        elif binding and binding.nve.nve_id != received.peer.node_id:
            self._take_over(received, binding, now)
        else:
            self._take(received, binding, now)


def _is_held(attach: Message) -> bool:
    """Whether the asker has the VM, and its guest does not run."""
    told = attach.find(GuestStateOption)
    return told is not None and told.state in (GuestState.SUSPENDED, GuestState.STOPPED)


def _moved_there(attach: Message, incumbent: Message) -> bool:
    """Whether the guest that runs at the asker is the one for which the incumbent has switched, in
    a move that this manager does not know any more: both tell its epoch."""
    told, phase, epoch = attach.find(Epoch), incumbent.find(PhaseOption), incumbent.find(Epoch)
    if told is None or phase is None or epoch is None:
        return False
    return phase.phase is Phase.SWITCHED and 0 < told.epoch == epoch.epoch


def _stands_against(reply: Message, arrived: bool) -> bool:
    """Whether an NVE has the VM, by its answer.  What it was granted counts no more where the guest
    runs at the asker, and has left from there."""
    holds = reply.need(PhaseOption).phase in HOLDS and not arrived
    return holds or _life(reply) not in CANNOT_RUN


def _life(message: Message) -> GuestLife:
    """What the sender says of its guest; of one that it has yet to boot it says nothing."""
    found = message.find(Guest)
    return found.life if found else GuestLife.NONE
