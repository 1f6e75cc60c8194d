"""A World with NAPT boxes between its nodes: private IPv4 on their inner sides, IPv6 as it is.

        a, c (10.1/16, 10.3/16) - x ---+--- y - b (10.2/16)
                                    manager
With `three`, c is behind a third box z.
Or, with `manager_at="x"`, the manager is on x's inner side, too: b reaches it through two boxes.
The boxes' data planes are the NaptState that was last asked for, and flows as given values.
Not here: what must always hold (safety.py).
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import Any

from tests.engine.network import MANAGER, Node, World, a_secret
from vmmobility.engine.channel import Peer
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.manager_settings import ManagerSettings
from vmmobility.engine.napt import NaptEngine
from vmmobility.engine.napt_plane import Flow, NaptState
from vmmobility.engine.napt_settings import NaptPolicy, NaptSettings, Neighbour
from vmmobility.engine.nve import NveEngine, NveSettings
from vmmobility.engine.outputs import (
    DropFlows,
    Endpoint,
    ExportFlows,
    ImportFlows,
    Output,
    SetNapt,
)
from vmmobility.engine.peer import OriginKeys
from vmmobility.wire.registry import UDP_PORT, Role
from vmmobility.wire.values import Interface, VmKey

POOLS = {"x": "198.51.100.0/28", "y": "203.0.113.0/28", "z": "192.0.2.0/28"}
BEHIND = {"x": ("a", "c"), "y": ("b",)}
INSIDE = {
    "x": ("10.0.1.0/24", "10.1.0.0/16", "10.0.3.0/24", "10.3.0.0/16"),
    "y": ("10.0.2.0/24", "10.2.0.0/16"),
}
# With `three` boxes, c is behind one of its own.
BEHIND_THREE = {"x": ("a",), "y": ("b",), "z": ("c",)}
INSIDE_THREE = {
    "x": ("10.0.1.0/24", "10.1.0.0/16"),
    "y": INSIDE["y"],
    "z": ("10.0.3.0/24", "10.3.0.0/16"),
}
VM = VmKey(0, "vm1")
PRIVATE = IPv4Address("10.1.0.77")
PUBLIC = "198.51.100.2"  # of VM: a's locator takes the pool's first
HAND_OVER = {"policy": NaptPolicy.HAND_OVER}
VM_INTERFACE = (
    Interface(
        bytes((2, 0, 0, 0, 0, 1)),
        (ip_network("10.1.0.77/32"), ip_network("fd01:1::77/128")),
    ),
)


def one_like(number: int, address: str) -> tuple[Interface, ...]:
    return (Interface(bytes((2, 0, 0, 0, 1, number)), (ip_network(f"{address}/32"),)),)


@dataclass
class Box:
    """One box's machine: what its kernel was asked to hold, and the flows that are alive there."""

    state: NaptState = field(default_factory=NaptState)
    flows: list[Flow] = field(default_factory=list)
    fail_next: list[str] = field(default_factory=list)
    fail_all: str = ""  # every state is refused so
    fail_import: str = ""  # no flow is imported, for this reason
    fail_export: str = ""
    orders: list[NaptState | IPv4Address] = field(default_factory=list)  # an address: drop flows

    @property
    def outward(self) -> dict[str, str]:
        return {str(m.private): str(m.public) for m in self.state.outward}

    @property
    def static(self) -> dict[str, str]:
        return {str(m.private): str(m.public) for m in self.state.static}


