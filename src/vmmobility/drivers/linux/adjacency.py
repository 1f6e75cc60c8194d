"""Is a locator adjacent?  The kernel's own look-up answers, once an address.

A route without a gateway is not enough: over an unnumbered link, or where a router answers ARP for
others' addresses, it leads to that router, which would send packets back.  The locator must be in a
subnet of the interface.  Not here: what follows from it (plan.py).
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from vmmobility.drivers.linux import rtnetlink
from vmmobility.drivers.linux.netlink import Netlink, Refusal
from vmmobility.drivers.linux.plan import Adjacent
from vmmobility.drivers.linux.rtnetlink import NextHop
from vmmobility.wire.values import Address, Prefix


def adjacency(netlink: Netlink, tunnels: Collection[int]) -> Adjacent:
    """A look-up that asks the kernel once an address and remembers as long as it lives.

    tunnels: the indices of our tunnels' devices, which lead to nobody
    """

    @cache
    def on_link() -> list[tuple[int, Prefix]]:
        return list(rtnetlink.subnets(netlink))

    @cache
    def adjacent(address: Address) -> NextHop | str:
        found = rtnetlink.look_up(netlink, address)
        if isinstance(found, Refusal):
            return f"no route to it ({found})"
        if found.gateway is not None:
            return f"it is not adjacent but behind {found.gateway}"
        if found.tunnel is not None:
            return "it is not adjacent but at the end of a tunnel"
        if found.ifindex == 0 or found.ifindex in tunnels:
            return "no underlay route to it"
        if not any(index == found.ifindex and address in subnet for index, subnet in on_link()):
            return "it is not adjacent: it is in no subnet of the interface that leads to it"
        return found

    return adjacent
