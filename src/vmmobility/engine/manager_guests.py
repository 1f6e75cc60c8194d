"""What people want of a guest: start, suspend, resume, stop, delete (draft Sections 2 and 8.1).

The order is durable with the binding before the serving NVE hears of it (GUEST, under a fresh
epoch), and is repeated until that answers, over restarts of both; the answer settles it.  An NVE
tells with its registration what its guest is, so a manager that has lost an answer, or all its
state, knows it again.

Not here: what an NVE does (nve_guests.py), VMs that no NVE has yet (manager_provision.py).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vmmobility.engine.binding_cache import Binding, GuestOrder
from vmmobility.engine.manager_move import GuestRefused, Move
from vmmobility.engine.outputs import Event
from vmmobility.wire.message import Message
from vmmobility.wire.options import Epoch, GuestStateOption, Reason, VmId
from vmmobility.wire.registry import GuestState, Purpose, Status
from vmmobility.wire.values import VmKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmobility.engine.binding_cache import BindingCache
    from vmmobility.engine.channel import Channel
    from vmmobility.engine.manager_protection_record import ProtectedVm
    from vmmobility.engine.manager_provision import Provision
    from vmmobility.engine.outputs import Outbox

GRACE_S = 60  # a guest that is asked to shut itself down has so long, unless people say otherwise
MOST_GRACE_S = 3600

_S = GuestState
VERBS = {
    "start": _S.RUNNING,
    "resume": _S.RUNNING,
    "suspend": _S.SUSPENDED,
    "stop": _S.STOPPED,
    "delete": _S.NONE,
}
GO, DONE, FORCE = "go", "done", "force"
# What a verb does to a guest in a state: GO; DONE, there is nothing to do; FORCE, only with the
# word that its memory may be lost; else the remedy of a refusal.
RULES: dict[tuple[str, GuestState], str] = {
    ("start", _S.RUNNING): DONE,
    ("start", _S.SUSPENDED): "resume it: `vmmob vm resume`",
    ("start", _S.STOPPED): GO,
    ("resume", _S.RUNNING): DONE,
    ("resume", _S.SUSPENDED): GO,
    ("resume", _S.STOPPED): "start it: `vmmob vm start`",
    ("suspend", _S.RUNNING): GO,
    ("suspend", _S.SUSPENDED): DONE,
    ("suspend", _S.STOPPED): "only a VM that runs is suspended: `vmmob vm start` it first",
    ("stop", _S.RUNNING): GO,
    ("stop", _S.SUSPENDED): FORCE,
    ("stop", _S.STOPPED): DONE,
    ("delete", _S.RUNNING): FORCE,
    ("delete", _S.SUSPENDED): FORCE,
    ("delete", _S.STOPPED): GO,
}
DOING = {_S.RUNNING: "started", _S.SUSPENDED: "suspended", _S.STOPPED: "stopped"}


class ManagerGuests:
    """Orders about guests; a part of ManagerEngine."""

    if TYPE_CHECKING:
        cache: BindingCache
        channel: Channel
        outbox: Outbox
        protected: dict[VmKey, ProtectedVm]
        provisions: dict[VmKey, Provision]
        cancel_provision: Callable[[VmKey], None]
        _current: dict[VmKey, Move]
        _guest_settled: Callable[..., None]
        _settle_groups: Callable[..., None]
        _save_binding: Callable[[Binding], None]
        _redirect_previous: Callable[[Binding, float], None]
        _try_removal: Callable[[Binding, float], None]
        _heed_epoch: Callable[[Message, float], None]
        _new_epoch: Callable[[], int]
        _settle_member: Callable[[VmKey, float], None]

    # ---- people --------------------------------------------------------------------------------

    def order_guest(
        self, vm: VmKey, verb: str, now: float, force: bool = False, grace_s: int = GRACE_S
    ) -> Binding:
        """start, resume, suspend, stop or delete; raises GuestRefused.

        force: what is in its memory may be lost: it is ended at once.  grace_s: so long may a guest
        that runs take to shut itself down before it is ended
        """
        binding = self._orderable(vm)
        comes = vm in self.provisions  # its guest has never run, as far as anybody knows
        if comes and verb != "delete":
            why = f"VM {vm} is being brought up at {binding.nve.nve_id}"
            raise GuestRefused("conflict", why, "wait for that, or `vmmob vm delete` it")
        wanted = VERBS[verb]
        force = force or grace_s == 0
        if binding.order is not None and self._is_ordered(binding, binding.order, wanted, force):
            return binding
        rule = RULES[verb, GuestState.STOPPED if comes else binding.guest]
        if rule == DONE and binding.order is None:
            return binding
        if rule == FORCE and not force:
            self._refuse_without_force(binding, verb)
        if rule not in (GO, DONE, FORCE):
            raise GuestRefused("conflict", f"VM {vm} is {binding.guest.name.lower()}", rule)
        self.cancel_provision(vm)
        grace_s = 0 if force or verb != "stop" else min(grace_s, MOST_GRACE_S)
        binding.order = GuestOrder(wanted, self._new_epoch(), grace_s)
        binding.guest_error = ""
        self._save_binding(binding)
        self._guest_event("guest.ordered", binding, wanted)
        self._send_guest_order(binding, now)
        self._settle_member(vm, now)
        if comes:
            self._guest_changed(binding, now)  # its bringing up is over: it is as if it had come
        return binding

    def _orderable(self, vm: VmKey) -> Binding:
        binding = self.cache.bindings.get(vm)
        if binding is None:
            raise GuestRefused("unknown-vm", f"no VM {vm} is registered", "see `vmmob vm list`")
        if binding.ending:
            raise GuestRefused("conflict", f"VM {vm} is being removed", "wait for that")
        node = binding.nve.nve_id
        if binding.released:
            why = f"VM {vm} was released: {node} is said to be fenced"
            raise GuestRefused("conflict", why, "start it at another NVE: `vmmob nve start`")
        if node not in self.channel.peers:
            why = f"{node}, where VM {vm} is, is not in the configuration"
            raise GuestRefused("unknown-nve", why, "put it back there and restart the manager")
        move = self._current.get(vm)
        if move is not None:
            why = f"VM {vm} is being moved to {move.destination.nve_id}"
            remedy = f"wait for move {move.move_id}, or give it up: `vmmob move abort`"
            raise GuestRefused("conflict", why, remedy)
        if vm in self.protected:
            standby = self.protected[vm].standby.nve_id
            raise GuestRefused(
                "conflict",
                f"VM {vm} has a standby at {standby}, which would take over",
                "`vmmob vm unprotect` it first",
            )
        return binding

    @staticmethod
    def _is_ordered(binding: Binding, order: GuestOrder, wanted: GuestState, force: bool) -> bool:
        """Whether just that is under way.  What ends a guest may overtake what is not done yet."""
        if order.state is wanted and (not order.grace_s or not force):
            return True
        ends = wanted in (GuestState.STOPPED, GuestState.NONE)
        if not ends or order.state is GuestState.NONE:
            doing = DOING.get(order.state, "deleted")
            at = binding.nve.nve_id
            raise GuestRefused(
                "conflict",
                f"VM {binding.vm} is being {doing}, and {at} has not said that this is done",
                "wait for that; or end its guest: `vmmob vm stop --force`",
            )
        return False

    @staticmethod
    def _refuse_without_force(binding: Binding, verb: str) -> None:
        state = binding.guest.name.lower()
        if verb == "delete" and binding.guest is GuestState.RUNNING:
            remedy = "stop it first: `vmmob vm stop`; or say --force: what it has not saved is lost"
        else:
            remedy = "resume it first: `vmmob vm resume`; or say --force: its memory is lost"
        raise GuestRefused("conflict", f"VM {binding.vm} is {state}", remedy)

    # ---- the NVE -------------------------------------------------------------------------------

    def _send_guest_order(self, binding: Binding, now: float) -> None:
        order, peer = binding.order, self.channel.peers.get(binding.nve.nve_id)
        if order is None or peer is None:
            return
        self.channel.request(
            peer,
            Purpose.GUEST,
            [
                VmId(binding.vm),
                Epoch(order.epoch),
                GuestStateOption(order.state, binding.kept, order.grace_s),
            ],
            now,
            partial(self._guest_answered, binding, order),
            subject=(binding.vm, "guest"),
        )

    def _resume_guest_orders(self, now: float) -> None:
        """After a restart: the same orders again, under the same epochs."""
        for binding in self.cache.bindings.values():
            if not binding.ending:
                self._send_guest_order(binding, now)

    def _guest_answered(
        self, binding: Binding, order: GuestOrder, reply: Message, now: float
    ) -> None:
        if self.cache.bindings.get(binding.vm) is not binding or binding.order is not order:
            return
        if reply.status is Status.STALE_EPOCH and order.sure:
            # This manager's state was set back, and people have said so since.
            self._heed_epoch(reply, now)
            order.epoch = self._new_epoch()
            self._save_binding(binding)
            self._send_guest_order(binding, now)
            return
        binding.order = None
        if not reply.status.accepted:
            words = reply.find(Reason)
            status = reply.status.name.lower().replace("_", "-")
            binding.guest_error = f"{status}: {words.text}" if words else status
            self._note_guest(binding, reply)
            self._save_binding(binding)
            self._guest_event("guest.refused", binding, order.state, binding.guest_error)
            self._guest_settled(binding, now, binding.guest_error)
            return
        if order.state is GuestState.NONE:
            if not binding.ending:  # its NVE had nothing of it
                binding.ending = self._new_epoch()
            self._save_binding(binding)
            self._redirect_previous(binding, now)
            self._try_removal(binding, now)
            return
        binding.guest, binding.guest_epoch, binding.guest_error = order.state, order.epoch, ""
        self._save_binding(binding)
        self._guest_event("guest.state", binding, order.state)
        self._settle_groups(now, binding.nve.nve_id)
        self._guest_changed(binding, now)
        self._guest_settled(binding, now)

    def _note_guest(self, binding: Binding, message: Message) -> bool:
        """What the NVE says of the guest; whether that is news.  While an order is under way, and
        of before the last one, nothing counts."""
        told = message.find(GuestStateOption) or _UNSAID
        if binding.order is not None or told.ordered < binding.guest_epoch:
            return False
        news = (told.state, told.ordered, told.kept)
        if told.state is GuestState.NONE or news == (
            binding.guest,
            binding.guest_epoch,
            binding.kept,
        ):
            return False
        binding.guest, binding.guest_epoch, binding.kept = news
        return True

    def _hear_guest(self, binding: Binding, message: Message, now: float) -> None:
        """A refresh says what the guest is."""
        before = binding.guest
        if self._note_guest(binding, message):
            self._save_binding(binding)
            if binding.guest is not before:
                self._guest_event("guest.state", binding, binding.guest)
                self._settle_groups(now, binding.nve.nve_id)
                self._guest_changed(binding, now)

    def _guest_bound(self, binding: Binding, old: Binding | None, message: Message) -> None:
        """A new binding: the orders of the one before it have lost their sense."""
        self._note_guest(binding, message)
        if old is None or old.order is None:
            return
        peer = self.channel.peers.get(old.nve.nve_id)
        if peer is not None:
            self.channel.withdraw_subject(peer, (old.vm, "guest"))
        binding.guest_error = "it was registered anew meanwhile"

    def _forget_guest(self, binding: Binding) -> None:
        """The binding is removed."""
        peer = self.channel.peers.get(binding.nve.nve_id)
        if peer is not None and binding.order is not None:
            self.channel.withdraw_subject(peer, (binding.vm, "guest"))

    def _guest_changed(self, binding: Binding, now: float) -> None:
        """The guest is now what binding.guest says: for whoever keeps a record of the VM's life."""

    def _guest_event(
        self, name: str, binding: Binding, state: GuestState, reason: str = ""
    ) -> None:
        detail = {"vm": binding.vm.vm_id, "vni": binding.vm.vni, "nve": binding.nve.nve_id}
        words = {"state": state.name.lower(), **({"reason": reason} if reason else {})}
        self.outbox.emit(Event(name, {**detail, **words}))


_UNSAID = GuestStateOption(GuestState.RUNNING)
