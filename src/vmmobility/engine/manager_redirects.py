"""Previous NVEs at the manager: a star, not a chain (invariant 3), and its end.

Not here: who serves a VM (manager.py).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vmmobility.engine.binding_cache import Binding, Previous
from vmmobility.engine.channel import Channel, Peer
from vmmobility.engine.outputs import Event, Outbox
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    Epoch,
    InterfaceGroup,
    MobilityKind,
    PreviousNve,
    ServingNve,
    Sight,
    VmId,
)
from vmmobility.wire.registry import (
    LIFETIME_UNIT_S,
    Mobility,
    Purpose,
    Status,
)
from vmmobility.wire.values import VmKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmobility.engine.binding_cache import BindingCache
    from vmmobility.engine.manager_move import Move

REDIRECT_RETRY_S = 5.0  # a refused redirect is sent again after so long


class ManagerRedirects:
    """Redirects and removals; a part of ManagerEngine."""

    if TYPE_CHECKING:
        cache: BindingCache
        channel: Channel
        outbox: Outbox
        _redirect_retry: dict[VmKey, float]
        _follow_routes: Callable[[Binding, float], None]
        _save_binding: Callable[[Binding], None]
        _try_removal: Callable[[Binding, float], None]
        _heed_epoch: Callable[[Message, float], None]
        _new_epoch: Callable[[], int]
        _current: dict[VmKey, Move]
        _has_mate: Callable[[VmKey, str], bool]
        _takes_over: Callable[[VmKey], bool]
        _previous_acknowledged: Callable[[Binding, str, Message, float], None]

    def _redirect_previous(self, binding: Binding, now: float) -> None:
        """Section 5: "the management node sends VM Mobility Registration Request message to the
        source NVEs", all of them, each straight to the newest."""
        for previous in list(binding.previous.values()):
            peer = self.channel.peers.get(previous.nve.nve_id)
            if peer is None:
                continue
            if binding.ending:
                if previous.nve.nve_id in binding.free_to_go():
                    self._end_redirect(binding, peer, now)
                continue
            told = previous.direct is binding.fabric_direct
            if previous.acknowledged >= binding.epoch and told:
                continue
            previous.direct = binding.fabric_direct
            others = [n for n in binding.previous_nves if n != previous.nve]
            self.channel.request(
                peer,
                Purpose.REDIRECT,
                [
                    VmId(binding.vm),
                    *(InterfaceGroup(i) for i in binding.interfaces),
                    *binding.mappings,
                    ServingNve(binding.nve),
                    Epoch(binding.epoch),
                    *(PreviousNve(n) for n in others),
                    *((Sight(True, False),) if binding.fabric_direct else ()),
                    *((MobilityKind(Mobility.COLD),) if binding.is_cold else ()),
                ],
                now,
                partial(self._redirected, binding, peer.node_id, binding.epoch),
                lifetime=int(binding.lifetime_s // LIFETIME_UNIT_S),
                subject=(binding.vm, "redirect"),
            )

    def _redirect_anew(self, vm: VmKey, node: str, now: float) -> None:
        """A previous NVE was in a move that is unknown here, and so has done nothing of what it was
        told (nve_redirects.py): now it does."""
        binding = self.cache.bindings.get(vm)
        previous = binding.previous.get(node) if binding else None
        if binding is not None and previous is not None and not binding.ending:
            previous.acknowledged = 0
            self._redirect_previous(binding, now)

    def _learn_home(self, binding: Binding) -> None:
        """The fabric leads to the serving NVE no more: the covering prefix does to its home, which
        has to redirect again."""
        home = binding.home
        if home is None or self._has_mate(binding.vm, home.nve_id):
            return
        if home.nve_id not in (binding.nve.nve_id, *binding.previous):
            binding.previous[home.nve_id] = Previous(home)
            self._save_binding(binding)

    def _end_redirect(self, binding: Binding, peer: Peer, now: float) -> None:
        """Lifetime 0 to a previous NVE: the VM is no more."""
        subject = (binding.vm, "removal")
        if self.channel.is_asking(peer, subject):
            return
        self.channel.withdraw_subject(peer, (binding.vm, "redirect"))
        self.channel.request(
            peer,
            Purpose.DEREGISTER,
            [VmId(binding.vm), Epoch(binding.ending)],
            now,
            partial(self._redirect_ended, binding, peer.node_id),
            subject=subject,
        )

    def _redirect_ended(self, binding: Binding, node: str, reply: Message, now: float) -> None:
        if self.cache.bindings.get(binding.vm) is not binding:
            return
        if not reply.status.accepted:
            self._redirect_refused(binding, node, reply, now)
            return
        binding.previous.pop(node, None)
        self._save_binding(binding)
        self._redirect_previous(binding, now)
        self._try_removal(binding, now)

    def _redirect_refused(self, binding: Binding, node: str, reply: Message, now: float) -> None:
        """A guest that still runs there learns by its own refresh first; then it is asked again."""
        detail = {"vm": binding.vm.vm_id, "nve": node, "status": reply.status.name.lower()}
        self.outbox.emit(Event("redirect.refused", detail))
        told = reply.find(Epoch)
        if reply.status is Status.STALE_EPOCH and told and told.epoch > binding.epoch:
            # It has acted on an epoch that a manager whose state was set back does not know.  The
            # binding rises above that only if it still is: another attach may be the newer one.
            self._heed_epoch(reply, now)
            if binding.ending:
                binding.ending = self._new_epoch()
            elif (
                binding.sure
                and binding.vm not in self._current
                and not self._takes_over(binding.vm)  # its standby attaches under a later one
            ):
                binding.epoch = self._new_epoch()
            self._save_binding(binding)
        self._redirect_retry.setdefault(binding.vm, now + REDIRECT_RETRY_S)

    def _redirected(
        self, binding: Binding, node: str, epoch: int, reply: Message, now: float
    ) -> None:
        previous = binding.previous.get(node)
        if previous is None or self.cache.bindings.get(binding.vm) is not binding:
            return
        if not reply.status.accepted:
            self._redirect_refused(binding, node, reply, now)
            return
        previous.acknowledged, previous.heard = max(previous.acknowledged, epoch), now
        sight = reply.find(Sight)
        if sight is not None and sight.covered and binding.home is None:
            binding.home = previous.nve  # a manager that has lost its state learns it so
            self._follow_routes(binding, now)
        self._save_binding(binding)
        self._previous_acknowledged(binding, node, reply, now)
