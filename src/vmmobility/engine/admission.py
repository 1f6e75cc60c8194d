"""What a VM may be: how long its definition, how many addresses and previous NVEs, which addresses.

The lengths keep every message about a VM within MAX_PARTS datagrams.  Not here: who may attach it
(manager.py).  Rests on wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_network

from vmmobility.wire.values import Interface, Prefix

# Parts are filled in order, so two neighbours hold more than one part's room (1,128 octets)
# together, and 16 parts take any message of 8 x 1,128 = 9,024.  The longest is PREPARE: beside the
# VM it has previous NVEs of up to 59 octets each, and less than 300 octets of other options.
MAX_VM_OCTETS = 6144
MAX_PREVIOUS = 40
MAX_PREFIXES = 56  # of one interface: an Interface Group has at most 1,024 octets

# Of no VM: "this network", loopback, link-local, multicast, broadcast, addresses of the other
# family in disguise.
FORBIDDEN: tuple[Prefix, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32",
        "::/128", "::1/128", "::ffff:0:0/96", "fe80::/10", "ff00::/8",
    )
)  # fmt: skip


def too_long(interfaces: Sequence[Interface], definition: bytes) -> str:
    """Why messages about such a VM would be too long, or the empty string."""
    octets = len(definition) + 4 * (len(definition) // 1000 + 1)
    octets += sum(10 + 18 * len(i.prefixes) for i in interfaces)
    if octets > MAX_VM_OCTETS:
        return f"a VM takes at most {MAX_VM_OCTETS} octets, not {octets}"
    if any(len(i.prefixes) > MAX_PREFIXES for i in interfaces):
        return f"an interface has at most {MAX_PREFIXES} addresses"
    return ""


def not_a_vm_s(
    interfaces: Iterable[Interface], shortest_ipv4: int, shortest_ipv6: int
) -> Prefix | None:
    """The first prefix that no VM may have: of a forbidden range, or shorter than allowed."""
    for prefix in (p for i in interfaces for p in i.prefixes):
        shortest = shortest_ipv4 if prefix.version == 4 else shortest_ipv6
        if prefix.prefixlen < shortest or any(
            prefix.version == net.version and prefix.overlaps(net) for net in FORBIDDEN
        ):
            return prefix
    return None
