"""Tunnels by the kernel: one ipip and one ip6tnl device without fixed ends.

Routes name the peer that their packets go to; the guard (guard_state.py) says who may send what
here.  The relay process still answers neighbours for guests, and moves no packet.  Not here: the
messages (tunnel_messages.py), whether this kernel has it all (tunnel_choice.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vmmobility.drivers.dataplane import Failure
from vmmobility.drivers.linux import rtnetlink, sysctl
from vmmobility.drivers.linux.counters import Ledger
from vmmobility.drivers.linux.environment import must
from vmmobility.drivers.linux.guard_state import Guard
from vmmobility.drivers.linux.netlink import Netlink
from vmmobility.drivers.linux.ownership import (
    ACCEPTED_MARK,
    KERNEL_TUNNELS,
    RULE_PRIORITY,
    TUNNELLED_TABLE,
    UNACCEPTED_RULE_PRIORITY,
)
from vmmobility.drivers.linux.plan import Plan, TunnelWays
from vmmobility.drivers.linux.policy_rules import Rule
from vmmobility.drivers.linux.relay_orders import RelayOrders
from vmmobility.drivers.linux.rtnetlink import Link
from vmmobility.drivers.linux.settings import LinuxSettings
from vmmobility.drivers.linux.tunnel_messages import EXTERNAL, KINDS, new_tunnel
from vmmobility.drivers.linux.tunnels import inner_mtu
from vmmobility.errors import DataPlaneError
from vmmobility.wire.values import FAMILIES, Prefix, VmKey

_REMEDY = (
    "another program may have an external tunnel here, of which the kernel allows one a kind: "
    'remove it, or set tunnel = "relay"'
)


class KernelTunnels:
    """See Tunnels."""

    def __init__(self, netlink: Netlink, orders: RelayOrders, settings: LinuxSettings) -> None:
        self._netlink, self._orders = netlink, orders
        self._guard = Guard()
        self._everything = False
        own = [v for v in FAMILIES if settings.locator(v) is not None]
        self.ways = TunnelWays({v: KERNEL_TUNNELS[v] for v in own}, names_peers=True)
        self.indices: dict[str, int] = dict.fromkeys(self.ways.devices.values(), 0)

    # -- the devices --------------------------------------------------------------------------

    async def start(self, underlays: Sequence[Link]) -> None:
        # The guard stands before any device opens a packet.  It accepts nothing until the first
        # `tell`: by then a relay of an earlier start, which would deliver too, has been replaced.
        await self._guard.ensure()
        down = []
        for version, name in self.ways.devices.items():
            link = self._device(name, version, inner_mtu(underlays, version))
            self.indices[name] = link.index
            down += [] if link.up else [link]
        sysctl.ensure(self.settings(underlays))
        for link in down:
            must(self._netlink, [rtnetlink.set_link(link.index, up=True)], link.name)

    def _device(self, name: str, version: int, mtu: int) -> Link:
        link = rtnetlink.link_named(self._netlink, name)
        if link is not None and link.kind != KINDS[version] + EXTERNAL:
            must(self._netlink, [rtnetlink.delete_link(link.index)], name)
            link = None
        if link is None:
            (refused,) = self._netlink.batch([new_tunnel(name, version, mtu)])
            link = rtnetlink.link_named(self._netlink, name)
            if link is None:
                raise DataPlaneError(f"{name} cannot be made: {refused or 'it vanished'}", _REMEDY)
        if link.mtu != mtu:
            must(self._netlink, [rtnetlink.set_link(link.index, mtu=mtu)], name)
        return link

    async def ensure(self, underlays: Sequence[Link]) -> None:
        await self._orders.ensure()

    def rules(self) -> list[Rule]:
        rules = []
        for version, name in self.ways.devices.items():
            rules.append(Rule(version, name, TUNNELLED_TABLE, RULE_PRIORITY, mark=ACCEPTED_MARK))
            rules.append(Rule(version, name, 0, UNACCEPTED_RULE_PRIORITY))
        return rules

    def settings(self, underlays: Sequence[Link]) -> dict[str, str]:
        values: dict[str, str] = {}
        for version, name in self.ways.devices.items():
            values |= sysctl.for_kernel_tunnel(name, version)
        return values

    def device_faults(
        self, links: Mapping[str, Link], underlays: Sequence[Link]
    ) -> Iterator[tuple[str, str]]:
        for version, name in self.ways.devices.items():
            item, link = f"tunnel {name}", links.get(name)
            mtu = inner_mtu(underlays, version)
            if link is None:
                yield item, "is gone"
            elif link.kind != KINDS[version] + EXTERNAL:
                yield item, f"is of another kind: {link.kind or 'none'}"
            elif not link.up:
                yield item, "is down"
            elif link.mtu != mtu:
                yield item, f"has the MTU {link.mtu}; it should be {mtu}"

    # -- who may tunnel what here -------------------------------------------------------------

    def forget(self) -> None:
        self._guard.forget()
        self._orders.forget()

    async def tell(self, plans: Sequence[Plan], everything: bool) -> list[Failure]:
        self._everything = everything
        failures = await self._guard.before(plans, everything)
        plugged = [made.vm for made in plans if made.ports]
        return failures + await self._orders.tell_ports(plugged, everything)

    async def retire(self, plans: Sequence[Plan]) -> list[Failure]:
        everything, self._everything = self._everything, False
        await self._orders.retire([])
        return await self._guard.after(plans, everything)

    async def faults(self) -> list[tuple[str, str, str]]:
        process = [(vm, "relay", found) for vm, found in await self._orders.faults()]
        return process + await self._guard.faults()

    async def note(self, ledger: Ledger, counted: Mapping[VmKey, Sequence[Prefix]]) -> None:
        refused = await self._guard.refused()
        for vm, prefixes in counted.items():
            for prefix in prefixes:
                if prefix in refused:
                    ledger.note(vm, "dropped", f"guard {prefix}", refused[prefix])
