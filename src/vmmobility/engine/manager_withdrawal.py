"""The order in which host routes are withdrawn, so that no packet goes round (Section 7.3).

A withdrawal passes from border router to border router, and each would send packets to one that
has not heard of it yet.  So first the routers of the serving NVE lead to it, then the border
routers lead there themselves, its own data centre's before the others, and only then do the old
NVE's routers announce no more.  They go on forwarding (KEEP) to the old NVE, which redirects, until
all see the fabric lead to the serving one.
Not here: when a move that goes on withdraws (manager_fabric.py), what counts as seen
(manager_gate.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from vmmobility.engine.fabric_record import Lead
from vmmobility.engine.manager_gate import ManagerGate
from vmmobility.engine.outputs import Event
from vmmobility.wire.registry import RouteState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from vmmobility.engine.binding_cache import Binding
    from vmmobility.engine.fabric_record import FabricEntry
    from vmmobility.engine.manager_move import Move
    from vmmobility.wire.values import Nve, VmKey

LINGER_S = 1.0  # what is still on its way when all routers are first seen direct has come by then
NEVER = float("inf")
_S = RouteState


class Step(Enum):
    """How far a withdrawal has come."""

    LEADING = "the serving NVE's routers and the border routers lead there"
    KEEPING = "the others announce no more, and go on forwarding"
    OVER = "whatever has not turned by now is not waited for"


@dataclass(slots=True)
class Withdrawal:
    """One VM's turn to where it is (not durable; times in monotonic seconds).

    due:     when the step is waited for no longer
    settles: when all routers will have been direct for long enough
    late:    people were told that a router does not turn
    """

    due: float
    step: Step = Step.LEADING
    settles: float = NEVER
    late: bool = False

    @property
    def next_timer(self) -> float:
        return NEVER if self.step is Step.OVER else min(self.due, self.settles)


class ManagerWithdrawal(ManagerGate):
    """What routers do for a VM of which no move turns them; a base of ManagerFabric."""

    if TYPE_CHECKING:
        _is_at_rest: Callable[[Binding], bool]

    _withdrawals: dict[VmKey, Withdrawal]
    _withdrawals_at: float  # no step is due before (it may be later)

    def _watching(self, binding: Binding) -> list[str]:
        """The routers by which packets from elsewhere come, wherever the VM is."""
        home = self.routers_of(binding.home.nve_id) if binding.home else []
        return [*self._border_routers(), *home]

    def _leads_at_rest(self, binding: Binding) -> dict[str, Lead]:
        """What every router does while the VM stays where it is - once those that lead elsewhere,
        after a move that was given up or one that nobody announced, have turned."""
        serving, stale = binding.nve, self._stale(binding)
        withdrawal = self._withdrawals.get(binding.vm)
        if not (stale or withdrawal) or self._step(binding.vm) is Step.OVER:
            return self._leads_when_settled(binding)
        leads = {r: Lead(_S.WATCH, serving) for r in self._watching(binding)} | stale
        if self._is_routed_to(serving, at_home=binding.at_home):
            leads |= self._overrides(binding.vm, serving, self._ends(binding, stale))
            if self._step(binding.vm) is Step.KEEPING:
                leads |= {r: Lead(_S.LEAD, serving) for r in self._border_routers()}
        if self._step(binding.vm) is Step.KEEPING:
            leads |= self._keeping(serving, stale)
        return leads | self._own(binding)

    def _step(self, vm: VmKey) -> Step:
        withdrawal = self._withdrawals.get(vm)
        return withdrawal.step if withdrawal else Step.LEADING

    def _is_routed_to(self, nve: Nve, *, at_home: bool) -> bool:
        """Whether the fabric will ever lead to an NVE: its routers announce, or the covering prefix
        leads there.  Else its VM is reached by its home's NVE."""
        return at_home or bool(self.routers_of(nve.nve_id))

    def _own(self, binding: Binding) -> dict[str, Lead]:
        """The serving NVE's routers."""
        there = _S.LEAD if binding.at_home else _S.ANNOUNCE
        return {r: Lead(there, binding.nve) for r in self.routers_of(binding.nve.nve_id)}

    def _keeping(self, serving: Nve, stale: Mapping[str, Lead]) -> dict[str, Lead]:
        """The default routers of NVEs that have the VM no more."""
        return {
            name: Lead(_S.KEEP, serving, lead.target)
            for name, lead in stale.items()
            if lead.target and name in self.routers_of(lead.target.nve_id)
        }

    @staticmethod
    def _ends(binding: Binding, stale: Mapping[str, Lead]) -> list[Nve]:
        return [binding.nve, *(lead.target for lead in stale.values() if lead.target)]

    def _leads_when_settled(self, binding: Binding) -> dict[str, Lead]:
        if binding.at_home:
            return {}  # the covering prefix leads there: it costs no route anywhere
        serving = binding.nve
        leads = {r: Lead(_S.WATCH, serving) for r in self._watching(binding)}
        return leads | {r: Lead(_S.ANNOUNCE, serving) for r in self.routers_of(serving.nve_id)}

    def _stale(self, binding: Binding) -> dict[str, Lead]:
        """Routers that were told to lead to an NVE that does not have the VM, and whose turn it is
        not anyway, as a router of the one that has."""
        entry, serving = self._fabric.get(binding.vm), binding.nve.nve_id
        told = self._sites.keys() & entry.routers.keys() if entry else ()
        leads = {r: entry.routers[r].lead for r in sorted(told)} if entry else {}
        ours = self.routers_of(serving)
        return {
            name: lead
            for name, lead in leads.items()
            if lead and lead.target and lead.target.nve_id != serving and name not in ours
        }

    def _leads_elsewhere(self, move: Move) -> dict[str, Lead]:
        """In a move: routers that had not turned yet when it began, and lead to neither end.  They
        are left as they are, but for what their own time brings."""
        ends = (move.source.nve_id, move.destination.nve_id)
        entry, step = self._fabric.get(move.vm), self._step(move.vm)
        told = entry.routers.items() if entry and step is not Step.OVER else ()
        leads = {
            name: one.lead
            for name, one in told
            if one.lead and one.lead.target and one.lead.target.nve_id not in ends
        }
        return leads | (self._keeping(move.source, leads) if step is Step.KEEPING else {})

    # ---- border routers lead themselves ----------------------------------------------------------

    def _overrides(self, vm: VmKey, towards: Nve, ends: Sequence[Nve]) -> dict[str, Lead]:
        """Border routers that lead to that NVE, whatever they hear: once its own routers do, those
        of its data centre, and then all others.  ends: the NVEs between which the fabric turns; a
        router of both turns last."""
        wanted = Lead(_S.LEAD, towards)
        entry, names = self._fabric.get(vm), self._border_routers()
        told = entry.routers if entry else {}
        chosen = {r for r in names if r in told and told[r].target == towards}
        others = {r for nve in ends if nve != towards for r in self.routers_of(nve.nve_id)}
        if entry is not None and self._own_turned(entry, towards, others):
            near = self._border_routers(self._centres(towards))
            turned = all(self._border_turned(entry, r, towards, ends) for r in near)
            chosen |= set(names if turned else near)
        return {r: wanted for r in names if r in chosen}

    def _is_overridden(self, vm: VmKey, towards: Nve, ends: Sequence[Nve]) -> bool:
        """Whether the border routers of both ends lead to that NVE: then others may withdraw."""
        entry = self._fabric.get(vm)
        centres = {centre for nve in ends for centre in self._centres(nve)}
        counted = [r for r in self._border_routers() if self._sites[r].dc in {"", *centres}]
        if entry is None:
            return not counted
        return all(self._border_turned(entry, name, towards, ends) for name in counted)

    def _own_turned(self, entry: FabricEntry, towards: Nve, but: Collection[str] = ()) -> bool:
        """Whether an NVE's own routers lead to it."""
        ours = [r for r in self.routers_of(towards.nve_id) if r not in but]
        return all(self._has_turned(entry, r, towards) for r in ours)

    def _border_turned(
        self, entry: FabricEntry, name: str, towards: Nve, ends: Sequence[Nve]
    ) -> bool:
        """Whether a border router leads to that NVE - or is the default router of an end, and does
        its part there."""
        own = any(name in self.routers_of(nve.nve_id) for nve in ends)
        return own or self._has_turned(entry, name, towards)

    @staticmethod
    def _has_turned(entry: FabricEntry, name: str, towards: Nve) -> bool:
        told = entry.routers.get(name)
        return told is not None and told.acknowledged and told.target == towards

    # ---- time ------------------------------------------------------------------------------------

    def _begin_withdrawal(self, vm: VmKey, now: float) -> Withdrawal:
        """The fabric is to turn to where the VM is."""
        begun = self._withdrawals[vm] = Withdrawal(now + self.settings.gate_s)
        self._withdrawals_at = min(self._withdrawals_at, begun.due)
        return begun

    def _advance_withdrawal(self, binding: Binding, now: float) -> bool:
        """Whether the routers of a VM may be told of a next step."""
        entry, stale = self._fabric.get(binding.vm), self._stale(binding)
        withdrawal = self._withdrawals.get(binding.vm)
        over = withdrawal is None or withdrawal.step is Step.OVER
        if entry is None or binding.ending or (over and not stale):
            self._withdrawals.pop(binding.vm, None)
            return False
        if not self._is_at_rest(binding):
            return False
        if withdrawal is None:
            withdrawal = self._begin_withdrawal(binding.vm, now)
        serving, ends = binding.nve, self._ends(binding, stale)
        routed = self._is_routed_to(serving, at_home=binding.at_home)
        if withdrawal.step is Step.LEADING:
            turned = self._own_turned(entry, serving)
            if routed and not (turned and self._is_overridden(binding.vm, serving, ends)):
                return False
            withdrawal.step, withdrawal.due = Step.KEEPING, now + self.settings.gate_s
            return True
        if self._unready(entry, serving, ends, with_sight=routed):
            withdrawal.settles = NEVER
        else:
            withdrawal.settles = min(withdrawal.settles, now + LINGER_S)
            self._withdrawals_at = min(self._withdrawals_at, withdrawal.settles)
        return False

    def _withdrawals_timer(self, now: float) -> None:
        if now < self._withdrawals_at:
            return
        for vm in [vm for vm, w in self._withdrawals.items() if w.next_timer <= now]:
            self._withdrawal_due(vm, now)
        timers = [w.next_timer for w in self._withdrawals.values()]
        self._withdrawals_at = min(timers, default=NEVER)

    def _withdrawal_due(self, vm: VmKey, now: float) -> None:
        """A router that does not answer is waited for no longer than a move would - but for one
        that may announce still: what protects others from that stays until it has answered."""
        binding, entry = self.cache.bindings.get(vm), self._fabric.get(vm)
        if binding is None or entry is None:
            del self._withdrawals[vm]
            return
        withdrawal, stale = self._withdrawals[vm], self._stale(binding)
        leading, settled = withdrawal.step is Step.LEADING, withdrawal.settles <= now
        if not settled and not withdrawal.late:
            withdrawal.late = True
            ends = self._ends(binding, stale)
            waits = ", ".join(self._unready(entry, binding.nve, ends, with_sight=not leading))
            detail = {"vm": vm.vm_id, "vni": vm.vni, "routers": waits}
            self.outbox.emit(Event("withdrawal.late", detail))
        silent = any(not entry.routers[name].acknowledged for name in stale)
        if leading:
            withdrawal.step = Step.KEEPING
        elif settled or not silent:
            withdrawal.step = Step.OVER
        withdrawal.due, withdrawal.settles = now + self.settings.gate_s, NEVER
        self._follow_routes(binding, now)
