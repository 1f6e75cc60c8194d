"""Drains: every VM of an NVE is moved elsewhere, so many at once, until none is left or can go.

All is done in steps of the timer: what became of each VM is read from bindings and moves, and new
moves are begun where there is room.  So a restarted manager goes on where it was, and a drain that
is asked for again is the same drain.
Not here: the record (manager_drain.py), where a VM may go (manager_placing.py), cordons
(manager_cordons.py), moves (manager_moves.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vmmobility.engine.manager_drain import (
    ENDED,
    STAGES,
    Drain,
    DrainedVm,
    DrainRefused,
    DrainState,
    Stage,
    Turn,
    drain_to_json,
    drained_to_json,
    drains_from,
    vm_key,
)
from vmmobility.engine.manager_move import CommandRefused
from vmmobility.engine.manager_placing import ManagerPlacing
from vmmobility.engine.manager_protection_record import ProtectionState
from vmmobility.engine.outputs import Event

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from vmmobility.engine.binding_cache import Binding
    from vmmobility.engine.manager_move import Move
    from vmmobility.engine.manager_protection_record import ProtectedVm
    from vmmobility.engine.manager_provision import Provision
    from vmmobility.engine.outputs import Outbox
    from vmmobility.wire.values import VmKey

MOST_ATTEMPTS = 3  # moves of a VM that a drain begins
MOST_REFUSALS = 5  # times in a row that none can begin
PAUSE_S = 2.0  # before a VM is tried again; after a move that failed, times the attempts
LOOK_S = 1.0  # a drain looks how its VMs are at least so often
PASSING = frozenset({ProtectionState.HANDING, ProtectionState.TAKING_OVER, ProtectionState.ENDING})
KEPT_DRAINS = 20  # ended ones that `vmmob drain list` still knows


class ManagerDrains(ManagerPlacing):
    """Drains; a part of ManagerEngine."""

    if TYPE_CHECKING:
        jitter: random.Random
        moves: dict[str, Move]
        outbox: Outbox
        protected: dict[VmKey, ProtectedVm]
        provisions: dict[VmKey, Provision]
        start_move: Callable[[VmKey, str, float, int], Move]
        _silent_since: Callable[[str], float | None]

    drains: dict[str, Drain]
    _drain_due: float | None

    # ---- people --------------------------------------------------------------------------------

    def drain(
        self, nve_id: str, to: Sequence[str], parallel: int, uncordon: bool, now: float
    ) -> Drain:
        """Begin to empty an NVE, or go on with these values; raises DrainRefused."""
        self._check_nve(nve_id)
        for other in to:
            self._check_nve(other)
            if other == nve_id:
                raise DrainRefused("conflict", f"{nve_id} is to be emptied", "name other NVEs")
            if self._is_cordoned(other):
                raise DrainRefused(
                    "conflict",
                    f"{other} is cordoned",
                    f"name another NVE, or `vmmob nve uncordon {other}`",
                )
        drain = self._drain_of(nve_id)
        if drain is None or drain.state is not DrainState.RUNNING:
            drain = Drain(f"{self.jitter.getrandbits(48):012x}", nve_id)
            drain.started_ns = self._wall_ns(now)
            given_up = [d.drain_id for d in self.drains.values() if d.state not in ENDED]
            self.drains[drain.drain_id] = drain
            self._cordon(nve_id, drain.drain_id, now, given_up)
            self._survey(drain)
            self._drain_event(drain, "started", vms=len(drain.vms))
        drain.to, drain.parallel, drain.uncordon = tuple(to), parallel, uncordon
        self.outbox.record(drain.key, drain_to_json(drain))
        self._drain_due = now
        return drain

    def abort_drain(self, drain_id: str, now: float) -> Drain:
        """Begin no more moves of a drain; raises DrainRefused if there is none, or it has ended."""
        drain = self.drains.get(drain_id)
        if drain is None:
            raise DrainRefused("unknown-drain", f"no drain {drain_id}", "see `vmmob drain list`")
        if drain.state in ENDED:
            raise DrainRefused(
                "conflict", f"drain {drain_id} is {drain.state.value}", "it has ended"
            )
        drain.state = DrainState.ABORTING
        self.outbox.record(drain.key, drain_to_json(drain))
        self._drain_due = now
        return drain

    def _drain_of(self, nve_id: str) -> Drain | None:
        """The one under way there; of one that was given up, and one that was begun since, this."""
        under_way = [d for d in self.drains.values() if d.state not in ENDED and d.nve_id == nve_id]
        return under_way[-1] if under_way else None

    # ---- time ----------------------------------------------------------------------------------

    def _drain_moved(self, now: float) -> None:
        """A move has ended: there may be room for the next."""
        if self._drain_due is not None:
            self._drain_due = min(self._drain_due, now)

    def _drain_timer(self, now: float) -> None:
        if self._drain_due is None or self._drain_due > now:
            return
        for drain in [d for d in self.drains.values() if d.state not in ENDED]:
            self._survey(drain)
            self._look_at(drain, now)
            if drain.state is DrainState.RUNNING:
                self._begin_moves(drain, now)
            self._try_end(drain, now)
        under_way = any(drain.state not in ENDED for drain in self.drains.values())
        self._drain_due = now + LOOK_S if under_way else None

    # ---- one drain -----------------------------------------------------------------------------

    def _survey(self, drain: Drain) -> None:
        """Its VMs: those that are there, also those that came since (a move that had begun)."""
        for vm, binding in self.cache.bindings.items():
            if binding.nve.nve_id != drain.nve_id or binding.ending:
                continue
            each = drain.vms.get(vm)
            if each is None:
                each = drain.vms[vm] = DrainedVm(vm)
                self._save_drained(drain, each)
            else:
                self._turn(drain, each, Turn.BACK)

    def _look_at(self, drain: Drain, now: float) -> None:
        """What has become of each."""
        for vm, each in drain.vms.items():
            binding, move = self.cache.bindings.get(vm), self._current.get(vm)
            if move is not None and move.relocates:
                continue  # it stays here, at another server
            if move is not None and move.source.nve_id == drain.nve_id:
                if each.stage is Stage.WAITING:
                    # Another's move, or one whose record outlived this drain's: it is waited for.
                    each.move_id, each.to = move.move_id, move.destination.nve_id
                    self._turn(drain, each, Turn.BEGUN)
            elif move is not None:
                continue  # it comes here: it is looked at when it has
            elif binding is None or binding.ending:
                self._turn(drain, each, Turn.GONE)
            elif binding.nve.nve_id != drain.nve_id:
                each.to, each.reason = binding.nve.nve_id, ""
                self._turn(drain, each, Turn.ARRIVED)
            elif each.stage is Stage.MOVING:
                self._returned(drain, each, now)

    def _returned(self, drain: Drain, each: DrainedVm, now: float) -> None:
        move = self.moves.get(each.move_id)
        why = (move.reason or move.state.value) if move else "its record is gone"
        each.reason = f"move {each.move_id} to {each.to} failed: {why}"
        each.tried = (*(nve for nve in each.tried if nve != each.to), each.to)
        each.not_before = now + PAUSE_S * max(each.attempts, 1)
        spent = each.attempts >= MOST_ATTEMPTS
        self._turn(drain, each, Turn.EXHAUSTED if spent else Turn.RETURNED)

    def _begin_moves(self, drain: Drain, now: float) -> None:
        room = drain.parallel - drain.count(Stage.MOVING)
        loads: Counter[str] | None = None
        for vm, each in sorted(drain.vms.items()):
            if room <= 0:
                return
            if each.stage is not Stage.WAITING or each.not_before > now:
                continue
            binding = self.cache.bindings.get(vm)
            if binding is None or vm in self._current:
                continue
            passing = self._passing(binding)
            if passing:
                each.reason, each.not_before = passing, now + PAUSE_S
                continue
            if loads is None:
                loads = self._loads()
            if self._begin_move(drain, each, binding, loads, now):
                room -= 1

    def _passing(self, binding: Binding) -> str:
        """What a VM is in the midst of, which it is waited for and which is no refusal: its NVE
        says how it ends.  Of one that is silent nothing is awaited."""
        vm, order = binding.vm, binding.order
        if self._silent_since(binding.nve.nve_id) is not None:
            return ""
        if order is not None:
            return f"VM {vm} is to be {order.state.name.lower()}, which is not done yet"
        if vm in self.provisions:
            return f"VM {vm} is being brought up"
        protected = self.protected.get(vm)
        if protected is not None and protected.state in PASSING:
            return f"its protection is {protected.state.value}"
        return ""

    def _begin_move(
        self, drain: Drain, each: DrainedVm, binding: Binding, loads: Counter[str], now: float
    ) -> bool:
        target, why = self._place(binding, drain.to, each.tried, loads)
        protected = self.protected.get(each.vm)
        if protected is not None:
            standby = protected.standby.nve_id
            why = f"it has a standby at {standby}: move it there with --mode warm, or unprotect it"
        elif target is not None:
            try:
                move = self.start_move(each.vm, target, now, self._wall_ns(now))
            except CommandRefused as refused:
                why = refused.message
            else:
                loads[target] += 1
                each.move_id, each.to, each.refused = move.move_id, target, 0
                each.attempts += 1
                self._turn(drain, each, Turn.BEGUN)
                return True
        # While others are on their way, room may come free.
        each.refused += not drain.count(Stage.MOVING)
        each.not_before = now + PAUSE_S
        each.reason = why
        if each.refused >= MOST_REFUSALS:
            self._turn(drain, each, Turn.EXHAUSTED)
        return False

    def _turn(self, drain: Drain, each: DrainedVm, turn: Turn) -> None:
        stage = STAGES.get((each.stage, turn))
        if stage is None:
            return
        each.stage = stage
        if turn is Turn.BACK:
            each.move_id, each.to, each.reason, each.attempts = "", "", "", 0
        self._save_drained(drain, each)
        detail = {"vm": each.vm.vm_id, "vni": each.vm.vni, "stage": stage.value}
        more = {"to": each.to, "move": each.move_id, "reason": each.reason}
        told = {key: value for key, value in more.items() if value}
        self._drain_event(drain, "vm", **detail, **told)

    def _try_end(self, drain: Drain, now: float) -> None:
        if drain.state is DrainState.ABORTING:
            if drain.count(Stage.MOVING):
                return
            drain.state = DrainState.ABORTED
        elif drain.count(Stage.MOVING) or drain.count(Stage.WAITING) or self._comes(drain.nve_id):
            return
        else:
            failed = drain.count(Stage.FAILED)
            drain.state = DrainState.INCOMPLETE if failed else DrainState.DONE
        drain.ended_ns = self._wall_ns(now)
        self.outbox.record(drain.key, drain_to_json(drain))
        moved, failed = drain.count(Stage.MOVED), drain.count(Stage.FAILED)
        # Standbys stay: a cordon forbids what comes, and only people know where else they fit.
        standbys = sorted(
            vm.vm_id for vm, p in self.protected.items() if p.standby.nve_id == drain.nve_id
        )
        more = {"standby_of": standbys} if standbys else {}
        self._drain_event(drain, drain.state.value, moved=moved, failed=failed, **more)
        cordon = self.cordons.get(drain.nve_id)
        given_up = drain.state is DrainState.ABORTED and cordon is not None
        wished = drain.uncordon or (given_up and cordon and cordon.drain == drain.drain_id)
        if wished and self._drain_of(drain.nve_id) is None:
            self._uncordon(drain.nve_id)
        self._forget_drains()

    def _comes(self, nve_id: str) -> bool:
        """Whether a move that began before the cordon still goes there."""
        return any(move.destination.nve_id == nve_id for move in self._current.values())

    def _forget_drains(self) -> None:
        ended = [drain for drain in self.drains.values() if drain.state in ENDED]
        for old in ended[: max(0, len(ended) - KEPT_DRAINS)]:
            del self.drains[old.drain_id]
            self.outbox.record(old.key, None)
            for vm in old.vms:
                self.outbox.record(vm_key(old, vm), None)

    def _save_drained(self, drain: Drain, each: DrainedVm) -> None:
        self.outbox.record(vm_key(drain, each.vm), drained_to_json(each))

    def _drain_event(self, drain: Drain, name: str, **detail: Any) -> None:
        who = {"drain": drain.drain_id, "nve": drain.nve_id}
        self.outbox.emit(Event(f"drain.{name}", {**who, **detail}))

    # ---- restart -------------------------------------------------------------------------------

    def _load_drains(self, state: Mapping[str, Any], now: float) -> None:
        self._load_cordons(state, now)
        self.drains = drains_from(state)
        under_way = any(drain.state not in ENDED for drain in self.drains.values())
        self._drain_due = now if under_way else None
