"""Protected VMs at the manager: people's commands, and what each state asks of whom.

Not here: states and records (manager_protection_record.py), when a standby takes over and what
nodes tell (manager_failover.py), the NVE's side (nve_protection.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from vmmobility.engine.checkpoint_schedule import DAY_S
from vmmobility.engine.manager_failover import SUBJECT, ManagerFailover
from vmmobility.engine.manager_move import nve_of_peer
from vmmobility.engine.manager_protection_record import (
    TABLE,
    Happened,
    ProtectedVm,
    ProtectionState,
    ProtectRefused,
    protected_key,
    protected_to_json,
)
from vmmobility.engine.outputs import Event
from vmmobility.wire.message import Message, definition_options
from vmmobility.wire.options import (
    Epoch,
    GuestStateOption,
    InterfaceGroup,
    Option,
    PhaseOption,
    Protection,
    Reason,
    ServingNve,
    Ticket,
    VmId,
)
from vmmobility.wire.registry import GuestState, Phase, Purpose, Role, Status
from vmmobility.wire.values import VmKey

if TYPE_CHECKING:
    from vmmobility.engine.binding_cache import Binding, BindingCache
    from vmmobility.engine.channel import Channel
    from vmmobility.engine.manager_move import Move
    from vmmobility.engine.manager_settings import ManagerSettings
    from vmmobility.engine.outputs import Outbox

END_WAIT_S = 10.0  # a standby whose primary knows that it is over is waited for so long
RETRY_S = 2.0  # a step that was refused is asked for again
LEAST_LEASE_S = 2.0
LEAST_INTERVAL_S = 1.0


class ManagerProtection(ManagerFailover):
    """Warm standbys; a part of ManagerEngine."""

    if TYPE_CHECKING:
        cache: BindingCache
        channel: Channel
        outbox: Outbox
        settings: ManagerSettings
        jitter: random.Random
        _current: dict[VmKey, Move]
        _new_epoch: Callable[[], int]
        _silent_since: Callable[[str], float | None]
        _is_cordoned: Callable[[str], bool]
        _mate_there: Callable[[VmKey, str], tuple[Status, str] | None]
        _lacks: Callable[[Binding, str], str]
        _off_record: Callable[..., str]
        _heed_epoch: Callable[[Message, float], None]
        _warm_follows: Callable[[ProtectedVm, float], None]
        _warm_renumbered: Callable[[ProtectedVm], None]

    # ---- people's commands ---------------------------------------------------------------------

    def protect(
        self,
        vm: VmKey,
        to: str,
        interval_s: float,
        now: float,
        *,
        fail_over: bool = True,
        lease_s: float | None = None,
        at_min: int | None = None,
    ) -> ProtectedVm:
        """Keep checkpoints of the VM at another NVE from now on.  Raises ProtectRefused.

        at_min: one a day, so many minutes after midnight UTC; interval_s is not looked at then
        """
        binding = self.cache.bindings.get(vm)
        if binding is None or binding.ending:
            raise ProtectRefused("unknown-vm", f"no VM {vm} is registered", "see `vmmob vm list`")
        peer = self.channel.peers.get(to)
        if peer is None or peer.role is not Role.NVE or not peer.endpoints:
            raise ProtectRefused("unknown-nve", f"no NVE {to} is known", "see `vmmob show nves`")
        self._check_protectable(binding, to)
        interval_s = interval_s if at_min is None else DAY_S
        lease = self.settings.protect_lease_s if lease_s is None else lease_s
        if lease < LEAST_LEASE_S or interval_s < LEAST_INTERVAL_S:
            raise ProtectRefused(
                "conflict",
                f"an interval of {interval_s:g} s, or a lease of {lease:g} s, is too short",
                f"give at least {LEAST_INTERVAL_S:g} s and {LEAST_LEASE_S:g} s",
            )
        protected = ProtectedVm(vm, nve_of_peer(peer), interval_s, fail_over, lease)
        protected.at_min = at_min
        self.protected[vm] = protected
        protected.lease_at = now
        self._enter_protection(protected, ProtectionState.PREPARING, now)
        return protected

    def _check_protectable(self, binding: Binding, to: str) -> None:
        vm = binding.vm
        if vm in self.protected:
            standby = self.protected[vm].standby.nve_id
            raise ProtectRefused(
                "conflict", f"VM {vm} has a standby at {standby}", "`vmmob vm unprotect` it first"
            )
        if vm in self._current:
            raise ProtectRefused("conflict", f"VM {vm} is being moved", "wait for its end")
        if binding.order is not None or binding.guest is not GuestState.RUNNING:
            raise ProtectRefused(
                "conflict",
                f"VM {vm} is {binding.guest.name.lower()}, or about to be something else",
                "`vmmob vm start` it, and wait until it runs",
            )
        if binding.nve.nve_id == to:
            raise ProtectRefused("conflict", f"VM {vm} runs at {to}", "choose another NVE")
        if binding.is_full(to):
            raise ProtectRefused(
                "conflict",
                f"{len(binding.previous)} previous NVEs of VM {vm} still redirect",
                "wait until they have drained, or protect it to one of them",
            )
        mate = self._mate_there(vm, to)
        if mate is not None:
            raise ProtectRefused("conflict", mate[1], "see `vmmob group list`")
        off_record = self._off_record(vm, binding.interfaces, to)
        if off_record:
            raise ProtectRefused("conflict", off_record, "see `vmmob show onboarded`")
        if self._is_cordoned(to):
            raise ProtectRefused(
                "conflict",
                f"{to} is cordoned: no VM is to come there",
                f"let VMs come again: `vmmob nve uncordon {to}`",
            )
        if self._silent_since(to) is not None:
            raise ProtectRefused(
                "conflict", f"{to} is dead: its heartbeats have ceased", "choose another NVE"
            )
        lack = self._lacks(binding, to)
        if lack:
            raise ProtectRefused(
                "conflict",
                f"{lack}, for VM {vm}",
                f"choose another NVE, or make room at {to}: see `vmmob show nves`",
            )

    def unprotect(self, vm: VmKey, now: float) -> ProtectedVm:
        """End it.  Raises ProtectRefused while the standby takes over."""
        protected = self._protected(vm)
        standby = protected.standby.nve_id
        if protected.state is not ProtectionState.ENDING and not self._protection_happens(
            protected, Happened.END, now
        ):
            raise ProtectRefused(
                "conflict",
                f"the standby of VM {vm} is taking over",
                f"wait until it serves, or has failed; if the host of {standby} is dead and "
                f"fenced: `vmmob vm release {vm} --fenced {standby}`",
            )
        return protected

    def _protected(self, vm: VmKey) -> ProtectedVm:
        if vm not in self.protected:
            raise ProtectRefused(
                "unknown-vm", f"VM {vm} is not protected", "see `vmmob show protected`"
            )
        return self.protected[vm]

    # ---- the machine ---------------------------------------------------------------------------

    def _protection_happens(self, protected: ProtectedVm, what: Happened, now: float) -> bool:
        """Whether it meant anything in this state."""
        becomes = TABLE.get((protected.state, what))
        if becomes is None:
            return False
        protected.handed = what is Happened.HANDED
        self._enter_protection(protected, becomes, now)
        return True

    def _enter_protection(self, protected: ProtectedVm, state: ProtectionState, now: float) -> None:
        vm, binding = protected.vm, self.cache.bindings.get(protected.vm)
        before, protected.state = protected.state, state
        if state in (ProtectionState.FAILED, ProtectionState.PREPARING):
            protected.fencing = False  # what its primary has agreed to was a lease of before
        if state is ProtectionState.TAKING_OVER and before is not state:
            protected.epoch = self._new_epoch()
            protected.ticket = self.jitter.getrandbits(128).to_bytes(16, "big")
        self._save_protected(protected)
        self._warm_follows(protected, now)
        self._protection_event(f"protection.{state.value}", protected, binding)
        self._protection_retry.pop(vm, None)
        for node in {protected.standby.nve_id, *([binding.nve.nve_id] if binding else [])}:
            if node in self.channel.peers:
                self.channel.withdraw_subject(self.channel.peers[node], (vm, SUBJECT))
        self._ask_protection(protected, now)

    def _ask_protection(self, protected: ProtectedVm, now: float) -> None:
        """What the state wants of others; repeated after a refusal, and after a restart."""
        binding = self.cache.bindings.get(protected.vm)
        state = protected.state
        options: list[Option]
        if binding is None and state is not ProtectionState.ENDING:
            self._protection_happens(protected, Happened.END, now)
        elif state is ProtectionState.ENDING:
            self._ask_to_end(protected, binding, now)
        elif binding is None:
            return
        elif state is ProtectionState.PREPARING:
            options = [
                Epoch(max(binding.epoch, protected.epoch)),  # it may have tried to take over
                PhaseOption(Phase.STANDBY),
                *(InterfaceGroup(i) for i in binding.interfaces),
                *definition_options(binding.definition),
                ServingNve(binding.nve),
                self._terms(protected),
            ]
            self._ask_node(protected, protected.standby.nve_id, options, now)
        elif state in (ProtectionState.ARMING, ProtectionState.FAILED) and protected.door:
            # FAILED: a primary that has handed its guest over, or paused it, serves on.
            options = [
                Epoch(binding.epoch),
                PhaseOption(Phase.SERVING),
                ServingNve(protected.standby),
                protected.door,
                self._terms(protected),
            ]
            self._ask_node(protected, binding.nve.nve_id, options, now)
        elif state is ProtectionState.HANDING:
            options = [Epoch(binding.epoch), PhaseOption(Phase.SWITCHED)]
            self._ask_node(protected, binding.nve.nve_id, options, now)
        elif state is ProtectionState.TAKING_OVER:
            options = [
                Epoch(protected.epoch),
                PhaseOption(Phase.ATTACHING),
                Ticket(protected.ticket),
                *((GuestStateOption(GuestState.RUNNING, True),) if binding.kept else ()),
            ]
            self._ask_node(protected, protected.standby.nve_id, options, now)

    def _ask_to_end(self, protected: ProtectedVm, binding: Binding | None, now: float) -> None:
        """The primary first: until it knows, it needs its lease; both until they have answered."""
        primary = binding.nve.nve_id if binding is not None else ""
        protected.told_primary = protected.told_primary or primary not in self.channel.peers
        standby = protected.standby.nve_id
        protected.told_standby |= standby not in self.channel.peers
        if protected.told_primary and not protected.told_standby:
            protected.ends_by = protected.ends_by or now + END_WAIT_S
        gone = protected.ends_by is not None and (
            now >= protected.ends_by or self._silent_since(standby) is not None
        )
        if protected.told_primary and (protected.told_standby or gone):
            # A standby that returns is told yet, by the request that is under way; or it asks.
            self._forget_protection(protected, telling=standby)
            return
        epoch = binding.epoch if binding is not None else protected.epoch
        options: list[Option] = [Epoch(epoch), PhaseOption(Phase.NONE)]
        if not protected.told_primary:
            self._ask_node(protected, primary, options, now)
        if not protected.told_standby:
            self._ask_node(protected, standby, options, now)
            if protected.ends_by is not None:
                self._protection_retry[protected.vm] = protected.ends_by

    def _ask_node(
        self, protected: ProtectedVm, node: str, options: list[Option], now: float
    ) -> None:
        peer = self.channel.peers.get(node)
        if peer is None:
            return
        state = protected.state
        self.channel.request(
            peer,
            Purpose.PROTECT,
            [VmId(protected.vm), *options],
            now,
            lambda reply, at: self._protection_replied(protected, state, node, reply, at),
            subject=(protected.vm, SUBJECT),
        )

    def _protection_replied(
        self,
        protected: ProtectedVm,
        state: ProtectionState,
        node: str,
        reply: Message,
        now: float,
    ) -> None:
        if protected.state is not state or self.protected.get(protected.vm) is not protected:
            return
        if state is ProtectionState.ENDING:
            self._end_replied(protected, node, reply, now)
            return
        if not reply.status.accepted:
            self._protection_refused(protected, reply, now)
            return
        if state is ProtectionState.PREPARING:
            self._note_door(protected, reply)
            self._protection_happens(protected, Happened.DOOR, now)
        elif state is ProtectionState.FAILED:
            self._protection_happens(protected, Happened.RETURNED, now)
        elif state is ProtectionState.ARMING:
            protected.fencing, protected.lease_at = protected.fail_over, now
            protected.trouble = ""
            self._protection_happens(protected, Happened.ARMED, now)
        elif state is ProtectionState.HANDING:
            self._note_checkpoint(protected, reply, now)
            self._protection_happens(protected, Happened.HANDED, now)
        # TAKING_OVER: the guest runs there, and its attach says so

    def _protection_refused(self, protected: ProtectedVm, reply: Message, now: float) -> None:
        words = reply.find(Reason)
        why = reply.status.name.lower().replace("_", "-") + (f": {words.text}" if words else "")
        protected.trouble = why
        state = protected.state
        if state is ProtectionState.HANDING:
            self._protection_happens(protected, Happened.KEPT, now)
        elif state is ProtectionState.TAKING_OVER and reply.status in (
            Status.HYPERVISOR_FAILURE,
            Status.DATA_PLANE_FAILURE,
            Status.ADDRESS_IN_USE,
        ):
            # Nothing runs there under this order, and nothing will.
            self._protection_happens(protected, Happened.REFUSED, now)
            binding = self.cache.bindings.get(protected.vm)
            self._protection_event("protection.lost", protected, binding)
        elif (
            state is ProtectionState.TAKING_OVER
            and reply.status is Status.WRONG_PHASE
            and self._serves_there(protected, reply)
        ):
            self._heed_epoch(reply, now)
            protected.serves = True  # its attach is let in
            self._protection_retry[protected.vm] = now + RETRY_S
        elif (
            state in (ProtectionState.PREPARING, ProtectionState.TAKING_OVER)
            and reply.status is Status.STALE_EPOCH
        ):
            # It has tried to take over, and that protection has been ended since; or it has acted
            # on an epoch that this manager does not know.  In both cases it runs nothing.
            self._heed_epoch(reply, now)
            protected.epoch = self._new_epoch()
            self._save_protected(protected)
            self._warm_renumbered(protected)
            self._protection_retry[protected.vm] = now
        else:
            self._protection_retry[protected.vm] = now + RETRY_S

    def _end_replied(self, protected: ProtectedVm, node: str, reply: Message, now: float) -> None:
        binding = self.cache.bindings.get(protected.vm)
        done = reply.status.accepted
        if done and binding is not None and node == binding.nve.nve_id:
            protected.told_primary = True
        if done and node == protected.standby.nve_id:
            protected.told_standby = True
        if done:
            self._ask_to_end(protected, binding, now)
        else:
            self._protection_retry[protected.vm] = now + RETRY_S

    def _forget_protection(self, protected: ProtectedVm, telling: str = "") -> None:
        self.protected.pop(protected.vm, None)
        for peer in self.channel.peers.values():
            if peer.node_id != telling:
                self.channel.withdraw_subject(peer, (protected.vm, SUBJECT))
        self._protection_retry.pop(protected.vm, None)
        self.outbox.record(protected_key(protected.vm), None)
        binding = self.cache.bindings.get(protected.vm)
        self._protection_event("protection.ended", protected, binding)

    def _terms(self, protected: ProtectedVm) -> Protection:
        interval, lease = round(protected.interval_s * 1000), round(protected.lease_s * 1000)
        return Protection(protected.fail_over, interval, lease, protected.token, protected.at_min)

    def _save_protected(self, protected: ProtectedVm) -> None:
        self.outbox.record(protected_key(protected.vm), protected_to_json(protected))

    def _protection_event(self, name: str, protected: ProtectedVm, binding: Binding | None) -> None:
        detail = {"vm": protected.vm.vm_id, "vni": protected.vm.vni}
        detail |= {"standby": protected.standby.nve_id, "checkpoint": protected.number}
        if binding is not None:
            detail["nve"] = binding.nve.nve_id
        if protected.trouble:
            detail["reason"] = protected.trouble
        self.outbox.emit(Event(name, detail))
