"""What routers do in a move that goes on: hold to the source until all see the fabric lead away.

Section 3 forbids tunnels between a VM and a host outside of the data centres.  So while the fabric
turns, such a host's packets must keep coming to the source by themselves: before anything is
announced or withdrawn the border routers, and the source's own, lead there whatever they hear.
They let go when all see the fabric lead to the destination: those next to it first, for one that
has let go sends what it gets that way.  What then comes early waits in the destination's queue.

Not here: what routers do once a move is over, or given up (manager_withdrawal.py), and what counts
as seen (manager_gate.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmobility.engine.fabric_record import Lead
from vmmobility.engine.manager_gate import GATED
from vmmobility.engine.manager_move import Release
from vmmobility.engine.manager_transitions import MoveState
from vmmobility.engine.manager_withdrawal import ManagerWithdrawal
from vmmobility.wire.registry import RouteState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmmobility.engine.binding_cache import Binding
    from vmmobility.engine.manager_move import Move

_S, _M = RouteState, MoveState


class ManagerHolding(ManagerWithdrawal):
    """Routers in a move; a base of ManagerFabric."""

    def _leads_in_move(self, binding: Binding, move: Move) -> dict[str, Lead]:
        """What every router should do for a VM on its way from its source."""
        source, destination = binding.nve, move.destination
        theirs, ours = self.routers_of(source.nve_id), self.routers_of(destination.nve_id)
        leads = self._leads_elsewhere(move)
        leads |= {r: Lead(_S.WATCH, destination) for r in [*self._watching(binding), *theirs]}
        hold, borders = Lead(_S.KEEP, destination, source), self._borders_in_move(move)
        leads |= borders
        if move.relaying and move.release > Release.HOLDING:
            there = _S.LEAD if move.home else _S.ANNOUNCE
            leads |= {r: Lead(there, destination) for r in ours}
        if hold not in borders.values() and (
            move.state not in GATED or move.release is Release.ALL
        ):
            return leads
        both = [r for r in theirs if r in ours]
        if binding.at_home:
            # A router of both leads to the source by the covering prefix until the switch.
            leads |= dict.fromkeys(theirs, hold)
            return leads | {r: Lead(_S.WATCH, source) for r in both}
        leads |= {r: Lead(_S.ANNOUNCE, source) for r in theirs}
        if move.state is not _M.ANNOUNCING and self._may_withdraw(move):
            leads |= {r: hold for r in theirs if r not in both}
        return leads

    def _borders_in_move(self, move: Move) -> dict[str, Lead]:
        """What border routers do but watch: hold until they are told to let go.  (One that is the
        destination's default router, too, does its part there.)"""
        ours = self.routers_of(move.destination.nve_id)
        borders = [r for r in self._border_routers() if r not in ours]
        hold = Lead(_S.KEEP, move.destination, move.source)
        near = self._border_routers(self._centres(move.destination))
        if move.release is Release.FORCED:
            return self._forced(move, borders, near)
        if move.state not in GATED or move.release >= Release.BORDERS:
            return {}
        return {r: hold for r in borders if r not in near or move.release < Release.NEAR}

    def _forced(self, move: Move, borders: Sequence[str], near: Sequence[str]) -> dict[str, Lead]:
        """By policy: border routers lead to the destination, once its own routers do; those of its
        data centre first, and the others hold until these do."""
        entry, ends = self._fabric.get(move.vm), (move.source, move.destination)
        led = entry is not None and self._is_routed_to(move.destination, at_home=move.home)
        leads = self._overrides(move.vm, move.destination, ends) if led else {}
        awaited = [r for r in near if r not in move.silent]
        turned = entry and all(self._border_turned(entry, r, ends[1], ends) for r in awaited)
        if move.state not in GATED and (turned or not led):
            return {r: lead for r, lead in leads.items() if r in borders}
        hold = Lead(_S.KEEP, move.destination, move.source)
        return {r: leads.get(r, hold) for r in borders}

    def _hold(self, move: Move, binding: Binding, now: float) -> bool:
        """Whether all hold that should: then, and not before, the destination's routers announce.
        One that does not hold yet, and hears of that, would send what it gets to one that does."""
        entry, ends = self._fabric.get(move.vm), (move.source, move.destination)
        told = entry.routers if entry else {}
        theirs = self.routers_of(move.source.nve_id)
        keeping = [told[r] for r in theirs if r in told and told[r].target == move.source]
        held = all(one.acknowledged for one in keeping)
        if not held or not self._is_overridden(move.vm, move.source, ends):
            return False
        move.release = Release.HELD
        self._save_move(move)
        self._follow_routes(binding, now)
        return True

    def _may_withdraw(self, move: Move) -> bool:
        """Whether the source's routers may announce no more: a withdrawal passes from border router
        to border router, and each would lead to one that has not heard of it yet."""
        ends = (move.source, move.destination)
        return move.release > Release.HELD or self._is_overridden(move.vm, move.source, ends)

    def _let_go(self, move: Move, binding: Binding, now: float) -> bool:
        """Have the routers let go one kind after the other; whether all have."""
        while not self._still_held(move):
            if move.release >= Release.ALL:
                return not self._waits_for(move, with_sight=False)
            move.release = Release(move.release + 1)
            self._save_move(move)
            self._follow_routes(binding, now)
        return False

    def _still_held(self, move: Move) -> list[str]:
        """Routers that were told to let go, and have not answered."""
        entry, ends = self._fabric.get(move.vm), (move.source, move.destination)
        return [
            name
            for name, told in (entry.routers.items() if entry else ())
            if told.lead and told.lead.state is _S.WATCH and told.held
            and not self._is_elsewhere(name, ends)
        ]  # fmt: skip


__all__ = ["ManagerHolding"]
