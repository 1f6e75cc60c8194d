"""The steps of a move: each request that the manager sends for it, and what its reply means.

`ManagerSteps` has what entering a state of manager_transitions.py asks of the two ends.  Every
request is idempotent, so it may be sent again after a restart.
Not here: which step comes next (manager_moves.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmobility.engine.manager_move import Move
from vmmobility.engine.manager_transitions import Happening, MoveState
from vmmobility.wire.message import Message, definition_options
from vmmobility.wire.move_terms import NO_TERMS
from vmmobility.wire.options import (
    Endpoint,
    Epoch,
    InterfaceGroup,
    Option,
    PhaseOption,
    PreviousNve,
    Reason,
    ServingNve,
    Sight,
    Ticket,
    VmId,
)
from vmmobility.wire.registry import Phase, Purpose, Status
from vmmobility.wire.values import Nve

if TYPE_CHECKING:
    from vmmobility.engine.binding_cache import Binding, BindingCache
    from vmmobility.engine.channel import Channel

# A refusal from such a phase means that there is nothing to do: the destination has ended the
# waiting guest; the source never began (it does not know yet that its attach was accepted), or has
# given the VM away later, of which a manager that was set back knows nothing, or other hands have
# taken it from there.
NOTHING_TO_DO = {
    MoveState.ENDING_GUEST: (Phase.NONE, Phase.REDIRECTING),
    MoveState.TURNING_BACK: (Phase.ATTACHING, Phase.REDIRECTING, Phase.DEPARTED),
}

NOT_SWITCHED = (
    Phase.ATTACHING, Phase.SERVING, Phase.COPYING, Phase.CONVERGED, Phase.STOPPED,
)  # fmt: skip


def _terms(move: Move) -> tuple[Option, ...]:
    """Left out where nothing is asked: nodes that know no terms take part in such moves."""
    return () if move.terms == NO_TERMS else (move.terms,)


class ManagerSteps:
    """The requests of moves; a part of ManagerMoves, which has the machine."""

    if TYPE_CHECKING:
        cache: BindingCache
        channel: Channel

        def _happen(self, move: Move, happening: Happening, now: float, why: str = "") -> None: ...
        def _enter(self, move: Move, state: MoveState, now: float) -> None: ...
        def _phase(self, move: Move, name: str, now: float) -> None: ...
        def _save_move(self, move: Move) -> None: ...
        def _save_binding(self, binding: Binding) -> None: ...
        def _new_epoch(self) -> int: ...
        def _follow_routes(self, binding: Binding, now: float) -> None: ...
        def _is_awake(self, move: Move) -> bool: ...
        def _held_options(self, move: Move, binding: Binding) -> tuple[Option, ...]: ...
        def _is_routed(self, move: Move) -> bool: ...
        def _redirects_on(self, move: Move, now: float) -> bool: ...
        def _announce(self, move: Move, now: float) -> None: ...
        def _server_option(self, move: Move) -> tuple[Option, ...]: ...
        def _ask_relocation(self, move: Move, now: float) -> None: ...
        def _relocation_replied(self, move: Move, reply: Message, now: float) -> None: ...
        def _senders(self, binding: Binding) -> list[Nve]: ...
        def _heed_epoch(self, message: Message, now: float) -> None: ...

    def _ask(
        self,
        move: Move,
        now: float,
        nve: Nve,
        purpose: Purpose,
        epoch: int,
        phase: Phase | None,
        *options: Option,
    ) -> None:
        """One step's request; its reply is the move's ACCEPTED or REFUSED - if it still waits.

        A node that the configuration names no more is as silent as one that is down: the state's
        time decides, and a start with the node put back goes on.
        """
        peer = self.channel.peers.get(nve.nve_id)
        if peer is None:
            return
        state = move.state
        head: list[Option] = [VmId(move.vm), Epoch(epoch), Ticket(move.ticket)]
        if phase is not None:
            head.append(PhaseOption(phase))

        def replied(reply: Message, at: float) -> None:
            if move.state is state:
                self._step_replied(move, reply, at)

        self.channel.request(
            peer,
            purpose,
            [*head, *options],
            now,
            replied,
            subject=(move.vm, "move"),
        )

    def _heed_locators(self, move: Move, reply: Message) -> None:
        """Behind a box only the destination knows its locators; else they are configured here."""
        peer = self.channel.peers.get(move.destination.nve_id)
        told = reply.find(ServingNve) if peer is not None and peer.via else None
        if told is not None and told.nve.nve_id == move.destination.nve_id:
            move.destination = told.nve

    def _step_replied(self, move: Move, reply: Message, now: float) -> None:
        if move.relocates:
            self._relocation_replied(move, reply, now)
            return
        phase = reply.find(PhaseOption)
        if move.state is MoveState.COPYING and phase is not None and phase.phase in NOT_SWITCHED:
            move.sure = True
        if reply.status.accepted:
            endpoint = reply.find(Endpoint)
            if move.state is MoveState.PREPARING:
                if endpoint is None:
                    self._happen(move, Happening.REFUSED, now, "it names no endpoint")
                    return
                move.endpoint = endpoint
                self._heed_locators(move, reply)
                sight = reply.find(Sight)
                move.home = sight is not None and sight.covered
            elif move.state is MoveState.COPYING:
                self._phase(move, "copying", now)
            elif move.state is MoveState.SWITCHING:
                self._phase(move, "turned", now)
            elif move.state is MoveState.ANNOUNCING:
                self._announce(move, now)
                return
            self._happen(move, Happening.ACCEPTED, now)
            return
        self._heed_epoch(reply, now)
        if move.state is MoveState.PREPARING and reply.status is Status.STALE_EPOCH:
            self._renumber(move, now)
            return
        nothing = phase is not None and phase.phase in NOTHING_TO_DO.get(move.state, ())
        later = move.state is MoveState.TURNING_BACK and reply.status is Status.INVALID_TICKET
        if nothing or later:
            self._happen(move, Happening.ACCEPTED, now)
            return
        if move.state is MoveState.ENDING_GUEST and self._is_overtaken(move):
            self._enter(move, MoveState.CLEARING, now)
            return
        if move.state is MoveState.SWITCHING and move.back_epoch:
            return  # known already; the destination, asked before, runs the guest: time will tell
        words = reply.find(Reason)
        status = reply.status.name.lower().replace("_", "-")
        why = f"{status}: {words.text}" if words else status
        self._happen(move, Happening.REFUSED, now, why)

    def _is_overtaken(self, move: Move) -> bool:
        """Whether the VM was bound anew since: what its destination refuses is not this move's."""
        binding = self.cache.bindings.get(move.vm)
        return binding is not None and binding.epoch > max(move.epoch, move.back_epoch)

    def _renumber(self, move: Move, now: float) -> None:
        """The destination has acted on a later epoch than this manager remembered: once more under
        one above it.  The step's time goes on."""
        move.epoch = self._new_epoch()
        self._save_move(move)
        self._ask_prepare(move, now)

    def _ask_prepare(self, move: Move, now: float) -> None:
        binding = self.cache.bindings[move.vm]
        previous = [n for n in self._senders(binding) if n.nve_id != move.destination.nve_id]
        self._ask(
            move,
            now,
            move.destination,
            Purpose.PREPARE,
            move.epoch,
            Phase.PREPARED,
            *(InterfaceGroup(i) for i in binding.interfaces),
            *binding.mappings,
            *(PreviousNve(n) for n in (binding.nve, *previous)),
            *self._held_options(move, binding),
            *definition_options(binding.definition),
            *_terms(move),
            *self._server_option(move),
        )

    def _ask_copy(self, move: Move, now: float) -> None:
        assert move.endpoint is not None
        self._ask(
            move,
            now,
            move.source,
            Purpose.PREPARE,
            move.epoch,
            Phase.COPYING,
            ServingNve(move.destination),
            move.endpoint,
            *_terms(move),
        )

    def _ask_relay(self, move: Move, now: float) -> None:
        self._ask(move, now, move.destination, Purpose.SWITCH, move.epoch, Phase.PREPARED)

    def _ask_deliver(self, move: Move, now: float) -> None:
        self._ask(move, now, move.destination, Purpose.SWITCH, move.epoch, Phase.DELIVERING)

    def _ask_switch(self, move: Move, now: float) -> None:
        self._ask(move, now, move.source, Purpose.SWITCH, move.epoch, Phase.SWITCHED)

    def _await_redirects(self, move: Move, now: float) -> None:
        """The redirects left with the attach; the move ends when the last is acknowledged."""
        self._withdraw(move, move.source)
        self._withdraw(move, move.destination)
        binding = self.cache.bindings.get(move.vm)
        if binding is None or (not binding.unacknowledged and self._is_awake(move)):
            self._phase(move, "redirected", now)
            self._happen(move, Happening.ACKNOWLEDGED, now)

    def _ask_end_guest(self, move: Move, now: float) -> None:
        self._back(move)
        # The source must not be turned any more, should its answer only have been late.
        self._withdraw(move, move.source)
        self._ask(move, now, move.destination, Purpose.SWITCH, move.back_epoch, Phase.FAILED)

    def _ask_turn_back(self, move: Move, now: float) -> None:
        """Roll-back under a fresh epoch, the source first (invariant 3)."""
        if not self._back(move):
            # Another attach was accepted, or the VM is no more: its old source stays as it is.
            self._enter(move, MoveState.CLEARING, now)
            return
        self._follow_routes(self.cache.bindings[move.vm], now)
        sends = (PreviousNve(move.destination),) if self._is_routed(move) else ()
        self._ask(move, now, move.source, Purpose.SWITCH, move.back_epoch, Phase.SERVING, *sends)

    def _ask_clear(self, move: Move, now: float) -> None:
        self._withdraw(move, move.source)
        self._clear(move, now)

    def _clear(self, move: Move, now: float) -> None:
        """Tell the destination that the move is off until it answers, also after the move's end."""

        def replied(reply: Message, at: float) -> None:
            # Whatever it answers, it is not (or no longer) in this preparation.
            move.cleared = True
            self._save_move(move)
            if move.state is MoveState.CLEARING:
                self._step_replied(move, reply, at)

        self._back(move)
        peer = self.channel.peers.get(move.destination.nve_id)
        if peer is None or self._redirects_on(move, now):
            return
        self.channel.request(
            peer,
            Purpose.DEREGISTER,
            [VmId(move.vm), Epoch(move.back_epoch), Ticket(move.ticket)],
            now,
            replied,
            subject=(move.vm, "move"),
        )

    def _withdraw(self, move: Move, nve: Nve) -> None:
        """Ask that node nothing more for this move."""
        peer = self.channel.peers.get(nve.nve_id)
        if peer is not None:
            self.channel.withdraw_subject(peer, (move.vm, "move"))

    def _back(self, move: Move) -> bool:
        """The fresh epoch of a roll-back, once a move; whether the source still holds the VM."""
        if not move.back_epoch:
            move.back_epoch = self._new_epoch()
            self._save_move(move)
        binding = self.cache.bindings.get(move.vm)
        if binding is None or binding.nve.nve_id != move.source.nve_id or binding.ending:
            return False
        if move.state is not MoveState.ENDING_GUEST and binding.epoch < move.back_epoch:
            binding.epoch = move.back_epoch
            self._save_binding(binding)
        return True
