"""The manager's engine: grants attaches, keeps the binding cache, tells previous NVEs, runs moves.

Inputs are methods that take the time (monotonic seconds); outputs come from `flush()` (outputs.py).
Peer input never raises.  Moves are in manager_moves.py,
redirects of previous NVEs in manager_redirects.py.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vmmobility.engine.admission import MAX_PREVIOUS, not_a_vm_s, too_long
from vmmobility.engine.binding_cache import (
    Binding,
    BindingCache,
    EndedAttaches,
    Previous,
    binding_to_json,
)
from vmmobility.engine.binding_update_list import make_nve
from vmmobility.engine.channel import Channel, Peer, Received
from vmmobility.engine.manager_checks import ManagerChecks
from vmmobility.engine.manager_cold import ManagerCold
from vmmobility.engine.manager_contests import ManagerContests
from vmmobility.engine.manager_drains import ManagerDrains
from vmmobility.engine.manager_groups import ManagerGroups
from vmmobility.engine.manager_guests import ManagerGuests
from vmmobility.engine.manager_leases import ManagerLeases
from vmmobility.engine.manager_lifecycle import ManagerLifecycle
from vmmobility.engine.manager_liveness import ManagerLiveness
from vmmobility.engine.manager_moves import ManagerMoves
from vmmobility.engine.manager_onboarding import ManagerOnboarding
from vmmobility.engine.manager_protection import ManagerProtection
from vmmobility.engine.manager_provision import ManagerProvision
from vmmobility.engine.manager_redirects import ManagerRedirects
from vmmobility.engine.manager_relearning import ManagerRelearning
from vmmobility.engine.manager_relocation import ManagerRelocation
from vmmobility.engine.manager_removals import ManagerRemovals
from vmmobility.engine.manager_route_limits import ManagerRouteLimits
from vmmobility.engine.manager_settings import ManagerSettings
from vmmobility.engine.manager_trace import ManagerTrace
from vmmobility.engine.manager_warm import ManagerWarm
from vmmobility.engine.origin import Boxes, locators_behind, mappings_told
from vmmobility.engine.outputs import Endpoint, Event, Flushing, Outbox
from vmmobility.errors import DecodeError
from vmmobility.wire.options import (
    AttachId,
    Epoch,
    MobilityKind,
    Option,
    PhaseOption,
    PreviousNve,
    ServingNve,
    Sight,
    Ticket,
    VmId,
)
from vmmobility.wire.registry import (
    LIFETIME_UNIT_S,
    Mobility,
    Phase,
    Purpose,
    Role,
    Status,
)
from vmmobility.wire.values import Address, Nve, VmKey

RIGHTS = {
    purpose: frozenset({Role.NVE})
    for purpose in (
        Purpose.ATTACH,
        Purpose.REFRESH,
        Purpose.DEREGISTER,
        Purpose.SWITCH,
        Purpose.HEARTBEAT,
        Purpose.PROTECT,
    )
} | {Purpose.SIGHT: frozenset({Role.DEFAULT_ROUTER, Role.BORDER_ROUTER})}
EXPIRY_SCAN_S = 1.0  # lifetimes are looked at so often


class ManagerEngine(
    ManagerLifecycle,
    ManagerMoves,
    ManagerDrains,
    ManagerCold,
    ManagerRelocation,
    ManagerGuests,
    ManagerProvision,
    ManagerRedirects,
    ManagerRemovals,
    ManagerLeases,
    ManagerRelearning,
    ManagerContests,
    ManagerChecks,
    ManagerOnboarding,
    ManagerGroups,
    ManagerRouteLimits,
    ManagerTrace,
    ManagerLiveness,
    ManagerProtection,
    ManagerWarm,
    Flushing,
):
    """The management node.  `state` is what the store held; `boot` is above every earlier one."""

    def __init__(
        self,
        settings: ManagerSettings,
        peers: Iterable[Peer],
        state: Mapping[str, Any],
        boot: int,
        jitter: random.Random,
        now: float,
    ) -> None:
        self.settings = settings
        self.outbox = Outbox()
        self._boxes = Boxes(dict(settings.napts))
        self.channel = Channel(
            settings.node_id,
            boot,
            peers,
            RIGHTS,
            self.outbox,
            jitter,
            settings.retransmission,
            self._boxes,
        )
        self.channel.restore(state)
        self.channel.state_was_lost = self._state_was_lost
        self.channel.peer_lost_state = self._peer_lost_state
        self.cache = BindingCache(state)
        self.jitter = jitter
        # Fail static: "a restarted manager grants every binding one full lifetime of grace".
        for binding in self.cache.bindings.values():
            binding.expires_at = now + settings.lifetime_s
            binding.heard = now
            for previous in binding.previous.values():
                previous.heard = now
        self.counts: Counter[str] = Counter()
        self._expiry_scan_at = now + EXPIRY_SCAN_S
        self._check_at = now + settings.check_s
        self._load_relearning(state, now)
        self._questions, self._askings = {}, {}
        self._redirect_retry: dict[VmKey, float] = {}
        self._deregistering: dict[VmKey, Received] = {}
        self._ended = EndedAttaches()
        self._load_moves(state, now)
        self._load_provisions(state)
        self._load_fabric(state)
        self._load_groups(state)
        self._load_onboarded(state)
        self._load_liveness(state, now)
        self._load_drains(state, now)
        self._load_lives(state, now)
        self._load_protection(state, now)

    # ---- inputs --------------------------------------------------------------------------------

    def started(self, now: float) -> None:
        """After a (re)start: go on telling previous NVEs, and with the moves under way."""
        self.channel.start(now)
        for binding in self.cache.bindings.values():
            self._redirect_previous(binding, now)
        self._resume_moves(now)
        self._resume_guest_orders(now)
        self._resume_provisions(now)
        self._resume_lives(now)
        self._resume_routes(now)
        self._resume_protection(now)
        self._resume_warm(now)

    def datagram_received(
        self, data: bytes, source: Endpoint, local: Address | None, now: float
    ) -> None:
        received = self.channel.datagram(data, source, local, now)
        if received is None:
            return
        handler = {
            Purpose.ATTACH: self._attach,
            Purpose.REFRESH: self._refresh,
            Purpose.DEREGISTER: self._deregister,
            Purpose.SWITCH: self._switch_reported,
            Purpose.SIGHT: self._sighted,
            Purpose.HEARTBEAT: self._heartbeat,
            Purpose.PROTECT: self._protect_reported,
        }[received.message.purpose]
        try:
            handler(received, now)
        except DecodeError as error:
            self.channel.drops[error.reason] += 1
            self.channel.reply(received, Status.MALFORMED, reason=str(error))

    def next_timer(self) -> float | None:
        due = [
            self.channel.next_timer(),
            self._next_move_timer(),
            self._expiry_scan_at,
            self._drain_due,
        ]
        due += [*self._redirect_retry.values(), self._next_route_timer()]
        due += [self._next_protection_timer(), self._next_warm_timer()]
        due += [self._check_at, *(q.deadline for q in self._questions.values())]
        due += [asking.deadline for asking in self._askings.values()]
        due.append(self._liveness_at)
        return min((d for d in due if d is not None), default=None)

    def timer(self, now: float) -> None:
        self.channel.timer(now)
        self._liveness_timer(now)
        self._move_timer(now)
        self._drain_timer(now)
        self._protection_timer(now)
        self._warm_timer(now)
        for vm in [vm for vm, due in self._redirect_retry.items() if due <= now]:
            del self._redirect_retry[vm]
            if vm in self.cache.bindings:
                self._redirect_previous(self.cache.bindings[vm], now)
        self._route_timer(now)
        if self._expiry_scan_at <= now:
            self._expiry_scan_at = now + EXPIRY_SCAN_S
            self._relearned(now)
            self._end_leases(now)
            self._settle_groups(now)
            self._follow_lives(now)
        self._question_timer(now)
        self._asking_timer(now)
        if self._check_at <= now:
            self._check_at = now + self.settings.check_s
            self._check_silent(now)
            self._check_routes(now)

    # ---- attach --------------------------------------------------------------------------------

    def _attach(self, received: Received, now: float) -> None:
        """Section 5: record the virtual machine information in a binding cache entry including the
        source address; reply with a status of accepted or rejected."""
        message, peer = received.message, received.peer
        vm = message.vm
        refusal = self._refusal(received, vm)
        if refusal is not None:
            status, why = refusal
            self._reject(received, status, why)
            return
        attach_id = message.need(AttachId).attach_id
        binding = self.cache.bindings.get(vm)
        shown = message.find(Ticket)
        if self._takes_over(vm):
            epoch = self._protection_epoch(vm, shown.ticket if shown else b"", peer.node_id)
            if epoch is None:
                self._reject(received, Status.TRY_AGAIN, "its standby is taking over")
            else:
                self._bind(received, binding, attach_id, epoch, now)
            return
        if self._is_unsure(vm):
            self._reject(received, Status.TRY_AGAIN, "its standby is asked first")
            return
        if binding and binding.nve.nve_id == peer.node_id and binding.attach_id == attach_id:
            # A repeated attach gets the same epoch again, also after a crash of either side.
            binding.boot = received.boot
            self._extend(binding, message, now)
            self._hear_server(binding, message)
            self._grant(received, binding)
            return
        ticket = message.find(Ticket)
        if ticket and not self._is_provisioned(vm, ticket.ticket, peer.node_id):
            epoch = self._ticketed_epoch(vm, ticket.ticket, peer.node_id, now)
            if epoch is None:
                self._reject(received, Status.INVALID_TICKET, "no such move is under way")
                return
            self._bind(received, binding, attach_id, epoch, now)
            return
        kept_off = self._kept_off(received, binding)
        if kept_off:
            self._reject(received, Status.ADMINISTRATIVELY_PROHIBITED, kept_off)
            return
        self._heed_epoch(message, now)
        if binding and self._ends_move(message, peer.node_id):
            self._bind(received, binding, attach_id, self._current[vm].epoch, now)
        elif binding and not self._may_take(binding, peer.node_id):
            self._contest(received, binding, now)
        elif not self._has_served(message) and self._in_doubt(binding, message, now):
            self._ask_everyone(received, binding, now)
        else:
            self._take(received, binding, now)

    def _take(self, received: Received, binding: Binding | None, now: float) -> None:
        """An attach without a ticket, granted."""
        message = received.message
        if binding and binding.is_full(received.peer.node_id):
            why = f"{MAX_PREVIOUS} previous NVEs still redirect"
            self._reject(received, Status.INSUFFICIENT_RESOURCES, why)
            return
        self._void_move(message.vm, now)
        self._learn_epoch(message)
        attach_id = message.need(AttachId).attach_id
        self._bind(received, binding, attach_id, self._new_epoch(), now)

    def _refusal(self, received: Received, vm: VmKey) -> tuple[Status, str] | None:
        message = received.message
        if vm.vni != 0:
            return Status.VNI_NOT_SUPPORTED, "a non-zero VNI is not isolated yet"
        if message.need(ServingNve).nve.nve_id != received.peer.node_id:
            # design, Rights: an NVE registers under its own NVE-ID only
            return Status.ADMINISTRATIVELY_PROHIBITED, "an NVE attaches under its own NVE-ID only"
        if message.lifetime == 0 or not any(i.prefixes for i in message.interfaces):
            return Status.MALFORMED, "an attach has a lifetime and at least one address"
        if self._leaps(message):
            return Status.MALFORMED, f"epoch {message.epoch} leaps too far ahead"
        long = too_long(message.interfaces, message.definition)
        if long:
            return Status.INSUFFICIENT_RESOURCES, long
        wrong = not_a_vm_s(
            message.interfaces, self.settings.shortest_ipv4, self.settings.shortest_ipv6
        )
        if wrong is not None:
            return Status.ADMINISTRATIVELY_PROHIBITED, f"no VM may have {wrong}"
        off_record = self._off_record(vm, message.interfaces, received.peer.node_id)
        if off_record:
            return Status.ADMINISTRATIVELY_PROHIBITED, off_record
        clash = self.cache.owner(vm, message.interfaces, self._mates(vm))
        if clash is not None:
            return Status.ADDRESS_IN_USE, f"{clash[0]} belongs to VM {clash[1]}"
        if message.find(Ticket) is None:
            objection = self._group_objection(message, received.peer.node_id)
            if objection is not None:
                return objection
        full = self._attach_over_limit(message, received.peer.node_id)
        if full:
            return Status.INSUFFICIENT_RESOURCES, full
        if self._ended.holds(received.peer.node_id, vm, message.need(AttachId).attach_id):
            return Status.OUT_OF_SEQUENCE, "that attach was deregistered"
        return None

    @staticmethod
    def _nve_of(received: Received) -> Nve:
        """Section 5: "Source address of VM Mobility Registration Request packet is used as the new
        address to which packets need to be sent"; the option gives the other family's.  No digest
        covers a packet's addresses, so the source must be one that the sender declares, or that it
        is known by here."""
        declared = received.message.need(ServingNve).nve
        if received.peer.via:
            return locators_behind(received)  # the source is the box's
        source = received.source.address
        known = [e.address for e in received.peer.endpoints]
        if source not in declared.locators and source not in known:
            return declared if declared.locators else make_nve(declared.nve_id, tuple(known))
        others = tuple(a for a in declared.locators if a.version != source.version)
        return make_nve(declared.nve_id, (source, *others))

    def _bind(
        self,
        received: Received,
        old: Binding | None,
        attach_id: int,
        epoch: int,
        now: float,
    ) -> None:
        """Section 5: "the entry is modified to point to the new IP address of the serving NVE.
        Previous NVE addresses are kept in the entry." """
        message, nve = received.message, self._nve_of(received)
        previous = dict(old.previous) if old else self._learned_previous(message)
        if old is not None:
            previous[old.nve.nve_id] = Previous(old.nve)
        for each in previous.values():
            each.heard = now
        previous.pop(nve.nve_id, None)
        mobility, sight = message.find(MobilityKind), message.find(Sight)
        at_home = sight is not None and sight.covered
        moved = old is not None and message.find(Ticket) is not None
        binding = Binding(
            message.vm,
            old.interfaces if old and moved else message.interfaces,
            message.definition or (old.definition if old else b""),
            nve,
            received.boot,
            attach_id,
            epoch,
            mobility.mobility if mobility else Mobility.HOT,
            previous=previous,
            frozen=old.frozen if old else False,
            at_home=at_home,
            home=nve if at_home else (old.home if old else None),
            takeovers=old.takeovers if old else [],
            mappings=old.mappings if old and moved else mappings_told(message, self._boxes),
        )
        self.cache.put(binding)
        self.channel.withdraw_subject(received.peer, (binding.vm, "redirect"))
        self._extend(binding, message, now)
        self._guest_bound(binding, old, message)
        self._hear_server(binding, message)
        self._begin_fabric(binding, old, now)
        self._save_binding(binding)
        self._redirect_previous(binding, now)
        self._attached(binding, message, now)
        self._settle_member(binding.vm, now)
        self._protection_bound(binding, old, now)
        self._grant(received, binding)
        self.outbox.emit(
            Event(
                "binding",
                {"vm": binding.vm.vm_id, "vni": binding.vm.vni, "nve": nve.nve_id, "epoch": epoch},
            )
        )

    def _grant(self, received: Received, binding: Binding) -> None:
        options: list[Option] = [VmId(binding.vm), Epoch(binding.epoch)]
        options += [PreviousNve(n) for n in self._senders(binding)]
        units = int(binding.lifetime_s // LIFETIME_UNIT_S)
        self.channel.reply(received, Status.ACCEPTED, options, lifetime=units)

    def _reject(
        self, received: Received, status: Status, why: str, options: Sequence[Option] = ()
    ) -> None:
        self.outbox.emit(
            Event(
                "rejected",
                {
                    "peer": received.peer.node_id,
                    "purpose": received.message.purpose.name.lower(),
                    "status": status.name.lower(),
                    "reason": why,
                },
            )
        )
        self.channel.reply(received, status, options, reason=why)

    def _new_epoch(self) -> int:
        epoch = self.cache.next_epoch()
        self.outbox.record("epoch", epoch)
        return epoch

    def _save_binding(self, binding: Binding) -> None:
        self.outbox.record(BindingCache.key(binding.vm), binding_to_json(binding))

    def _refresh(self, received: Received, now: float) -> None:
        message = received.message
        asks = message.find(PhaseOption)
        if asks is not None:
            if asks.phase not in (Phase.REDIRECTING, Phase.DEPARTED):
                raise DecodeError("bad-value", f"REFRESH in phase {asks.phase.name}")
            self._standing(received, asks.phase, now)
            return
        binding = self.cache.bindings.get(message.vm)
        self._heed_epoch(message, now)
        if binding is None:
            attach_id = message.find(AttachId)
            if attach_id and not self._ended.holds(
                received.peer.node_id, message.vm, attach_id.attach_id
            ):
                self._state_was_lost(now)  # it was granted once
            self.channel.reply(received, Status.UNKNOWN_BINDING)
            return
        if (
            binding.nve.nve_id != received.peer.node_id
            or binding.attach_id != message.need(AttachId).attach_id
        ):
            again = binding.nve.nve_id == received.peer.node_id
            if again or self._may_be_outdated(binding, message):
                self.channel.reply(received, Status.UNKNOWN_BINDING)
                return
            options = (VmId(binding.vm), ServingNve(binding.nve), Epoch(binding.epoch))
            self._reject(received, Status.SUPERSEDED, f"{binding.nve.nve_id} serves it", options)
            return
        if self._takes_over(binding.vm):
            self._reject(received, Status.TRY_AGAIN, "its standby is taking over")
            return
        if self._is_unsure(binding.vm):
            self._reject(received, Status.TRY_AGAIN, "its standby is asked first")
            return
        self._extend(binding, message, now)
        self._hear_guest(binding, message, now)
        self._hear_server(binding, message)
        self._lease_refreshed(binding, message, now)
        self._grant(received, binding)
