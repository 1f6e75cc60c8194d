"""At which server of an NVE a VM is (Figure 1), and moves between two servers of one NVE.

The NVE does such a move alone (nve_relocation.py); here it is one request, PREPARE to RELOCATING,
which is repeated until the NVE says how it ended.  Nothing is guessed: what its record says is what
the NVE said last.  Binding, epoch and routes stay as they are.

Not here: which server has room (manager_admission.py), moves between NVEs (manager_moves.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmobility.engine.manager_move import Move, MoveRefused
from vmmobility.engine.manager_transitions import Happening, MoveState
from vmmobility.engine.outputs import Event
from vmmobility.wire.message import Message
from vmmobility.wire.move_terms import NO_TERMS, MoveTerms
from vmmobility.wire.options import AtServer, Option, Reason, ServerOption
from vmmobility.wire.registry import GuestState, Phase, Purpose, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmmobility.engine.binding_cache import Binding, BindingCache
    from vmmobility.engine.manager_liveness import ServerSeen
    from vmmobility.engine.outputs import Outbox


class ManagerRelocation:
    """Servers of VMs; a part of ManagerEngine."""

    if TYPE_CHECKING:
        cache: BindingCache
        outbox: Outbox
        servers_of: Callable[[str], Mapping[str, ServerSeen]]
        server_liveness: Callable[[str, str], str]
        _check_room: Callable[..., str]
        _save_binding: Callable[[Binding], None]
        _save_move: Callable[[Move], None]
        _heed_epoch: Callable[[Message, float], None]
        _new_epoch: Callable[[], int]
        _ask: Callable[..., None]

        def _happen(self, move: Move, happening: Happening, now: float, why: str = "") -> None: ...

    # ---- where a VM is -------------------------------------------------------------------------

    def _hear_server(self, binding: Binding, message: Message) -> None:
        """What the serving NVE says of it; an NVE on its own host says nothing."""
        told = message.find(AtServer)
        server = told.name if told else ""
        if server == binding.server:
            return
        before, binding.server = binding.server, server
        self._save_binding(binding)
        detail = {"vm": binding.vm.vm_id, "vni": binding.vm.vni, "nve": binding.nve.nve_id}
        self.outbox.emit(Event("binding.server", {**detail, "server": server, "before": before}))

    @staticmethod
    def _server_option(move: Move) -> tuple[Option, ...]:
        """For the destination's PREPARE."""
        return (ServerOption(move.server, move.strict),) if move.server else ()

    # ---- to another server of the same NVE -----------------------------------------------------

    def _relocatable(self, binding: Binding, server: str, terms: MoveTerms, mode: str) -> str:
        """The server that a VM goes to within its NVE; raises MoveRefused."""
        vm, nve_id = binding.vm, binding.nve.nve_id
        its = self.servers_of(nve_id)
        if not server:
            choose = "choose another NVE"
            if its:
                choose += ", or name another server with --server: " + ", ".join(its)
            raise MoveRefused("conflict", f"VM {vm} is already at {nve_id}", choose)
        found = self._check_room(binding, nve_id, server) if server != binding.server else ""
        if not found:
            where = f"{server} of {nve_id}"
            raise MoveRefused("conflict", f"VM {vm} is already at {where}", "choose another server")
        if binding.guest is not GuestState.RUNNING or binding.order is not None:
            what = f"VM {vm} does not run, and only what runs goes from one server to another"
            raise MoveRefused("conflict", what, "`vmmob vm resume` or `vmmob vm start` it first")
        if mode not in ("", "hot") or terms != NO_TERMS:
            what = "a move between two servers of one NVE is hot, and takes no terms"
            raise MoveRefused("bad-terms", what, "leave --mode and all limits out")
        if self.server_liveness(nve_id, binding.server) == "dead":
            what = f"{binding.server} of {nve_id}, where VM {vm} is, does not answer"
            raise MoveRefused("conflict", what, "see to that server first")
        return found

    def _ask_relocation(self, move: Move, now: float) -> None:
        """Entering RELOCATING, or STAYING: to where it is, which gives it up."""
        to = move.server if move.state is MoveState.RELOCATING else move.server_from
        self._ask(
            move,
            now,
            move.source,
            Purpose.PREPARE,
            move.epoch,
            Phase.RELOCATING,
            ServerOption(to),
        )

    def _relocation_replied(self, move: Move, reply: Message, now: float) -> None:
        """How it ended, by the only one who knows."""
        if reply.status is Status.STALE_EPOCH:
            self._heed_epoch(reply, now)
            move.epoch = self._new_epoch()
            self._save_move(move)
            self._ask_relocation(move, now)
            return
        binding, told = self.cache.bindings.get(move.vm), reply.find(AtServer)
        if binding is not None and told is not None:
            if binding.nve.nve_id == move.source.nve_id:
                self._hear_server(binding, reply)
            if told.name == move.server:
                self._happen(move, Happening.RELOCATED, now)
                return
        words = reply.find(Reason)
        status = reply.status.name.lower().replace("_", "-")
        why = f"{status}: {words.text}" if words else "" if reply.status.accepted else status
        happening = Happening.ACCEPTED if reply.status.accepted else Happening.REFUSED
        self._happen(move, happening, now, why)
