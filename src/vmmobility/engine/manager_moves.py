"""Moves at the manager: tickets, the machine, its timers, and restarts in between.

`ManagerMoves` is the half of ManagerEngine that manager_transitions.py drives.  Entering a state
does what ENTER names for it; that is idempotent, so a restarted manager enters the durable state
of each move again and learns from the replies where both ends stand.
Not here: the requests themselves (manager_steps.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vmmobility.engine.binding_cache import Binding
from vmmobility.engine.manager_move import (
    Move,
    MoveRefused,
    move_from_json,
    move_to_json,
    nve_of_peer,
)
from vmmobility.engine.manager_progress import ManagerProgress
from vmmobility.engine.manager_steps import ManagerSteps
from vmmobility.engine.manager_transitions import FINAL, TABLE, Happening, MoveState
from vmmobility.engine.outputs import Event
from vmmobility.wire.message import Message
from vmmobility.wire.move_terms import NO_TERMS, MoveTerms, check
from vmmobility.wire.options import Epoch, Guest, PhaseOption, Reason, Ticket, VmId
from vmmobility.wire.registry import GuestState, Phase, Role, Status
from vmmobility.wire.values import Interface, VmKey

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from vmmobility.engine.channel import Peer, Received
    from vmmobility.engine.manager_protection_record import ProtectedVm
    from vmmobility.engine.manager_provision import Provision
    from vmmobility.engine.manager_settings import ManagerSettings
    from vmmobility.engine.outputs import Outbox

__all__ = ["ManagerMoves", "Move", "MoveRefused"]

KEPT_MOVES = 1000  # ended moves that `vmmob move list` still knows

# What people read when a state is entered (docs/architecture.md, Events).
PHASE_NAMES = {
    MoveState.SUSPENDING: "suspending",
    MoveState.PREPARING: "ticketed",
    MoveState.COPYING: "prepared",
    MoveState.ANNOUNCING: "announcing",
    MoveState.WITHDRAWING: "withdrawing",
    MoveState.DELIVERING: "converged",
    MoveState.SWITCHING: "delivering",
    MoveState.REDIRECTING: "registered",
    MoveState.RELOCATING: "relocating",
    MoveState.STAYING: "staying",
    MoveState.DONE: "done",
    MoveState.ENDING_GUEST: "ending-guest",
    MoveState.TURNING_BACK: "turning-back",
    MoveState.CLEARING: "clearing",
    MoveState.ABORTED: "aborted",
    MoveState.FAILED: "failed",
}


BEFORE_THE_SWITCH = (
    MoveState.COPYING, MoveState.ANNOUNCING, MoveState.WITHDRAWING, MoveState.DELIVERING,
)  # fmt: skip
# Where no router takes part a move goes straight on.
PASSED_OVER = {
    MoveState.ANNOUNCING: MoveState.DELIVERING,
    MoveState.WITHDRAWING: MoveState.DELIVERING,
}


class ManagerMoves(ManagerSteps, ManagerProgress):
    """Everything about moves; a part of ManagerEngine, which has the cache and the channel."""

    if TYPE_CHECKING:
        settings: ManagerSettings
        outbox: Outbox
        jitter: random.Random
        _redirect_previous: Callable[[Binding, float], None]
        _prepare_fabric: Callable[[Move, float], None]
        _turn_fabric: Callable[[Move, float], None]
        _gate_timeout: Callable[[Move, float], None]
        _is_led_to: Callable[[VmKey, Peer, float], bool]
        _redirect_anew: Callable[[VmKey, str, float], None]
        _try_gate: Callable[[Move, float], None]
        _mode_of: Callable[[Binding, str, MoveTerms], str]
        _ask_suspend: Callable[[Move, float], None]
        _wake: Callable[[Move, float], None]
        _move_over_limit: Callable[[Binding, str], str]
        _mate_there: Callable[[VmKey, str], tuple[Status, str] | None]
        _off_record: Callable[[VmKey, Sequence[Interface], str], str]
        _is_cordoned: Callable[[str], bool]
        _drain_moved: Callable[[float], None]
        _check_room: Callable[..., str]
        _relocatable: Callable[[Binding, str, MoveTerms, str], str]
        protected: dict[VmKey, ProtectedVm]
        provisions: dict[VmKey, Provision]
        _takes_over: Callable[[VmKey], bool]
        _warm: dict[VmKey, Move]
        _start_warm_move: Callable[[VmKey, str, float, int, MoveTerms], Move]
        _warm_settled: Callable[[Binding, float], None]

    moves: dict[str, Move]
    _current: dict[VmKey, Move]

    # ---- people --------------------------------------------------------------------------------

    def start_move(
        self,
        vm: VmKey,
        to: str,
        now: float,
        wall_ns: int,
        terms: MoveTerms = NO_TERMS,
        mode: str = "",
        server: str = "",
    ) -> Move:
        """Begin a move; raises MoveRefused.  wall_ns is CLOCK_REALTIME, for display.  mode: "hot",
        "warm" (to its standby), "cold", or "": hot or cold by the guest's state.  server: of an NVE
        that stands apart; "" is any with room.  To the NVE where it is: to another of its servers.
        """
        try:
            check(terms)
        except ValueError as error:
            raise MoveRefused("bad-terms", str(error), "see `vmmob move VM NVE --help`") from None
        if mode == "warm" and server:
            raise MoveRefused(
                "bad-terms", "a warm move goes to its standby's place", "leave the server out"
            )
        if mode == "warm":
            return self._start_warm_move(vm, to, now, wall_ns, terms)
        binding, peer = self._movable(vm, to)
        relocates = binding.nve.nve_id == to
        if relocates:
            chosen, mode = self._relocatable(binding, server, terms, mode), "hot"
        else:
            chosen = self._check_destination(binding, to, server)
            mode = self._mode_of(binding, mode, terms)
        wakes = mode == "cold" and binding.guest is GuestState.RUNNING
        move = Move(
            f"{self.jitter.getrandbits(48):012x}",
            vm,
            binding.nve,
            nve_of_peer(peer),
            self.jitter.getrandbits(128).to_bytes(16, "big"),
            self._new_epoch(),
            started_ns=wall_ns,
            began=now,
            cleared=wakes,
            terms=terms,
            mode=mode,
            wakes=wakes,
            server=chosen,
            strict=bool(server),
            server_from=binding.server,
        )
        self.moves[move.move_id] = self._current[vm] = move
        self._phase(move, "requested", now)
        first = MoveState.SUSPENDING if wakes else MoveState.PREPARING
        self._enter(move, MoveState.RELOCATING if relocates else first, now)
        return move

    def _movable(self, vm: VmKey, to: str) -> tuple[Binding, Peer]:
        """Whom to move, and to whom; raises MoveRefused if that cannot be now."""
        binding = self.cache.bindings.get(vm)
        if binding is None or binding.ending:
            raise MoveRefused("unknown-vm", f"no VM {vm} is registered", "see `vmmob vm list`")
        peer = self.channel.peers.get(to)
        if peer is None or peer.role is not Role.NVE or not peer.endpoints:
            raise MoveRefused("unknown-nve", f"no NVE {to} is known", "see `vmmob show nves`")
        if self._is_cordoned(to) and binding.nve.nve_id != to:
            raise MoveRefused(
                "conflict",
                f"{to} is cordoned: no VM is moved there",
                f"choose another NVE, or let VMs come again: `vmmob nve uncordon {to}`",
            )
        if binding.nve.nve_id not in self.channel.peers:
            raise MoveRefused(
                "unknown-nve",
                f"{binding.nve.nve_id}, where VM {vm} runs, is not in the configuration",
                "put it back there and restart the manager",
            )
        if vm in self._current:
            other = self._current[vm]
            raise MoveRefused(
                "conflict",
                f"VM {vm} is already being moved to {other.destination.nve_id}",
                f"wait for move {other.move_id}",
            )
        if vm in self.provisions:
            raise MoveRefused(
                "conflict",
                f"VM {vm} is being brought up at {binding.nve.nve_id}",
                "wait until it runs: see `vmmob vm show`",
            )
        if vm in self.protected:
            raise MoveRefused(
                "conflict",
                f"VM {vm} has a standby at {self.protected[vm].standby.nve_id}",
                "move it there with --mode warm, or `vmmob vm unprotect` it first",
            )
        if binding.released:
            raise MoveRefused(
                "conflict",
                f"VM {vm} was released: {binding.nve.nve_id} is said to be fenced",
                f"start it at {to} instead, or let {binding.nve.nve_id} register it again",
            )
        return binding, peer

    def _check_destination(self, binding: Binding, to: str, server: str) -> str:
        """Whether another NVE may have it, and at which of its servers; raises MoveRefused."""
        vm = binding.vm
        off_record = self._off_record(vm, binding.interfaces, to)
        if off_record:
            raise MoveRefused("conflict", off_record, "see `vmmob show onboarded`")
        mate = self._mate_there(vm, to)
        if mate:
            raise MoveRefused("conflict", mate[1], "choose another NVE, or wait until it has gone")
        full = self._move_over_limit(binding, to)
        if full:
            raise MoveRefused(
                "conflict", full, "move VMs home, or raise max_host_routes if the routers bear it"
            )
        chosen = self._check_room(binding, to, server)
        if binding.is_full(to):
            raise MoveRefused(
                "conflict",
                f"{len(binding.previous)} previous NVEs of VM {vm} still redirect",
                "wait until they have drained, or move it back to one of them",
            )
        return chosen

    def abort_move(self, move: Move, now: float) -> None:
        """Give a move up; raises MoveRefused where that is too late or already under way."""
        if move.mode == "warm" and move.state not in FINAL:
            raise MoveRefused(
                "conflict",
                f"move {move.move_id} is warm and cannot be given up",
                "wait: if the last checkpoint is not taken, the VM goes on where it is",
            )
        if (move.state, Happening.ABORT) not in TABLE:
            raise MoveRefused(
                "conflict",
                f"move {move.move_id} is {move.state.value} and cannot be given up",
                "it has ended" if move.state in FINAL else "wait until it has ended",
            )
        self._happen(move, Happening.ABORT, now)

    # ---- the machine ---------------------------------------------------------------------------

    def _happen(self, move: Move, happening: Happening, now: float, why: str = "") -> None:
        step = TABLE.get((move.state, happening))
        if step is None:
            return
        because = f"{step.because}: {why}" if why else step.because
        if step.because and (not move.reason or step.becomes is MoveState.FAILED):
            move.reason = f"{move.reason}; {because}" if move.reason else because
        self._enter(move, self._turned(move, step.becomes), now)

    @staticmethod
    def _turned(move: Move, becomes: MoveState) -> MoveState:
        """A source is told to serve again only if the guest cannot run at the destination."""
        before = move.state in BEFORE_THE_SWITCH
        unsure = before and becomes is MoveState.TURNING_BACK and not move.sure
        return MoveState.ENDING_GUEST if unsure else becomes

    def _enter(self, move: Move, state: MoveState, now: float) -> None:
        if state in PASSED_OVER and not self._is_routed(move):
            state = PASSED_OVER[state]
        move.state = state
        copying = state is MoveState.COPYING
        limit = self._copy_limit_s(move) if copying else self.settings.step_s
        move.deadline = None if state in FINAL else now + limit
        self._phase(move, PHASE_NAMES[state], now)
        enter: Callable[[Move, float], None] | None = {
            MoveState.SUSPENDING: self._ask_suspend,
            MoveState.PREPARING: self._ask_prepare,
            MoveState.COPYING: self._ask_copy,
            MoveState.ANNOUNCING: self._prepare_fabric,
            MoveState.DELIVERING: self._ask_deliver,
            MoveState.WITHDRAWING: self._turn_fabric,
            MoveState.SWITCHING: self._ask_switch,
            MoveState.REDIRECTING: self._await_redirects,
            MoveState.ENDING_GUEST: self._ask_end_guest,
            MoveState.TURNING_BACK: self._ask_turn_back,
            MoveState.CLEARING: self._ask_clear,
            MoveState.RELOCATING: self._ask_relocation,
            MoveState.STAYING: self._ask_relocation,
        }.get(state)
        if state is MoveState.DONE:
            move.cleared = True
        elif state is MoveState.PREPARING:
            move.cleared = False
        self._save_move(move)
        if enter is not None:
            enter(move, now)
        else:
            self._end(move, now)

    def _copy_limit_s(self, move: Move) -> float:
        """The source keeps to the move's own time; this is the limit of one that does not say
        how it stands."""
        terms = move.terms
        if not terms.timeout_s:
            return self.settings.copy_s
        # Disks are copied to their end before post-copy can begin.
        more = self.settings.copy_s if terms.forces else self.settings.step_s
        return terms.timeout_s + more

    def _end(self, move: Move, now: float) -> None:
        if self._current.get(move.vm) is move:
            del self._current[move.vm]
        if move.relocates:
            self._withdraw(move, move.source)
        self._drain_moved(now)
        binding = self.cache.bindings.get(move.vm)
        self._wake(move, now)
        if not move.cleared:
            self._clear(move, now)
        if binding is not None:
            self._follow_routes(binding, now)
            self._redirect_previous(binding, now)
        self._forget_old_moves()

    def _forget_old_moves(self) -> None:
        ended = [m for m in self.moves.values() if m.state in FINAL]
        for old in ended[: max(0, len(ended) - KEPT_MOVES)]:
            del self.moves[old.move_id]
            self.outbox.record(f"move/{old.move_id}", None)

    def _phase(self, move: Move, name: str, now: float) -> None:
        at_ms = round((now - move.began) * 1000, 3)
        if not name.startswith("waiting-"):
            move.phases.append((name, at_ms))
        detail = {
            "vm": move.vm.vm_id,
            "vni": move.vm.vni,
            "move": move.move_id,
            "from": move.source.nve_id,
            "to": move.destination.nve_id,
            **({"server": move.server} if move.server else {}),
            "at_ms": at_ms,
            **({"reason": move.reason} if move.reason else {}),
        }
        self.outbox.emit(Event(f"move.{name}", detail))

    def _save_move(self, move: Move) -> None:
        self.outbox.record(f"move/{move.move_id}", move_to_json(move))

    # ---- what the nodes say --------------------------------------------------------------------

    def _switch_reported(self, received: Received, now: float) -> None:
        """SWITCH from an NVE: how far its copy is, that it has converged, or that its side of the
        move failed."""
        message, node = received.message, received.peer.node_id
        move = self._current.get(message.vm)
        ticket = message.find(Ticket)
        used = move is not None and move.state is MoveState.REDIRECTING
        if move is None or ticket is None or ticket.ticket != move.ticket or used:
            if self._is_led_to(message.vm, received.peer, now):
                why = "a router may still lead here"
                self.channel.reply(received, Status.TRY_AGAIN, reason=why)
            else:
                self.channel.reply(received, Status.INVALID_TICKET)
                self._redirect_anew(message.vm, node, now)
            return
        if node not in (move.source.nve_id, move.destination.nve_id):
            self.channel.reply(received, Status.NOT_OWNER)
            return
        phase = message.need(PhaseOption).phase
        words = message.find(Reason)
        if phase is Phase.COPYING:
            if node == move.source.nve_id:
                self._heed_progress(move, message)
            self.channel.reply(received, Status.ACCEPTED_IN_PROGRESS, [VmId(move.vm)])
            return
        self._measure(move, message)
        self.channel.reply(received, Status.ACCEPTED_IN_PROGRESS, [VmId(move.vm)])
        if phase is Phase.CONVERGED and node == move.source.nve_id:
            self._happen(move, Happening.CONVERGED, now)
        elif phase is Phase.FAILED and node in (move.source.nve_id, move.destination.nve_id):
            at_source = node == move.source.nve_id
            happening = Happening.SOURCE_FAILED if at_source else Happening.DESTINATION_FAILED
            self._happen(move, happening, now, words.text if words else "")

    def _ticketed_epoch(self, vm: VmKey, ticket: bytes, node: str, now: float) -> int | None:
        """The epoch reserved for this ticket, if its move may end so; single-use by the state."""
        move = self._current.get(vm)
        if move is None or move.ticket != ticket or move.destination.nve_id != node:
            return None
        switched = move.state in (MoveState.SWITCHING, MoveState.ENDING_GUEST)
        if now > move.began + self.settings.ticket_s and not switched:
            return None  # once the guest may run there, its move's state alone decides
        allowed = (move.state, Happening.ATTACHED) in TABLE
        return move.epoch if allowed else None

    def _ends_move(self, message: Message, node: str) -> bool:
        """Whether it comes from the destination of a move in its switch, whose guest runs there
        and was bound there before: this manager's state was set back into that move."""
        move, guest = self._current.get(message.vm), message.find(Guest)
        if move is None or move.destination.nve_id != node or guest is None:
            return False
        told = message.find(Epoch)
        if told is None or told.epoch < move.epoch or (move.state, Happening.ATTACHED) not in TABLE:
            return False
        move.epoch = self._new_epoch()
        self._save_move(move)
        return True

    def _in_switch(self, vm: VmKey) -> bool:
        """Whether a move is where its guest may be at either end: nobody else may attach it."""
        move = self._current.get(vm)
        unclear = (MoveState.SWITCHING, MoveState.ENDING_GUEST, MoveState.TURNING_BACK)
        return (move is not None and move.state in unclear) or self._takes_over(vm)

    def _attached(self, binding: Binding, message: Message, now: float) -> None:
        """A binding was made; was it a move's end?"""
        move = self._current.get(binding.vm)
        if move is not None and binding.epoch == move.epoch:
            self._measure(move, message)
            move.reason = ""  # whatever seemed to go wrong, it went well
            self._happen(move, Happening.ATTACHED, now)
            self._wake(move, now)

    def _previous_acknowledged(
        self, binding: Binding, node: str, reply: Message, now: float
    ) -> None:
        move = self._current.get(binding.vm)
        if move is not None and move.state is MoveState.ANNOUNCING:
            self._try_gate(move, now)
        elif move is not None and move.state is MoveState.CLEARING:
            told = binding.previous[node].acknowledged
            if node == move.destination.nve_id and told >= move.back_epoch > 0:
                move.cleared = True
                self._happen(move, Happening.ACCEPTED, now)
        if move is not None and move.state is MoveState.REDIRECTING:
            self._measure(move, reply)
        self._redirects_settled(binding, now)

    def _redirects_settled(self, binding: Binding, now: float) -> None:
        """A previous NVE has confirmed its redirect, or needs none any more: a move ends with the
        last."""
        self._warm_settled(binding, now)
        move = self._current.get(binding.vm)
        if move is None or move.state is not MoveState.REDIRECTING or binding.unacknowledged:
            return
        if not self._is_awake(move):
            return
        self._phase(move, "redirected", now)
        self._happen(move, Happening.ACKNOWLEDGED, now)

    def _void_move(self, vm: VmKey, now: float) -> None:
        """design: a ticket is void after any other accepted attach."""
        move = self._current.get(vm)
        if move is not None:
            self._happen(move, Happening.VOIDED, now)

    # ---- time and restart ----------------------------------------------------------------------

    def _next_move_timer(self) -> float | None:
        due = [m.deadline for m in self._current.values() if m.deadline is not None]
        return min(due, default=None)

    def _move_timer(self, now: float) -> None:
        for move in list(self._current.values()):
            if move.deadline is not None and move.deadline <= now:
                if move.state in PASSED_OVER:
                    self._gate_timeout(move, now)
                elif (move.state, Happening.TIMEOUT) in TABLE:
                    self._happen(move, Happening.TIMEOUT, now)
                else:
                    # Nothing may be guessed here: go on asking, and say so.
                    move.deadline = now + self.settings.step_s
                    self._phase(move, f"waiting-{move.state.value}", now)

    def _load_moves(self, state: Mapping[str, Any], now: float) -> None:
        self.moves, self._current, self._warm = {}, {}, {}
        for key, value in state.items():
            if key.startswith("move/"):
                move = move_from_json(key.removeprefix("move/"), value)
                move.began = now - (move.phases[-1][1] / 1000 if move.phases else 0.0)
                self.moves[move.move_id] = move
                if move.state not in FINAL:
                    under_way = self._warm if move.mode == "warm" else self._current
                    under_way[move.vm] = move

    def _resume_moves(self, now: float) -> None:
        """After a restart: enter each unfinished move's state again (its requests are idempotent;
        the replies tell where both ends stand)."""
        for move in self.moves.values():
            if move.state in FINAL and not move.cleared:
                self._clear(move, now)  # its destination has not answered yet
        for move in list(self._current.values()):
            binding = self.cache.bindings.get(move.vm)
            if binding is None and move.state is not MoveState.CLEARING:
                move.reason = move.reason or "the VM is no longer registered"
                self._enter(move, MoveState.FAILED, now)
            else:
                self._enter(move, move.state, now)
