"""Routers in a World: their engines, and a fabric that follows what they announce.

The fabric is as simple as can be: a VM that a router announces is led to the NVE that it names
(of several routers, to one's own, then the first by name), any other to the node whose home prefix
covers it.  What changes is seen everywhere a moment later.

Not here: the kernel (drivers/router_plane.py), an interior protocol.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from tests.engine.fake_kernel import Kernel
from tests.engine.network import MANAGER, Node, World
from tests.engine.safety import home
from vmmobility.engine.binding_update_list import make_nve
from vmmobility.engine.fabric_record import RouterSite
from vmmobility.engine.fabric_routes import RouteAction, Sight, VmRoutes
from vmmobility.engine.outputs import Output, SetRoutes
from vmmobility.engine.router import RouterEngine, RouterSettings
from vmmobility.wire.registry import Role
from vmmobility.wire.values import VmKey

KERNEL_S = 0.001
FABRIC_S = 0.05  # until everybody sees an announcement
SITES = (
    RouterSite("r1", border=False, serves=frozenset("ab"), dc="dc1"),
    RouterSite("r2", border=False, serves=frozenset("cd"), dc="dc1"),
    RouterSite("edge", border=True, dc="dc1"),
)


@dataclass
class RouterNode(Node):
    """A router: its engine, and what its kernel holds."""

    router: RouterEngine | None = None
    routes: dict[VmKey, VmRoutes] = field(default_factory=dict)

    @property
    def engine(self) -> Any:
        return self.router


class RoutedWorld(World):
    """A World with the routers of `sites`."""

    def __init__(
        self,
        nves: tuple[str, ...] = ("a", "b", "c"),
        sites: tuple[RouterSite, ...] = SITES,
        report_s: float = 20.0,
        **options: Any,
    ) -> None:
        self.sites, self.report_s = sites, report_s
        settings = {"routers": sites, **(options.pop("manager_settings", None) or {})}
        super().__init__(nves, manager_settings=settings, **options)

    @property
    def routers(self) -> list[RouterNode]:
        return [n for n in self.nodes.values() if isinstance(n, RouterNode)]

    # ---- building ------------------------------------------------------------------------------

    def _add(self, name: str, index: int, role: Role) -> None:
        if role is Role.MANAGER:
            for number, site in enumerate(self.sites, 60):
                self._add_router(site, number)
        super()._add(name, index, role)

    def _add_router(self, site: RouterSite, number: int) -> None:
        at = make_nve(
            site.router_id, (ip_address(f"10.0.{number}.2"), ip_address(f"fd00:0:{number}::2"))
        )
        role = Role.BORDER_ROUTER if site.border else Role.DEFAULT_ROUTER
        kernel = Kernel(self.touched)
        self.nodes[site.router_id] = RouterNode(site.router_id, role, at, (), kernel)

    def _make_engine(self, node: Node) -> None:
        if not isinstance(node, RouterNode):
            super()._make_engine(node)
            return
        node.starts += 1
        jitter = random.Random(f"{node.node_id}/{node.starts}")
        settings = RouterSettings(node.node_id, self.report_s)
        peers = [self._peer(node.node_id, MANAGER)]
        node.router = RouterEngine(settings, peers, dict(node.disk), node.boot, jitter)

    # ---- a node's life -------------------------------------------------------------------------

    def crash(self, name: str) -> None:
        super().crash(name)
        node = self.nodes[name]
        if isinstance(node, RouterNode):
            node.router = None

    def power_cut(self, name: str) -> None:
        super().power_cut(name)
        node = self.nodes[name]
        if isinstance(node, RouterNode):
            node.routes.clear()
            self._fabric_changed()

    def restart(self, name: str) -> None:
        super().restart(name)
        node = self.nodes[name]
        if isinstance(node, RouterNode) and node.router is not None:
            router = node.router
            node.routes = router.desired()
            self.feed(node, lambda: router.started(self.now))
            self._fabric_changed()

    # ---- kernels and the fabric ----------------------------------------------------------------

    def _carry_out(self, node: Node, output: Output) -> None:
        if isinstance(output, SetRoutes) and isinstance(node, RouterNode):
            self.observe(node, "output", output)
            life = node.life
            self.later(KERNEL_S, lambda: self._routed(node, life, output))
        else:
            super()._carry_out(node, output)

    def _routed(self, node: RouterNode, life: int, output: SetRoutes) -> None:
        router, routes = node.router, output.state
        if router is None or node.life != life:
            return
        node.routes[routes.vm] = routes
        sight = self.sight(node, routes)
        self.feed(node, lambda: router.routes_applied(routes.vm, output.tag, [], sight, self.now))
        self._fabric_changed()

    def _fabric_changed(self) -> None:
        self.later(FABRIC_S, self._look)

    def _look(self) -> None:
        for node in self.routers:
            router = node.router
            if router is not None:
                sights = {r.vm: self.sight(node, r) for r in router.watched()}
                self.feed(node, lambda r=router, s=sights: r.sighted(s, self.now))  # type: ignore[misc]

    def leads(self, node: RouterNode, vm: VmKey) -> str | None:
        """The NVE to which the fabric leads the VM's packets, seen from that router."""
        for router in sorted(self.routers, key=lambda r: (r is not node, r.node_id)):
            routes = router.routes.get(vm)
            if routes is not None and routes.state is RouteAction.ANNOUNCE and routes.serving:
                return routes.serving.nve_id
        return home(self, vm)

    def next_hop(self, node: RouterNode, nve: str | None) -> str | None:
        """A router's own NVEs are on its links; others' are behind their router."""
        site = next((s for s in self.sites if nve in s.serves), None)
        return nve if site is None or site.router_id == node.node_id else site.router_id

    def sight(self, node: RouterNode, routes: VmRoutes) -> Sight:
        goal = self.next_hop(node, routes.goal.nve_id if routes.goal else None)
        led = self.next_hop(node, self.leads(node, routes.vm))
        covered = self.next_hop(node, home(self, routes.vm))
        return Sight(led is not None and led == goal, covered is not None and covered == goal)
