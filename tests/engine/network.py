"""Real engines joined by an in-memory network on virtual time, with fakes for the world.

A World has a manager and NVEs.  Time is a number that jumps from event to event; every choice of
chance (loss, repetition, delay) comes from one seed, so a run repeats itself exactly.  A node's
*daemon* can crash and restart from what was persisted, its machine can lose power; `interrupt`
is asked before each output is carried out, so a campaign can crash a node between any two.
At first the nodes know each other, unless they are `strangers`; after a restart they challenge each
other, as nodes do that hear a new boot of a peer.

After every event safety.py looks at all nodes.  Not here: the scenario language (conversation.py).
"""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from tests.engine import safety
from tests.engine.fakes import Guest, Hypervisor, Kernel, Life, Pace
from vmmobility.engine.binding_update_list import make_nve
from vmmobility.engine.challenge import FLOOR, next_boot
from vmmobility.engine.channel import Peer
from vmmobility.engine.manager import ManagerEngine, ManagerSettings
from vmmobility.engine.nve import NveEngine, NveSettings
from vmmobility.engine.outputs import (
    Audit,
    CommandDone,
    CountTraffic,
    Endpoint,
    Event,
    Halt,
    HypervisorOrder,
    Order,
    Output,
    Persist,
    Send,
    SetDataPlane,
)
from vmmobility.wire.registry import UDP_PORT, Role
from vmmobility.wire.values import Interface, Nve, VmKey

MANAGER = "manager"
COUNT_S = 1.0  # the pump counts redirected traffic so often


@dataclass
class Weather:
    """What the network does to datagrams: chances from 0 to 1, delays in seconds."""

    loss: float = 0.0
    repetition: float = 0.0
    delay_s: tuple[float, float] = (0.001, 0.001)


@dataclass
class Node:
    """One machine.  life: counts daemon starts; what belongs to an earlier life is void."""

    node_id: str
    role: Role
    nve: Nve
    home: tuple[Any, ...]
    kernel: Kernel
    hypervisor: Hypervisor | None = None
    disk: dict[str, Any] = field(default_factory=dict)
    boot: int = 0
    life: int = 0
    manager: ManagerEngine | None = None
    edge: NveEngine | None = None
    starts: int = 0
    wake: int = 0
    carried: int = 0
    counting: bool = False
    fail_persist: bool = False
    tear_persist: bool = False  # the next one is durable, and the daemon dies before it knows
    synced: float = 0.0  # when the last record under way is durable: they keep their order

    @property
    def engine(self) -> ManagerEngine | NveEngine | None:
        return self.manager or self.edge


