"""The taps, or circuits' ends in their place: made, set, opened to traffic; and removed.

A tap is prepared while down, gets its source filter (filter.py, the driver's order), and only
then is opened.  Only what differs is touched.  Not here: routes (routes.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address

from vmmobility.drivers.linux import rtnetlink, sysctl
from vmmobility.drivers.linux.circuit_guard import Source
from vmmobility.drivers.linux.circuit_messages import (
    NUMBERS,
    CircuitLink,
    new_circuit,
    turn_circuit,
)
from vmmobility.drivers.linux.netlink import Netlink, Request
from vmmobility.drivers.linux.ownership import is_our_tap
from vmmobility.drivers.linux.plan import Port
from vmmobility.drivers.linux.rtnetlink import Link
from vmmobility.drivers.linux.settings import LinuxSettings
from vmmobility.drivers.linux.tap import create_tap
from vmmobility.errors import DataPlaneError
from vmmobility.wire.values import Address, VmKey

_GATEWAY_LENGTH = {4: 32, 6: 64}


@dataclass(slots=True)
class Tap:
    """One of our taps as the kernel holds it; `settled` is the port that it serves entirely."""

    link: Link
    addresses: set[Address] = field(default_factory=set)
    neighbours: dict[Address, bytes] = field(default_factory=dict)
    settled: Port | None = None


class Ports:
    """All our taps by name."""

    def __init__(self, netlink: Netlink, settings: LinuxSettings) -> None:
        self._netlink = netlink
        self._settings = settings
        self.taps: dict[str, Tap] = {}
        self._of_vm: dict[VmKey, set[str]] = {}

    def read(self) -> None:
        """Take what the kernel holds; nothing counts as settled until it was checked."""
        found = {k.index: Tap(k) for k in rtnetlink.links(self._netlink) if is_our_tap(k.name)}
        for index, address in rtnetlink.addresses(self._netlink):
            if index in found:
                found[index].addresses.add(address)
        for index, address, mac in rtnetlink.permanent_neighbours(self._netlink):
            # The kernel's own multicast entries are not permanent: what is here was put here.
            if index in found:
                found[index].neighbours[address] = mac
        self.taps = {tap.link.name: tap for tap in found.values()}
        self._of_vm = {}

    def of(self, vm: VmKey) -> frozenset[str]:
        """The names of the taps that were opened for a VM."""
        return frozenset(self._of_vm.get(vm, ()))

    def index(self, name: str) -> int:
        """The interface index of a settled tap, or 0."""
        tap = self.taps.get(name)
        return tap.link.index if tap is not None and tap.settled is not None else 0

    def prepare(self, port: Port) -> bool:
        """Make the tap and set all but `up`; True if it was made now.  Raises DataPlaneError."""
        if port.name in self.taps and not self._suits(self.taps[port.name].link, port):
            self.remove(port.name)
        made = port.name not in self.taps
        if made:
            self._make(port)
            link = rtnetlink.link_named(self._netlink, port.name)
            if link is None:
                raise DataPlaneError(f"tap {port.name} vanished", "does somebody else remove it?")
            self.taps[port.name] = Tap(link)
        tap, settings = self.taps[port.name], self._settings
        self._turn(tap, port)
        mac = settings.gateway_mac if tap.link.mac != settings.gateway_mac else None
        length = settings.tap_queue_length
        queue_length = length if tap.link.queue_length != length else None
        if mac is not None or queue_length is not None:
            request = rtnetlink.set_link(tap.link.index, mac=mac, queue_length=queue_length)
            self._do(port.name, [request])
        if mac is not None:
            # The kernel forgets all neighbours of an interface whose MAC changes.
            tap.neighbours = {}
        sysctl.ensure(sysctl.for_tap(port.name))
        return made

    @staticmethod
    def _suits(link: Link, port: Port) -> bool:
        """Whether the device there can become the one that is wanted."""
        if link.circuit is None or port.circuit is None:
            return link.circuit is None and port.circuit is None
        remote = link.circuit.remote
        return (
            link.circuit.usual
            and remote is not None
            and (remote.version == port.circuit.remote.version)
        )

    def _make(self, port: Port) -> None:
        if port.circuit is None:
            create_tap(port.name)
            return
        ends, mac = port.circuit, self._settings.gateway_mac
        number = self._free_number(port.name)
        self._do(port.name, [new_circuit(port.name, number, ends.remote, ends.local, mac)])

    def _free_number(self, name: str) -> int:
        """A circuit's number that no other has, the same as last time where that is possible."""
        used = {tap.link.circuit.number for tap in self.taps.values() if tap.link.circuit}
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:3], "big")
        while number in used or number == 0:
            number = (number + 1) % NUMBERS
        return number

    def _turn(self, tap: Tap, port: Port) -> None:
        """One message turns a circuit from one server to another."""
        ends, held = port.circuit, tap.link.circuit
        if ends is None or held is None or (held.remote, held.local) == (ends.remote, ends.local):
            return
        self._do(port.name, [turn_circuit(tap.link.index, ends.remote, ends.local)])
        turned = CircuitLink(held.number, ends.remote, ends.local)
        tap.link = replace(tap.link, circuit=turned)

    def number(self, name: str) -> int:
        """The number of the circuit whose end this is.  Raises DataPlaneError."""
        tap = self.taps.get(name)
        if tap is None or tap.link.circuit is None:
            raise DataPlaneError(f"{name} is no circuit's end", "is the VM plugged in here?")
        return tap.link.circuit.number

    def sources(self, ports: Iterable[Port] = ()) -> set[Source]:
        """From where frames may come into which circuit: by what is settled, and by these ports."""
        settled = (tap.settled for tap in self.taps.values() if tap.settled is not None)
        return {
            (address, self.number(port.name))
            for port in (*settled, *ports)
            if port.circuit is not None
            for address in port.circuit.takes
        }

    def open(self, port: Port) -> None:
        """Bring the tap up with the gateway's addresses and the VM's neighbours.

        Raises DataPlaneError with the first thing that the kernel refused.
        """
        tap = self.taps[port.name]
        index = tap.link.index
        requests = [] if tap.link.up else [rtnetlink.set_link(index, up=True)]
        for gateway in (self._settings.gateway4, self._settings.gateway6):
            if gateway not in tap.addresses:
                length = _GATEWAY_LENGTH[gateway.version]
                requests.append(rtnetlink.new_address(index, gateway, length))
        wanted = dict.fromkeys(rtnetlink.host_addresses(port.prefixes), port.mac)
        for address, mac in wanted.items():
            if tap.neighbours.get(address) != mac:
                requests.append(rtnetlink.new_neighbour(index, address, mac))
        for address in tap.neighbours.keys() - wanted.keys():
            if not (isinstance(address, IPv6Address) and address.is_multicast):
                requests.append(rtnetlink.delete_neighbour(index, address))
        self._do(port.name, requests)
        link = rtnetlink.link_named(self._netlink, port.name)
        if link is None:
            raise DataPlaneError(f"tap {port.name} vanished", "does somebody else remove it?")
        tap.link, tap.neighbours, tap.settled = link, wanted, port
        self._of_vm.setdefault(port.vm, set()).add(port.name)
        tap.addresses |= {self._settings.gateway4, self._settings.gateway6}

    def _do(self, name: str, requests: list[Request]) -> None:
        for outcome in self._netlink.batch(requests) if requests else ():
            if outcome is not None:
                raise DataPlaneError(f"tap {name}: {outcome}", "see the kernel's log")

    def remove(self, name: str) -> None:
        """Remove a tap; a hypervisor that holds it open loses it.  Raises DataPlaneError."""
        tap = self.taps.pop(name, None)
        if tap is None:
            return
        (outcome,) = self._netlink.batch([rtnetlink.delete_link(tap.link.index)])
        # Gone already is what was wanted: by hand, perhaps.
        if outcome is not None and rtnetlink.link_named(self._netlink, name) is not None:
            self.taps[name] = tap
            raise DataPlaneError(f"tap {name}: {outcome}", "see the kernel's log")
        if tap.settled is not None:
            names = self._of_vm[tap.settled.vm]
            names.discard(name)
            if not names:
                del self._of_vm[tap.settled.vm]
