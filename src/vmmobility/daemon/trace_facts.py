"""What the manager knows of an address, and the steps in which `vmmob trace` tells it.

Values only.  Not here: what is wrong with a step (trace_steps.py), the way (trace.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from vmmobility.engine.binding_cache import Binding
from vmmobility.engine.fabric_record import FabricEntry, RouterSite, Told
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.manager_move import Move
from vmmobility.wire.registry import Role
from vmmobility.wire.values import Address, Nve, VmKey

Answer = Mapping[str, Any]
"""What a node has answered (engine/manager_trace.py)."""


@dataclass(slots=True)
class Step:
    """One node's part.  to: the node, or the address, that it leads to; wrong: in words."""

    node: str
    role: str
    decision: str
    to: str | None = None
    detail: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    silent: bool = False

    def row(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "role": self.role,
            "decision": self.decision,
            "to": self.to,
            "detail": "; ".join(self.detail),
            "ok": not self.wrong,
            "wrong": "; ".join(self.wrong),
        }


@dataclass(frozen=True, slots=True)
class Facts:
    """The manager's records about one address, as they were when they were looked up.

    entry: what routers were told of the VM, also of one that is no more
    move:  the one under way
    nodes: whose each address is; nves: the NVEs that are known
    others: NVEs of the other members in service of the VM's load-shared group, and each one's VM
    """

    address: Address
    vm: VmKey | None
    binding: Binding | None
    entry: FabricEntry | None
    move: Move | None
    onboarded: str
    manager: str
    sites: Mapping[str, RouterSite]
    nodes: Mapping[Address, str]
    nves: frozenset[str]
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def serving(self) -> str | None:
        return self.binding.nve.nve_id if self.binding else None

    @property
    def home(self) -> str | None:
        return self.binding.home.nve_id if self.binding and self.binding.home else None

    def told(self, router: str) -> Told | None:
        return self.entry.routers.get(router) if self.entry else None

    def routers_of(self, nve: str) -> list[str]:
        """The default routers of an NVE."""
        return [site.router_id for site in self.sites.values() if nve in site.serves]

    def concerned(self) -> list[str]:
        """The NVEs that have, had, or are about to have to do with the VM."""
        if self.binding is None:
            return []
        found = [self.binding.nve.nve_id]
        found += [self.move.destination.nve_id] if self.move else []
        found += self.binding.previous
        found += [self.home] if self.home else []
        return list(dict.fromkeys(found))

    def role(self, node: str) -> str:
        site = self.sites.get(node)
        if site is not None:
            return "border router" if site.border else "default router"
        if node == self.serving:
            return "serving NVE"
        if self.move and node == self.move.destination.nve_id:
            return "destination NVE"
        if self.binding and node in self.binding.previous:
            return "previous NVE"
        if node in self.others:
            return "another member's NVE"
        return "home NVE" if node == self.home else "NVE"

    def node_at(self, text: object) -> str | None:
        """The node that has this address."""
        try:
            return self.nodes.get(ip_address(text)) if isinstance(text, str) else None
        except ValueError:
            return None


def facts_of(engine: ManagerEngine, address: Address) -> Facts:
    """What the records say of the address now."""
    vm = engine.cache.holder(0, address)
    binding = engine.cache.bindings.get(vm) if vm else None
    # One whose binding is gone may still be led somewhere.
    entry = engine.fabric.get(vm) if vm else _led_anyway(engine, address)
    moves = [m for m in engine.moves.values() if m.vm == vm and m.ok is None]
    onboarded = next(
        (
            record.vm.vm_id
            for record in engine.onboarded.values()
            if record.vm.vni == 0 and any(_covers(i.prefixes, address) for i in record.interfaces)
        ),
        "",
    )
    peers = engine.channel.peers.values()
    return Facts(
        address,
        vm,
        binding,
        entry,
        moves[-1] if moves else None,
        onboarded,
        engine.channel.node_id,
        {site.router_id: site for site in engine.settings.routers},
        _nodes(engine, binding, entry),
        frozenset(peer.node_id for peer in peers if peer.role is Role.NVE),
        _others(engine, vm),
    )


def _others(engine: ManagerEngine, vm: VmKey | None) -> dict[str, str]:
    group = engine.group_of(vm) if vm else None
    mates = [mate for mate in group.present if mate != vm] if group else []
    bound = [engine.cache.bindings[mate] for mate in mates if mate in engine.cache.bindings]
    return {binding.nve.nve_id: binding.vm.vm_id for binding in bound}


def _led_anyway(engine: ManagerEngine, address: Address) -> FabricEntry | None:
    for entry in engine.fabric.values():
        if any(_covers(i.prefixes, address) for i in entry.interfaces):
            return entry
    return None


def _covers(prefixes: tuple[Any, ...], address: Address) -> bool:
    return any(address in prefix for prefix in prefixes)


def _nodes(
    engine: ManagerEngine, binding: Binding | None, entry: FabricEntry | None
) -> dict[Address, str]:
    """Addresses of the configuration, and locators that NVEs have told."""
    nves: list[Nve | None] = []
    if binding is not None:
        nves += [binding.nve, binding.home, *binding.previous_nves]
    for told in entry.routers.values() if entry else ():
        nves += [told.lead.serving, told.lead.previous] if told.lead else []
    found = {a: nve.nve_id for nve in nves if nve is not None for a in nve.locators}
    for peer in engine.channel.peers.values():
        if peer.via:
            continue  # its endpoints are the box's
        found |= {endpoint.address: peer.node_id for endpoint in peer.endpoints}
    return found
