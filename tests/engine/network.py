"""Real engines joined by an in-memory network on virtual time, with fakes for the world.

A World has a manager and NVEs, and routers with a fabric (fake_fabric.py) if it is given any.
Time is a number that jumps from event to event; every choice of chance (loss, repetition, delay)
comes from one seed, so a run repeats itself exactly.  A node's *daemon* can crash and restart from
what was persisted, its machine can lose power; `interrupt` is asked before each output is carried
out, so a campaign can crash a node between any two.
At first the nodes know each other, unless they are `strangers`; after a restart they challenge each
other, as nodes do that hear a new boot of a peer.

After every event safety.py looks at all nodes.  Not here: the scenario language (conversation.py).
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from tests.engine import safety
from tests.engine.fake_fabric import FakeFabric
from tests.engine.fake_hypervisor import Guest, Hypervisor, Life, Pace
from tests.engine.fake_kernel import Kernel
from tests.engine.node import MANAGER, Node
from tests.engine.people import People
from vmmobility.engine.binding_update_list import make_nve
from vmmobility.engine.challenge import FLOOR, next_boot
from vmmobility.engine.channel import Peer, Retransmission
from vmmobility.engine.fabric_record import RouterSite
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.manager_settings import ManagerSettings
from vmmobility.engine.nve import NveEngine, NveSettings
from vmmobility.engine.outputs import (
    Endpoint,
    Send,
)
from vmmobility.engine.router import RouterEngine, RouterSettings
from vmmobility.wire.registry import UDP_PORT, Role
from vmmobility.wire.values import Nve, VmKey

WALL_S = 1_800_000_000.0  # CLOCK_REALTIME at the beginning: 2027-01-15, 08:00 UTC

__all__ = ["MANAGER", "Node", "Weather", "World", "a_secret"]


@dataclass
class Weather:
    """What the network does to datagrams: chances from 0 to 1, delays in seconds."""

    loss: float = 0.0
    repetition: float = 0.0
    delay_s: tuple[float, float] = (0.001, 0.001)


class World(People):
    """The whole domain, which people and the pump (people.py, pump.py) keep going."""

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
        routers: tuple[RouterSite, ...] = (),
        fabric_delay_s: tuple[float, float] = (0.02, 0.1),
    ) -> None:
        super().__init__(seed, persist_s)
        self.weather = weather or Weather()
        self.pace = pace or Pace()
        self.manager_settings = {**(manager_settings or {}), "routers": routers}
        self.nve_settings = nve_settings or {}
        self.cut: set[frozenset[str]] = set()
        self.lossless: set[VmKey] = set()
        self.overheard: list[tuple[Node, bytes, Endpoint, Any]] | None = None  # to say again later
        self.secrets: dict[frozenset[str], tuple[dict[int, bytes], dict[str, int]]] = {}
        self.unconfigured: set[str] = set()  # NVEs that the manager's next start does not know
        self.homes: dict[VmKey, str | None] = {}  # what safety.home has found
        for index, name in enumerate(nves, 1):
            self._add(name, index, Role.NVE)
        if routers:
            self._add_fabric(routers, seed, fabric_delay_s)
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
            node.hypervisor.clock = lambda: self.clock(node)
            node.hypervisor.rate = lambda: node.rate
            node.hypervisor.find_door = self._door
            node.hypervisor.lost_checkpoint = self._lost_checkpoint

    def _add_fabric(
        self, sites: tuple[RouterSite, ...], seed: int, delay_s: tuple[float, float]
    ) -> None:
        self.fabric = FakeFabric(
            sites, self.later, lambda vm: safety.home(self, vm), self.touched, seed, delay_s
        )
        self.fabric.groups = self.groups
        self.fabric.changed = self._routes_changed
        for index, site in enumerate(sites, 101):
            self._add(
                site.router_id, index, Role.BORDER_ROUTER if site.border else Role.DEFAULT_ROUTER
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

    def _door(self, caller: str, address: str, port: int) -> Hypervisor | None:
        node = self.by_address[ip_address(address)]
        hypervisor = node.hypervisor
        assert isinstance(hypervisor, Hypervisor)
        if frozenset((caller, node.node_id)) in self.cut:
            return None
        doors = {store.port for store in hypervisor.stores.values()}
        return hypervisor if port in doors else None

    def _lost_checkpoint(self, vm: VmKey, had: int, has: int) -> None:
        what = f"{self.now:.3f} {vm} has {has}, and {had} was complete"
        raise safety.Violation("checkpoint lost", what)

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
        elif node.role is not Role.NVE:
            peers = [self._peer(node.node_id, MANAGER)]
            retransmission = self.nve_settings.get("retransmission", Retransmission())
            report_s = self.nve_settings.get("check_s", 60.0)
            router = RouterSettings(node.node_id, report_s, retransmission)
            node.router = RouterEngine(router, peers, state, node.boot, jitter)
        else:
            peers = [self._peer(node.node_id, MANAGER)]
            own = NveSettings(node.nve, node.home, **self.nve_settings)
            node.edge = NveEngine(own, peers, state, node.boot, jitter)

    # ---- a node's life -------------------------------------------------------------------------

    def crash(self, name: str) -> None:
        """The daemon dies: the engine and what was not persisted are gone."""
        node = self.nodes[name]
        if node.engine is None:
            return
        node.manager = node.edge = node.router = node.box = None
        node.life += 1
        if isinstance(node.hypervisor, Hypervisor):
            node.hypervisor.close_doors()
        self.observe(node, "crash", None)

    def power_cut(self, name: str) -> None:
        """The whole machine: its guests and routes are gone, too."""
        node = self.nodes[name]
        self.crash(name)
        node.kernel.lose_all()
        if node.hypervisor is not None:
            node.hypervisor.lose_all()
        if self.fabric is not None and name in self.fabric.sites:
            self.fabric.lose_all(name)

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
        elif node.router is not None and self.fabric is not None:
            self.fabric.resync(name, node.router.desired())
            node.router.started(self.now)
            for routes in node.router.watched():
                self._routes_changed(name, routes.vm)
        elif node.edge is not None and node.hypervisor is not None:
            node.kernel.resync(node.edge.desired())
            known = set(node.edge.definitions())
            entries = node.edge.entries.values()
            node.hypervisor.new_daemon()
            node.hypervisor.watched = {entry.vm for entry in entries if entry.expected}
            node.hypervisor.sweep(known)
            wall_s = WALL_S + self.now
            node.edge.tell_time(int(wall_s * 1e9), self.clock(node))
            node.edge.started(node.hypervisor.running(), self.clock(node))
        self._pump(node)

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
            self.feed(node, lambda: engine.datagram_received(data, source, local, self.clock(node)))


def a_secret(one: str, other: str, number: int) -> bytes:
    """The pair's secret of that number."""
    pair = "--".join(sorted((one, other)))
    return (pair if number == 1 else f"{pair}#{number}").encode().ljust(32, b".")


def _locator(nve: Nve, family: int) -> Any:
    address = nve.locator(family)
    assert address is not None
    return address
