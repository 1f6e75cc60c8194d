"""Cold moves at the manager: of a VM that does not run, or is suspended for it (draft Section 2).

A move takes a guest as it is: one that is suspended, or stopped, stays so where it comes to be.
One that runs is suspended first, and let go on once its new NVE has registered it, or, if the move
fails, where it is.  The steps are a hot move's (manager_moves.py); these are the two at its ends.

Not here: orders that people give (manager_guests.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmobility.engine.binding_cache import Binding, GuestOrder
from vmmobility.engine.manager_move import Move, MoveRefused
from vmmobility.engine.manager_transitions import Happening, MoveState
from vmmobility.wire.move_terms import MoveTerms
from vmmobility.wire.options import GuestStateOption, MobilityKind, Option
from vmmobility.wire.registry import GuestState, Mobility
from vmmobility.wire.values import VmKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmobility.engine.binding_cache import BindingCache

MODES = ("hot", "cold")
KINDS = {"hot": Mobility.HOT, "warm": Mobility.WARM, "cold": Mobility.COLD}


class ManagerCold:
    """What cold moves do besides; a part of ManagerEngine."""

    if TYPE_CHECKING:
        cache: BindingCache
        _current: dict[VmKey, Move]
        _new_epoch: Callable[[], int]
        _save_binding: Callable[[Binding], None]
        _save_move: Callable[[Move], None]
        _send_guest_order: Callable[[Binding, float], None]
        _redirects_settled: Callable[[Binding, float], None]

        def _happen(self, move: Move, happening: Happening, now: float, why: str = "") -> None: ...
        def _phase(self, move: Move, name: str, now: float) -> None: ...

    @staticmethod
    def _mode_of(binding: Binding, mode: str, terms: MoveTerms) -> str:
        """The mode of a move: as it was asked for, else by the guest's state.  MoveRefused."""
        vm, order, state = binding.vm, binding.order, binding.guest.name.lower()
        if order is not None:
            what = f"VM {vm} is to be {order.state.name.lower()}, which is not done yet"
            raise MoveRefused("conflict", what, "wait for that: see `vmmob vm show`")
        runs = binding.guest is GuestState.RUNNING
        if mode not in ("", *MODES):
            raise MoveRefused("conflict", f"no mode {mode!r}", f"use {' or '.join(MODES)}")
        if mode == "hot" and not runs:
            remedy = "move it with --mode cold, or `vmmob vm resume` or `vmmob vm start` it first"
            raise MoveRefused(
                "conflict", f"VM {vm} is {state}, and only what runs moves hot", remedy
            )
        mode = mode or ("hot" if runs else "cold")
        if mode == "cold" and terms.forces:
            what = f"VM {vm} moves cold, and only a guest that runs can be forced"
            raise MoveRefused("bad-terms", what, "leave --on-timeout force out")
        return mode

    @staticmethod
    def _held_options(move: Move, binding: Binding) -> tuple[Option, ...]:
        """What the destination is told of the guest that comes."""
        kind = MobilityKind(KINDS[move.mode])
        if binding.guest is GuestState.RUNNING and not binding.kept:
            return (kind,)
        return kind, GuestStateOption(binding.guest, binding.kept)

    def _order_in_move(self, binding: Binding, state: GuestState, now: float) -> None:
        binding.order = GuestOrder(state, self._new_epoch())
        binding.guest_error = ""
        self._save_binding(binding)
        self._send_guest_order(binding, now)

    def _ask_suspend(self, move: Move, now: float) -> None:
        """Entering SUSPENDING, also after a restart."""
        binding = self.cache.bindings[move.vm]
        if binding.order is None and binding.guest is not GuestState.RUNNING:
            self._suspended(move, now)
        elif binding.order is None:
            self._order_in_move(binding, GuestState.SUSPENDED, now)

    def _suspended(self, move: Move, now: float) -> None:
        """The steps that follow are above the order's epoch."""
        self._phase(move, "suspended", now)
        move.epoch = self._new_epoch()
        self._happen(move, Happening.ACCEPTED, now)

    def _wake(self, move: Move, now: float) -> None:
        """The guest that ran is let go on where it is bound."""
        binding = self.cache.bindings.get(move.vm)
        if not move.wakes or binding is None or binding.ending:
            return
        order = binding.order
        if order.state is not GuestState.RUNNING if order else not _runs(binding):
            self._order_in_move(binding, GuestState.RUNNING, now)

    def _is_awake(self, move: Move) -> bool:
        binding = self.cache.bindings.get(move.vm)
        return not move.wakes or binding is None or binding.order is None

    def _guest_settled(self, binding: Binding, now: float, refused: str = "") -> None:
        """An order is answered; a move may wait for it."""
        move = self._current.get(binding.vm)
        if move is None or not move.wakes:
            return
        if move.state is MoveState.SUSPENDING:
            if refused:
                self._happen(move, Happening.REFUSED, now, refused)
            elif binding.guest is not GuestState.RUNNING:
                self._suspended(move, now)
        elif move.state is MoveState.REDIRECTING:
            if not refused:
                self._phase(move, "awake", now)
                times = dict(move.phases)
                move.measured["stopped_ms"] = round(times["awake"] - times.get("suspended", 0.0), 3)
                self._save_move(move)
            else:
                move.reason = f"the guest does not go on: {refused}"
            self._redirects_settled(binding, now)


def _runs(binding: Binding) -> bool:
    return binding.guest is GuestState.RUNNING
