"""When a protected VM's standby takes over, and what nodes tell of that; a part of the manager.

design, invariant 9: the primary's NVE pauses the guest before its lease ends, counted from the
sending of its last accepted refresh; "the manager waits lease + margin before it starts the other
copy".  The refresh is accepted here after it was sent there, so lease + margin from then, on a
clock that runs no faster than CLOCK_RATE against the primary's, is later than the pause.  The order
to the standby is durable before it leaves, and from then on no refresh and no attach of the primary
is accepted: only the standby's answer that nothing runs there, and will not, takes it back.

Not here: people's commands, what each state asks of whom (manager_protection.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from vmmobility.engine.manager_liveness import STALLED_S
from vmmobility.engine.manager_protection_record import (
    GUARDED,
    Happened,
    ProtectedVm,
    ProtectionState,
    load_protected,
)
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    Checkpoint,
    Endpoint,
    Epoch,
    GuestStateOption,
    PhaseOption,
    Protection,
    Reason,
    VmId,
)
from vmmobility.wire.registry import GuestState, Phase, Purpose, Status
from vmmobility.wire.values import VmKey

if TYPE_CHECKING:
    from vmmobility.engine.binding_cache import Binding, BindingCache
    from vmmobility.engine.channel import Channel, Received
    from vmmobility.engine.manager_settings import ManagerSettings
    from vmmobility.engine.outputs import Outbox

CLOCK_RATE = 1 / 64  # no clock runs faster against another than by this share
SUBJECT = "protection"


class ManagerFailover:
    """The primary's lease, and its end; a part of ManagerProtection."""

    if TYPE_CHECKING:
        cache: BindingCache
        channel: Channel
        outbox: Outbox
        settings: ManagerSettings
        _protection_happens: Callable[[ProtectedVm, Happened, float], bool]
        _ask_protection: Callable[[ProtectedVm, float], None]
        _save_protected: Callable[[ProtectedVm], None]
        _forget_protection: Callable[[ProtectedVm], None]
        _warm_registered: Callable[[Binding, ProtectedVm, float], None]
        _protection_event: Callable[[str, ProtectedVm, Binding | None], None]
        _new_epoch: Callable[[], int]
        _question: Callable[..., None]
        _save_binding: Callable[[Binding], None]
        _redirect_previous: Callable[[Binding, float], None]

    protected: dict[VmKey, ProtectedVm]
    _protection_retry: dict[VmKey, float]

    # ---- what the nodes say --------------------------------------------------------------------

    def _protect_reported(self, received: Received, now: float) -> None:
        """PROTECT from an NVE: a standby that has restarted says where its door is now."""
        protected = self.protected.get(received.message.vm)
        if protected is None or protected.standby.nve_id != received.peer.node_id:
            self.channel.reply(received, Status.UNKNOWN_BINDING)
            return
        self._note_door(protected, received.message)
        self.channel.reply(received, Status.ACCEPTED, [VmId(protected.vm)])
        self._protection_happens(protected, Happened.DOOR, now)

    def _note_door(self, protected: ProtectedVm, message: Message) -> None:
        protected.door = message.need(Endpoint)
        protected.token = message.need(Protection).token
        told = message.find(Checkpoint)
        if told is not None:
            protected.number = told.number

    def _note_checkpoint(self, protected: ProtectedVm, message: Message, now: float) -> None:
        told = message.find(Checkpoint)
        if told is None or told.number < protected.number:
            return
        if told.number > protected.number:
            protected.number = told.number
            self._save_protected(protected)
        protected.taken_at = now - told.age_ms / 1000

    def _takes_over(self, vm: VmKey) -> bool:
        """Whether the standby may be running the guest: nobody else may."""
        protected = self.protected.get(vm)
        return protected is not None and protected.state is ProtectionState.TAKING_OVER

    def _lease_refreshed(self, binding: Binding, message: Message, now: float) -> None:
        """A refresh of the serving NVE was accepted."""
        protected = self.protected.get(binding.vm)
        if protected is None:
            if message.find(Protection) is not None:
                self._end_unknown(binding, now)
            return
        protected.lease_at, protected.late = now, False
        self._note_checkpoint(protected, message, now)
        if message.find(Protection) is not None:
            words = message.find(Reason)
            protected.trouble = words.text if words else ""
        if not self._crashed(message):
            if protected.state is ProtectionState.FAILED and binding.guest is GuestState.RUNNING:
                # It may have stopped its guest for its last checkpoint: it is told to go on, and
                # is back when it has said so.
                self._protection_retry[protected.vm] = now
            else:
                self._protection_happens(protected, Happened.RETURNED, now)
        elif self._can_take_over(protected):
            self._protection_happens(protected, Happened.LOST, now)

    def _end_unknown(self, binding: Binding, now: float) -> None:
        """Its NVE takes checkpoints for a standby of which nothing is on record here."""
        peer = self.channel.peers[binding.nve.nve_id]
        if not self.channel.is_asking(peer, (binding.vm, SUBJECT)):
            vm, epoch = VmId(binding.vm), Epoch(binding.epoch)
            self.channel.request(
                peer,
                Purpose.PROTECT,
                (vm, epoch, PhaseOption(Phase.NONE)),
                now,
                lambda reply, at: None,
                subject=(binding.vm, SUBJECT),
            )

    def _protection_epoch(self, vm: VmKey, ticket: bytes, node: str) -> int | None:
        """The epoch reserved for the standby that takes over with this ticket."""
        protected = self.protected.get(vm)
        if protected is None or protected.state is not ProtectionState.TAKING_OVER:
            return None
        if protected.standby.nve_id != node:
            return None
        if protected.serves:
            return self._new_epoch()
        return protected.epoch if protected.ticket == ticket else None

    def _serves_there(self, protected: ProtectedVm, reply: Message) -> bool:
        """Whether a standby that was told to take over has done so before, under an order that a
        manager whose state was set back does not know any more: one above the primary's epoch."""
        stand, told = reply.find(PhaseOption), reply.find(Epoch)
        binding = self.cache.bindings.get(protected.vm)
        if stand is None or told is None or binding is None or told.epoch <= binding.epoch:
            return False
        return stand.phase in (Phase.SERVING, Phase.ATTACHING)

    def _fence_standby(self, protected: ProtectedVm, fenced: str, now: float) -> None:
        """By an operator's word nothing runs there under the order to take over, and nothing will:
        the primary serves on, under an epoch above that order's."""
        binding = self.cache.bindings[protected.vm]
        protected.trouble = f"the host of {fenced} is fenced"
        binding.epoch = self._new_epoch()
        self._save_binding(binding)
        self._protection_happens(protected, Happened.REFUSED, now)
        self._protection_event("protection.lost", protected, binding)
        self._redirect_previous(binding, now)

    def _protection_bound(self, binding: Binding, old: Binding | None, now: float) -> None:
        """A binding was made: by the standby, by the primary anew, or by somebody else."""
        protected = self.protected.get(binding.vm)
        if protected is None:
            return
        if protected.state is ProtectionState.TAKING_OVER:
            self._protection_event("protection.taken-over", protected, binding)
            self._warm_registered(binding, protected, now)
            self._forget_protection(protected)  # it is not protected there
        elif old is not None and old.nve.nve_id == binding.nve.nve_id:
            protected.fencing, protected.lease_at = False, now
            if not self._protection_happens(protected, Happened.ATTACHED, now):
                self._save_protected(protected)
        else:
            protected.told_primary = True  # what was there knows nothing of it any more
            self._protection_happens(protected, Happened.END, now)

    def _lost_its_guest(self, binding: Binding, message: Message, now: float) -> bool:
        """The primary deregisters the VM: its guest has ended without an order.  Whether the
        standby takes over: not one that has shut itself down."""
        protected = self.protected.get(binding.vm)
        if protected is None:
            return False
        if self._crashed(message) and self._can_take_over(protected):
            return self._protection_happens(protected, Happened.LOST, now)
        return protected.state is ProtectionState.TAKING_OVER

    @staticmethod
    def _crashed(message: Message) -> bool:
        """Whether its guest has ended, and neither was it told to nor has it shut itself down."""
        told = message.find(GuestStateOption)
        return told is not None and told.crashed

    @staticmethod
    def _can_take_over(protected: ProtectedVm) -> bool:
        return protected.fail_over and protected.number > 0 and protected.state in GUARDED

    def _protection_removed(self, vm: VmKey, now: float) -> None:
        """The VM is no more: its standby keeps nothing of it."""
        protected = self.protected.get(vm)
        if protected is not None:
            protected.told_primary = True
            self._protection_happens(protected, Happened.END, now)

    # ---- time and restart ----------------------------------------------------------------------

    def _fails_over_at(self, protected: ProtectedVm) -> float | None:
        """When a silent primary has certainly paused its guest."""
        if not (protected.fencing and protected.state in GUARDED):
            return None
        binding = self.cache.bindings.get(protected.vm)
        if binding is not None and binding.guest is not GuestState.RUNNING:
            return None  # it was shut down before: whoever did that does not want it back
        lease = protected.lease_s * (1 + CLOCK_RATE)
        return protected.lease_at + lease + self.settings.protect_margin_s

    def _next_protection_timer(self) -> float | None:
        due = [self._fails_over_at(p) for p in self.protected.values()]
        return min((d for d in (*due, *self._protection_retry.values()) if d), default=None)

    def _protection_timer(self, now: float) -> None:
        due_at = self._next_protection_timer()
        if due_at is not None and now > due_at + STALLED_S:
            # This manager has stood still, and refreshes that came meanwhile may wait unread.
            for protected in self.protected.values():
                protected.lease_at = max(protected.lease_at, now)
        for vm in [vm for vm, due in self._protection_retry.items() if due <= now]:
            del self._protection_retry[vm]
            if vm in self.protected:
                self._ask_protection(self.protected[vm], now)
        for protected in list(self.protected.values()):
            due = self._fails_over_at(protected)
            if due is not None and due <= now:
                binding = self.cache.bindings.get(protected.vm)
                self._protection_event("protection.primary-silent", protected, binding)
                self._protection_happens(protected, Happened.LOST, now)

    def _load_protection(self, state: Mapping[str, Any], now: float) -> None:
        self.protected = load_protected(state)
        self._protection_retry = {}
        for protected in self.protected.values():
            # design, invariant 9: "a restarted manager grants every binding one full lifetime"
            protected.lease_at = now + self.settings.lifetime_s
            protected.unsure = protected.fail_over and protected.state in GUARDED

    def _resume_protection(self, now: float) -> None:
        for protected in list(self.protected.values()):
            self._ask_protection(protected, now)
            if protected.unsure:
                told = partial(self._standby_told, protected)
                self._question(protected.vm, protected.standby.nve_id, now, told)

    def _standby_told(self, protected: ProtectedVm, reply: Message | None, now: float) -> None:
        """How the standby stands, after a start; None: it does not say.  Then the records are
        believed: whoever pauses each VM whose standby is dead at each start keeps nobody safe."""
        protected.unsure = False
        binding = self.cache.bindings.get(protected.vm)
        if reply is None or binding is None or self.protected.get(protected.vm) is not protected:
            return
        idle = reply.need(PhaseOption).phase in (Phase.NONE, Phase.REDIRECTING)
        if not idle and reply.epoch > binding.epoch:
            self._protection_happens(protected, Happened.LOST, now)  # it is let in then

    def _is_unsure(self, vm: VmKey) -> bool:
        """Whether its standby may have taken over under an order that is not on record any more."""
        protected = self.protected.get(vm)
        return protected is not None and protected.unsure
