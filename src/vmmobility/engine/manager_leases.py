"""Leases at the manager: granted, ended, and released by an operator's word.

The end of a lease proves nothing: the guest may run on behind a broken path.  So it is an alarm,
and no more.  Not here: who attaches (manager.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmobility.engine.manager_move import Move, ReleaseRefused
from vmmobility.engine.outputs import Event
from vmmobility.wire.message import Message
from vmmobility.wire.registry import LIFETIME_UNIT_S
from vmmobility.wire.values import VmKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmobility.engine.binding_cache import Binding, BindingCache
    from vmmobility.engine.manager import ManagerSettings
    from vmmobility.engine.outputs import Outbox


class ManagerLeases:
    """Lifetimes; a part of ManagerEngine."""

    if TYPE_CHECKING:
        cache: BindingCache
        outbox: Outbox
        settings: ManagerSettings
        _current: dict[VmKey, Move]
        _in_switch: Callable[[VmKey], bool]
        _save_binding: Callable[[Binding], None]

    def release(self, vm: VmKey, now: float) -> Binding:
        """An operator's word that the serving NVE's host is fenced: any NVE may now attach the VM,
        until the serving one speaks again.  Raises ReleaseRefused."""
        binding = self.cache.bindings.get(vm)
        if binding is None or binding.ending:
            raise ReleaseRefused("unknown-vm", f"no VM {vm} is registered", "see `vmmob vm list`")
        if vm in self._current:
            move = self._current[vm]
            raise ReleaseRefused(
                "conflict",
                f"VM {vm} is being moved to {move.destination.nve_id}",
                f"wait for move {move.move_id}",
            )
        if not binding.released and (binding.expires_at or 0.0) > now:
            left = (binding.expires_at or 0.0) - now
            raise ReleaseRefused(
                "conflict",
                f"the lease of VM {vm} at {binding.nve.nve_id} lives for another {left:.0f} s",
                "stop it there; or fence the host and wait until the binding has expired",
            )
        if not binding.released:
            binding.released = True
            self._save_binding(binding)
            self._lease_event("binding.released", binding)
        return binding

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
        binding.expired = False
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
