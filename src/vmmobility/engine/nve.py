"""The NVE's engine: registers local guests, keeps the Binding Update List, obeys the manager.

Inputs are methods that take the time (monotonic seconds); outputs come from `flush()` (see
outputs.py).  Peer input never raises.  Its state machine is nve_transitions.py.  Not here: what the
kernel and the hypervisor report (nve_host_reports.py), the actions (nve_registration.py,
nve_moves.py, nve_redirects.py, nve_unmanaged.py), comparisons (nve_checks.py), a restart's findings
(nve_restart.py).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vmmobility.engine import binding_update_list as bul
from vmmobility.engine.admission import too_long
from vmmobility.engine.binding_update_list import BindingUpdateList, Entry
from vmmobility.engine.channel import Channel, Peer, Received, Retransmission
from vmmobility.engine.dataplane import RedirectPolicy, VmDataPlane, outside_of
from vmmobility.engine.nve_heartbeats import NveHeartbeats
from vmmobility.engine.nve_host_reports import NveHostReports
from vmmobility.engine.nve_parts import in_use_by
from vmmobility.engine.nve_relocation import NveRelocation
from vmmobility.engine.nve_restart import IDLE
from vmmobility.engine.nve_servers import NveServers
from vmmobility.engine.nve_transitions import OTHERWISE, TABLE, Otherwise, Trigger
from vmmobility.engine.origin import Boxes, Napts
from vmmobility.engine.outputs import (
    CommandDone,
    Endpoint,
    Event,
    Flushing,
    HypervisorOrder,
    Order,
    Outbox,
    SetDataPlane,
)
from vmmobility.engine.protection_record import load_guarded, load_standbys
from vmmobility.errors import DecodeError
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    Epoch,
    GuestStateOption,
    Option,
    PhaseOption,
    ServerOption,
    Ticket,
    VmId,
)
from vmmobility.wire.registry import GuestState, Phase, Purpose, Role, Status
from vmmobility.wire.values import Address, Interface, Nve, Prefix, VmKey

# design, Rights: "only the manager may prepare, switch or redirect an NVE"
RIGHTS = {
    purpose: frozenset({Role.MANAGER})
    for purpose in (
        Purpose.PREPARE,
        Purpose.SWITCH,
        Purpose.REDIRECT,
        Purpose.DEREGISTER,
        Purpose.CHECK,
        Purpose.GUEST,
        Purpose.PROTECT,
    )
}

REQUEST_TRIGGERS: Mapping[tuple[Purpose, Phase | None], Trigger] = {
    (Purpose.PREPARE, Phase.PREPARED): Trigger.PREPARE_IN,
    (Purpose.PREPARE, Phase.COPYING): Trigger.PREPARE_OUT,
    (Purpose.PREPARE, Phase.RELOCATING): Trigger.RELOCATE_TO,
    (Purpose.SWITCH, Phase.PREPARED): Trigger.RELAY,
    (Purpose.SWITCH, Phase.DELIVERING): Trigger.DELIVER,
    (Purpose.SWITCH, Phase.SWITCHED): Trigger.TURN,
    (Purpose.SWITCH, Phase.SERVING): Trigger.ROLL_BACK,
    (Purpose.SWITCH, Phase.FAILED): Trigger.GIVE_UP,
    (Purpose.REDIRECT, None): Trigger.REDIRECT,
    (Purpose.DEREGISTER, None): Trigger.REMOVE,
}

GUEST_TRIGGERS: Mapping[GuestState, Trigger] = {
    GuestState.RUNNING: Trigger.GUEST_RUN,
    GuestState.SUSPENDED: Trigger.GUEST_SUSPEND,
    GuestState.STOPPED: Trigger.GUEST_STOP,
    GuestState.NONE: Trigger.GUEST_DELETE,
}

# Requests that must show the ticket of the move that the entry is in.
TICKETED = frozenset(REQUEST_TRIGGERS.values()) - {Trigger.REDIRECT, Trigger.REMOVE}
IN_A_MOVE = frozenset(Phase) - {
    Phase.NONE, Phase.SERVING, Phase.STOPPED, Phase.REDIRECTING, Phase.DEPARTED, Phase.STANDBY,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class NveSettings:
    """lifetime_s: registration lifetime asked for; drain_s: silence after which a redirect that no
    covering prefix needs is given up; home_prefixes: what the fabric routes to this node; check_s:
    how often list, hypervisor and kernel are compared; redirect_alarm_s: age of a redirect at which
    people are told; dc_prefixes: of all hosts in the data centres, VMs too; empty: not configured;
    napts: NAPT boxes by name, and their public addresses; servers: those that VMs are at, if this
    node stands apart from them; heartbeat_s: the manager is told so often
    that this node lives, 0 is never."""

    own: Nve
    home_prefixes: tuple[Prefix, ...] = ()
    lifetime_s: float = 120.0
    drain_s: float = 30.0
    check_s: float = 60.0
    redirect_alarm_s: float = 86400.0
    policy: RedirectPolicy = RedirectPolicy.AUTO
    dc_prefixes: tuple[Prefix, ...] = ()
    retransmission: Retransmission = field(default_factory=Retransmission)
    napts: Napts = ()
    heartbeat_s: float = 0.0
    servers: tuple[str, ...] = ()


class NveEngine(NveHostReports, NveHeartbeats, NveServers, NveRelocation, Flushing):
    """One NVE.  `state` is what the store held; `boot` is above every earlier start's."""

    def __init__(
        self,
        settings: NveSettings,
        managers: Iterable[Peer],
        state: Mapping[str, Any],
        boot: int,
        jitter: random.Random,
    ) -> None:
        self.settings = settings
        self.outbox = Outbox()
        peers = list(managers)
        self.manager = peers[0]
        self.channel = Channel(
            settings.own.nve_id,
            boot,
            peers,
            RIGHTS,
            self.outbox,
            jitter,
            settings.retransmission,
            Boxes(dict(settings.napts)),
        )
        self.channel.restore(state)
        self.entries: BindingUpdateList = bul.load(state)
        self.guarded, self.standbys = load_guarded(state), load_standbys(state)
        self._told_time = None
        self._fence_at_start()
        self.jitter = jitter
        self.counts: Counter[str] = Counter()
        self._retry: dict[VmKey, float] = {}
        self._surveys = {}
        self._told_outside: set[VmKey] = set()
        self._steps, self._until, self._why = {}, {}, {}
        self._no_heartbeats_yet()

    # ---- inputs --------------------------------------------------------------------------------

    def datagram_received(
        self, data: bytes, source: Endpoint, local: Address | None, now: float
    ) -> None:
        received = self.channel.datagram(data, source, local, now)
        if received is None:
            return
        try:
            self._request(received, now)
        except DecodeError as error:
            self.channel.drops[error.reason] += 1
            self.channel.reply(received, Status.MALFORMED, reason=str(error))

    def started(self, running: Mapping[VmKey, bool], now: float) -> None:
        """After a (re)start: `running` says which guests the hypervisor still has."""
        self.channel.start(now)
        for entry in list(self.entries.values()):
            self._recover(entry, running.get(entry.vm), now)
            self._plan_check(entry, now)
        self._begin_heartbeats(now)
        self._recover_protection(now)

    def start_vm(
        self,
        command: int,
        vm: VmKey,
        interfaces: Sequence[Interface],
        definition: bytes,
        now: float,
        server: str = "",
    ) -> None:
        """Define a VM, register it, then boot it (in this order: a VM that is bound elsewhere is
        never booted).  server: where, "" is anywhere.  Ends with CommandDone."""
        entry = self.entries.entry(vm)
        if misplaced := self._misplaced(entry, server):
            self._command_failed(command, *misplaced)
            return
        if entry.ending:
            self._command_failed(command, f"VM {vm} is being stopped", "start it again after that")
            return
        if entry.phase in (Phase.SERVING, Phase.ATTACHING) and entry.definition == definition:
            if entry.started:
                self._command_done(command, {"vm": vm.vm_id, "phase": entry.phase.name.lower()})
            else:
                entry.commands.append(command)
            return
        if entry.leftover:
            what = f"a guest of VM {vm} is still being ended here"
            self._command_failed(command, what, "start it again in a moment")
            return
        if (entry.phase, Trigger.START) not in TABLE:
            held = entry.phase is Phase.STOPPED
            remedy = "`vmmob vm start` or `vmmob vm resume` it" if held else "stop or move it first"
            self._command_failed(command, f"VM {vm} is {entry.words} here", remedy)
            return
        long = too_long(interfaces, definition)
        if long:
            self._command_failed(
                command, f"VM {vm}: {long}", "shorten its definition, or give it fewer addresses"
            )
            return
        if entry.phase is Phase.REDIRECTING and set(entry.interfaces) != set(interfaces):
            what = f"VM {vm} has other addresses on record than its definition"
            self._command_failed(command, what, "correct the definition: see `vmmob vm list`")
            return
        sharer = self.entries.sharer(vm, interfaces)
        if sharer is not None:
            self._command_failed(
                command, in_use_by(sharer), "choose another NVE, or wait for its end"
            )
            return
        entry.interfaces, entry.definition = tuple(interfaces), definition
        self._place(entry, server)
        entry.commands.append(command)
        self._fire(entry, Trigger.START, None, now)

    def stop_vm(self, command: int, vm: VmKey, now: float) -> None:
        """End a guest and deregister it.  Ends with CommandDone."""
        entry = self.entries.get(vm)
        if entry is None or (entry.phase, Trigger.STOP) not in TABLE:
            held = entry.phase.name.lower() if entry and entry.phase else "not here"
            self._command_failed(command, f"VM {vm} is {held}", "see `vmmob nve list`")
            return
        if vm in self.guarded:
            what = f"VM {vm} is protected: its end here would let its standby take over"
            self._command_failed(command, what, "`vmmob vm unprotect` it first")
            return
        if not entry.ending:
            self._commands_failed(entry, f"VM {vm} is being stopped", "start it again after that")
        entry.commands.append(command)
        self._fire(entry, Trigger.STOP, None, now)

    def next_timer(self) -> float | None:
        due = [self.channel.next_timer(), self._heartbeat_at, *self._retry.values()]
        due += self._until.values()
        due += [e.refresh_at for e in self.entries.values()]
        due += [e.check_at for e in self.entries.values()]
        due += self._protection_timers()
        due += [
            e.quiet_since + self.settings.drain_s
            for e in self.entries.values()
            if e.quiet_since is not None and not e.draining
        ]
        return min((d for d in due if d is not None), default=None)

    def timer(self, now: float) -> None:
        self._beat(now)
        self._relocation_timer(now)
        self._protection_timer(now)
        self.channel.timer(now)
        for vm in [vm for vm, due in self._retry.items() if due <= now]:
            del self._retry[vm]
            entry = self.entries.entry(vm)
            if entry.leftover and entry.phase in IDLE:
                self._order(entry, Order.STOP)
            self._relocation_again(entry)
            self._set_data_plane(entry)
        for entry in list(self.entries.values()):
            if entry.refresh_at is not None and entry.refresh_at <= now:
                self._refresh(entry, now)
            if entry.check_at is not None and entry.check_at <= now:
                self._check_timer(entry, now)
            quiet = entry.quiet_since
            if quiet is not None and not entry.draining and quiet + self.settings.drain_s <= now:
                self._fire(entry, Trigger.DRAINED, None, now)

    def desired(self) -> dict[VmKey, VmDataPlane]:
        """What the whole data plane should hold: for a resync at start."""
        return {
            e.vm: e.data_plane(self.settings.policy)
            for e in self.entries.values()
            if not e.is_tombstone
        }

    def definitions(self) -> dict[VmKey, bytes]:
        """The VMs whose guests may be here: what the hypervisors are asked for after a start."""
        entries = self.entries.values()
        return {e.vm: e.definition for e in entries if e.leftover or not e.is_tombstone}

    @property
    def wants_traffic(self) -> bool:
        """Whether redirects wait for their traffic to stop (the pump then counts it)."""
        return any(e.phase is Phase.REDIRECTING for e in self.entries.values())

    # ---- the machine ---------------------------------------------------------------------------

    def _request(self, received: Received, now: float) -> None:
        message = received.message
        if message.purpose is Purpose.CHECK:
            self._check_requested(received, self.entries.entry(message.vm))
            return
        if message.purpose is Purpose.PROTECT:
            self._protect_requested(received, now)
            return
        trigger = self._trigger_of(message)
        if message.vm.vni != 0:
            self.channel.reply(received, Status.VNI_NOT_SUPPORTED)
            return
        entry = self.entries.entry(message.vm)
        guest = message.purpose is Purpose.GUEST
        changing = entry.phase is Phase.ATTACHING or entry.booting or not entry.settled
        ended = entry.ending and entry.phase is Phase.STOPPED
        if trigger is Trigger.PREPARE_OUT and (changing or ended):
            # The manager serves us already: the answer to our attach is on its way, or is lost.
            # Or its guest is being booted, and may not come to be.
            # Or the guest is about to stop, of which a manager that was set back does not know.
            # Or people have ended the VM here: its deregistration is under way.
            self.channel.disregard(received)
            return
        if guest and self._put_off(entry, received):
            return
        self._yield_if_fenced(entry, trigger, message)
        if self._stale(entry, trigger, message):
            self._answer(received, entry, Status.STALE_EPOCH)
        elif self._of_another_move(entry, trigger, message):
            self._answer(received, entry, Status.INVALID_TICKET)
        elif entry.phase is Phase.DELIVERING and self._takes_over(entry):
            # Its primary would go on: not before the guest here runs and attaches, or has ended.
            self._answer(received, entry, Status.WRONG_PHASE, reason="it is taking over")
        elif entry.expected and (trigger in (Trigger.PREPARE_IN, Trigger.PREPARE_OUT) or guest):
            why = "its guests are run by others here"
            self._answer(received, entry, Status.ADMINISTRATIVELY_PROHIBITED, reason=why)
        elif (trigger is Trigger.PREPARE_IN or guest) and (
            sharer := self.entries.sharer(entry.vm, message.interfaces)
        ):
            self._answer(received, entry, Status.ADDRESS_IN_USE, reason=in_use_by(sharer))
        elif (named := message.find(ServerOption)) and (
            what := self._no_such_server(entry, trigger, named)
        ):
            self._answer(received, entry, Status.ADMINISTRATIVELY_PROHIBITED, reason=what)
        else:
            self._fire(entry, trigger, received, now)

    @staticmethod
    def _trigger_of(message: Message) -> Trigger:
        """What a request asks for.  Raises DecodeError if that makes no sense."""
        if message.purpose is Purpose.GUEST:
            return GUEST_TRIGGERS[message.need(GuestStateOption).state]
        phase = message.find(PhaseOption)
        asked = phase.phase if phase else None
        if message.purpose in (Purpose.REDIRECT, Purpose.DEREGISTER):
            asked = None
        trigger = REQUEST_TRIGGERS.get((message.purpose, asked))
        if trigger is None:
            raise DecodeError("bad-value", f"{message.purpose.name} to phase {asked}")
        if trigger is Trigger.REMOVE and message.find(Ticket) is not None:
            return Trigger.CLEAR
        return trigger

    @staticmethod
    def _stale(entry: Entry, trigger: Trigger, message: Message) -> bool:
        """design, Fencing: act only for an epoch above the highest acted on for that VM, and for
        none below that of the move under way here.

        Equal is the same turn again (a repetition, or REDIRECT and roll-back's end of the epoch
        that SWITCH began), which the table's phases confine.  A REDIRECT of the binding before the
        move is answered and changes nothing (_redirect_prepared).
        """
        if trigger is Trigger.REDIRECT:
            return message.epoch < entry.epoch
        if trigger is Trigger.PREPARE_OUT and message.epoch <= entry.granted:
            return True
        renewed = trigger is Trigger.PREPARE_IN and entry.phase is not Phase.PREPARED
        if renewed and message.epoch <= entry.epoch:
            return True
        acted_on = 0 if trigger is Trigger.PREPARE_OUT else entry.epoch
        return message.epoch < max(acted_on, entry.move_epoch)

    @staticmethod
    def _of_another_move(entry: Entry, trigger: Trigger, message: Message) -> bool:
        """design: a ticket is one move's.  A preparation under a newer epoch brings its own, and
        the end of a move (CLEAR) is known by its epoch alone: it ends all older ones."""
        if trigger not in TICKETED or entry.phase not in IN_A_MOVE or not entry.ticket:
            return False
        if trigger is Trigger.PREPARE_IN and message.epoch != entry.move_epoch:
            return False
        return message.need(Ticket).ticket != entry.ticket

    def _fire(
        self, entry: Entry, trigger: Trigger, cause: Received | Message | Any, now: float
    ) -> None:
        rule = TABLE.get((entry.phase, trigger))
        if rule is None:
            if OTHERWISE[trigger] is Otherwise.REFUSE and isinstance(cause, Received):
                self._answer(cause, entry, Status.WRONG_PHASE)
            return
        action: Callable[[Entry, Any, float], None] = getattr(self, f"_{rule.action}")
        before = entry.phase
        if rule.becomes is not None:
            entry.phase = rule.becomes
        try:
            action(entry, cause, now)
        except DecodeError:
            # Actions read all that they need of a message before they change anything.
            entry.phase = before
            raise
        if entry.check_at is None:
            self._plan_check(entry, now)
        self._save(entry)

    def _save(self, entry: Entry) -> None:
        self._look_at_guard(entry)
        self.outbox.record(bul.BindingUpdateList.key(entry.vm), bul.entry_to_json(entry))

    def _answer(
        self,
        received: Received,
        entry: Entry,
        status: Status = Status.ACCEPTED,
        options: Iterable[Option] = (),
        reason: str = "",
    ) -> None:
        """Reply with where this node stands: (epoch, phase)."""
        epoch = entry.heeded if status is Status.STALE_EPOCH else entry.epoch
        # To everybody else a VM that moves between its servers is served here as before.
        phase = Phase.SERVING if entry.phase is Phase.RELOCATING else entry.phase
        stand = (VmId(entry.vm), Epoch(epoch), PhaseOption(phase))
        self.channel.reply(received, status, (*stand, *options), reason=reason)

    def _set_data_plane(self, entry: Entry) -> None:
        entry.tag += 1
        entry.lingering = entry.is_tombstone
        self._look_at_prefixes(entry)
        self.outbox.emit(SetDataPlane(entry.data_plane(self.settings.policy), entry.tag))

    def _look_at_prefixes(self, entry: Entry) -> None:
        """A VM outside the data centres by its own address: other VMs' tunnels would drop it."""
        if entry.vm in self._told_outside:
            return
        outside = outside_of(entry.prefixes, self.settings.dc_prefixes)
        if outside:
            self._told_outside.add(entry.vm)
            words = "its packets to VMs that are redirected are dropped: add them to dc_prefixes"
            self._event("dc-prefixes.lack", entry, prefixes=[str(p) for p in outside], words=words)

    def _order(self, entry: Entry, order: Order, **arguments: Any) -> None:
        at = arguments.pop("at", entry.server)
        if at:
            arguments["server"] = at
        self.outbox.emit(HypervisorOrder(order, entry.vm, arguments))

    def _event(self, name: str, entry: Entry, **detail: Any) -> None:
        where = {"vm": entry.vm.vm_id, "vni": entry.vm.vni, "epoch": entry.epoch}
        self.outbox.emit(Event(name, {**where, **detail}))

    def _command_done(self, command: int, result: dict[str, Any]) -> None:
        self.outbox.emit(CommandDone(command, result))

    def _command_failed(self, command: int, error: str, remedy: str) -> None:
        self.outbox.emit(CommandDone(command, error=error, remedy=remedy))

    def _commands_done(self, entry: Entry, result: dict[str, Any]) -> None:
        """Every command that waits for this entry ends, once."""
        commands, entry.commands = entry.commands, []
        for command in commands:
            self._command_done(command, result)

    def _commands_failed(self, entry: Entry, error: str, remedy: str) -> None:
        commands, entry.commands = entry.commands, []
        for command in commands:
            self._command_failed(command, error, remedy)
