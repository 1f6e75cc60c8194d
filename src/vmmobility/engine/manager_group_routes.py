"""What routers do for the members of load-shared groups (Section 7): equal-cost host routes.

The default routers of each member in service announce it, also where it is at home: beside another
member's host route the covering prefix would get nothing.  All other routers follow what they hear,
so packets go to the nearest member and, of several as near, to the one that their flow is hashed
to.  No router but a member's own leads to it: two that both spread over members far away would
send packets back and forth.  The other members hold the net while one moves or goes, so border
routers need not hold to anything, as they do for a VM that is alone (manager_holding.py).

A move: the destination's routers announce beside the source's; the source's announce no more, and
lead there on (KEEP) until all see the fabric lead to the destination or another member; then they
let go, and the switch follows.  Not here: who is in service (manager_groups.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmmobility.engine.fabric_record import Lead
from vmmobility.engine.group_record import Group, load_groups
from vmmobility.engine.manager_fabric import ManagerFabric
from vmmobility.engine.manager_gate import GATED
from vmmobility.engine.manager_move import Release
from vmmobility.engine.manager_transitions import MoveState
from vmmobility.wire.options import GroupMember, GroupOption, Option
from vmmobility.wire.registry import RouteState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmmobility.engine.binding_cache import Binding
    from vmmobility.engine.manager_move import Move
    from vmmobility.wire.values import Nve, VmKey

_S, _M = RouteState, MoveState
# In these the source's routers announce no more.
LEAVING = frozenset({_M.WITHDRAWING, _M.DELIVERING, _M.SWITCHING})


class ManagerGroupRoutes(ManagerFabric):
    """Routers of groups; a base of ManagerGroups."""

    groups: dict[str, Group]
    _groups_of: dict[VmKey, Group]

    def _load_groups(self, state: Mapping[str, Any]) -> None:
        self.groups = load_groups(state)
        self._groups_of = {vm: g for g in self.groups.values() for vm in g.members}

    def _mates(self, vm: VmKey) -> tuple[VmKey, ...]:
        """The VMs that may share its addresses."""
        group = self._groups_of.get(vm)
        return group.mates(vm) if group else ()

    def group_of(self, vm: VmKey) -> Group | None:
        """The group whose member it is."""
        return self._groups_of.get(vm)

    # ---- what each router should do --------------------------------------------------------------

    def _leads(self, binding: Binding | None) -> dict[str, Lead]:
        group = self._groups_of.get(binding.vm) if binding else None
        if binding is None or group is None or binding.ending:
            return super()._leads(binding)
        if binding.vm in group.out:
            return {}
        move = self._turning(binding)
        if move is not None and move.state is _M.ENDING_GUEST:
            return self._as_told(binding.vm)
        leads = self._group_leads(binding, move)
        mark: dict[str, Any] = {
            "group": group.name,
            "member": group.members[binding.vm],
            "others": self._others(group, binding.vm),
        }
        return {name: replace(lead, **mark) for name, lead in leads.items()}

    def _group_leads(self, binding: Binding, move: Move | None) -> dict[str, Lead]:
        serving = binding.nve
        theirs = self.routers_of(serving.nve_id)
        if move is None:
            leads = {r: Lead(_S.WATCH, serving) for r in self._watching(binding)}
            return leads | {r: Lead(_S.ANNOUNCE, serving) for r in theirs}
        ours, goal = self.routers_of(move.destination.nve_id), move.destination
        leads = {r: Lead(_S.WATCH, goal) for r in [*self._watching(binding), *theirs]}
        leads |= {r: Lead(_S.ANNOUNCE, goal) for r in ours}
        if move.state is _M.ANNOUNCING:
            leads |= {r: Lead(_S.ANNOUNCE, serving) for r in theirs}
        elif move.state in GATED and move.release < Release.ALL:
            leads |= {
                r: Lead(_S.ANNOUNCE, serving) if r in ours else Lead(_S.KEEP, goal, serving)
                for r in theirs
            }
        return leads

    def _others(self, group: Group, vm: VmKey) -> tuple[tuple[int, Nve], ...]:
        """Where else the fabric may lead: the other members in service, and to where they move.

        Not to where one is about to leave: two that move at once would let go of each other.
        """
        found = []
        for mate in group.mates(vm):
            binding = self.cache.bindings.get(mate)
            if binding is None or binding.ending or mate in group.out:
                continue
            move = self._turning(binding)
            ends = [binding.nve, move.destination] if move else [binding.nve]
            if move is not None and move.state in LEAVING:
                ends = [move.destination]
            found += [(group.members[mate], nve) for nve in ends]
        return tuple(found)

    def _group_options(self, lead: Lead) -> list[Option]:
        group = self.groups.get(lead.group)
        if group is None:
            return []
        marks = [GroupMember(number, nve) for number, nve in lead.others]
        return [GroupOption(group.epoch, lead.member, group.name), *marks]

    def _follow_routes(self, binding: Binding, now: float) -> None:
        group = self._groups_of.get(binding.vm)
        if group is None:
            super()._follow_routes(binding, now)
            return
        for vm in (binding.vm, *group.mates(binding.vm)):
            known = self.cache.bindings.get(vm)
            if known is not None:
                self._withdrawals.pop(vm, None)
                self._tell(vm, self._leads(known), known, now)

    # ---- the gate, and what the fabric means for redirects ---------------------------------------

    def _try_gate(self, move: Move, now: float) -> None:
        binding = self.cache.bindings.get(move.vm)
        if move.vm not in self._groups_of or binding is None:
            super()._try_gate(move, now)
            return
        if move.state not in GATED or not move.relaying:
            return
        if move.release is Release.HOLDING:
            move.release = Release.HELD  # nobody needs to
            self._save_move(move)
        if move.state is _M.ANNOUNCING:
            if not self._waits_for(move, with_sight=False) and self._is_net_spread(binding):
                self._routed(move, now)
            return
        if move.release < Release.ALL:
            if self._waits_for(move, with_sight=True):
                return
            move.release = Release.ALL
            self._save_move(move)
            self._follow_routes(binding, now)
        if not self._still_held(move) and not self._waits_for(move, with_sight=False):
            self._routed(move, now)

    def _is_direct(self, binding: Binding) -> bool | None:
        group = self._groups_of.get(binding.vm)
        if group is not None and binding.vm in group.out:
            return None  # nothing leads to it; its redirects stay as they are
        return super()._is_direct(binding)


__all__ = ["ManagerGroupRoutes"]
