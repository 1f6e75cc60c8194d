"""Where a VM may be moved to, and which of these NVEs is best: the one with the fewest VMs.

Cordoned and silent NVEs, those that its record does not name and those whose hosts have no room
for it are left out.

Not here: when VMs are moved (manager_drains.py), what room hosts have (manager_admission.py).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from vmmobility.engine.manager_cordons import ManagerCordons
from vmmobility.wire.registry import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmmobility.engine.binding_cache import Binding, BindingCache
    from vmmobility.engine.manager_move import Move
    from vmmobility.engine.manager_onboarding import Onboarded
    from vmmobility.wire.registry import Status
    from vmmobility.wire.values import Interface, VmKey

TOLD = 4  # of so many NVEs it is said why they cannot take a VM


class ManagerPlacing(ManagerCordons):
    """Placement of VMs; a part of ManagerEngine."""

    if TYPE_CHECKING:
        cache: BindingCache
        onboarded: dict[VmKey, Onboarded]
        _current: dict[VmKey, Move]
        _off_record: Callable[[VmKey, Sequence[Interface], str], str]
        _move_over_limit: Callable[[Binding, str], str]
        _silent_since: Callable[[str], float | None]
        _mate_there: Callable[[VmKey, str], tuple[Status, str] | None]
        _lacks: Callable[[Binding, str], str]

    def _loads(self) -> Counter[str]:
        """How many VMs each NVE has, or is about to have."""
        loads = Counter(binding.nve.nve_id for binding in self.cache.bindings.values())
        for move in self._current.values():
            loads[move.destination.nve_id] += 1
        return loads

    def _place(
        self, binding: Binding, to: Sequence[str], tried: Sequence[str], loads: Counter[str]
    ) -> tuple[str | None, str]:
        """The best NVE for a VM, or None and why there is none.

        to: the only ones that are asked for, none named is any; tried: where it did not succeed,
        taken only where no other is left, the oldest failure first
        """
        fit, unfit = [], []
        for nve_id, peer in self.channel.peers.items():
            if peer.role is not Role.NVE or nve_id == binding.nve.nve_id:
                continue
            if to and nve_id not in to:
                continue
            why = self._unfit(binding, nve_id)
            if why:
                unfit.append(why)
            else:
                rank = tried.index(nve_id) + 1 if nve_id in tried else 0
                fit.append((rank, loads[nve_id], nve_id))
        if fit:
            return min(fit)[2], ""
        more = f", and {len(unfit) - TOLD} more" if len(unfit) > TOLD else ""
        because = "; ".join(unfit[:TOLD]) + more
        return None, f"no NVE can take it: {because or 'there is no other'}"

    def _unfit(self, binding: Binding, nve_id: str) -> str:
        """Why a VM cannot go there now, or the empty string."""
        vm = binding.vm
        peer = self.channel.peers[nve_id]
        if not peer.endpoints:
            return f"{nve_id} has no address"
        if self._is_cordoned(nve_id):
            return f"{nve_id} is cordoned"
        if self._silent_since(nve_id) is not None:
            return f"{nve_id} is silent"
        record = self.onboarded.get(vm)
        if record is not None and record.nves and nve_id not in record.nves:
            return f"{nve_id} is not on its record"
        if binding.is_full(nve_id):
            return "too many previous NVEs still redirect it"
        mate = self._mate_there(vm, nve_id)
        if mate is not None:
            return mate[1]
        return (
            self._lacks(binding, nve_id)
            or self._off_record(vm, binding.interfaces, nve_id)
            or self._move_over_limit(binding, nve_id)
        )
