"""Planned warm moves as moves that people can follow: `vmmob move VM NVE --mode warm`.

What is done is the protection's business (manager_protection.py): a last checkpoint with the guest
stopped, then the order to the standby.  The move is the record of that, with its phases and its
figure; a manager that restarts finds both as they were, for both are in one batch.

    requested, handing (the primary takes its last checkpoint), taking-over (the standby is told to
    run it), registered (it runs there), redirected, done

Not here: moves that copy (manager_moves.py), standbys that take over unasked (manager_failover.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from vmmobility.engine.manager_move import Move, MoveRefused
from vmmobility.engine.manager_protection_record import (
    TABLE,
    Happened,
    ProtectedVm,
    ProtectionState,
)
from vmmobility.engine.manager_transitions import MoveState
from vmmobility.wire.move_terms import NO_TERMS, MoveTerms
from vmmobility.wire.values import VmKey

if TYPE_CHECKING:
    from vmmobility.engine.binding_cache import Binding, BindingCache
    from vmmobility.engine.manager_settings import ManagerSettings

LOST_IN_IT = "its NVE was lost in the move: its standby takes over from the last whole checkpoint"
UNANSWERED = "a previous NVE has not yet answered"


class ManagerWarm:
    """The records of warm moves; a part of ManagerEngine."""

    if TYPE_CHECKING:
        cache: BindingCache
        settings: ManagerSettings
        jitter: random.Random
        protected: dict[VmKey, ProtectedVm]
        moves: dict[str, Move]
        _protection_happens: Callable[[ProtectedVm, Happened, float], bool]
        _phase: Callable[[Move, str, float], None]
        _save_move: Callable[[Move], None]
        _forget_old_moves: Callable[[], None]
        _is_cordoned: Callable[[str], bool]

    _warm: dict[VmKey, Move]

    def _start_warm_move(
        self, vm: VmKey, to: str, now: float, wall_ns: int, terms: MoveTerms
    ) -> Move:
        """Raises MoveRefused."""
        binding, protected = self.cache.bindings.get(vm), self.protected.get(vm)
        if binding is None or binding.ending:
            raise MoveRefused("unknown-vm", f"no VM {vm} is registered", "see `vmmob vm list`")
        if protected is None or protected.standby.nve_id != to:
            raise MoveRefused(
                "conflict",
                f"VM {vm} has no standby at {to}",
                f"`vmmob vm protect {vm} --to {to}` first; without one it is moved --mode hot",
            )
        if terms != NO_TERMS:
            what = f"VM {vm} moves warm, and what moves by a checkpoint has no terms"
            raise MoveRefused("bad-terms", what, "leave them out, or move it --mode hot")
        if self._is_cordoned(to):
            raise MoveRefused(
                "conflict",
                f"{to} is cordoned: no VM is moved there",
                f"let VMs come again: `vmmob nve uncordon {to}`",
            )
        if vm in self._warm or (protected.state, Happened.HAND_OVER) not in TABLE:
            raise MoveRefused(
                "conflict",
                f"the protection of VM {vm} is {protected.state.value}",
                "wait until it is active: see `vmmob show protected`",
            )
        move = Move(
            f"{self.jitter.getrandbits(48):012x}",
            vm,
            binding.nve,
            protected.standby,
            b"",
            0,
            MoveState.COPYING,
            started_ns=wall_ns,
            began=now,
            mode="warm",
        )
        self.moves[move.move_id] = self._warm[vm] = move
        self._phase(move, "requested", now)
        self._protection_happens(protected, Happened.HAND_OVER, now)
        return move

    def _warm_follows(self, protected: ProtectedVm, now: float) -> None:
        """Its protection has come to another state."""
        move, state = self._warm.get(protected.vm), protected.state
        if move is None or move.state is MoveState.REDIRECTING:
            return
        if state is ProtectionState.HANDING:
            self._phase(move, "handing", now)
            self._save_move(move)
        elif state is ProtectionState.TAKING_OVER and not protected.handed:
            # That is a fail-over, and what a planned move promises is not kept.
            move.reason = LOST_IN_IT
            self._end_warm(move, MoveState.ABORTED, now)
        elif state is ProtectionState.TAKING_OVER:
            move.state, move.epoch = MoveState.SWITCHING, protected.epoch
            self._phase(move, "taking-over", now)
            self._save_move(move)
        else:
            move.reason = protected.trouble or move.reason or f"it is {state.value}"
            self._end_warm(move, MoveState.ABORTED, now)

    def _warm_renumbered(self, protected: ProtectedVm) -> None:
        """The order to its standby has another epoch."""
        move = self._warm.get(protected.vm)
        if move is not None and move.state is MoveState.SWITCHING:
            move.epoch = protected.epoch
            self._save_move(move)

    def _warm_registered(self, binding: Binding, protected: ProtectedVm, now: float) -> None:
        """The standby has attached the guest that runs there."""
        move = self._warm.get(binding.vm)
        if move is None or move.state is MoveState.REDIRECTING:
            return
        move.state, move.deadline = MoveState.REDIRECTING, now + self.settings.step_s
        self._phase(move, "registered", now)
        if protected.taken_at is not None:
            # From the moment of the last checkpoint; as the manager hears of both ends.
            move.measured["stopped_ms"] = round((now - protected.taken_at) * 1000, 3)
        self._save_move(move)
        self._warm_settled(binding, now)

    def _warm_settled(self, binding: Binding, now: float) -> None:
        """A previous NVE has confirmed its redirect, or needs none any more."""
        move = self._warm.get(binding.vm)
        if move is None or move.state is not MoveState.REDIRECTING or binding.unacknowledged:
            return
        self._phase(move, "redirected", now)
        self._end_warm(move, MoveState.DONE, now)

    def _end_warm(self, move: Move, state: MoveState, now: float) -> None:
        move.state, move.deadline = state, None
        self._phase(move, move.state.value, now)
        self._save_move(move)
        del self._warm[move.vm]
        self._forget_old_moves()

    def _next_warm_timer(self) -> float | None:
        due = (move.deadline for move in self._warm.values())
        return min((at for at in due if at is not None), default=None)

    def _warm_timer(self, now: float) -> None:
        for move in list(self._warm.values()):
            if move.deadline is not None and move.deadline <= now:
                move.reason = f"{move.reason}; {UNANSWERED}" if move.reason else UNANSWERED
                self._end_warm(move, MoveState.DONE, now)

    def _resume_warm(self, now: float) -> None:
        """After a restart.  The protection, which goes on, takes its move with it."""
        for move in list(self._warm.values()):
            if move.state is MoveState.REDIRECTING:
                move.deadline = now + self.settings.step_s
            elif move.vm not in self.protected:
                move.reason = move.reason or "the VM is not protected any more"
                self._end_warm(move, MoveState.ABORTED, now)