class World:
    """The whole domain.  observe(node, what, value) is told of everything that happens."""

    def __init__(
        self,
        nves: tuple[str, ...] = ("a", "b", "c"),
        seed: int = 1,
        weather: Weather | None = None,
        persist_s: float | tuple[float, float] = 0.001,
        pace: Pace | None = None,
        manager_settings: dict[str, Any] | None = None,
        nve_settings: dict[str, Any] | None = None,
        strangers: bool = False,
    ) -> None:
        self.now = 0.0
        self.chance = random.Random(seed)
        self.weather = weather or Weather()
        self.persist_s = persist_s if isinstance(persist_s, tuple) else (persist_s, persist_s)
        self.pace = pace or Pace()
        self.manager_settings = manager_settings or {}
        self.nve_settings = nve_settings or {}
        self.cut: set[frozenset[str]] = set()
        self.senders: set[tuple[str, VmKey]] = set()
        self.interfaces: dict[VmKey, tuple[Interface, ...]] = {}
        self.lossless: set[VmKey] = set()
        self.overheard: list[tuple[Node, bytes, Endpoint, Any]] | None = None  # to say again later
        self.secrets: dict[frozenset[str], tuple[dict[int, bytes], dict[str, int]]] = {}
        self.unconfigured: set[str] = set()  # NVEs that the manager's next start does not know
        self.homes: dict[VmKey, str | None] = {}  # what safety.home has found
        self.touched: set[VmKey] = set()  # what safety.check looks at next
        self.reports: list[tuple[str, str]] = []
        self.results: dict[int, CommandDone] = {}
        self.events: list[tuple[float, str, Event]] = []
        self.observe: Callable[[Node, str, Any], None] = lambda node, what, value: None
        self.interrupt: Callable[[Node, Output], bool] = lambda node, output: False
        self.torn: Callable[[Node], None] = lambda node: self.crash(node.node_id)
        self.watch: Callable[[World], None] = safety.check
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._commands = 0
        self.nodes: dict[str, Node] = {}
        for index, name in enumerate(nves, 1):
            self._add(name, index, Role.NVE)
        self._add(MANAGER, 99, Role.MANAGER)
        if not strangers:
            self._acquaint()
        self.by_address = {a: n for n in self.nodes.values() for a in n.nve.locators}
        for node in self.nodes.values():
            self.restart(node.node_id)

    # ---- building ------------------------------------------------------------------------------

    def _add(self, name: str, index: int, role: Role) -> None:
        nve = make_nve(name, (ip_address(f"10.0.{index}.2"), ip_address(f"fd00:0:{index}::2")))
        home = (ip_network(f"10.{index}.0.0/24"), ip_network(f"fd01:{index}::/64"))
        node = self.nodes[name] = Node(name, role, nve, home, Kernel(self.touched))
        if role is Role.NVE:
            node.hypervisor = Hypervisor(
                nve,
                self.later,
                lambda vm, order, result, error: self._order_done(node, vm, order, result, error),
                lambda vm, event, detail: self._reported(node, vm, event, detail),
                self._waiting_guest,
                self.pace,
                self.touched,
            )

    def _acquaint(self) -> None:
        """As if each pair had proven itself to each other by the boots of these first starts."""
        for node in self.nodes.values():
            node.disk["boot"] = FLOOR
        for node in self.nodes.values():
            others = list(self.nodes) if node.role is Role.MANAGER else [MANAGER]
            for other in others:
                node.disk[f"mark/{other}"] = [self._next_boot(self.nodes[other]), 0]

    @staticmethod
    def _next_boot(node: Node) -> int:
        chance = random.Random(f"{node.node_id}/boot/{node.starts}")
        return next_boot(node.disk.get("boot", 0), chance)

    def _waiting_guest(self, address: str, port: int) -> Guest | None:
        node = self.by_address[ip_address(address)]
        assert node.hypervisor is not None
        for guest in node.hypervisor.guests.values():
            if guest.port == port and guest.life is Life.WAITING:
                return guest
        return None

    def _peer(self, one: str, other: str) -> Peer:
        node = self.nodes[other]
        endpoints = tuple(Endpoint(a, UDP_PORT) for a in node.nve.locators)
        secrets, signing = self.keys(one, other)
        return Peer(other, node.role, endpoints, dict(secrets), signing[one])

    def keys(self, one: str, other: str) -> tuple[dict[int, bytes], dict[str, int]]:
        """The pair's key files: the secrets by number, and the number that each end signs with."""
        pair = frozenset((one, other))
        if pair not in self.secrets:
            self.secrets[pair] = ({1: a_secret(one, other, 1)}, {one: 1, other: 1})
        return self.secrets[pair]

    def read_keys(self, name: str, other: str) -> None:
        """The daemon at `name` is told to read its keys for that peer again."""
        engine = self.nodes[name].engine
        if engine is not None:
            secrets, signing = self.keys(name, other)
            engine.channel.set_secrets(other, dict(secrets), signing[name])

    def _make_engine(self, node: Node) -> None:
        node.starts += 1
        jitter = random.Random(f"{node.node_id}/{node.starts}")
        state = json.loads(json.dumps(node.disk))
        if node.role is Role.MANAGER:
            known = [n for n in self.nodes if n != MANAGER and n not in self.unconfigured]
            peers = [self._peer(MANAGER, n) for n in known]
            settings = ManagerSettings(MANAGER, **self.manager_settings)
            node.manager = ManagerEngine(settings, peers, state, node.boot, jitter, self.now)
        else:
            peers = [self._peer(node.node_id, MANAGER)]
            own = NveSettings(node.nve, node.home, **self.nve_settings)
            node.edge = NveEngine(own, peers, state, node.boot, jitter)

    # ---- time ----------------------------------------------------------------------------------

    def later(self, delay: float, action: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._queue, (self.now + delay, self._number, action))

    def step(self) -> None:
        """The next event, then the look at safety."""
        self.now, _, action = heapq.heappop(self._queue)
        action()
        self.watch(self)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.step()
        self.now = end

    def run_until(self, condition: Callable[[], object], limit_s: float = 120.0) -> None:
        """Until the condition holds; AssertionError after limit_s of virtual time."""
        end = self.now + limit_s
        while not condition():
            assert self._queue, "nothing will ever happen again"
            assert self._queue[0][0] <= end, f"not within {limit_s} s"
            self.step()

    # ---- a node's life -------------------------------------------------------------------------

    def crash(self, name: str) -> None:
        """The daemon dies: the engine and what was not persisted are gone."""
        node = self.nodes[name]
        if node.engine is None:
            return
        node.manager = node.edge = None
        node.life += 1
        self.observe(node, "crash", None)

    def power_cut(self, name: str) -> None:
        """The whole machine: its guests and routes are gone, too."""
        node = self.nodes[name]
        self.crash(name)
        node.kernel.lose_all()
        if node.hypervisor is not None:
            node.hypervisor.lose_all()

    def lose_state(self, name: str) -> None:
        """The daemon dies and its disk is empty: a machine imaged anew."""
        node = self.nodes[name]
        self.crash(name)
        node.disk.clear()

    def restart(self, name: str) -> None:
        """A new daemon on what the disk holds, its boot number higher and durable."""
        node = self.nodes[name]
        if node.engine is not None:
            self.crash(name)
        node.boot = node.disk["boot"] = self._next_boot(node)
        node.synced = 0.0
        node.counting = False
        self._make_engine(node)
        if node.manager is not None:
            node.manager.started(self.now)
        elif node.edge is not None and node.hypervisor is not None:
            node.kernel.resync(node.edge.desired())
            known = set(node.edge.definitions())
            node.hypervisor.watched = set(known)
            node.hypervisor.sweep(known)
            node.edge.started(node.hypervisor.running(), self.now)
        self._pump(node)

    def _alive(self, node: Node, life: int) -> bool:
        return node.life == life and node.engine is not None

    # ---- the pump ------------------------------------------------------------------------------

    def feed(self, node: Node, action: Callable[[], None]) -> None:
        """One input, then what it leads to."""
        action()
        self._pump(node)

    def _pump(self, node: Node) -> None:
        life = node.life
        while node.engine is not None:
            outputs = node.engine.flush()
            if not outputs:
                break
            for output in outputs:
                if self.interrupt(node, output):
                    self.crash(node.node_id)
                if not self._alive(node, life):
                    return
                node.carried += 1
                self._carry_out(node, output)
        self._set_timer(node)

    def _set_timer(self, node: Node) -> None:
        node.wake += 1
        wake, life = node.wake, node.life
        due = node.engine.next_timer() if node.engine else None
        if due is not None:
            self.later(max(0.0, due - self.now), lambda: self._wake(node, wake, life))
        if node.edge is not None and node.edge.wants_traffic and not node.counting:
            node.counting = True
            self.later(COUNT_S, lambda: self._count(node, life))

    def _wake(self, node: Node, wake: int, life: int) -> None:
        engine = node.engine
        if engine is not None and node.life == life and node.wake == wake:
            self.feed(node, lambda: engine.timer(self.now))

    def _count(self, node: Node, life: int) -> None:
        edge = node.edge
        if edge is None or node.life != life:
            return
        node.counting = False
        for vm, counters in node.kernel.counters.items():
            if (node.node_id, vm) in self.senders:
                counters.redirected += 1
        self.feed(node, lambda: edge.traffic(dict(node.kernel.counters), self.now))

    def _carry_out(self, node: Node, output: Output) -> None:
        self.observe(node, "output", output)
        life = node.life
        if isinstance(output, Send):
            self._send(node, output)
        elif isinstance(output, Persist):
            changes = json.loads(json.dumps(output.changes))
            node.synced = max(node.synced, self.now + self.chance.uniform(*self.persist_s))
            number = output.number
            self.later(node.synced - self.now, lambda: self._persisted(node, life, number, changes))
        elif isinstance(output, SetDataPlane):
            self.later(0.001, lambda: self._applied(node, life, output))
        elif isinstance(output, HypervisorOrder):
            assert node.hypervisor is not None
            node.hypervisor.order(output)
        elif isinstance(output, CountTraffic):
            self.later(0.0, lambda: self._counted(node, life, output))
        elif isinstance(output, Audit):
            self.later(0.001, lambda: self._audited(node, life, output.vm))
        elif isinstance(output, CommandDone):
            self.results[output.command] = output
        elif isinstance(output, Event):
            self.events.append((self.now, node.node_id, output))
        elif isinstance(output, Halt):
            self.crash(node.node_id)

    def _persisted(self, node: Node, life: int, number: int, changes: list[Any]) -> None:
        engine = node.engine
        if engine is None or node.life != life:
            return
        if node.fail_persist:
            node.fail_persist = False
            self.feed(node, lambda: engine.persist_failed("No space left on device"))
            return
        for key, value in changes:
            if value is None:
                node.disk.pop(key, None)
            else:
                node.disk[key] = value
        self.observe(node, "durable", changes)
        if node.tear_persist:
            node.tear_persist = False
            self.torn(node)
            return
        self.feed(node, lambda: engine.persisted(number))

    def _applied(self, node: Node, life: int, output: SetDataPlane) -> None:
        edge = node.edge
        if edge is None or node.life != life:
            return
        failures = node.kernel.apply(output.state)
        self.observe(node, "held", failures or output.state)
        vm = output.state.vm
        self.feed(node, lambda: edge.data_plane_applied(vm, output.tag, failures, self.now))

    def _counted(self, node: Node, life: int, output: CountTraffic) -> None:
        edge = node.edge
        counters = node.kernel.counters.get(output.vm)
        if edge is not None and node.life == life and counters is not None:
            self.feed(
                node, lambda: edge.traffic_counted(output.vm, output.label, counters, self.now)
            )

    def _audited(self, node: Node, life: int, vm: VmKey) -> None:
        edge = node.edge
        if edge is None or node.life != life:
            return
        drift = node.kernel.audit(vm)
        self.observe(node, "audited", (vm, drift))
        audited = getattr(edge, "audited", None)
        assert audited is not None
        self.feed(node, lambda: audited(vm, drift, self.now))

    def _order_done(
        self, node: Node, vm: VmKey, order: Order, result: dict[str, Any], error: str
    ) -> None:
        edge = node.edge
        self.observe(node, "done", (vm, order, error))
        if edge is not None:
            self.feed(node, lambda: edge.order_done(vm, order, result, error, self.now))

    def _reported(self, node: Node, vm: VmKey, event: str, detail: dict[str, Any]) -> None:
        edge = node.edge
        self.observe(node, "report", (vm, event, detail))
        self.reports.append((node.node_id, event))
        if edge is not None:
            self.feed(node, lambda: edge.guest_report(vm, event, detail, self.now))

    # ---- the network ---------------------------------------------------------------------------

    def _send(self, node: Node, output: Send) -> None:
        target = self.by_address[output.destination.address]
        family = output.destination.address.version
        source = Endpoint(output.source or _locator(node.nve, family), UDP_PORT)
        local = output.destination.address
        if self.overheard is not None:
            self.overheard.append((target, output.data, source, local))
        if frozenset((node.node_id, target.node_id)) in self.cut:
            self.observe(node, "cut", target)
            return
        copies = 1
        if self.chance.random() < self.weather.loss:
            copies = 0
            self.observe(node, "lost", target)
        if self.chance.random() < self.weather.repetition:
            copies += 1
            self.observe(node, "repeated", target)
        for _ in range(copies):
            delay = self.chance.uniform(*self.weather.delay_s)
            self.later(delay, lambda: self._arrive(target, output.data, source, local))

    def say_again(self, index: int) -> None:
        """Somebody sends an overheard datagram once more."""
        assert self.overheard is not None
        target, data, source, local = self.overheard[index]
        self._arrive(target, data, source, local)

    def _arrive(self, node: Node, data: bytes, source: Endpoint, local: Any) -> None:
        engine = node.engine
        if engine is not None:
            self.feed(node, lambda: engine.datagram_received(data, source, local, self.now))

    # ---- people --------------------------------------------------------------------------------

    def start_vm(self, vm: VmKey, at: str, interfaces: tuple[Interface, ...]) -> int:
        self._commands += 1
        number, node = self._commands, self.nodes[at]
        edge = node.edge
        assert edge is not None
        self.interfaces.setdefault(vm, interfaces)
        self.touched.add(vm)
        self.feed(node, lambda: edge.start_vm(number, vm, interfaces, b"{}", self.now))
        return number

    def stop_vm(self, vm: VmKey, at: str) -> int:
        self._commands += 1
        number, node = self._commands, self.nodes[at]
        edge = node.edge
        assert edge is not None
        self.feed(node, lambda: edge.stop_vm(number, vm, self.now))
        return number

    def expect_vm(self, vm: VmKey, at: str, interfaces: tuple[Interface, ...]) -> int:
        self._commands += 1
        number, node = self._commands, self.nodes[at]
        edge = node.edge
        assert edge is not None
        self.interfaces.setdefault(vm, interfaces)
        self.touched.add(vm)
        self.feed(node, lambda: edge.expect_vm(number, vm, interfaces, b"{}", self.now))
        return number

    def unexpect_vm(self, vm: VmKey, at: str) -> int:
        self._commands += 1
        number, node = self._commands, self.nodes[at]
        edge = node.edge
        assert edge is not None
        self.feed(node, lambda: edge.unexpect_vm(number, vm, self.now))
        return number

    def check(self, at: str) -> int:
        """People compare: everything from the manager, or one NVE."""
        self._commands += 1
        number, node = self._commands, self.nodes[at]
        manager, edge = node.manager, node.edge
        if manager is not None:
            self.feed(node, lambda: manager.check(number, self.now))
        elif edge is not None:
            self.feed(node, lambda: edge.check(number, None, self.now))
        return number

    def move(self, vm: VmKey, to: str) -> str:
        """Begin a move; returns its id.  MoveRefused comes through."""
        node = self.nodes[MANAGER]
        assert node.manager is not None
        try:
            move = node.manager.start_move(vm, to, self.now, 0)
        finally:
            self._pump(node)
        return move.move_id


def a_secret(one: str, other: str, number: int) -> bytes:
    """The pair's secret of that number."""
    pair = "--".join(sorted((one, other)))
    return (pair if number == 1 else f"{pair}#{number}").encode().ljust(32, b".")


def _locator(nve: Nve, family: int) -> Any:
    address = nve.locator(family)
    assert address is not None
    return address
