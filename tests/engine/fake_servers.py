"""The servers of an NVE in tests: a hypervisor each, in place of the one on the NVE's own host.

Not here: what a hypervisor does (fake_hypervisor.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tests.engine.fake_hypervisor import Guest, Hypervisor, Life
from tests.engine.network import World
from tests.engine.node import Node
from vmmobility.engine.outputs import HypervisorOrder, Order
from vmmobility.wire.registry import Role
from vmmobility.wire.values import VmKey


class Servers:
    """What World asks of a node's hypervisor, of several."""

    def __init__(self, world: ApartWorld, node: Node, names: Iterable[str]) -> None:
        self._world, self._node = world, node
        self.watched: set[VmKey] = set()
        self.at = {name: self._make(name) for name in names}
        for number, one in enumerate(self.at.values(), 1):
            one._port = 10_000 * number  # the ports of an address are each one's own

    def _make(self, name: str) -> Hypervisor:
        world, node = self._world, self._node

        def done(vm: VmKey, order: Order, result: dict[str, Any], error: str) -> None:
            world._order_done(node, vm, order, {**result, "server": name}, error)

        def report(vm: VmKey, event: str, detail: dict[str, Any]) -> None:
            world._reported(node, vm, event, {**detail, "server": name})

        return Hypervisor(
            node.nve, world.later, done, report, world._waiting_guest, world.pace, world.touched
        )

    @property
    def guests(self) -> dict[VmKey, Guest]:
        """One a VM: the one that runs, if any does."""
        found: dict[VmKey, Guest] = {}
        for one in self.at.values():
            for vm, guest in one.guests.items():
                if vm not in found or guest.life is Life.RUNNING:
                    found[vm] = guest
        return found

    def running_at(self, vm: VmKey) -> list[str]:
        guests = {name: one.guests.get(vm) for name, one in self.at.items()}
        return [name for name, guest in guests.items() if guest and guest.life is Life.RUNNING]

    def order(self, order: HypervisorOrder) -> None:
        arguments = dict(order.arguments)
        if order.order is Order.PREPARE_INCOMING:
            arguments["address"] = str(self._node.nve.locators[0])
        self.at[arguments["server"]].order(replace(order, arguments=arguments))

    def running(self) -> dict[VmKey, bool]:
        """As adopt() tells it: of the first server that a VM may be at."""
        edge = self._node.edge
        assert edge is not None
        found = {}
        for vm, servers in edge.places().items():
            here = self.at[servers[0]].running()
            if vm in here:
                found[vm] = here[vm]
        return found

    def sweep(self, known: set[VmKey]) -> None:
        edge = self._node.edge
        assert edge is not None
        for name, one in self.at.items():
            one.sweep({vm for vm, servers in edge.places().items() if name in servers} & known)

    def new_daemon(self) -> None:
        for one in self.at.values():
            one.new_daemon()

    def lose_all(self) -> None:
        for one in self.at.values():
            one.lose_all()


class ApartWorld(World):
    """A World whose NVEs all have the servers s1 and s2."""

    def __init__(self, settings: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(nve_settings={"servers": ("s1", "s2"), **(settings or {})}, **options)

    def _add(self, name: str, index: int, role: Role) -> None:
        super()._add(name, index, role)
        if role is Role.NVE:
            servers = Servers(self, self.nodes[name], ("s1", "s2"))
            self.nodes[name].hypervisor = servers  # type: ignore[assignment]

    def servers(self, name: str) -> Servers:
        found = self.nodes[name].hypervisor
        assert isinstance(found, Servers)
        return found

    def _waiting_guest(self, address: str, port: int) -> Guest | None:
        for name in ("a", "b", "c"):
            for one in self.servers(name).at.values():
                for guest in one.guests.values():
                    here = (
                        str(one.own.locators[0]) == address or str(one.own.locators[1]) == address
                    )
                    if here and guest.port == port and guest.life is Life.WAITING:
                        return guest
        return None
