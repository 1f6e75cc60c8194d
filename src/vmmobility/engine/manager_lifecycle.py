"""VMs from their request to their end (Section 8.1): three steps in, then what there is.

1. A request is admitted, and its room offered for `offer_s`, or rejected with what was short.
2. Whoever asked confirms, perhaps for less; the NVE is told to bring it up.
3. From then on its state is what is seen of its binding, move, guest and NVE.

Records are durable before anybody hears of them; the same request again, by its client key, gets
the same answer.  Not here: where there is room (manager_admission.py), how an NVE brings a VM up
(manager_provision.py), orders to guests (manager_guests.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmmobility.engine.admission import not_a_vm_s, too_long
from vmmobility.engine.capacity import Resources
from vmmobility.engine.lifecycle_record import (
    Life,
    LifeRefused,
    VmRequest,
    life_from_json,
    life_key,
    life_to_json,
)
from vmmobility.engine.lifecycle_transitions import LIVE, TABLE, LifeEvent, LifeState
from vmmobility.engine.manager_admission import ManagerAdmission
from vmmobility.engine.manager_move import CommandRefused
from vmmobility.engine.outputs import Event
from vmmobility.wire.registry import GuestState, Role, Status
from vmmobility.wire.values import VmKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmobility.engine.binding_cache import Binding
    from vmmobility.engine.manager_move import Move
    from vmmobility.engine.manager_onboarding import Onboarded
    from vmmobility.engine.manager_protection_record import ProtectedVm
    from vmmobility.engine.manager_provision import Provision
    from vmmobility.engine.outputs import Outbox
    from vmmobility.wire.values import Interface

MOST_LIVES = 100_000


class ManagerLifecycle(ManagerAdmission):
    """Requests, offers, confirmations, and what follows; a part of ManagerEngine."""

    if TYPE_CHECKING:
        outbox: Outbox
        onboarded: dict[VmKey, Onboarded]
        protected: dict[VmKey, ProtectedVm]
        provisions: dict[VmKey, Provision]
        _warm: dict[VmKey, Move]
        provision: Callable[..., Provision]
        cancel_provision: Callable[[VmKey], None]
        onboard: Callable[..., Onboarded]
        offboard: Callable[[VmKey, float], None]
        _silent_since: Callable[[str], float | None]

    lives: dict[VmKey, Life]
    _by_client_key: dict[str, VmKey]

    def _load_lives(self, state: Mapping[str, Any], now: float) -> None:
        self.lives, self._by_client_key = {}, {}
        for key, value in state.items():
            kind, _, rest = key.partition("/")
            if kind == "life":
                vni, _, vm_id = rest.partition("/")
                life = life_from_json(VmKey(int(vni), vm_id), value)
                life.offer_until = now + self.settings.offer_s
                self.lives[life.vm] = life
                self._by_client_key[life.request.client_key] = life.vm

    def _resume_lives(self, now: float) -> None:
        """After a restart: what was confirmed is ordered; where it was already, that goes on."""
        for life in list(self.lives.values()):
            if life.state is LifeState.CONFIRMED:
                self._bring_up(life, now)
            self._follow(life, now)

    # ---- people --------------------------------------------------------------------------------

    def request_vm(self, asked: VmRequest, now: float) -> Life:
        """Steps 1 and 2: an offer of room, held for offer_s.  Raises LifeRefused."""
        known = self._same_request(asked, now)
        if known is not None:
            return known
        self._check_request(asked)
        life = Life(asked, "")
        life.nve_id = self._place_new(self._permitted(asked), now)
        life.offer_until = now + self.settings.offer_s
        self.lives[asked.vm] = life
        self._by_client_key[asked.client_key] = asked.vm
        self._become(life, LifeEvent.ADMITTED)
        return life

    def _same_request(self, asked: VmRequest, now: float) -> Life | None:
        """The life that this very request began; raises LifeRefused if its key, or its VM, is
        another's."""
        for vm in {asked.vm, self._by_client_key.get(asked.client_key, asked.vm)}:
            if vm in self.lives:
                self._follow(self.lives[vm], now)
        known = self.lives.get(self._by_client_key.get(asked.client_key, asked.vm))
        if known is not None and known.request.client_key == asked.client_key:
            if known.request.digest == asked.digest:
                return known
            raise LifeRefused(
                "conflict",
                f"client key {asked.client_key!r} was used for another request, of VM {known.vm}",
                "ask under a fresh key, or with the same body as before",
            )
        if known is not None or asked.vm in self.cache.bindings:
            at = self.place_of(asked.vm)
            raise LifeRefused(
                "conflict",
                f"VM-ID {asked.vm} is taken" + (f": it is at {at}" if at else ""),
                "choose another, or delete that one: `vmmob vm delete`",
            )
        return None

    def _check_request(self, asked: VmRequest) -> None:
        vm = asked.vm
        if vm.vni != 0:
            raise LifeRefused("conflict", "a non-zero VNI is not isolated yet", "leave vni out")
        if len(self.lives) >= MOST_LIVES:
            raise LifeRefused("no-room", f"{MOST_LIVES} VMs are on record", "delete some")
        if not any(i.prefixes for i in asked.interfaces):
            raise LifeRefused("conflict", f"VM {vm} has no address", "give it one")
        long = too_long(asked.interfaces, asked.definition)
        if long:
            raise LifeRefused("conflict", f"VM {vm}: {long}", "shorten its definition")
        wrong = not_a_vm_s(
            asked.interfaces, self.settings.shortest_ipv4, self.settings.shortest_ipv6
        )
        if wrong is not None:
            raise LifeRefused("conflict", f"no VM may have {wrong}", "choose another address")
        for node in asked.nves:
            peer = self.channel.peers.get(node)
            if peer is None or peer.role is not Role.NVE:
                raise LifeRefused("unknown-nve", f"no NVE {node} is known", "see `vmmob show nves`")
        self._check_addresses(vm, asked.interfaces)

    def _check_addresses(self, vm: VmKey, interfaces: tuple[Interface, ...]) -> None:
        mates = self._mates(vm)
        clash = self.cache.owner(vm, interfaces, mates)
        taken = [(clash[0], clash[1])] if clash else []
        wanted = [p for i in interfaces for p in i.prefixes]
        others = [
            *((other.vm, other.request.interfaces) for other in self.lives.values()),
            *((other.vm, other.interfaces) for other in self.onboarded.values()),
        ]
        for other, held in others:
            if other != vm and other not in mates and other.vni == vm.vni:
                prefixes = [p for i in held for p in i.prefixes]
                taken += [
                    (p, other)
                    for p in prefixes
                    if any(p.version == w.version and p.overlaps(w) for w in wanted)
                ]
        if taken:
            prefix, owner = taken[0]
            raise LifeRefused(
                "conflict",
                f"address in use: {prefix} belongs to VM {owner}",
                "give it an address of its own",
            )

    def _permitted(self, asked: VmRequest) -> VmRequest:
        """Strict mode: what is on record of the VM limits it.  Raises LifeRefused."""
        record = self.onboarded.get(asked.vm) if self.settings.strict else None
        if record is None:
            return asked
        on_record = {(i.mac, frozenset(i.prefixes)) for i in record.interfaces}
        if {(i.mac, frozenset(i.prefixes)) for i in asked.interfaces} != on_record:
            raise LifeRefused(
                "conflict",
                f"not permitted: VM {asked.vm} has other addresses on record",
                "see `vmmob show onboarded`",
            )
        allowed = tuple(n for n in record.nves if not asked.nves or n in asked.nves)
        if record.nves and not allowed:
            raise LifeRefused(
                "conflict",
                f"not permitted: VM {asked.vm} may be at {', '.join(record.nves)} only",
                "see `vmmob show onboarded`",
            )
        return replace(asked, nves=allowed) if record.nves else asked

    def confirm_vm(
        self, vm: VmKey, now: float, less: Resources | None = None, definition: bytes = b""
    ) -> Life:
        """Step 3: bring it up.  less, definition: the VM is adjusted downwards to that before.
        Said again, nothing changes.  Raises LifeRefused."""
        life = self._life(vm, now)
        if (life.state, LifeEvent.CONFIRM) not in TABLE:
            if less is None or less == life.request.resources:
                return life
            raise LifeRefused(
                "conflict",
                f"VM {vm} is {life.state.value}: its resources cannot be adjusted any more",
                "delete it and make a new request",
            )
        if life.state is LifeState.FAILED and vm in self.cache.bindings:
            raise LifeRefused(
                "conflict",
                f"VM {vm} is bound to {self.place_of(vm)}: {life.reason}",
                "it goes on when that NVE does; or release it, or `vmmob vm delete` it",
            )
        asked = self._adjusted(life, less, definition)
        self._check_addresses(vm, asked.interfaces)
        permitted = self._permitted(asked)
        if life.state is LifeState.OFFERED and self._still_fits(life.nve_id, asked, now):
            nve_id = life.nve_id
        else:
            nve_id = self._place_new(permitted, now)
        self.cancel_provision(vm)  # of an NVE that died over it: its leave is void
        life.request, life.nve_id, life.reason = asked, nve_id, ""
        self._become(life, LifeEvent.CONFIRM)
        self._bring_up(life, now)
        return life

    def _adjusted(self, life: Life, less: Resources | None, definition: bytes) -> VmRequest:
        if less is None or less == life.request.resources:
            return life.request
        offered = life.request.resources
        if (
            less.vcpus > offered.vcpus
            or less.memory_mib > offered.memory_mib
            or less.storage_mib > offered.storage_mib
        ):
            raise LifeRefused(
                "conflict",
                f"VM {life.vm} was offered {offered.vcpus} vCPUs, {offered.memory_mib} MiB of "
                f"memory, {offered.storage_mib} MiB of storage, and not more",
                "confirm so much or less; for more make a new request",
            )
        return replace(
            life.request,
            resources=less,
            threads=min(life.request.threads, less.vcpus),
            definition=definition or life.request.definition,
        )

    def delete_vm(self, vm: VmKey, now: float) -> Life:
        """End a VM that no NVE has bound; raises LifeRefused.  (One that is bound is deleted with
        its guest: manager_guests.py.)"""
        life = self._life(vm, now)
        if vm in self.cache.bindings:
            raise LifeRefused(
                "conflict", f"VM {vm} is at {self.place_of(vm)}", "delete it with its guest"
            )
        self.cancel_provision(vm)
        self._become(life, LifeEvent.DELETE)
        return life

    def _life(self, vm: VmKey, now: float) -> Life:
        life = self.lives.get(vm)
        if life is not None:
            self._follow(life, now)
            life = self.lives.get(vm)
        if life is None:
            raise LifeRefused(
                "unknown-vm",
                f"no request or offer of VM {vm} is on record",
                "offers end by themselves: make the request again, `vmmob vm create`",
            )
        return life

    # ---- the machine ---------------------------------------------------------------------------

    def _become(self, life: Life, event: LifeEvent, reason: str = "") -> None:
        """Let an event happen to it; what the table does not name changes nothing."""
        state = TABLE.get((life.state, event))
        if state is None:
            return
        before, life.state = life.state, state
        life.reason = reason
        if state is LifeState.DELETED:
            self._forget_life(life)
        else:
            self.outbox.record(life_key(life.vm), life_to_json(life))
        detail = {"vm": life.vm.vm_id, "vni": life.vm.vni, "nve": self.place_of(life.vm)}
        words = {"state": state.value, "before": before.value, "reason": reason or event.value}
        self.outbox.emit(Event("vm.state", {**detail, **words}))

    def _forget_life(self, life: Life) -> None:
        self.lives.pop(life.vm, None)
        self._by_client_key.pop(life.request.client_key, None)
        self.outbox.record(life_key(life.vm), None)
        if life.onboarded and self.onboarded.pop(life.vm, None) is not None:
            self.outbox.record(f"onboarded/{life.vm.vni}/{life.vm.vm_id}", None)

    def _bring_up(self, life: Life, now: float) -> None:
        """The NVE is told; C: how it ends comes to _provisioned or _provision_failed."""
        asked = life.request
        try:
            if self.settings.strict and life.vm not in self.onboarded:
                self.onboard(life.vm, asked.interfaces, asked.nves, now)
                life.onboarded = True
            self.provision(life.vm, life.nve_id, asked.interfaces, asked.definition, now)
        except CommandRefused as refused:
            self._become(life, LifeEvent.REFUSED, refused.message)
        else:
            self._become(life, LifeEvent.ORDERED)

    def _provisioned(self, going: Provision, now: float) -> None:
        self._follow_vm(going.vm, now)

    def _provision_failed(self, going: Provision, status: Status, why: str, now: float) -> None:
        life = self.lives.get(going.vm)
        if life is None:
            return
        life.reason = f"{going.nve_id}: {why}"
        if going.vm not in self.cache.bindings:  # else it fails when that has gone
            self._become(life, LifeEvent.REFUSED, life.reason)

    def _guest_changed(self, binding: Binding, now: float) -> None:
        self._follow_vm(binding.vm, now)

    # ---- what there is -------------------------------------------------------------------------

    def _is_protected(self, vm: VmKey) -> bool:
        """Whether a standby is kept for it."""
        return vm in self.protected

    def life_state(self, vm: VmKey, now: float) -> str:
        """Where a VM's life stands now; "" if it has no request on record."""
        life = self.lives.get(vm)
        if life is None:
            return ""
        seen = self._seen(life, now)
        state = TABLE.get((life.state, seen[0])) if seen else None
        return (state or life.state).value

    def _follow_vm(self, vm: VmKey, now: float) -> None:
        life = self.lives.get(vm)
        if life is not None:
            self._follow(life, now)

    def _follow(self, life: Life, now: float) -> None:
        seen = self._seen(life, now)
        if seen is not None:
            self._become(life, *seen)

    def _follow_lives(self, now: float) -> None:
        """Told of time, once a second."""
        for life in list(self.lives.values()):
            self._follow(life, now)

    def _seen(self, life: Life, now: float) -> tuple[LifeEvent, str] | None:
        """What is seen of a VM, and why it is so where that is not plain."""
        vm, binding = life.vm, self.cache.bindings.get(life.vm)
        if life.state is LifeState.OFFERED:
            over = life.offer_until <= now
            return (LifeEvent.EXPIRED, "") if over else None
        if binding is None:
            if life.state in LIVE:
                return LifeEvent.GONE, ""
            return self._seen_unbound(life)
        return self._seen_bound(vm, binding, now)

    def _seen_unbound(self, life: Life) -> tuple[LifeEvent, str] | None:
        if life.state is not LifeState.PROVISIONING:
            return None
        if life.vm not in self.provisions:
            return LifeEvent.REFUSED, life.reason or f"{life.nve_id} has given it up"
        if self._silent_since(life.nve_id) is not None:
            return LifeEvent.IS_LOST, f"{life.nve_id} is dead: its heartbeats have ceased"
        return None

    def _seen_bound(self, vm: VmKey, binding: Binding, now: float) -> tuple[LifeEvent, str] | None:
        nve_id = binding.nve.nve_id
        if binding.ending:
            return None  # it will be gone
        if vm in self._current or vm in self._warm:
            return LifeEvent.MOVES, ""
        if self._silent_since(nve_id) is not None:
            return LifeEvent.IS_LOST, f"{nve_id} is dead: its heartbeats have ceased"
        if binding.lost:
            return LifeEvent.IS_LOST, f"{nve_id} has no such guest"
        if binding.expired:
            return LifeEvent.IS_LOST, f"{nve_id} has not refreshed its binding"
        if vm in self.provisions:
            return None  # its NVE has not said yet that it runs
        if binding.guest is GuestState.SUSPENDED:
            return LifeEvent.IS_SUSPENDED, ""
        if binding.guest is GuestState.STOPPED:
            return LifeEvent.IS_STOPPED, ""
        return (LifeEvent.IS_PROTECTED if self._is_protected(vm) else LifeEvent.RUNS), ""
