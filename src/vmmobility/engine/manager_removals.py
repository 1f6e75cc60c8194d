"""The end of a binding, or of one previous NVE's redirect (lifetime 0).

Not here: redirects while the VM lives (manager_redirects.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmobility.engine.binding_cache import Binding, BindingCache
from vmmobility.engine.outputs import Event
from vmmobility.wire.message import Message
from vmmobility.wire.options import AttachId, PhaseOption, VmId
from vmmobility.wire.registry import Phase, Status
from vmmobility.wire.values import VmKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmobility.engine.binding_cache import EndedAttaches
    from vmmobility.engine.channel import Channel, Peer, Received
    from vmmobility.engine.outputs import Outbox


class ManagerRemovals:
    """Deregistration; a part of ManagerEngine."""

    if TYPE_CHECKING:
        cache: BindingCache
        channel: Channel
        outbox: Outbox
        _deregistering: dict[VmKey, Received]
        _ended: EndedAttaches
        _redirect_previous: Callable[[Binding, float], None]
        _redirects_settled: Callable[[Binding, float], None]
        _save_binding: Callable[[Binding], None]
        _void_move: Callable[[VmKey, float], None]
        _new_epoch: Callable[[], int]
        _reject: Callable[[Received, Status, str], None]
        _relearning: Callable[[float], bool]
        _forget_guest: Callable[[Binding], None]
        _end_routes: Callable[[VmKey, float], None]
        _settle_member: Callable[[VmKey, float], None]
        _is_led_to: Callable[[VmKey, Peer, float], bool]
        _may_lead: Callable[[VmKey, str, float], bool]
        _lost_its_guest: Callable[[Binding, Message, float], bool]
        _protection_removed: Callable[[VmKey, float], None]

    def _deregister(self, received: Received, now: float) -> None:
        """From the serving NVE: the VM is no more.  From a previous one (Phase REDIRECTING): its
        traffic has stopped and no covering prefix leads there."""
        message = received.message
        binding = self.cache.bindings.get(message.vm)
        node = received.peer.node_id
        phase = message.find(PhaseOption)
        if phase is not None and phase.phase is Phase.REDIRECTING:
            if binding is not None and node in binding.previous:
                if self._may_lead(message.vm, node, now):
                    why = "a router may still lead here"
                    self._reject(received, Status.TRY_AGAIN, why)
                    return
                if node not in binding.free_to_go():
                    self._reject(received, Status.TRY_AGAIN, "another NVE may still send here")
                    return
                del binding.previous[node]
                self._save_binding(binding)
                self.channel.withdraw_subject(received.peer, (message.vm, "redirect"))
                self._redirects_settled(binding, now)
                self._try_removal(binding, now)
            elif binding is None and self._relearning(now):
                # Its VM's attach may be on its way, and others may still send here.
                self._reject(received, Status.TRY_AGAIN, "this manager has lost its state")
                return
            self.channel.reply(received, Status.ACCEPTED, [VmId(message.vm)])
            return
        attach_id = message.need(AttachId).attach_id
        self._ended.add(node, message.vm, attach_id)
        if binding is None:
            self.channel.reply(received, Status.ACCEPTED, [VmId(message.vm)])
            return
        if binding.nve.nve_id != node or binding.attach_id != attach_id:
            self._is_led_to(message.vm, received.peer, now)  # then it redirects from now on
            self._reject(received, Status.NOT_OWNER, f"{binding.nve.nve_id} serves it")
            return
        if self._lost_its_guest(binding, message, now):
            self.channel.reply(received, Status.ACCEPTED, [VmId(message.vm)])
            return
        self._deregistering[binding.vm] = received
        if not binding.ending:
            self._void_move(binding.vm, now)
            binding.ending = self._new_epoch()
            self._save_binding(binding)
            self._redirect_previous(binding, now)
            self._settle_member(binding.vm, now)
        self._try_removal(binding, now)

    def _try_removal(self, binding: Binding, now: float) -> None:
        """The serving NVE lets go last: a redirect to a node that no longer knows the VM would send
        its packets back to the fabric, which leads them to the redirect (invariant 3)."""
        if not binding.ending or binding.previous:
            return
        self.cache.remove(binding.vm)
        self._forget_guest(binding)
        self.outbox.record(BindingCache.key(binding.vm), None)
        self._end_routes(binding.vm, now)
        self._settle_member(binding.vm, now)
        self._protection_removed(binding.vm, now)
        detail = {"vm": binding.vm.vm_id, "vni": binding.vm.vni, "nve": binding.nve.nve_id}
        self.outbox.emit(Event("binding.removed", detail))
        received = self._deregistering.pop(binding.vm, None)
        if received is not None:
            self.channel.reply(received, Status.ACCEPTED, [VmId(binding.vm)])
