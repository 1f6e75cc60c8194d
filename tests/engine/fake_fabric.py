"""A routed fabric in tests: what routers hold and announce, and what each of them has heard.

Every router has two tables, as one that runs our agent beside its routing daemon: the *hold*
table, looked up first, and the *main* one, where the covering prefixes and all announced host
routes are.  What a router announces, or withdraws, others hear after a delay of their own; an older
word may come later, but counts no more, as the sequence number of an LSA has it.  All of it
outlives a daemon's crash.

Routers are neighbours of each other; the nearest of several that announce a route wins.
Not here: time and the engines (network.py), packets (safety.py).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from tests.engine.fake_hypervisor import Schedule
from tests.engine.noted import Noted
from vmmobility.engine.fabric_record import RouterSite
from vmmobility.engine.fabric_routes import RouteAction, Sight, VmRoutes
from vmmobility.wire.values import VmKey

Heard = dict[str, tuple[int, bool]]
"""Who announces, by name: the newest word's number, and whether it is an announcement."""


class FakeFabric:
    """delay_s: from the least to the most that a word takes to another router.

    held:      what each router holds of our own, VM by VM
    barred:    (router, origin): what the origin announces does not come there
    fail_next: reasons for which a router's next changes fail
    """

    def __init__(
        self,
        sites: Sequence[RouterSite],
        schedule: Schedule,
        home: Callable[[VmKey], str | None],
        touched: set[VmKey],
        seed: int,
        delay_s: tuple[float, float] = (0.02, 0.1),
    ) -> None:
        self.sites = {site.router_id: site for site in sites}
        self.delay_s = delay_s
        self.held: dict[str, Noted[VmRoutes]] = {name: Noted(touched) for name in self.sites}
        self.barred: set[tuple[str, str]] = set()
        self.fail_next: dict[str, list[str]] = {name: [] for name in self.sites}
        self.changed: Callable[[str, VmKey], None] = lambda router, vm: None
        self.micro_loops = self.losses = 0  # while it turns
        self.under_way: Counter[VmKey] = Counter()
        self._later, self._home, self._touched = schedule, home, touched
        self._chance = random.Random(f"fabric {seed}")
        self._heard: dict[str, dict[VmKey, Heard]] = {name: {} for name in self.sites}
        self._said: dict[tuple[str, VmKey], tuple[int, bool]] = {}
        self.groups: Mapping[VmKey, tuple[VmKey, ...]] = {}
        self._places = {name: place for place, name in enumerate(self.sites)}

    # ---- what a router's agent asks of its kernel ----------------------------------------------

    def apply(self, router: str, routes: VmRoutes) -> list[str]:
        """Hold this; the words why not, if it fails (then the old one stays)."""
        if self.fail_next[router]:
            return [self.fail_next[router].pop(0)]
        self._hold(router, routes)
        return []

    def resync(self, router: str, wanted: dict[VmKey, VmRoutes]) -> None:
        """A daemon's start: hold all of this and nothing else."""
        for vm in [vm for vm in self.held[router] if vm not in wanted]:
            self._hold(router, VmRoutes(vm, (), None, RouteAction.NONE))
        for routes in wanted.values():
            self._hold(router, routes)

    def lose_all(self, router: str) -> None:
        """The router lost its power: what it announced is withdrawn, and it is up again soon."""
        self.resync(router, {})

    def _hold(self, router: str, routes: VmRoutes) -> None:
        if routes.state is not RouteAction.NONE:
            self.held[router][routes.vm] = routes
        elif routes.vm in self.held[router]:
            del self.held[router][routes.vm]
        announced = routes.state is RouteAction.ANNOUNCE
        number, before = self._said.get((router, routes.vm), (0, False))
        if announced != before:
            self._said[router, routes.vm] = (number + 1, announced)
            for other in self.sites:
                if other != router:
                    self._tell(other, router, routes.vm)
        self._tell_agent(router, routes.vm)

    def _tell_agent(self, router: str, vm: VmKey) -> None:
        """Members of one group share their addresses, so what changes of one does of all."""
        for mate in self.groups.get(vm, (vm,)):
            self.changed(router, mate)

    # ---- what routers tell each other ----------------------------------------------------------

    def _tell(self, router: str, origin: str, vm: VmKey) -> None:
        self.under_way[vm] += 1
        word = self._said[origin, vm]
        self._later(
            self._chance.uniform(*self.delay_s), partial(self._hear, router, origin, vm, word)
        )

    def _hear(self, router: str, origin: str, vm: VmKey, word: tuple[int, bool]) -> None:
        self.under_way[vm] -= 1
        self._touched.add(vm)
        heard = self._heard[router].setdefault(vm, {})
        if (router, origin) not in self.barred and word[0] > heard.get(origin, (0, False))[0]:
            heard[origin] = word
            self._tell_agent(router, vm)

    def bar(self, router: str, origin: str) -> None:
        """From now on the router hears nothing of the origin, and forgets what it heard."""
        self.barred.add((router, origin))
        for vm, heard in self._heard[router].items():
            if heard.pop(origin, None):
                self._touched.add(vm)
                self._tell_agent(router, vm)

    def unbar(self, router: str, origin: str) -> None:
        """It hears of it again, and what it has missed."""
        self.barred.discard((router, origin))
        for name, vm in self._said:
            if name == origin:
                self._tell(router, origin, vm)

    # ---- where packets go ----------------------------------------------------------------------

    def router_of(self, nve: str, near: str = "") -> str | None:
        """The router by which an NVE is reached, and that it sends to by default."""
        mine = [name for name, site in self.sites.items() if nve in site.serves]
        return self._nearest(near, mine)

    def _nearest(self, near: str, names: Sequence[str]) -> str | None:
        place = self._places.get(near, 0)
        return min(names, key=lambda n: (abs(self._places[n] - place), n), default=None)

    def towards(self, router: str, nve: str) -> str:
        """The next node on the way to an NVE's locator."""
        if nve in self.sites[router].serves:
            return nve
        return self.router_of(nve, router) or nve

    def next_hop(self, router: str, vm: VmKey) -> str | None:
        """Where a router sends a VM's packet: by what it holds, then by its main table."""
        held = self.held[router].get(vm)
        if held is not None and held.serving is not None:
            return self.towards(router, held.serving.nve_id)
        return self.by_main(router, vm)

    def by_main(self, router: str, vm: VmKey) -> str | None:
        held = self.held[router].get(vm)
        if held is not None and held.state is RouteAction.ANNOUNCE and held.serving is not None:
            return self.towards(router, held.serving.nve_id)
        heard = self._heard[router].get(vm, {})
        origin = self._nearest(router, [name for name, word in heard.items() if word[1]])
        return origin or self._by_covering(router, vm)

    def next_hops(self, router: str, vm: VmKey) -> set[str]:
        """The same of a member of a group: the next hops of which a flow is hashed to one."""
        states = [self.held[router].get(mate) for mate in self.groups[vm]]
        led = [s for s in states if s is not None and s.serving is not None]
        announced = [s for s in led if s.state is RouteAction.ANNOUNCE]
        if chosen := announced or led:
            return {self.towards(router, s.serving.nve_id) for s in chosen if s.serving}
        return self.main_hops(router, vm)

    def main_hops(self, router: str, vm: VmKey) -> set[str]:
        """Those of its main table: the nearest of all that announce a member, and as near ones."""
        origins = set()
        for mate in self.groups[vm]:
            held = self.held[router].get(mate)
            if held is not None and held.state is RouteAction.ANNOUNCE and held.serving:
                origins.add(router)
            heard = self._heard[router].get(mate, {})
            origins |= {name for name, word in heard.items() if word[1]}
        if not origins:
            covering = self._by_covering(router, vm)
            return {covering} if covering is not None else set()
        places = self._places
        least = min(abs(places[o] - places[router]) for o in origins)
        if least:
            return {o for o in origins if abs(places[o] - places[router]) == least}
        states = [self.held[router].get(mate) for mate in self.groups[vm]]
        return {
            self.towards(router, s.serving.nve_id)
            for s in states
            if s is not None and s.state is RouteAction.ANNOUNCE and s.serving is not None
        }

    def turns(self, vm: VmKey) -> bool:
        """Whether a word of it, or of another member of its group, is on its way."""
        return any(self.under_way[mate] for mate in self.groups.get(vm, (vm,)))

    def _by_covering(self, router: str, vm: VmKey) -> str | None:
        home = self._home(vm)
        return self.towards(router, home) if home is not None else None

    def sight(self, router: str, routes: VmRoutes) -> Sight:
        """How the main table leads the VM's packets there."""
        if routes.goal is None:
            return Sight(direct=False, covered=False)
        goal = self.towards(router, routes.goal.nve_id)
        if routes.vm in self.groups:
            goals = {goal, *(self.towards(router, nve.nve_id) for nve in routes.others)}
            found = self.main_hops(router, routes.vm)
            direct = bool(found) and found <= goals
            return Sight(direct, self._by_covering(router, routes.vm) == goal)
        return Sight(
            self.by_main(router, routes.vm) == goal, self._by_covering(router, routes.vm) == goal
        )

    def announces(self, router: str, vm: VmKey) -> bool:
        return self._said.get((router, vm), (0, False))[1]

    def left_of(self, vm: VmKey) -> list[str]:
        """Who holds, announces or has heard anything of the VM, in words."""
        found = [f"{name} holds {r[vm].state.value}" for name, r in self.held.items() if vm in r]
        found += [f"{name} announces" for name in self.sites if self.announces(name, vm)]
        for name, table in self._heard.items():
            found += [f"{name} sees {o}" for o, word in table.get(vm, {}).items() if word[1]]
        return found
