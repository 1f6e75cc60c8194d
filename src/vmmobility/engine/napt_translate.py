"""Which IPv4 addresses of a crossing message a NAPT box puts others in the place of.

Outward, from the private side, private addresses become public ones; inward public ones become the
private ones again, the VM's own also where another box has mapped it: Section 9, "the NAPT box has
to convert public addresses into their corresponding private addresses before sending the
registration packet downstream".  IPv6 passes as it is.
Not here: how a substitution is written down (wire/origin.py), the mappings (napt_mappings.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network

from vmmobility.engine.napt_mapping import VmMapping
from vmmobility.engine.napt_mappings import Mappings, NaptRefused
from vmmobility.wire.message import Message
from vmmobility.wire.options import Endpoint, PreviousNve, ServingNve, Translation, VmId
from vmmobility.wire.options import Mapping as MappingOption
from vmmobility.wire.registry import Kind, Purpose, Status
from vmmobility.wire.values import Nve, VmKey

# These bring a VM's addresses: a mapping is made for them.  Others are translated if there is one.
BRINGING = frozenset((Purpose.ATTACH, Purpose.PREPARE, Purpose.REDIRECT, Purpose.ROUTE))
Changes = dict[IPv4Address, IPv4Address]


class Translator:
    """One box's.

    insiders: names of the originators on its private side
    boxes:    pools of the boxes that it may hold mappings of, by name
    """

    def __init__(
        self,
        mappings: Mappings,
        insiders: frozenset[str],
        boxes: Mapping[str, tuple[IPv4Network, ...]],
    ) -> None:
        self._mappings = mappings
        self._insiders = insiders
        self._boxes = boxes
        self._box_id = mappings.settings.box_id

    # ---- outward -------------------------------------------------------------------------------

    def outward(self, message: Message, sender: str, now: float, manager: bool = False) -> Changes:
        """Private -> public.  manager: whether the sender is one: it may say where NVEs are.

        Raises NaptRefused; then no mapping was made that was not there before, but those of NVEs,
        and of a VM with several addresses those before the one that is refused."""
        changes: Changes = {}
        for option in message.options:
            if isinstance(option, ServingNve | PreviousNve):
                own = isinstance(option, ServingNve) and option.nve.nve_id == sender
                self._locator_out(option.nve, changes, own or manager, now)
        endpoint = message.find(Endpoint)
        where = endpoint.address if endpoint else None
        if isinstance(where, IPv4Address) and where not in changes:
            self._locator_out(Nve(self._whose(where) or sender, where), changes, True, now)
        for vm, address in self._addresses(message):
            public = self._address_out(message, vm, address, now)
            if public is not None:
                changes[address] = public
        return changes

    def _whose(self, locator: IPv4Address) -> str:
        """The NVE that has this locator, "" if none is known to."""
        found = (m.nve_id for m in self._mappings.locators.values() if m.private == locator)
        return next(found, "")

    def _locator_out(self, nve: Nve, changes: Changes, may_change: bool, now: float) -> None:
        """may_change: whether the sender may say that the NVE has another locator now."""
        if nve.ipv4 is None or not self._mappings.is_inside(nve.ipv4):
            return
        if nve.nve_id not in self._insiders:
            raise NaptRefused(
                Status.ADMINISTRATIVELY_PROHIBITED,
                f"{self._box_id}: {nve.nve_id} at {nve.ipv4} is not configured on its inside",
            )
        known = self._mappings.locators.get(nve.nve_id)
        if known is not None and known.private != nve.ipv4 and not may_change:
            raise NaptRefused(
                Status.ADMINISTRATIVELY_PROHIBITED,
                f"{self._box_id}: {nve.nve_id} is at {known.private}, and only it, or a manager, "
                f"can say {nve.ipv4}",
            )
        changes[nve.ipv4] = self._mappings.locator(nve.nve_id, nve.ipv4, now)

    def _address_out(
        self, message: Message, vm: VmKey | None, address: IPv4Address, now: float
    ) -> IPv4Address | None:
        known = self._mappings.vms.get((vm, address)) if vm is not None else None
        if known is not None and not known.ended:
            self._mappings.touch(known, now)
            return known.public
        if not self._mappings.is_inside(address):
            return None
        if vm is None or message.purpose not in BRINGING or message.kind is Kind.REPLY:
            there = [m for m in self._mappings.vms.values() if m.private == address]
            return next((m.public for m in there if not m.ended), None)
        return self._mappings.address(vm, address, now).public

    def _addresses(self, message: Message) -> list[tuple[VmKey | None, IPv4Address]]:
        """The VM's IPv4 addresses.  Raises NaptRefused for a private prefix of several."""
        about = message.find(VmId)
        vm = about.vm if about else None
        found = []
        for prefix in (p for i in message.interfaces for p in i.prefixes):
            if not isinstance(prefix, IPv4Network):
                continue
            if prefix.prefixlen == 32:
                found.append((vm, prefix.network_address))
            elif any(prefix.overlaps(n) for n in self._mappings.settings.inside):
                raise NaptRefused(
                    Status.ADMINISTRATIVELY_PROHIBITED,
                    f"{self._box_id}: {prefix} is private, and only single addresses are mapped",
                )
        return found

    # ---- inward --------------------------------------------------------------------------------

    def inward(self, message: Message, receiver: str, now: float) -> Changes:
        """Public -> private.  Raises NaptRefused where a VM's own address cannot be here."""
        changes = {m.public: m.private for m in self._mappings.locators.values()}
        told = self._told(message)
        for vm, address in self._addresses_in(message):
            known = self._mappings.by_public(address)
            if known is None and vm is not None and address in told:
                known = self._foreign(message, vm, told[address], now)
            if known is not None:
                self._mappings.touch(known, now)
                changes[address] = known.private
        return changes

    @staticmethod
    def _addresses_in(message: Message) -> list[tuple[VmKey | None, IPv4Address]]:
        about = message.find(VmId)
        vm = about.vm if about else None
        prefixes = [p for i in message.interfaces for p in i.prefixes]
        return [
            (vm, p.network_address)
            for p in prefixes
            if isinstance(p, IPv4Network) and p.prefixlen == 32
        ]

    def _told(self, message: Message) -> dict[IPv4Address, MappingOption]:
        """Mappings of other boxes that the message tells of, by public address."""
        found = {o.public: o for o in message.options if isinstance(o, MappingOption)}
        for note in (o for o in message.options if isinstance(o, Translation)):
            if any(note.substitute in pool for pool in self._boxes.get(note.box, ())):
                made = MappingOption(note.box, note.original, note.substitute)
                found.setdefault(note.substitute, made)
        return found

    def _foreign(
        self, message: Message, vm: VmKey, told: MappingOption, now: float
    ) -> VmMapping | None:
        """A VM of another data centre is coming: its address must be nobody's here."""
        if message.purpose not in BRINGING or message.kind is Kind.REPLY:
            return None
        if told.box == self._box_id:
            return self._again(vm, told, now)
        if not any(told.public in pool for pool in self._boxes.get(told.box, ())):
            raise NaptRefused(
                Status.ADMINISTRATIVELY_PROHIBITED,
                f"{self._box_id}: {told.box} with {told.public} is no box that it knows",
            )
        user = self._mappings.user_of(told.private)
        if user or self._mappings.is_inside(told.private):
            what = f"is {user}'s here" if user else "is of this data centre's own private range"
            raise NaptRefused(
                Status.ADDRESS_IN_USE, f"{self._box_id}: {told.private} of VM {vm} {what}"
            )
        made = VmMapping(vm, told.private, told.public, told.box, ours=False)
        return self._mappings.add(made, now)

    def _again(self, vm: VmKey, told: MappingOption, now: float) -> VmMapping | None:
        """A mapping of this box's own, which has ended or was lost with its state."""
        known = self._mappings.vms.get((vm, told.private))
        if known is not None and known.public == told.public:
            return self._mappings.address(vm, told.private, now)
        taken = {m.public for m in self._mappings.vms.values()}
        taken |= {m.public for m in self._mappings.locators.values()}
        if known or told.public in taken or self._mappings.user_of(told.private):
            raise NaptRefused(
                Status.ADDRESS_IN_USE,
                f"{self._box_id}: {told.public} is no more the mapping of {told.private}, VM {vm}",
            )
        if told.public not in self._mappings.pool:
            return None
        made = VmMapping(vm, told.private, told.public, self._box_id, ours=True)
        return self._mappings.add(made, now)
