"""The standby: a door for checkpoints, and the guest's life from the last complete one.

A standby that takes over does it like the destination of a move: DELIVERING, with a ticket, and
the guest that resumes attaches.  Not here: the primary (nve_guarding.py), how checkpoints are kept
(drivers/hypervisor), records (protection_record.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from vmmobility.engine.admission import too_long
from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.channel import Received
from vmmobility.engine.nve_parts import RETRY_S, NveParts, in_use_by
from vmmobility.engine.outputs import Order
from vmmobility.engine.protection_record import (
    Standby,
    record_key,
    standby_to_json,
)
from vmmobility.errors import DecodeError
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    Checkpoint,
    Endpoint,
    Epoch,
    GuestStateOption,
    Option,
    PhaseOption,
    Protection,
    ServingNve,
    Ticket,
    VmId,
)
from vmmobility.wire.registry import Mobility, Phase, Purpose, Status
from vmmobility.wire.values import Interface, VmKey

IDLE = (Phase.NONE, Phase.REDIRECTING)


class NveStandby(NveParts):
    """VMs that have their standby here; a part of NveEngine."""

    standbys: dict[VmKey, Standby]

    if TYPE_CHECKING:
        _order_of: Callable[..., None]

    def _be_standby(self, entry: Entry, received: Received, now: float) -> None:
        """Keep checkpoints of a VM that runs elsewhere; the reply says where they are taken."""
        message = received.message
        terms, primary = message.need(Protection), message.need(ServingNve).nve
        epoch, definition = message.epoch, message.definition
        long = too_long(message.interfaces, definition)
        if long or not message.interfaces:
            raise DecodeError("bad-value", long or "PROTECT needs an interface")
        standby = self.standbys.get(entry.vm)
        if entry.phase not in IDLE or entry.expected or (standby and standby.ticket):
            self._answer(received, entry, Status.WRONG_PHASE, reason="the VM is here, or expected")
            return
        if epoch < max(entry.epoch, standby.epoch if standby else 0):
            self._answer(received, entry, Status.STALE_EPOCH)
            return
        if shared := self._shared_with(entry.vm, message.interfaces):
            self._answer(received, entry, Status.ADDRESS_IN_USE, reason=shared)
            return
        standby = self.standbys[entry.vm] = Standby(
            entry.vm, message.interfaces, definition, primary, terms, epoch
        )
        standby.request = received
        self._save_standby(standby)
        self._open_door(standby)

    def _take_over(self, entry: Entry, received: Received, now: float) -> None:
        """Let the guest run here from the last complete checkpoint, under this epoch."""
        message = received.message
        ticket, epoch = message.need(Ticket).ticket, message.epoch
        standby = self.standbys.get(entry.vm)
        if entry.ticket == ticket and entry.phase in (Phase.ATTACHING, Phase.DELIVERING):
            if standby is not None:
                standby.request = received
            return
        if entry.phase not in IDLE:
            self._answer(received, entry, Status.WRONG_PHASE, reason="the VM is here")
            return
        if standby is None:
            why = "no standby of the VM is here"
            self._answer(received, entry, Status.HYPERVISOR_FAILURE, reason=why)
            return
        if epoch == entry.epoch:  # it was tried under this order, and came to nothing
            why = "the guest has ended"
            self._answer(received, entry, Status.HYPERVISOR_FAILURE, reason=why)
            return
        if epoch < entry.heeded or epoch <= standby.epoch:
            self._answer(received, entry, Status.STALE_EPOCH)
            return
        if shared := self._shared_with(entry.vm, standby.interfaces):
            entry.epoch = epoch  # nor later under this order: its primary goes on
            self._save(entry)
            self._answer(received, entry, Status.ADDRESS_IN_USE, reason=shared)
            return
        self._end_leftover(entry)
        entry.came_from = entry.phase
        entry.interfaces, entry.definition = standby.interfaces, standby.definition
        entry.ticket, entry.attach_id, entry.granted = ticket, 0, 0
        entry.move_epoch = entry.epoch = epoch
        entry.accept, entry.mobility = (), Mobility.WARM
        entry.started = entry.unplugged = entry.turned = entry.relaying = False
        entry.quiet_since, entry.draining, entry.measured = None, False, {}
        self._reset_guest(entry)
        told = message.find(GuestStateOption)
        entry.kept = told is not None and told.kept
        entry.phase = Phase.DELIVERING
        standby.ticket, standby.request = ticket, received
        standby.ordered, standby.failed, standby.door_at = False, None, None
        self.channel.withdraw_subject(self.manager, (entry.vm, "registration"))
        self._event("standby.takes-over", entry, checkpoint=standby.number)
        self._save_standby(standby)
        self._set_data_plane(entry)
        self._save(entry)

    def _shared_with(self, vm: VmKey, interfaces: tuple[Interface, ...]) -> str:
        """Why the VM cannot run here: no two members of a group do at one NVE."""
        sharer = self.entries.sharer(vm, interfaces)
        return in_use_by(sharer) if sharer is not None else ""

    def _open_door(self, standby: Standby) -> None:
        standby.door_at = None
        own = self.settings.own
        families = [f for f in (4, 6) if own.locator(f) and standby.primary.locator(f)]
        address = own.locator(families[0]) if families else own.locators[0]
        self._order_of(
            standby.vm, Order.RECEIVE, definition=standby.definition, address=str(address)
        )

    def _door_opened(
        self, standby: Standby, result: Mapping[str, Any], error: str, now: float
    ) -> None:
        entry = self.entries.entry(standby.vm)
        received, standby.request = standby.request, None
        if error:
            self._event("order.failed", entry, order=Order.RECEIVE.value, reason=error)
            if received is not None:
                self._answer(received, entry, Status.HYPERVISOR_FAILURE, reason=error[:200])
            else:
                standby.door_at = now + RETRY_S  # nobody asks again
            return
        standby.door = Endpoint(ip_address(result["address"]), result["port"])
        standby.token, standby.number = result["token"], result["number"]
        if received is not None:
            stand = (VmId(standby.vm), Epoch(standby.epoch), PhaseOption(Phase.STANDBY))
            options = (*stand, *self._door_options(standby))
            self.channel.reply(received, Status.ACCEPTED, options)
        else:
            self._tell_door(standby, now)

    def _open_doors_again(self, now: float) -> None:
        for standby in self.standbys.values():
            if standby.door_at is not None and standby.door_at <= now:
                self._open_door(standby)

    def _door_options(self, standby: Standby) -> tuple[Option, ...]:
        assert standby.door is not None
        told = replace(standby.terms, token=standby.token)
        return standby.door, told, Checkpoint(standby.number)

    def _tell_door(self, standby: Standby, now: float) -> None:
        """After a restart: the door has another port."""
        if standby.door is None:
            return
        options = (VmId(standby.vm), Epoch(standby.epoch), PhaseOption(Phase.STANDBY))
        self.channel.request(
            self.manager,
            Purpose.PROTECT,
            (*options, *self._door_options(standby)),
            now,
            lambda reply, at: self._door_told(standby, reply),
            subject=(standby.vm, "standby"),
        )

    def _door_told(self, standby: Standby, reply: Message) -> None:
        """A manager that knows of no such standby wants none."""
        unwanted = reply.status is Status.UNKNOWN_BINDING and not standby.ticket
        if unwanted and self.standbys.get(standby.vm) is standby:
            self._order_of(standby.vm, Order.DROP_STANDBY, definition=standby.definition)

    def _forget_standby(self, standby: Standby) -> None:
        del self.standbys[standby.vm]
        self.outbox.record(record_key("standby", standby.vm), None)

    def _activate_if_plugged(self, entry: Entry, failure: str, now: float) -> bool:
        """Its taps are there: the guest may be brought to life.  Whether it was about that."""
        standby = self.standbys.get(entry.vm)
        if standby is None or not standby.ticket or entry.phase is not Phase.DELIVERING:
            return False
        if standby.failed is not None:
            self._order(entry, Order.STOP)  # again
        elif failure and standby.ordered:
            self._retry[entry.vm] = now + RETRY_S  # the guest may run: its own answer decides
        elif failure:
            self._activation_failed(entry, standby, Status.DATA_PLANE_FAILURE, failure)
        elif not standby.ordered:
            standby.ordered = True
            self._order_of(entry.vm, Order.ACTIVATE, definition=standby.definition)
        return True

    def _activation_failed(self, entry: Entry, standby: Standby, status: Status, why: str) -> None:
        """The guest was not seen to run; but a hypervisor that did not answer may let it run yet.
        The primary goes on as soon as it hears that nothing runs here: so it is ended first."""
        if standby.failed is None:
            standby.failed = (status, why)
            self._order(entry, Order.STOP)

    def _activation_ended(self, entry: Entry, standby: Standby, error: str, now: float) -> None:
        """Nothing runs here, and nothing will under this order.  The checkpoint stays."""
        assert standby.failed is not None
        if error:
            self._event("order.failed", entry, order=Order.STOP.value, reason=error)
            self._retry[entry.vm] = now + RETRY_S
            return
        (status, why), standby.failed = standby.failed, None
        received, standby.request = standby.request, None
        standby.ticket = b""
        self._save_standby(standby)
        self._event("standby.failed", entry, reason=why)
        self._fall_back(entry, None, now)
        self._save(entry)
        if received is not None:
            self._answer(received, entry, status, reason=why[:200])
        self._open_door(standby)

    def _takes_over(self, entry: Entry) -> bool:
        """Whether it is a standby that was told to run the guest."""
        standby = self.standbys.get(entry.vm)
        return standby is not None and bool(standby.ticket)

    def _save_standby(self, standby: Standby) -> None:
        self.outbox.record(record_key("standby", standby.vm), standby_to_json(standby))
