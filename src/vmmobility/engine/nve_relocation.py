"""A guest's move between two servers of one NVE that stands apart: nobody else is concerned.

The binding, its epoch and all routes to this NVE stay; here the VM's circuit turns from one server
to the other while the copy is held, and then the guest stops.  Whatever happens on the way is
resolved in one manner (docs/design/servers.md): end the copy at the source, end what waits at the
destination, ask what is there.  Not here: moves between NVEs (nve_moves.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.channel import Received
from vmmobility.engine.nve_parts import RETRY_S, NveParts
from vmmobility.engine.nve_transitions import Trigger
from vmmobility.engine.outputs import Order
from vmmobility.wire.options import ServerOption
from vmmobility.wire.registry import GuestState, Phase, Status
from vmmobility.wire.values import VmKey

RELOCATION_S = 600.0  # one that takes longer is given up
HAND_OVER_S = 15.0  # and so one whose guest runs nowhere for so long


class Step(Enum):
    """What a relocation waits for; not durable: after a restart it is resolved.

    The first five are taken in this order; the last three resolve it.
    """

    PREPARING = "preparing"
    COPYING = "copying"
    SWITCHING = "switching"
    TURNING = "turning"
    HANDING = "handing over"
    ENDING_COPY = "ending the copy"
    ENDING_GUEST = "ending the waiting guest"
    ASKING = "asking for the guest"


MOVABLE = (Phase.SERVING, Phase.RELOCATING)
RESOLVING = (Step.ENDING_COPY, Step.ENDING_GUEST, Step.ASKING)


class NveRelocation(NveParts):
    """Relocations; a part of NveEngine.  entry.server: where the guest was; server_to: where it
    goes (in SERVING: where something of it is still to be ended)."""

    _steps: dict[VmKey, Step]
    _until: dict[VmKey, float]
    _why: dict[VmKey, str]

    def relocate_vm(self, command: int, vm: VmKey, server: str, now: float) -> None:
        """Move a VM that is served here to another server of this NVE; to the one that it is at:
        give up the relocation under way.  Ends with CommandDone."""
        entry = self.entries.get(vm)
        if entry is None or entry.phase not in MOVABLE or entry.ending:
            held = entry.phase.name.lower() if entry is not None and entry.phase else "not here"
            self._command_failed(command, f"VM {vm} is {held}", "see `vmmob nve list`")
        elif vm in self.guarded:
            what = f"VM {vm} is protected: its checkpoints go from {entry.server or 'this host'}"
            self._command_failed(command, what, "`vmmob vm unprotect` it first")
        elif server not in self.settings.servers:
            what = self._not_a_server(server)
            self._command_failed(command, what, "see [[server]] in its configuration")
        elif entry.phase is Phase.RELOCATING and server == entry.server:
            self._resolve(entry, "given up by a command")
            entry.commands.append(command)
        elif server == entry.server:
            self._command_done(command, {"vm": vm.vm_id, "server": server})
        elif entry.phase is Phase.RELOCATING or entry.server_to or not self._whole(entry):
            what = f"VM {vm} is not settled at {entry.server or 'this host'}"
            self._command_failed(command, what, "try again in a moment")
        else:
            entry.commands.append(command)
            self._until[vm] = now + RELOCATION_S
            self._fire(entry, Trigger.RELOCATE, server, now)

    def _relocate_asked(self, entry: Entry, received: Received, now: float) -> None:
        """The manager's: answered when it has ended, with the server that it is at then."""
        message = received.message
        server, waits = message.need(ServerOption).name, entry.request
        relocating = entry.phase is Phase.RELOCATING
        if relocating and server not in (entry.server, entry.server_to):
            why = f"it is being moved to {entry.server_to}"
            self._answer(received, entry, Status.WRONG_PHASE, reason=why)
        elif relocating:
            entry.epoch = max(entry.epoch, message.epoch)
            if waits is not None and waits.message.find(ServerOption) == ServerOption(server):
                entry.request = received  # of a manager that has restarted
            else:
                self._await_with(entry, received)
            if server == entry.server:
                self._resolve(entry, "given up by the manager")
        elif server == entry.server:
            entry.epoch = max(entry.epoch, message.epoch)
            self._answer(received, entry, options=self._server_options(entry))
        elif entry.server_to or entry.rolling_back:
            self.channel.disregard(received)  # what an earlier one left is being ended
        elif entry.ending or not entry.settled or not self._whole(entry):
            why = f"it is not settled at {entry.server or 'this host'}"
            self._answer(received, entry, Status.WRONG_PHASE, reason=why)
        else:
            entry.epoch = max(entry.epoch, message.epoch)
            self._await_with(entry, received)
            self._until[entry.vm] = now + RELOCATION_S
            self._fire(entry, Trigger.RELOCATE, server, now)

    def _tell_relocated(self, entry: Entry, why: str) -> None:
        """The manager's request that waits, if one does: where it is, and why not where it was to
        be."""
        waits = entry.request
        wanted = waits.message.find(ServerOption) if waits is not None else None
        if wanted is not None and wanted.name != entry.server:
            at = self._server_options(entry)
            self._answer_waiting(entry, Status.HYPERVISOR_FAILURE, at, why)
        elif wanted is not None:
            self._answer_waiting(entry, options=self._server_options(entry))

    @staticmethod
    def _whole(entry: Entry) -> bool:
        runs = entry.started and entry.guest is GuestState.RUNNING and not entry.rolling_back
        return bool(entry.server) and runs and not entry.expected

    def _order_at(self, entry: Entry, server: str, order: Order, **arguments: Any) -> None:
        self._order(entry, order, at=server, **arguments)

    # ---- forward -------------------------------------------------------------------------------

    def _relocate(self, entry: Entry, server: str, now: float) -> None:
        """The circuit takes frames of both servers from now on, and leads to the first."""
        entry.server_to, entry.turned, entry.measured = server, False, {}
        self._steps[entry.vm] = Step.PREPARING
        self._set_data_plane(entry)
        where = {"definition": entry.definition, "address": ""}  # the server's agent has its own
        self._order_at(entry, server, Order.PREPARE_INCOMING, **where)

    def _relocation_converged(self, entry: Entry, detail: Mapping[str, Any], now: float) -> None:
        if self._steps.get(entry.vm) is Step.COPYING:
            self._steps[entry.vm] = Step.SWITCHING
            self._order_at(entry, entry.server, Order.SWITCH_OVER)

    def _relocation_turn(self, entry: Entry, detail: Mapping[str, Any], now: float) -> None:
        """The circuit turns before the guest stops: what comes from now on waits in its new tap."""
        if self._steps.get(entry.vm) is Step.SWITCHING:
            self._steps[entry.vm] = Step.TURNING
            entry.turned = True
            self._set_data_plane(entry)

    def _relocation_applied(self, entry: Entry, failure: str) -> None:
        """The kernel has (or, with a failure, has not) what the relocation wants."""
        step = self._steps.get(entry.vm)
        if failure and step not in RESOLVING:
            self._resolve(entry, f"its circuit: {failure}")
        elif step is Step.TURNING:
            self._steps[entry.vm] = Step.HANDING
            self._order_at(entry, entry.server, Order.PROCEED)

    def _relocation_resumed(self, entry: Entry, detail: Mapping[str, Any], now: float) -> None:
        """It runs at the other server: that is where it is, and what is left at the first goes."""
        if detail.get("server") != entry.server_to:
            return
        left, entry.server = entry.server, entry.server_to
        entry.server_to, entry.turned, entry.started = left, False, True
        entry.phase = Phase.SERVING
        self._end_relocation(entry)
        self._set_data_plane(entry)
        self._order(entry, Order.ANNOUNCE)
        self._order_at(entry, left, Order.STOP)
        self._event("relocated", entry, server=entry.server, before=left)
        self._commands_done(entry, {"vm": entry.vm.vm_id, "server": entry.server})
        self._tell_relocated(entry, "")
        if entry.refresh_at is not None:
            entry.refresh_at = now  # it says where the VM is

    # ---- back ----------------------------------------------------------------------------------

    def _relocation_failed(self, entry: Entry, detail: Mapping[str, Any], now: float) -> None:
        self._resolve(entry, str(detail.get("reason", "the move broke")))

    def _relocation_gone(self, entry: Entry, detail: Any, now: float) -> None:
        """A guest's process has ended: at the first server nobody can serve again then."""
        if not detail or detail.get("server") in (None, entry.server):
            entry.started = False
            if self._steps.get(entry.vm) is Step.HANDING:
                return  # all of it may have been sent: the other server says
        self._resolve(entry, "a guest's process has ended")

    def _resolve(self, entry: Entry, why: str) -> None:
        """From any step, and after any restart."""
        if self._steps.get(entry.vm) in RESOLVING:
            return
        self._why[entry.vm] = why
        self._event("relocation.failed", entry, reason=why, to=entry.server_to)
        self._steps[entry.vm] = Step.ENDING_COPY
        self._order_at(entry, entry.server, Order.CANCEL)

    def _relocation_order_done(
        self, entry: Entry, order: Order, result: Mapping[str, Any], error: str, now: float
    ) -> bool:
        """Whether an order's end was a relocation's."""
        step = self._steps.get(entry.vm)
        if entry.phase is not Phase.RELOCATING or step is None:
            return self._cleared(entry, order, result, error, now)
        if order is Order.PREPARE_INCOMING and step is Step.PREPARING:
            if error:
                self._resolve(entry, error)
            else:
                self._steps[entry.vm] = Step.COPYING
                where = {"address": result["address"], "port": result["port"]}
                self._order_at(entry, entry.server, Order.COPY_OUT, **where)
        elif error and order in (Order.COPY_OUT, Order.SWITCH_OVER, Order.PROCEED):
            self._resolve(entry, error)
        elif order is Order.PROCEED and step is Step.HANDING:
            self._until[entry.vm] = now + HAND_OVER_S
        elif step in RESOLVING and order in (Order.CANCEL, Order.QUERY):
            if order is Order.QUERY and result.get("server") != entry.server_to:
                return False  # a comparison's
            self._resolving(entry, step, result, error, now)
        else:
            return order is not Order.QUERY
        self._save(entry)
        return True

    def _resolving(
        self, entry: Entry, step: Step, result: Mapping[str, Any], error: str, now: float
    ) -> None:
        """One step of it has ended: the next, or once more."""
        life = result.get("life", "held")
        if error or (step is Step.ASKING and life == "held"):
            self._retry[entry.vm] = now + RETRY_S  # nobody knows: asked again, never guessed
        elif step is Step.ENDING_COPY:
            self._steps[entry.vm] = Step.ENDING_GUEST
            self._order_at(entry, entry.server_to, Order.CANCEL)
        elif step is Step.ENDING_GUEST:
            self._steps[entry.vm] = Step.ASKING
            self._order_at(entry, entry.server_to, Order.QUERY)
        elif life in ("running", "arrived"):
            self._relocation_resumed(entry, {"server": entry.server_to}, now)
        else:
            self._serve_where_it_was(entry, now)

    def _serve_where_it_was(self, entry: Entry, now: float) -> None:
        """Nothing can run at the other server any more: the circuit turns back, then it goes on."""
        why = self._why.get(entry.vm, "it was not finished")
        left, entry.server_to, entry.turned = entry.server_to, "", False
        entry.phase = Phase.SERVING
        self._end_relocation(entry)
        self._commands_failed(
            entry, f"VM {entry.vm} stays at {entry.server}: {why}", f"look at {left}, and try again"
        )
        self._tell_relocated(entry, why)
        if not entry.started:
            self._fire(entry, Trigger.GONE, None, now)
            return
        entry.rolling_back, entry.resumes = True, 0
        self._set_data_plane(entry)

    def _end_relocation(self, entry: Entry) -> None:
        self._steps.pop(entry.vm, None)
        self._until.pop(entry.vm, None)

    def _cleared(
        self, entry: Entry, order: Order, result: Mapping[str, Any], error: str, now: float
    ) -> bool:
        """What was left of it at the server before has ended."""
        if order is not Order.STOP or not entry.server_to:
            return False
        if result.get("server") != entry.server_to:
            return False
        if error:
            self._retry[entry.vm] = now + RETRY_S
        else:
            entry.server_to = ""
            self._save(entry)
        return True

    # ---- time, restarts ------------------------------------------------------------------------

    def _relocation_again(self, entry: Entry) -> None:
        """What nobody could say is asked once more."""
        step = self._steps.get(entry.vm)
        if entry.phase is not Phase.RELOCATING:
            if entry.server_to:
                self._order_at(entry, entry.server_to, Order.STOP)
        elif step is Step.ENDING_COPY:
            self._order_at(entry, entry.server, Order.CANCEL)
        elif step is not None and step in RESOLVING:
            # A guest that could not be asked may wait still.
            self._steps[entry.vm] = Step.ENDING_GUEST
            self._order_at(entry, entry.server_to, Order.CANCEL)

    def _relocation_timer(self, now: float) -> None:
        for vm in [vm for vm, until in self._until.items() if until <= now]:
            del self._until[vm]
            self._resolve(self.entries.entry(vm), "it took too long")

    def _recover_relocation(self, entry: Entry, running: bool | None, now: float) -> bool:
        """After a restart: what is under way is resolved, what is left elsewhere is ended."""
        if entry.phase is Phase.RELOCATING:
            entry.refresh_at = now
            self._set_data_plane(entry)
            self._resolve(entry, "the NVE restarted")
            return True
        if entry.server_to:
            self._order_at(entry, entry.server_to, Order.STOP)
        return False
