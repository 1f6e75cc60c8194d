"""What the relay should hold, and telling it: the whole table, or what changed.

Not here: the connection and the process (relay_client.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from vmmobility.drivers.dataplane import Failure
from vmmobility.drivers.linux import environment
from vmmobility.drivers.linux.netlink import Netlink
from vmmobility.drivers.linux.ownership import TUN_NAME
from vmmobility.drivers.linux.plan import Plan, vm_name
from vmmobility.drivers.linux.ports import Ports
from vmmobility.drivers.linux.relay_client import Found, RelayClient
from vmmobility.errors import DataPlaneError, VmMobilityError
from vmmobility.wire.values import Prefix


class RelayOrders:
    """The relay's table as it should be, beside the client that tells it.

    synchronised: a resync has said what is desired.  Before that an adopted relay keeps the
    table of the daemon before us: traffic must not stop while this one learns.
    """

    def __init__(
        self, client: RelayClient, netlink: Netlink, ports: Ports, dc_prefixes: Sequence[Prefix]
    ) -> None:
        self.client, self._netlink, self._ports = client, netlink, ports
        self._inside = [str(prefix) for prefix in dc_prefixes]
        self.synchronised = False
        self.ports_changed = False
        self._entries: dict[str, dict[str, Any]] = {}

    async def ensure(self) -> bool:
        """Have a relay; True if one was started or adopted now and told the whole table."""
        found = await self.client.ensure()
        if found is Found.KNOWN or (found is Found.ADOPTED and not self.synchronised):
            return False
        await self.client.order(self._whole_table())
        if found is Found.STARTED:
            await environment.until_running(self._netlink, TUN_NAME)
        return True

    def forget(self) -> None:
        """Begin anew: the next `tell` says everything."""
        self._entries = {}

    async def tell(self, plans: Sequence[Plan], everything: bool) -> list[Failure]:
        """Add and change entries, before any route turns to the tunnel."""
        put = []
        for made in plans:
            if made.entry is not None and self._entries.get(made.entry["vm"]) != made.entry:
                self._entries[made.entry["vm"]] = made.entry
                put.append((made.vm, made.entry))
        try:
            if await self.ensure() or not (put or everything or self.ports_changed):
                return []
            await self._change([entry for _, entry in put], everything)
        except (VmMobilityError, OSError) as error:
            return [Failure(vm, "relay", str(error)) for vm, _ in put]
        return []

    async def _change(self, put: list[dict[str, Any]], everything: bool) -> None:
        """Tell the relay what changed; if it dies on that, its successor is told everything."""
        order: dict[str, Any] = {"op": "change", "put": put}
        if self.ports_changed:
            order["ports"] = self._port_orders()
        try:
            await self.client.order(self._whole_table() if everything else order)
        except DataPlaneError:
            if self.client.connected:
                for entry in put:
                    self._entries.pop(entry["vm"], None)
                raise
            await self.ensure()
        self.ports_changed = False

    async def retire(self, plans: Sequence[Plan]) -> None:
        """Remove the entries of VMs that are gone, once no route leads to the tunnel."""
        names = [vm_name(made.vm) for made in plans if made.entry is None]
        gone = [name for name in names if self._entries.pop(name, None) is not None]
        if not (gone or self.ports_changed):
            return
        # A relay that is not there holds nothing: its next one is told the whole table.
        with contextlib.suppress(DataPlaneError):
            order = {"op": "change", "gone": gone, "ports": self._port_orders()}
            await self.client.order(order)
            self.ports_changed = False

    async def faults(self) -> list[tuple[str, str]]:
        """(VM name or "", what is wrong) with the relay, in words; starts none."""
        if not self.client.connected:
            return [("", "does not run")]
        try:
            held: dict[str, Any] = (await self.client.order({"op": "counters"}))["vms"]
        except DataPlaneError as error:
            return [("", f"does not answer: {error.message}")]
        lacking = [(name, "lacks the VM's entry") for name in self._entries if name not in held]
        strays = [("", f"holds an entry of {name}") for name in held if name not in self._entries]
        return lacking + strays

    async def counters(self) -> dict[str, dict[str, int]]:
        """The relay's counters by VM name; none where no relay answers."""
        with contextlib.suppress(DataPlaneError):
            await self.ensure()
            vms: dict[str, dict[str, int]] = (await self.client.order({"op": "counters"}))["vms"]
            return vms
        return {}

    def _whole_table(self) -> dict[str, Any]:
        entries = list(self._entries.values())
        ports, inside = self._port_orders(), self._inside
        return {"op": "set", "entries": entries, "ports": ports, "inside": inside}

    def _port_orders(self) -> list[dict[str, Any]]:
        settled = [tap.settled for tap in self._ports.taps.values() if tap.settled is not None]
        return [
            {
                "name": port.name,
                "mac": port.mac.hex(":"),
                "own": [str(p) for p in port.prefixes if p.version == 6],
            }
            for port in settled
        ]
