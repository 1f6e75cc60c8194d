"""Virtual time, and the pump of every node: it carries an engine's outputs out and brings answers.

Time is a number that jumps from event to event; records become durable, kernels and hypervisors
answer, a little later.  `interrupt` is asked before each output.  Not here: the nodes' lives and
the network between them (network.py), what people ask (people.py).
"""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Callable
from typing import Any

from tests.engine import safety
from tests.engine.fake_fabric import FakeFabric
from tests.engine.node import Node
from vmmobility.engine.outputs import (
    Audit,
    CommandDone,
    CountTraffic,
    Event,
    Explain,
    Halt,
    HypervisorOrder,
    MeasureHost,
    Order,
    Output,
    Persist,
    Send,
    SetDataPlane,
    SetRoutes,
)
from vmmobility.wire.values import VmKey

COUNT_S = 1.0  # the pump counts redirected traffic so often


class Pump:
    """What a World runs on.  observe(node, what, value) is told of everything that happens."""

    def __init__(self, seed: int, persist_s: float | tuple[float, float]) -> None:
        self.now = 0.0
        self.chance = random.Random(seed)
        self.persist_s = persist_s if isinstance(persist_s, tuple) else (persist_s, persist_s)
        self.senders: set[tuple[str, VmKey]] = set()
        self.reports: list[tuple[str, str]] = []
        self.results: dict[int, CommandDone] = {}
        self.events: list[tuple[float, str, Event]] = []
        self.observe: Callable[[Node, str, Any], None] = lambda node, what, value: None
        self.interrupt: Callable[[Node, Output], bool] = lambda node, output: False
        self.torn: Callable[[Node], None] = lambda node: self.crash(node.node_id)
        self.watch: Callable[[Any], None] = safety.check
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self.nodes: dict[str, Node] = {}
        self.fabric: FakeFabric | None = None

    def crash(self, name: str) -> None:
        """The daemon of that node dies."""
        raise NotImplementedError

    def _send(self, node: Node, output: Send) -> None:
        """A datagram leaves."""
        raise NotImplementedError

    # ---- time ----------------------------------------------------------------------------------

    def clock(self, node: Node) -> float:
        """What the node's clock says now."""
        return self.now * node.rate

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

    # ---- the pump ------------------------------------------------------------------------------

    def feed(self, node: Node, action: Callable[[], None]) -> None:
        """One input, then what it leads to."""
        action()
        self._pump(node)

    def _alive(self, node: Node, life: int) -> bool:
        return node.life == life and node.engine is not None

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
            self.later(
                max(0.0, (due - self.clock(node)) / node.rate), lambda: self._wake(node, wake, life)
            )
        if node.edge is not None and node.edge.wants_traffic and not node.counting:
            node.counting = True
            self.later(COUNT_S, lambda: self._count(node, life))

    def _wake(self, node: Node, wake: int, life: int) -> None:
        engine = node.engine
        if engine is not None and node.life == life and node.wake == wake:
            self.feed(node, lambda: engine.timer(self.clock(node)))

    def _count(self, node: Node, life: int) -> None:
        edge = node.edge
        if edge is None or node.life != life:
            return
        node.counting = False
        for vm, counters in node.kernel.counters.items():
            if (node.node_id, vm) in self.senders:
                counters.redirected += 1
        self.feed(node, lambda: edge.traffic(dict(node.kernel.counters), self.clock(node)))

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
            self.later(node.kernel.delay_s, lambda: self._applied(node, life, output))
        elif isinstance(output, SetRoutes):
            self.later(0.001, lambda: self._routed(node, life, output))
        elif isinstance(output, Explain):
            self.later(0.001, lambda: self._explained(node, life, output))
        elif isinstance(output, HypervisorOrder):
            assert node.hypervisor is not None
            node.hypervisor.order(output)
        elif isinstance(output, CountTraffic):
            self.later(0.0, lambda: self._counted(node, life, output))
        elif isinstance(output, Audit):
            self.later(0.001, lambda: self._audited(node, life, output.vm))
        elif isinstance(output, MeasureHost):
            self.later(0.0, lambda: self._measured(node, life))
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
        self.feed(node, lambda: edge.data_plane_applied(vm, output.tag, failures, self.clock(node)))

    def _routed(self, node: Node, life: int, output: SetRoutes) -> None:
        router, fabric, routes = node.router, self.fabric, output.state
        if router is None or fabric is None or node.life != life:
            return
        failures = fabric.apply(node.node_id, routes)
        self.observe(node, "held", failures or routes)
        sight = fabric.sight(node.node_id, routes)
        self.feed(
            node, lambda: router.routes_applied(routes.vm, output.tag, failures, sight, self.now)
        )

    def _explained(self, node: Node, life: int, output: Explain) -> None:
        router, fabric = node.router, self.fabric
        if router is None or fabric is None or node.life != life:
            return
        asked = output.watched
        sight = fabric.sight(node.node_id, asked) if asked is not None else None
        self.feed(node, lambda: router.explained(output.number, [], sight, "", self.now))

    def _routes_changed(self, name: str, vm: VmKey) -> None:
        """The agent hears a moment later that its router's table has changed."""
        self.later(0.001, lambda: self._sighted(self.nodes[name], vm))

    def _sighted(self, node: Node, vm: VmKey) -> None:
        router, fabric = node.router, self.fabric
        if router is None or fabric is None:
            return
        watched = [routes for routes in router.watched() if routes.vm == vm]
        if watched:
            sight = fabric.sight(node.node_id, watched[0])
            self.feed(node, lambda: router.sighted({vm: sight}, self.now))

    def _counted(self, node: Node, life: int, output: CountTraffic) -> None:
        edge = node.edge
        counters = node.kernel.counters.get(output.vm)
        if edge is not None and node.life == life and counters is not None:
            self.feed(
                node,
                lambda: edge.traffic_counted(output.vm, output.label, counters, self.clock(node)),
            )

    def _measured(self, node: Node, life: int) -> None:
        edge = node.edge
        if edge is not None and node.life == life:
            self.feed(node, lambda: edge.host_measured(node.capacity, self.clock(node), node.rooms))

    def _audited(self, node: Node, life: int, vm: VmKey) -> None:
        edge = node.edge
        if edge is None or node.life != life:
            return
        drift = node.kernel.audit(vm)
        self.observe(node, "audited", (vm, drift))
        self.feed(node, lambda: edge.audited(vm, drift, self.clock(node)))

    def _order_done(
        self, node: Node, vm: VmKey, order: Order, result: dict[str, Any], error: str
    ) -> None:
        edge = node.edge
        self.observe(node, "done", (vm, order, error))
        if edge is not None:
            self.feed(node, lambda: edge.order_done(vm, order, result, error, self.clock(node)))

    def _reported(self, node: Node, vm: VmKey, event: str, detail: dict[str, Any]) -> None:
        edge = node.edge
        self.observe(node, "report", (vm, event, detail))
        self.reports.append((node.node_id, event))
        if edge is not None:
            self.feed(node, lambda: edge.guest_report(vm, event, detail, self.clock(node)))
