"""A previous NVE's actions: redirect to the serving NVE, until counted traffic has stopped.

Not here: moves (nve_moves.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.channel import Received
from vmmobility.engine.nve_parts import NveParts
from vmmobility.engine.nve_transitions import Trigger
from vmmobility.engine.outputs import Order
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    Epoch,
    MobilityKind,
    PhaseOption,
    ServingNve,
    Sight,
    VmId,
)
from vmmobility.wire.registry import Mobility, Phase, Purpose
from vmmobility.wire.values import VmKey


class Counted(Protocol):
    """The packet counters that a data plane reports for a VM (drivers/dataplane.Traffic)."""

    @property
    def delivered(self) -> int: ...
    @property
    def consumed(self) -> int: ...
    @property
    def redirected(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def outside(self) -> int: ...
    @property
    def too_big(self) -> int: ...


class NveRedirects(NveParts):
    """Actions of redirects; a part of NveEngine."""

    def traffic_counted(self, vm: VmKey, label: str, counted: Counted, now: float) -> None:
        """The answer to CountTraffic(vm, label)."""
        entry = self.entries.get(vm)
        if entry is None:
            return
        if label == "delivering":
            entry.delivered_before = counted.delivered
        elif label == "resumed":
            peak = max(0, counted.delivered - entry.delivered_before)
            self._event("queue", entry, queue_peak=peak)
        elif label == "check" and entry.check is not None:
            entry.check.traffic = {
                name: getattr(counted, name)
                for name in ("delivered", "consumed", "redirected", "dropped", "outside", "too_big")
            }

    def traffic(self, counts: Mapping[VmKey, Counted], now: float) -> None:
        """Periodic counts: a redirect whose count stands still is quiet.

        Section 5: "virtual machine entries are kept in the binding update list until all inbound
        traffic to the virtual machine stops.  A timer may be used for this purpose."
        """
        for vm, counted in counts.items():
            entry = self.entries.get(vm)
            if entry is None or entry.phase is not Phase.REDIRECTING:
                continue
            # What is dropped for its sender outside, or for its size, is inbound traffic, too.
            inbound = counted.redirected + counted.outside + counted.too_big
            if inbound != entry.inbound:
                entry.redirected, entry.inbound = counted.redirected, inbound
                if entry.draining:
                    # The manager is asked again after the next silence, if there is one.
                    self.channel.withdraw_subject(self.manager, (vm, "registration"))
                self._watch_traffic(entry, now)

    def _watch_traffic(self, entry: Entry, now: float) -> None:
        """(Re)start the silence timer - unless the fabric's covering prefix leads here, and no
        host route past it: then the redirect lives as long as the binding (invariant 8)."""
        if entry.phase is not Phase.REDIRECTING:
            entry.quiet_since = None
            return
        covered = any(
            home.version == prefix.version and prefix.overlaps(home)
            for home in self.settings.home_prefixes
            for prefix in entry.prefixes
        )
        entry.quiet_since = None if covered and not entry.fabric_direct else now
        entry.draining = False
        if entry.redirecting_since is None:
            entry.redirecting_since = now

    def _hear_fabric(self, entry: Entry, message: Message, now: float) -> None:
        """Whether the fabric leads to the serving NVE by now, past this one."""
        sight = message.find(Sight)
        direct = sight is not None and sight.direct
        if entry.phase is Phase.REDIRECTING and direct is not entry.fabric_direct:
            entry.fabric_direct = direct
            self._watch_traffic(entry, now)

    def _redirect(self, entry: Entry, received: Received, now: float) -> None:
        """Section 5: redirect to "the new serving NVE address from the VM Mobility Registration
        Request message received from the management node"."""
        message = received.message
        serving = message.need(ServingNve).nve
        was_local, kind = entry.started, message.find(MobilityKind)
        handed_over = entry.turned and not was_local
        may_go = message.epoch > entry.epoch and not was_local
        entry.epoch, entry.granted, entry.move_epoch = message.epoch, 0, 0
        entry.target, entry.accept = serving, message.previous
        sight = message.find(Sight)
        entry.fabric_direct = sight is not None and sight.direct
        if message.interfaces:
            entry.interfaces = message.interfaces
        entry.refresh_at, entry.ticket = None, b""
        # A guest that other hands run is not ours to end.
        entry.unplugged = entry.unplugged or not was_local or entry.expected
        entry.turned = False
        if entry.ending:  # another NVE serves it before its end here was heard of
            entry.ending = False
            self.channel.withdraw_subject(self.manager, (entry.vm, "registration"))
            self._commands_done(entry, {"vm": entry.vm.vm_id, "status": "superseded"})
        self._reset_guest(entry)
        self._await_with(entry, received)
        self.channel.withdraw_subject(self.manager, (entry.vm, "move"))
        self._set_data_plane(entry)
        self._watch_traffic(entry, now)
        if handed_over:
            self._retire(entry)
        cold = kind is not None and kind.mobility is Mobility.COLD
        if cold and may_go and entry.quiet_since is not None:
            # Section 7.1: a cold move "allows all previous source NVEs to delete" their entries:
            # nobody was there to be spoken to.  The manager is asked at once.
            entry.quiet_since = now - self.settings.drain_s

    def _redirect_prepared(self, entry: Entry, received: Received, now: float) -> None:
        """Of the binding before the move: the relay keeps it.  Of one after it: the move is off."""
        if received.message.epoch < entry.move_epoch:
            self._answer(received, entry)
            return
        received.message.need(ServingNve)
        self._order(entry, Order.CANCEL)
        entry.leftover = True
        entry.phase, entry.unplugged = Phase.REDIRECTING, True
        self._redirect(entry, received, now)

    def _drained(self, entry: Entry, _: None, now: float) -> None:
        """No packet came for drain_s: tell the manager, who alone may end the redirect."""
        entry.draining = True
        self._event("entry.drained", entry, redirected=entry.redirected)
        self.channel.request(
            self.manager,
            Purpose.DEREGISTER,
            [VmId(entry.vm), Epoch(entry.epoch), PhaseOption(Phase.REDIRECTING)],
            now,
            lambda reply, at: self._drain_replied(entry, reply, at),
            subject=(entry.vm, "registration"),
        )

    def _drain_replied(self, entry: Entry, reply: Message, now: float) -> None:
        if reply.status.accepted:
            self._fire(entry, Trigger.DRAIN_ACCEPTED, None, now)
        elif entry.phase is Phase.REDIRECTING:
            self._watch_traffic(entry, now)

    def _note_gone(self, entry: Entry, _: object, now: float) -> None:
        """The process of the guest that moved away is gone: its taps may go, and from here nobody
        can serve again."""
        entry.started = False
        if entry.phase is Phase.REDIRECTING and not entry.unplugged:
            entry.unplugged = True
            self._set_data_plane(entry)

    def _remove(self, entry: Entry, received: Received | None, now: float) -> None:
        if received is not None:
            entry.epoch = max(entry.epoch, received.message.epoch)
            self._await_with(entry, received)
        if entry.started or not (entry.unplugged or entry.expected):
            # One that moved away, or a superseded one: paused, unplugged, and never to run again.
            self._order(entry, Order.STOP)
            entry.leftover = True
        self.channel.withdraw_subject(self.manager, (entry.vm, "move"))
        self._forget(entry)
