"""What people ask of a World: VMs started, stopped, expected and moved, comparisons.

Not here: what other hands do behind the daemons' backs (fake_hypervisor.py).
"""

from __future__ import annotations

from collections.abc import Callable

from tests.engine.node import MANAGER
from tests.engine.pump import Pump
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.nve import NveEngine
from vmmobility.wire.move_terms import NO_TERMS, MoveTerms
from vmmobility.wire.values import Interface, VmKey


class People(Pump):
    """Commands; each returns its number, and `results` has its end."""

    def __init__(self, seed: int, persist_s: float | tuple[float, float]) -> None:
        super().__init__(seed, persist_s)
        self._commands = 0
        self.interfaces: dict[VmKey, tuple[Interface, ...]] = {}
        self.groups: dict[VmKey, tuple[VmKey, ...]] = {}  # all members of its group, it among them
        self.touched: set[VmKey] = set()  # what safety.check looks at next

    @property
    def manager(self) -> ManagerEngine:
        """The manager's engine, which must be up."""
        manager = self.nodes[MANAGER].manager
        assert manager is not None
        return manager

    def edge(self, name: str) -> NveEngine:
        """An NVE's engine, which must be up."""
        edge = self.nodes[name].edge
        assert edge is not None
        return edge

    def _give(self, at: str, command: Callable[[NveEngine, int, float], None]) -> int:
        """A command for an NVE; returns its number, under which its result will come."""
        self._commands += 1
        number, edge = self._commands, self.edge(at)
        node = self.nodes[at]
        self.feed(node, lambda: command(edge, number, self.clock(node)))
        return number

    def start_vm(
        self, vm: VmKey, at: str, interfaces: tuple[Interface, ...], server: str = ""
    ) -> int:
        self._defined(vm, interfaces)
        return self._give(at, lambda e, n, now: e.start_vm(n, vm, interfaces, b"{}", now, server))

    def stop_vm(self, vm: VmKey, at: str) -> int:
        return self._give(at, lambda e, n, now: e.stop_vm(n, vm, now))

    def expect_vm(self, vm: VmKey, at: str, interfaces: tuple[Interface, ...]) -> int:
        self._defined(vm, interfaces)
        return self._give(at, lambda e, n, now: e.expect_vm(n, vm, interfaces, b"{}", now))

    def unexpect_vm(self, vm: VmKey, at: str) -> int:
        return self._give(at, lambda e, n, now: e.unexpect_vm(n, vm, now))

    def declare_group(self, name: str, vms: tuple[VmKey, ...]) -> None:
        """An operator declares these VMs members 1, 2, … of a group: they share their addresses."""
        members = tuple(enumerate(vms, 1))
        self.groups |= dict.fromkeys(vms, vms)
        self.manager.declare_group(name, vms[0].vni, members, self.now)
        self.feed(self.nodes[MANAGER], lambda: None)

    def _defined(self, vm: VmKey, interfaces: tuple[Interface, ...]) -> None:
        self.interfaces.setdefault(vm, interfaces)
        self.touched.add(vm)

    def check(self, at: str) -> int:
        """People compare: everything from the manager, or one NVE."""
        self._commands += 1
        number, node = self._commands, self.nodes[at]
        manager, edge = node.manager, node.edge
        if manager is not None:
            self.feed(node, lambda: manager.check(number, self.now))
        elif edge is not None:
            self.feed(node, lambda: edge.check(number, None, self.clock(node)))
        return number

    def order_guest(self, vm: VmKey, verb: str, *, force: bool = False) -> None:
        """start, suspend, resume, stop or delete; GuestRefused comes through."""
        try:
            self.manager.order_guest(vm, verb, self.now, force)
        finally:
            self._pump(self.nodes[MANAGER])

    def provision(self, vm: VmKey, to: str, interfaces: tuple[Interface, ...]) -> None:
        """The manager has an NVE bring the VM up; GuestRefused comes through."""
        self._defined(vm, interfaces)
        try:
            self.manager.provision(vm, to, interfaces, b"{}", self.now)
        finally:
            self._pump(self.nodes[MANAGER])

    def protect(self, vm: VmKey, to: str, *, fail_over: bool = True, lease_s: float = 3.0) -> None:
        """Keep checkpoints of it there.  ProtectRefused comes through."""
        try:
            self.manager.protect(vm, to, 1.0, self.now, fail_over=fail_over, lease_s=lease_s)
        finally:
            self._pump(self.nodes[MANAGER])

    def unprotect(self, vm: VmKey) -> None:
        """ProtectRefused comes through."""
        try:
            self.manager.unprotect(vm, self.now)
        finally:
            self._pump(self.nodes[MANAGER])

    def hand_over(self, vm: VmKey) -> str:
        """A planned move to the standby; returns its id.  MoveRefused comes through."""
        protected = self.manager.protected.get(vm)
        return self.move(vm, protected.standby.nve_id if protected else "b", mode="warm")

    def move(self, vm: VmKey, to: str, terms: MoveTerms = NO_TERMS, mode: str = "") -> str:
        """Begin a move; returns its id.  MoveRefused comes through."""
        try:
            move = self.manager.start_move(vm, to, self.now, 0, terms, mode)
        finally:
            self._pump(self.nodes[MANAGER])
        return move.move_id
