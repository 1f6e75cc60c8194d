"""Leases at the manager: granted, ended, frozen, and released by an operator's word.

The end of a lease proves nothing: the guest may run on behind a broken path.  So it is an alarm,
and no more.  Not here: who attaches (manager.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmobility.engine.manager_move import Move, ReleaseRefused
from vmmobility.engine.manager_transitions import Happening, MoveState
from vmmobility.engine.outputs import Event
from vmmobility.wire.message import Message
from vmmobility.wire.registry import LIFETIME_UNIT_S
from vmmobility.wire.values import VmKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmobility.engine.binding_cache import Binding, BindingCache
    from vmmobility.engine.channel import Channel
    from vmmobility.engine.manager_protection_record import ProtectedVm
    from vmmobility.engine.manager_settings import ManagerSettings
    from vmmobility.engine.outputs import Outbox


class ManagerLeases:
    """Lifetimes; a part of ManagerEngine."""

    if TYPE_CHECKING:
        cache: BindingCache
        outbox: Outbox
        settings: ManagerSettings
        _current: dict[VmKey, Move]
        protected: dict[VmKey, ProtectedVm]
        _takes_over: Callable[[VmKey], bool]
        _fence_standby: Callable[[ProtectedVm, str, float], None]
        _in_switch: Callable[[VmKey], bool]
        channel: Channel
        _save_binding: Callable[[Binding], None]
        _redirect_previous: Callable[[Binding, float], None]
        _try_removal: Callable[[Binding, float], None]

        def _happen(self, move: Move, happening: Happening, now: float, why: str = "") -> None: ...

    def release(self, vm: VmKey, now: float, fenced: str = "") -> Binding:
        """Thaw a frozen binding; or, with `fenced`, take an operator's word that the host of this
        NVE is dead and stays so.  Raises ReleaseRefused.

        A fenced serving NVE: any NVE may attach the VM, until the serving one speaks again.  A
        fenced previous NVE is waited for no more.  A fenced end of a move: the move goes on
        without it.  A fenced standby that takes over: the primary serves on.
        """
        binding = self.cache.bindings.get(vm)
        if binding is None:
            raise ReleaseRefused("unknown-vm", f"no VM {vm} is registered", "see `vmmob vm list`")
        if not fenced:
            self._thaw(binding)
        elif vm in self._current:
            self._fence_in_move(binding, self._current[vm], fenced, now)
        elif self._takes_over(vm) and fenced == self.protected[vm].standby.nve_id:
            self._fence_standby(self.protected[vm], fenced, now)
        elif fenced in binding.previous:
            self._fence_previous(binding, fenced, now)
        else:
            self._fence_serving(binding, fenced, now)
        return binding

    def _thaw(self, binding: Binding) -> None:
        if not binding.frozen:
            nve = binding.nve.nve_id
            raise ReleaseRefused(
                "conflict",
                f"VM {binding.vm} is not frozen",
                f"if the host of {nve} is dead and fenced, say so: --fenced {nve}",
            )
        binding.frozen = False
        binding.takeovers = []
        self._save_binding(binding)
        self._lease_event("binding.thawed", binding)

    def _fence_serving(self, binding: Binding, fenced: str, now: float) -> None:
        vm, nve = binding.vm, binding.nve.nve_id
        if fenced != nve:
            raise ReleaseRefused("conflict", f"VM {vm} is at {nve}, not at {fenced}", "name it")
        if binding.ending:
            raise ReleaseRefused("conflict", f"VM {vm} is being removed", "wait for that")
        if not binding.released and (binding.expires_at or 0.0) > now:
            left = (binding.expires_at or 0.0) - now
            raise ReleaseRefused(
                "conflict",
                f"the lease of VM {vm} at {nve} lives for another {left:.0f} s",
                "stop it there; or fence the host and wait until the binding has expired",
            )
        self._release(binding)

    def _release(self, binding: Binding) -> None:
        if not binding.released:
            binding.released = True
            self._save_binding(binding)
            self._lease_event("binding.released", binding)

    def _fence_previous(self, binding: Binding, fenced: str, now: float) -> None:
        """Should it come back with its redirect, it asks whether that stands (manager_checks)."""
        del binding.previous[fenced]
        self._save_binding(binding)
        for subject in ("redirect", "removal"):
            peer = self.channel.peers.get(fenced)
            if peer is not None:
                self.channel.withdraw_subject(peer, (binding.vm, subject))
        self._redirect_previous(binding, now)
        self._try_removal(binding, now)

    def _fence_in_move(self, binding: Binding, move: Move, fenced: str, now: float) -> None:
        why = f"the host of {fenced} is fenced"
        if move.state is MoveState.ENDING_GUEST and fenced == move.destination.nve_id:
            self._happen(move, Happening.ACCEPTED, now)
        elif move.state is MoveState.TURNING_BACK and fenced == move.source.nve_id:
            self._happen(move, Happening.REFUSED, now, why)
            self._release(binding)
        elif move.relocates and fenced == move.source.nve_id:
            self._fence_serving(binding, fenced, now)
            self._happen(move, Happening.VOIDED, now, why)
        else:
            raise ReleaseRefused(
                "conflict",
                f"move {move.move_id} of VM {binding.vm} is {move.state.value} and does not wait "
                f"for {fenced}",
                f"give it up first: `vmmob move abort {move.move_id}`",
            )

    def _may_take(self, binding: Binding, node: str) -> bool:
        """Whether this node may attach the VM without a ticket: the NVE that has it, or any "only
        after external fencing or an operator's word" (design, invariant 9)."""
        if binding.ending or self._in_switch(binding.vm):
            return False
        return binding.nve.nve_id == node or binding.released

    def _extend(self, binding: Binding, message: Message, now: float) -> None:
        """Section 5: the final value of the lifetime is equal or less than the suggested value."""
        granted = min(message.lifetime * LIFETIME_UNIT_S, self.settings.lifetime_s)
        binding.lifetime_s = max(granted // LIFETIME_UNIT_S, 1) * LIFETIME_UNIT_S
        binding.expires_at = now + binding.lifetime_s
        binding.expired = binding.lost = binding.departed = False
        binding.heard, binding.sure = now, True
        if binding.released:
            # It was not fenced after all.
            binding.released = False
            self._save_binding(binding)

    def _end_leases(self, now: float) -> None:
        """No route changes and nobody may take anything (fail static): people are told."""
        for binding in self.cache.bindings.values():
            if not binding.expired and (binding.expires_at or 0.0) <= now:
                binding.expired = True
                self._lease_event("binding.expired", binding)

    def _lease_event(self, name: str, binding: Binding) -> None:
        detail = {"vm": binding.vm.vm_id, "vni": binding.vm.vni, "nve": binding.nve.nve_id}
        self.outbox.emit(Event(name, detail))
