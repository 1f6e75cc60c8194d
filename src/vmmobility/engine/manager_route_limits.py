"""How many host routes a data centre's routers announce, and the limit on them.

A VM at home costs none; away from home it costs one a prefix, in the data centre where it is and,
by its border router, in all that hear of it.  Not here: who announces what (manager_fabric.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmobility.wire.options import Guest, Sight, Ticket
from vmmobility.wire.registry import RouteState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmmobility.engine.binding_cache import Binding
    from vmmobility.engine.fabric_record import FabricEntry, RouterSite
    from vmmobility.engine.manager_settings import ManagerSettings
    from vmmobility.wire.message import Message
    from vmmobility.wire.values import VmKey


class ManagerRouteLimits:
    """The applicability guard; a part of ManagerEngine."""

    if TYPE_CHECKING:
        settings: ManagerSettings
        _fabric: dict[VmKey, FabricEntry]
        _sites: dict[str, RouterSite]

    @property
    def fabric(self) -> Mapping[VmKey, FabricEntry]:
        """What the routers were told of each VM."""
        return self._fabric

    def announced(self) -> dict[str, int]:
        """Host routes that each data centre's routers announce."""
        counts = {site.dc: 0 for site in self._sites.values()}
        for vm, entry in self._fabric.items():
            prefixes = sum(len(i.prefixes) for i in entry.interfaces)
            for centre in self._announced_in(vm):
                counts[centre] += prefixes
        return counts

    def _announced_in(self, vm: VmKey) -> set[str]:
        """The data centres whose routers announce the VM."""
        entry = self._fabric.get(vm)
        return {
            self._sites[name].dc
            for name, told in (entry.routers.items() if entry else ())
            if told.lead is not None
            and told.lead.state is RouteState.ANNOUNCE
            and name in self._sites
        }

    def _over_limit(self, vm: VmKey, prefixes: int, to: str) -> str:
        """Why the VM may not be announced where the NVE `to` is, or ""."""
        most = self.settings.max_host_routes
        centre = next((s.dc for s in self._sites.values() if to in s.serves), None)
        if not most or centre is None or centre in self._announced_in(vm):
            return ""
        held = self.announced()[centre]
        if held + prefixes <= most:
            return ""
        return f"{centre or 'the fabric'} announces {held} host routes of at most {most}"

    def _attach_over_limit(self, message: Message, node: str) -> str:
        """The same for an attach without a ticket; a guest that has served is not refused."""
        sight, guest = message.find(Sight), message.find(Guest)
        if guest is not None or message.find(Ticket) is not None or (sight and sight.covered):
            return ""
        prefixes = sum(len(i.prefixes) for i in message.interfaces)
        return self._over_limit(message.vm, prefixes, node)

    def _move_over_limit(self, binding: Binding, to: str) -> str:
        """The same for a move; home a VM may always go."""
        if binding.home is not None and binding.home.nve_id == to:
            return ""
        return self._over_limit(binding.vm, sum(len(i.prefixes) for i in binding.interfaces), to)
