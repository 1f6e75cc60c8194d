"""Is this sender a host of the data centres?  Looked up once for each packet of a tunnel.

Pure, and small enough for the relay's process.  Not here: what follows from the answer
(relay_table.py), the kernel's own rules for the same (outside.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

from vmmobility.wire.values import Prefix

_REMEMBERED = 65536  # senders; then it begins anew
_BITS = {4: 32, 16: 128}  # octets of an address -> bits


class Inside:
    """The data centres' prefixes; with none every sender is inside."""

    def __init__(self, prefixes: Iterable[str | Prefix] = ()) -> None:
        """Raises ValueError for what is no prefix."""
        networks: dict[int, dict[int, set[int]]] = {32: {}, 128: {}}
        for prefix in prefixes:
            network = ip_network(prefix)
            shift = network.max_prefixlen - network.prefixlen
            values = networks[network.max_prefixlen].setdefault(shift, set())
            values.add(int(network.network_address) >> shift)
        self._networks = networks
        self._everybody = not any(networks.values())
        self._known: dict[bytes, bool] = {}

    def holds(self, sender: bytes | bytearray | memoryview) -> bool:
        """Whether the packed address lies in one of them."""
        if self._everybody:
            return True
        packed = bytes(sender)
        known = self._known.get(packed)
        if known is None:
            value = int.from_bytes(packed, "big")
            by_shift = self._networks[_BITS[len(packed)]]
            known = any(value >> shift in values for shift, values in by_shift.items())
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[packed] = known
        return known
