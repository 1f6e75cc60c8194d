"""The NVE's engine: registers local guests, keeps the Binding Update List, obeys the manager.

Inputs are methods that take the time (monotonic seconds); outputs come from `flush()` (see
outputs.py).  Peer input never raises.  Its state machine is nve_transitions.py; the actions of a
move are in nve_moves.py, those of registration and redirects are here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vmmobility.engine import binding_update_list as bul
from vmmobility.engine.binding_update_list import BindingUpdateList, Entry
from vmmobility.engine.channel import Channel, Peer, Received, Retransmission
from vmmobility.engine.dataplane import RedirectPolicy, VmDataPlane
from vmmobility.engine.nve_moves import NveMoves
from vmmobility.engine.nve_transitions import OTHERWISE, TABLE, Otherwise, Trigger
from vmmobility.engine.outputs import (
    CommandDone,
    Endpoint,
    Event,
    HypervisorOrder,
    Order,
    Outbox,
    Output,
    SetDataPlane,
)
from vmmobility.errors import DecodeError
from vmmobility.wire.message import Message, definition_options
from vmmobility.wire.options import (
    AttachId,
    Epoch,
    InterfaceGroup,
    Measurements,
    MobilityKind,
    Option,
    PhaseOption,
    Reason,
    ServingNve,
    Ticket,
    VmId,
)
from vmmobility.wire.registry import LIFETIME_UNIT_S, Phase, Purpose, Role, Status
from vmmobility.wire.values import Address, Interface, Nve, Prefix, VmKey

# design, Rights: "only the manager may prepare, switch or redirect an NVE"
RIGHTS = {
    purpose: frozenset({Role.MANAGER})
    for purpose in (Purpose.PREPARE, Purpose.SWITCH, Purpose.REDIRECT, Purpose.DEREGISTER)
}
RETRY_S = 1.0  # a failed data plane item is tried again after so long

REQUEST_TRIGGERS: Mapping[tuple[Purpose, Phase | None], Trigger] = {
    (Purpose.PREPARE, Phase.PREPARED): Trigger.PREPARE_IN,
    (Purpose.PREPARE, Phase.COPYING): Trigger.PREPARE_OUT,
    (Purpose.SWITCH, Phase.DELIVERING): Trigger.DELIVER,
    (Purpose.SWITCH, Phase.SWITCHED): Trigger.TURN,
    (Purpose.SWITCH, Phase.SERVING): Trigger.ROLL_BACK,
    (Purpose.SWITCH, Phase.FAILED): Trigger.GIVE_UP,
    (Purpose.REDIRECT, None): Trigger.REDIRECT,
    (Purpose.DEREGISTER, None): Trigger.REMOVE,
}


@dataclass(frozen=True, slots=True)
class NveSettings:
    """lifetime_s: registration lifetime asked for; drain_s: silence after which a redirect that no
    covering prefix needs is given up; home_prefixes: what the fabric routes to this node."""

    own: Nve
    home_prefixes: tuple[Prefix, ...] = ()
    lifetime_s: float = 120.0
    drain_s: float = 30.0
    policy: RedirectPolicy = RedirectPolicy.AUTO
    retransmission: Retransmission = field(default_factory=Retransmission)


class NveEngine(NveMoves):
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
            settings.own.nve_id, boot, peers, RIGHTS, self.outbox, jitter, settings.retransmission
        )
        self.channel.restore(state)
        self.entries: BindingUpdateList = bul.load(state)
        self.jitter = jitter
        self._retry: dict[VmKey, float] = {}

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
        for entry in list(self.entries.values()):
            self._recover(entry, running.get(entry.vm), now)

    def start_vm(
        self,
        command: int,
        vm: VmKey,
        interfaces: Sequence[Interface],
        definition: bytes,
        now: float,
    ) -> None:
        """Define a VM, register it, then boot it (in this order: a VM that is bound elsewhere is
        never booted).  Ends with CommandDone."""
        entry = self.entries.entry(vm)
        if entry.phase in (Phase.SERVING, Phase.ATTACHING) and entry.definition == definition:
            self._command_done(command, {"vm": vm.vm_id, "phase": entry.phase.name.lower()})
            return
        if (entry.phase, Trigger.START) not in TABLE:
            self._command_failed(
                command, f"VM {vm} is {entry.phase.name.lower()} here", "stop or move it first"
            )
            return
        entry.interfaces, entry.definition = tuple(interfaces), definition
        entry.command, entry.started = command, False
        self._fire(entry, Trigger.START, None, now)

    def stop_vm(self, command: int, vm: VmKey, now: float) -> None:
        """End a guest and deregister it.  Ends with CommandDone."""
        entry = self.entries.get(vm)
        if entry is None or (entry.phase, Trigger.STOP) not in TABLE:
            held = entry.phase.name.lower() if entry and entry.phase else "not here"
            self._command_failed(command, f"VM {vm} is {held}", "see `vmmob nve list`")
            return
        entry.command = command
        self._fire(entry, Trigger.STOP, None, now)

    def data_plane_applied(self, vm: VmKey, tag: int, failures: Sequence[str], now: float) -> None:
        """The kernel holds (or, with failures, does not) the state asked for under `tag`."""
        entry = self.entries.get(vm)
        if entry is None or tag != entry.tag:
            return
        self.outbox.emit(Event("forwarding", self._forwarding(entry, failures)))
        if failures and entry.phase not in (Phase.PREPARED, Phase.DELIVERING, Phase.SWITCHED):
            self._retry[vm] = now + RETRY_S
        self._applied(entry, "; ".join(failures), now)

    def next_timer(self) -> float | None:
        due = [self.channel.next_timer(), *self._retry.values()]
        due += [e.refresh_at for e in self.entries.values()]
        due += [
            e.quiet_since + self.settings.drain_s
            for e in self.entries.values()
            if e.quiet_since is not None and not e.draining
        ]
        return min((d for d in due if d is not None), default=None)

    def timer(self, now: float) -> None:
        self.channel.timer(now)
        for vm in [vm for vm, due in self._retry.items() if due <= now]:
            del self._retry[vm]
            self._set_data_plane(self.entries.entry(vm))
        for entry in list(self.entries.values()):
            if entry.refresh_at is not None and entry.refresh_at <= now:
                self._refresh(entry, now)
            quiet = entry.quiet_since
            if quiet is not None and not entry.draining and quiet + self.settings.drain_s <= now:
                self._fire(entry, Trigger.DRAINED, None, now)

    def flush(self) -> list[Output]:
        return self.outbox.flush()

    def persisted(self, number: int) -> None:
        self.outbox.persisted(number)

    def persist_failed(self, reason: str) -> None:
        self.outbox.persist_failed(reason)

    def desired(self) -> dict[VmKey, VmDataPlane]:
        """What the whole data plane should hold: for a resync at start."""
        return {
            e.vm: e.data_plane(self.settings.policy)
            for e in self.entries.values()
            if e.phase is not Phase.NONE
        }

    @property
    def wants_traffic(self) -> bool:
        """Whether redirects wait for their traffic to stop (the pump then counts it)."""
        return any(e.phase is Phase.REDIRECTING for e in self.entries.values())

    # ---- the machine ---------------------------------------------------------------------------

    def _request(self, received: Received, now: float) -> None:
        message = received.message
        phase = message.find(PhaseOption)
        asked = phase.phase if phase else None
        if message.purpose in (Purpose.REDIRECT, Purpose.DEREGISTER):
            asked = None
        trigger = REQUEST_TRIGGERS.get((message.purpose, asked))
        if trigger is None:
            raise DecodeError("bad-value", f"{message.purpose.name} to phase {asked}")
        if trigger is Trigger.REMOVE and message.find(Ticket) is not None:
            trigger = Trigger.CLEAR
        if message.vm.vni != 0:
            self.channel.reply(received, Status.VNI_NOT_SUPPORTED)
            return
        entry = self.entries.entry(message.vm)
        if self._stale(entry, trigger, message):
            self._answer(received, entry, Status.STALE_EPOCH)
            return
        self._fire(entry, trigger, received, now)

    @staticmethod
    def _stale(entry: Entry, trigger: Trigger, message: Message) -> bool:
        """design, Fencing: act only for an epoch above the highest acted on for that VM.

        Equal is the same turn again (a repetition, or REDIRECT and roll-back's end of the epoch
        that SWITCH began), which the table's phases confine.
        """
        if trigger is Trigger.PREPARE_IN and entry.phase is not Phase.PREPARED:
            return message.epoch <= entry.epoch
        if trigger is Trigger.PREPARE_OUT:
            return message.epoch <= entry.granted
        highest = entry.epoch
        if trigger in (Trigger.PREPARE_IN, Trigger.DELIVER, Trigger.TURN):
            highest = max(highest, entry.move_epoch)
        return message.epoch < highest

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
        self._save(entry)

    def _save(self, entry: Entry) -> None:
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
        stand = (VmId(entry.vm), Epoch(entry.epoch), PhaseOption(entry.phase))
        self.channel.reply(received, status, (*stand, *options), reason=reason)

    def _set_data_plane(self, entry: Entry) -> None:
        entry.tag += 1
        self.outbox.emit(SetDataPlane(entry.data_plane(self.settings.policy), entry.tag))

    def _order(self, entry: Entry, order: Order, **arguments: Any) -> None:
        self.outbox.emit(HypervisorOrder(order, entry.vm, arguments))

    def _event(self, name: str, entry: Entry, **detail: Any) -> None:
        where = {"vm": entry.vm.vm_id, "vni": entry.vm.vni, "epoch": entry.epoch}
        self.outbox.emit(Event(name, {**where, **detail}))

    def _command_done(self, command: int | None, result: dict[str, Any]) -> None:
        if command is not None:
            self.outbox.emit(CommandDone(command, result))

    def _command_failed(self, command: int | None, error: str, remedy: str) -> None:
        if command is not None:
            self.outbox.emit(CommandDone(command, error=error, remedy=remedy))

    def _forwarding(self, entry: Entry, failures: Sequence[str]) -> dict[str, Any]:
        wanted = entry.data_plane(self.settings.policy)
        return {
            "vm": entry.vm.vm_id,
            "vni": entry.vm.vni,
            "epoch": entry.epoch,
            "phase": entry.phase.name.lower(),
            "forwarding": wanted.forwarding.value,
            "target": wanted.target.nve_id if wanted.target else None,
            "plugged": wanted.plugged,
            **({"failures": list(failures)} if failures else {}),
        }

    # ---- registration (draft Section 5) --------------------------------------------------------

    def _start(self, entry: Entry, _: None, now: float) -> None:
        entry.attach_id = self.jitter.getrandbits(63) + 1
        entry.ticket, entry.granted, entry.came_from = b"", 0, Phase.NONE
        entry.target, entry.accept, entry.unplugged = None, (), False
        self._set_data_plane(entry)

    def _attach(self, entry: Entry, now: float) -> None:
        """Section 5: "The destination NVE MUST send a VM Mobility Registration Request message to
        the management node" - and so does the source NVE when the VM is created."""
        options: list[Option] = [
            VmId(entry.vm),
            *(InterfaceGroup(i) for i in entry.interfaces),
            ServingNve(self.settings.own),
            AttachId(entry.attach_id),
            MobilityKind(entry.mobility),
        ]
        if entry.ticket and entry.phase is Phase.ATTACHING:
            options.append(Ticket(entry.ticket))
        else:
            options.extend(definition_options(entry.definition))
        if entry.measured:
            options.append(Measurements(self._measurements(entry)))
        self.channel.request(
            self.manager,
            Purpose.ATTACH,
            options,
            now,
            lambda reply, at: self._attach_replied(entry, reply, at),
            lifetime=self._units(self.settings.lifetime_s),
            subject=(entry.vm, "registration"),
        )

    def _attach_replied(self, entry: Entry, reply: Message, now: float) -> None:
        if reply.status.accepted:
            self._fire(entry, Trigger.ACCEPTED, reply, now)
        elif reply.status is Status.SUPERSEDED:
            self._yield(entry, reply, now)
        else:
            self._fire(entry, Trigger.REFUSED, reply, now)

    def _accepted(self, entry: Entry, reply: Message, now: float) -> None:
        self._reattached(entry, reply, now)
        entry.ticket, entry.target = b"", None
        self._event("registered", entry, previous=[n.nve_id for n in entry.accept])
        if not entry.started:
            self._order(entry, Order.START, definition=entry.definition)

    def _reattached(self, entry: Entry, reply: Message, now: float) -> None:
        entry.granted = entry.epoch = max(reply.epoch, entry.epoch)
        entry.accept = reply.previous
        self._granted(entry, reply, now)
        self._set_data_plane(entry)

    def _granted(self, entry: Entry, reply: Message, now: float) -> None:
        """Section 5: the manager's final value is equal to or less than the suggested one."""
        granted = min(reply.lifetime * LIFETIME_UNIT_S, self.settings.lifetime_s)
        entry.lifetime_s = max(granted, LIFETIME_UNIT_S)
        entry.refresh_at = now + entry.lifetime_s / 2 * self.jitter.uniform(0.9, 1.0)

    def _refused(self, entry: Entry, reply: Message, now: float) -> None:
        """The attach of a guest not yet booted is given up; a guest that runs is never given up
        for a refusal (only for `superseded`): it is asked for again."""
        words = reply.find(Reason)
        why = reply.status.name.lower().replace("_", "-") + (f": {words.text}" if words else "")
        self._event("registration.refused", entry, reason=why)
        if entry.started:
            if reply.status is Status.INVALID_TICKET:
                entry.ticket = b""
            entry.refresh_at = now + RETRY_S
            return
        command, entry.command = entry.command, None
        self._command_failed(
            command, f"the manager refused VM {entry.vm}: {why}", "see `vmmob show bindings`"
        )
        self._forget(entry)

    def _refresh(self, entry: Entry, now: float) -> None:
        """Section 5: "In order to extend a binding that is expiring, the Hypervisor sends periodic
        reregistration messages"."""
        entry.refresh_at = now + max(entry.lifetime_s, LIFETIME_UNIT_S) / 2
        if entry.phase is Phase.ATTACHING:
            self._attach(entry, now)
            return
        self.channel.request(
            self.manager,
            Purpose.REFRESH,
            [VmId(entry.vm), AttachId(entry.attach_id), Epoch(entry.granted)],
            now,
            lambda reply, at: self._refresh_replied(entry, reply, at),
            lifetime=self._units(self.settings.lifetime_s),
            subject=(entry.vm, "registration"),
        )

    def _refresh_replied(self, entry: Entry, reply: Message, now: float) -> None:
        if reply.status.accepted:
            if entry.refresh_at is not None:
                self._granted(entry, reply, now)
        elif reply.status is Status.SUPERSEDED:
            self._yield(entry, reply, now)
        elif reply.status is Status.UNKNOWN_BINDING:
            self._fire(entry, Trigger.UNKNOWN, reply, now)

    def _attach_again(self, entry: Entry, _: Message, now: float) -> None:
        self._attach(entry, now)

    def _yield(self, entry: Entry, reply: Message, now: float) -> None:
        """design, Fencing: a running local guest yields only to a `superseded` that answers its
        own current attach (the channel matched it to our outstanding request)."""
        if reply.epoch > entry.epoch:
            self._fire(entry, Trigger.SUPERSEDED, reply, now)

    def _superseded(self, entry: Entry, reply: Message, now: float) -> None:
        serving = reply.need(ServingNve).nve
        entry.epoch, entry.granted = reply.epoch, 0
        entry.target, entry.accept = serving, ()
        entry.refresh_at, entry.unplugged, entry.ticket = None, True, b""
        self._event("superseded", entry, serving=entry.target.nve_id)
        self._order(entry, Order.PAUSE)
        self._set_data_plane(entry)
        self._watch_traffic(entry, now)

    def _units(self, seconds: float) -> int:
        return max(1, min(int(seconds // LIFETIME_UNIT_S), 0xFFFF))

    # ---- end of a guest ------------------------------------------------------------------------

    def _stop(self, entry: Entry, _: None, now: float) -> None:
        self._order(entry, Order.STOP)
        self._deregister(entry, now)

    def _guest_gone(self, entry: Entry, _: Any, now: float) -> None:
        self._event("guest.lost", entry)
        if entry.phase is Phase.ATTACHING and entry.target is not None:
            # It moved in and is not bound to here yet: the source has a complete copy.
            entry.phase = Phase.FAILED
            self._incoming_failed(entry, {"reason": "the guest ended"}, now)
        else:
            self._stop(entry, None, now)

    def _deregister(self, entry: Entry, now: float) -> None:
        """Lifetime 0: the VM is no more; the manager tells the previous NVEs."""
        entry.refresh_at = None
        self.channel.request(
            self.manager,
            Purpose.DEREGISTER,
            [VmId(entry.vm), AttachId(entry.attach_id), Epoch(entry.granted)],
            now,
            lambda reply, at: self._deregistered(entry, reply),
            subject=(entry.vm, "registration"),
        )

    def _deregistered(self, entry: Entry, reply: Message) -> None:
        command, entry.command = entry.command, None
        self._command_done(command, {"vm": entry.vm.vm_id, "status": reply.status.name.lower()})
        if reply.status.accepted or entry.phase is not Phase.FAILED:
            self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        """Nothing stays of the VM here but its epoch (the tombstone)."""
        entry.phase, entry.target, entry.accept = Phase.NONE, None, ()
        entry.refresh_at = entry.quiet_since = None
        entry.granted, entry.draining, entry.started, entry.turned = 0, False, False, False
        entry.attach_id, entry.ticket, entry.move_epoch = 0, b"", 0
        self._event("entry.removed", entry, redirected=entry.redirected)
        self._set_data_plane(entry)
        self._save(entry)
