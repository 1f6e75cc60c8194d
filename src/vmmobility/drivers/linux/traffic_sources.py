"""Where a VM's traffic is counted: nft's counters, its taps and the tunnels, read into the ledger.

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
from vmmobility.drivers.linux.ports import Ports
from vmmobility.drivers.linux.tunnels import Tunnels
from vmmobility.wire.values import Prefix, VmKey


@dataclass(frozen=True, slots=True)
class Sources:
    """All that counts packets of VMs at one node."""

    netlink: Netlink
    filters: Filters
    tunnels: Tunnels
    ports: Ports

    async def note(self, ledger: Ledger) -> None:
        """Read every source once, and note its number."""
        counts = await filter.read_counts()
        links = {link.name: link for link in rtnetlink.links(self.netlink)}
        await self.tunnels.note(ledger, self.filters.counted)
        for vm, prefixes in self.filters.counted.items():
            _note_counted(ledger, vm, prefixes, counts)
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
    for prefix in prefixes:
        for kind, name in ((filter.TO_TAP, "delivered"), (filter.ONWARD, "redirected")):
            packets = counts.counted.get((kind, prefix))
            if packets is not None:
                ledger.note(vm, name, f"{kind} {prefix}", packets)
