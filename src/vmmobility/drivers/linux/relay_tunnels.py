"""Tunnels by the relay: one TUN device, and a process that moves packets between it and peers.

The device is persistent, so routes to it stay when the relay dies: packets wait or are dropped, and
never go up the default route.  Not here: the process and its orders (relay_client.py,
relay_orders.py), what it does with packets (relay_table.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vmmobility.drivers.dataplane import Failure
from vmmobility.drivers.linux import rtnetlink, sysctl
from vmmobility.drivers.linux.counters import Ledger
from vmmobility.drivers.linux.environment import must
from vmmobility.drivers.linux.netlink import Netlink
from vmmobility.drivers.linux.ownership import RULE_PRIORITY, TUN_NAME, TUNNELLED_TABLE
from vmmobility.drivers.linux.plan import Plan, TunnelWays, vm_name
from vmmobility.drivers.linux.policy_rules import Rule
from vmmobility.drivers.linux.relay_orders import RelayOrders
from vmmobility.drivers.linux.rtnetlink import Link
from vmmobility.drivers.linux.tap import create_tun
from vmmobility.drivers.linux.tunnel_guard import remove_guard
from vmmobility.drivers.linux.tunnels import LEAST_MTU, inner_mtu
from vmmobility.errors import DataPlaneError
from vmmobility.wire.values import FAMILIES, Prefix, VmKey

_QUEUE_LENGTH = 10_000
_RELAY = "relay"


class RelayTunnels:
    """See Tunnels."""

    ways = TunnelWays(dict.fromkeys(FAMILIES, TUN_NAME), names_peers=False)

    def __init__(self, netlink: Netlink, orders: RelayOrders) -> None:
        self._netlink, self._orders = netlink, orders
        self._index = 0
        self._guard_removed = False

    @property
    def indices(self) -> Mapping[str, int]:
        return {TUN_NAME: self._index}

    # -- the device ---------------------------------------------------------------------------

    async def start(self, underlays: Sequence[Link]) -> None:
        if not self._guard_removed:
            # Kernel tunnels of an earlier start would deliver what the relay delivers too.
            await remove_guard()
            self._guard_removed = True
        link = rtnetlink.link_named(self._netlink, TUN_NAME)
        if link is None:
            create_tun(TUN_NAME)
            link = rtnetlink.link_named(self._netlink, TUN_NAME)
            if link is None:
                raise DataPlaneError(f"{TUN_NAME} vanished", "does somebody else remove it?")
            if self._orders.client.connected:
                # A relay that holds a removed device moves nothing: it must attach to the new one.
                await self._orders.client.stop()
        self._index = link.index
        mtu = _device_mtu(underlays)
        if link.mtu != mtu or link.queue_length != _QUEUE_LENGTH:
            request = rtnetlink.set_link(link.index, mtu=mtu, queue_length=_QUEUE_LENGTH)
            must(self._netlink, [request], TUN_NAME)
        if not link.up:
            must(self._netlink, [rtnetlink.set_link(link.index, up=True)], TUN_NAME)
        sysctl.ensure(self.settings(underlays))

    async def ensure(self, underlays: Sequence[Link]) -> None:
        await self._orders.ensure()
        # A device whose carrier comes up has its IPv6 MTU set to the device's by the kernel.
        sysctl.ensure(self.settings(underlays))

    def rules(self) -> list[Rule]:
        return [Rule(v, TUN_NAME, TUNNELLED_TABLE, RULE_PRIORITY) for v in FAMILIES]

    def settings(self, underlays: Sequence[Link]) -> dict[str, str]:
        return sysctl.for_tun(TUN_NAME, inner_mtu(underlays, 6))

    def device_faults(
        self, links: Mapping[str, Link], underlays: Sequence[Link]
    ) -> Iterator[tuple[str, str]]:
        item, link = f"tunnel {TUN_NAME}", links.get(TUN_NAME)
        if link is None:
            yield item, "is gone"
            return
        if not link.up:
            yield item, "is down"
        mtu = _device_mtu(underlays)
        if link.mtu != mtu:
            yield item, f"has the MTU {link.mtu}; it should be {mtu}"
        if link.queue_length != _QUEUE_LENGTH:
            yield item, f"has a queue of {link.queue_length} packets"

    # -- the relay's table --------------------------------------------------------------------

    def forget(self) -> None:
        self._orders.forget()

    async def tell(self, plans: Sequence[Plan], everything: bool) -> list[Failure]:
        return await self._orders.tell(plans, everything)

    async def retire(self, plans: Sequence[Plan]) -> list[Failure]:
        await self._orders.retire(plans)
        return []

    async def faults(self) -> list[tuple[str, str, str]]:
        return [(vm, _RELAY, found) for vm, found in await self._orders.faults()]

    async def note(self, ledger: Ledger, counted: Mapping[VmKey, Sequence[Prefix]]) -> None:
        relayed = await self._orders.counters()
        for vm in counted:
            if (relay := relayed.get(vm_name(vm))) is not None:
                ledger.note(vm, "redirected", _RELAY, relay.get("forwarded", 0))
                drops = sum(n for key, n in relay.items() if key.startswith("drop_"))
                ledger.note(vm, "dropped", _RELAY, drops)
                ledger.note(vm, "outside", _RELAY, relay.get("drop_outside", 0))
                # Those that it told the sender of have passed nft, which counts the errors.
                ledger.note(vm, "too_big", _RELAY, relay.get("too_big_untold", 0))


def _device_mtu(underlays: Sequence[Link]) -> int:
    """IPv4's, but never below IPv6's least, with which the device would take no IPv6 at all."""
    return max(inner_mtu(underlays, 4), LEAST_MTU[6])