class NaptWorld(World):
    """box_settings: of each box by name, in the place of what stands above."""

    def __init__(
        self,
        manager_at: str = "",
        box_settings: dict[str, dict[str, Any]] | None = None,
        three: bool = False,
        **options: Any,
    ) -> None:
        self.manager_at = manager_at
        self.box_settings = box_settings or {}
        self.behind = BEHIND_THREE if three else BEHIND
        self.inside = INSIDE_THREE if three else INSIDE
        self.boxes = {name: Box() for name in self.behind}
        self._built = False
        super().__init__(strangers=True, **options)

    def _add(self, name: str, index: int, role: Role) -> None:
        if not self._built:
            self._built = True
            for number, box in enumerate(self.boxes, 50):
                super()._add(box, number, Role.NAPT)
        super()._add(name, index, role)

    def box(self, name: str) -> NaptEngine:
        engine = self.nodes[name].box
        assert engine is not None
        return engine

    # ---- building ------------------------------------------------------------------------------

    def site(self, name: str) -> str:
        """The box that a node is behind; "" for none."""
        if name == MANAGER:
            return self.manager_at
        return next((box for box, names in self.behind.items() if name in names), "")

    def next_hop(self, one: str, other: str) -> str:
        """The box that `one` sends to for `other`; "" if they speak without any."""
        if self.site(one) == self.site(other):
            return ""
        return self.site(one) or self.site(other)

    def _hop(self, one: str, other: str, role: Role) -> Peer:
        endpoints = tuple(Endpoint(a, UDP_PORT) for a in self.nodes[other].nve.locators)
        return Peer(other, role, endpoints, {1: a_secret(one, other, 1)}, 1)

    def _peer(self, one: str, other: str) -> Peer:
        box = self.next_hop(one, other)
        if not box:
            return super()._peer(one, other)
        peer = self._hop(one, box, self.nodes[other].role)
        peer.node_id, peer.via = other, box
        peer.origin = OriginKeys({1: a_secret(one, other, 1)}, 1)
        return peer

    def _boxes_of(self, name: str) -> list[Peer]:
        """The boxes that a node speaks to itself."""
        others = [MANAGER] if name != MANAGER else [n for n in self.nodes if n not in self.boxes]
        hops = {self.next_hop(name, n) for n in others if n != name} - {""}
        return [self._hop(name, box, Role.NAPT) for box in sorted(hops)]

    def _make_engine(self, node: Node) -> None:
        node.starts += 1
        jitter = random.Random(f"{node.node_id}/{node.starts}")
        state = json.loads(json.dumps(node.disk))
        napts = tuple(
            (name, (IPv4Network(pool),)) for name, pool in POOLS.items() if name in self.boxes
        )
        if node.node_id in self.boxes:
            made = self._settings(node.node_id)
            around = self._neighbours(node.node_id)
            node.box = NaptEngine(made, around, state, node.boot, jitter, self.now)
            return
        known = [n for n in self.nodes if n not in (MANAGER, *self.boxes)]
        others = known if node.role is Role.MANAGER else [MANAGER]
        peers = [self._peer(node.node_id, n) for n in others]
        peers += self._boxes_of(node.node_id)
        if node.role is Role.MANAGER:
            settings = ManagerSettings(MANAGER, **self.manager_settings, napts=napts)
            node.manager = ManagerEngine(settings, peers, state, node.boot, jitter, self.now)
        else:
            own = NveSettings(node.nve, node.home, **self.nve_settings, napts=napts)
            node.edge = NveEngine(own, peers, state, node.boot, jitter)

    def _settings(self, name: str) -> NaptSettings:
        given: dict[str, Any] = {
            "inside": tuple(map(IPv4Network, self.inside[name])),
            "pool": (IPv4Network(POOLS[name]),),
            "policy": NaptPolicy.KEEP,
            **self.box_settings.get(name, {}),
        }
        return NaptSettings(name, **given)

    def _neighbours(self, name: str) -> list[Neighbour]:
        around = [Neighbour(self._hop(name, n, Role.NVE), True) for n in self.behind[name]]
        direct = self.site(MANAGER) in ("", name)
        if direct:
            hop = self._hop(name, MANAGER, Role.MANAGER)
            around.append(Neighbour(hop, self.site(MANAGER) == name))
        for other in self.boxes:
            if other == name:
                continue
            behind: tuple[tuple[str, Role], ...] = ()
            if self.manager_at == name:
                behind = tuple((n, Role.NVE) for n in self.behind[other])
            elif self.manager_at == other:
                behind = ((MANAGER, Role.MANAGER),)
            hop = self._hop(name, other, Role.NAPT)
            detour = self.nodes[other].nve.ipv4
            pool = (IPv4Network(POOLS[other]),)
            around.append(Neighbour(hop, False, behind, pool, detour))
        return around

    def restart(self, name: str) -> None:
        if name not in self.boxes:
            super().restart(name)
            return
        node = self.nodes[name]
        if node.engine is not None:
            self.crash(name)
        node.boot = node.disk["boot"] = self._next_boot(node)
        node.synced = 0.0
        self._make_engine(node)
        box = self.boxes[name]
        failures = [box.fail_all] if box.fail_all else []
        box.state = box.state if failures else self.box(name).desired()
        self.box(name).napt_applied(0, failures, self.now)
        self.box(name).started(self.now)
        self._pump(node)

    # ---- what the boxes' machines do -----------------------------------------------------------

    def _waiting_guest(self, address: str, port: int) -> Any:
        """A public locator leads to the NVE behind it."""
        for box in self.boxes.values():
            found = [p for p, public in box.static.items() if public == address]
            address = found[0] if found else address
        return super()._waiting_guest(address, port)

    def _carry_out(self, node: Node, output: Output) -> None:
        box, life = self.boxes.get(node.node_id), node.life
        engine = node.box
        if box is None or engine is None:
            super()._carry_out(node, output)
            return

        def answer(call: Any) -> None:
            if node.box is engine and node.life == life:
                self.feed(node, call)

        match output:
            case SetNapt(state, tag):
                failures = [box.fail_next.pop(0)] if box.fail_next else []
                failures += [box.fail_all] if box.fail_all else []
                box.state = box.state if failures else state
                box.orders.append(state)
                self.later(
                    0.001, lambda: answer(lambda: engine.napt_applied(tag, failures, self.now))
                )
            case ExportFlows(number, private):
                error = box.fail_export
                flows = [f for f in box.flows if f.private[0] == private and not error]
                self.later(
                    0.001,
                    lambda: answer(lambda: engine.flows_exported(number, flows, error, self.now)),
                )
            case ImportFlows(number, flows):
                refused = [box.fail_import] if box.fail_import else []
                box.flows += [f for f in flows if f not in box.flows and not refused]
                self.later(
                    0.001, lambda: answer(lambda: engine.flows_imported(number, refused, self.now))
                )
            case DropFlows(private, public):
                box.flows = [
                    f
                    for f in box.flows
                    if f.private[0] != private or public not in (None, f.public[0])
                ]
                box.orders.append(private)
            case _:
                super()._carry_out(node, output)

    # ---- what tests do and look at -------------------------------------------------------------

    def begin(self, vm: VmKey = VM, at: str = "a", interfaces: Any = VM_INTERFACE) -> Any:
        """Start a VM; the result of the command."""
        number = self.start_vm(vm, at, interfaces)
        self.run_until(lambda: number in self.results)
        return self.results[number]

    def moved(self, to: str, vm: VmKey = VM) -> Any:
        """Move a VM, until that has ended; the move."""
        move = self.manager.moves[self.move(vm, to)]
        self.run_until(lambda: move.ok is not None)
        return move

    def drops(self, name: str) -> dict[str, int]:
        engine = self.nodes[name].engine
        assert engine is not None
        return dict(engine.channel.drops)


def handing_world(**more: object) -> NaptWorld:
    """x hands over what is behind y; VM runs at a."""
    world = NaptWorld(box_settings={"x": {**HAND_OVER, **more}})
    world.run(2.0)
    assert not world.begin().error
    return world


def move_to(world: NaptWorld, to: str) -> None:
    """Until the mapping is translated there, too."""
    box = world.site(to)
    move = world.moved(to)
    assert move.ok, move.reason
    world.run_until(lambda: world.box(box).mappings.of_vm(VM)[0].ours)
    world.run(0.1)


def flow(public: str = PUBLIC, port: int = 80) -> Flow:
    remote = (IPv4Address("192.0.2.9"), 4000)
    return Flow(6, (PRIVATE, port), (IPv4Address(public), port), remote, False, 300)
