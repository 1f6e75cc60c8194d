"""Where a VM's traffic is counted: nft's counters, its taps and the relay, read into the ledger.

Rests on the open netlink socket and on what the driver knows to be there.  Not here: sums over
sources that begin again (counters.py), or when they are read (driver.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmmobility.drivers.linux import filter, rtnetlink
from vmmobility.drivers.linux.counters import Ledger
from vmmobility.drivers.linux.filter_state import Filters
from vmmobility.drivers.linux.netlink import Netlink
from vmmobility.drivers.linux.outside import OUTSIDE
from vmmobility.drivers.linux.plan import vm_name
from vmmobility.drivers.linux.ports import Ports
from vmmobility.drivers.linux.relay_orders import RelayOrders
from vmmobility.wire.values import Prefix, VmKey


@dataclass(frozen=True, slots=True)
class Sources:
    """All that counts packets of VMs at one node."""

    netlink: Netlink
    filters: Filters
    orders: RelayOrders
    ports: Ports

    async def note(self, ledger: Ledger) -> None:
        """Read every source once, and note its number."""
        counts = await filter.read_counts()
        links = {link.name: link for link in rtnetlink.links(self.netlink)}
        relayed = await self.orders.counters()
        for vm, prefixes in self.filters.counted.items():
            _note_counted(ledger, vm, prefixes, counts)
            if (relay := relayed.get(vm_name(vm))) is not None:
                ledger.note(vm, "redirected", "relay", relay.get("forwarded", 0))
                drops = sum(n for key, n in relay.items() if key.startswith("drop_"))
                ledger.note(vm, "dropped", "relay", drops)
                ledger.note(vm, "outside", "relay", relay.get("drop_outside", 0))
        for name, tap in self.ports.taps.items():
            if tap.settled is None:
                continue
            if name in links:
                packets = links[name].tx_packets
                ledger.note(tap.settled.vm, "consumed", f"tap {name}", packets)
            if name in counts.spoofed:
                packets = counts.spoofed[name]
                ledger.note(tap.settled.vm, "dropped", f"filter {name}", packets)


def _note_counted(
    ledger: Ledger, vm: VmKey, prefixes: Sequence[Prefix], counts: filter.Counts
) -> None:
    """What is not listed just now is not zero: leave it out."""
    kinds = (
        (filter.TO_TAP, "delivered"),
        (filter.ONWARD, "redirected"),
        (OUTSIDE, "dropped"),
        (OUTSIDE, "outside"),
    )
    for prefix in prefixes:
        for kind, name in kinds:
            packets = counts.counted.get((kind, prefix))
            if packets is not None:
                ledger.note(vm, name, f"{kind} {prefix}", packets)
