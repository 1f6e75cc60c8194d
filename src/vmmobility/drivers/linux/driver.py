"""LinuxDataPlane: desired state in, the kernel reconciled, failures out item by item.

Order within one apply (docs/design/dataplane.md): taps and filters, then what the tunnels must
know, then routes (one replace a prefix), and only then are old routes, tunnel entries, taps and
filters removed: no packet meets a hole.  A turn between local and redirect costs one netlink batch
and what the tunnels need beside (tunnels.py); nft runs for ports and entries only when they come
and go.

Not here: messages, texts and look-ups of each part (the modules beside).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from vmmobility.drivers.dataplane import Drift, Failure, Traffic
from vmmobility.drivers.linux import environment, filter, rtnetlink, sysctl, tunnel_choice
from vmmobility.drivers.linux.adjacency import adjacency
from vmmobility.drivers.linux.audit import Comparison, Seen, duplicates, look, tunnel_drifts
from vmmobility.drivers.linux.circuit_guard import CircuitGuard
from vmmobility.drivers.linux.circuit_guard import remove_guard as remove_circuit_guard
from vmmobility.drivers.linux.counters import Ledger
from vmmobility.drivers.linux.filter_state import Filters, run_scripts
from vmmobility.drivers.linux.netlink import Netlink
from vmmobility.drivers.linux.plan import Adjacent, Plan, Port, is_absent, plan
from vmmobility.drivers.linux.policy_rules import Rule
from vmmobility.drivers.linux.ports import Ports
from vmmobility.drivers.linux.relay_client import RelayClient
from vmmobility.drivers.linux.relay_orders import RelayOrders
from vmmobility.drivers.linux.routes import Routes
from vmmobility.drivers.linux.rtnetlink import Route, RouteName
from vmmobility.drivers.linux.settings import LinuxSettings
from vmmobility.drivers.linux.traffic_sources import Sources
from vmmobility.drivers.linux.tunnel_choice import make_tunnels
from vmmobility.drivers.linux.tunnel_guard import remove_guard
from vmmobility.drivers.linux.tunnels import Choice, Tunnels
from vmmobility.engine.dataplane import VmDataPlane
from vmmobility.errors import DataPlaneError, VmMobilityError
from vmmobility.wire.values import VmKey


class LinuxDataPlane:
    """The DataPlane of a Linux host.

    `on_failure` hears in words of what happens between calls (the relay died, and whether it is
    back); `relay_deaths` counts.  One instance a network namespace and state folder.
    """

    def __init__(
        self, settings: LinuxSettings, on_failure: Callable[[str], None] | None = None
    ) -> None:
        self._settings = settings
        self._on_failure = on_failure or (lambda _: None)
        self._lock = asyncio.Lock()
        self._netlink: Netlink | None = None
        self._relay = RelayClient(settings, self._relay_lost)
        self._recovery: asyncio.Task[None] | None = None
        self._closing = False
        self._desired: dict[VmKey, VmDataPlane] = {}
        self._filters = Filters(settings.dc_prefixes)
        self._circuits = CircuitGuard({ends.server for ends in settings.servers.values()})
        self._ledger = Ledger()
        self._ports: Ports
        self._routes: Routes
        self._orders: RelayOrders
        self._tunnels: Tunnels
        self.tunnel_choice: Choice | None = None
        self.relay_deaths = 0
        self._relay_deaths_told = 0

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """See DataPlane.start.  Also starts the relay, or adopts the one that runs.

        Which tunnels are used is decided here, and kept: `tunnel_choice` says why.
        """
        self._open()
        self._closing = False
        async with self._lock:
            self.tunnel_choice = await tunnel_choice.choose(self._settings)
            self._tunnels = make_tunnels(
                self.tunnel_choice, self._open_netlink(), self._orders, self._settings
            )
            await self._ensure_base()

    def _open(self) -> None:
        environment.check_rights_and_programs()
        if self._netlink is None:
            self._netlink = Netlink()
        self._ports = Ports(self._netlink, self._settings)
        self._routes = Routes(self._netlink)
        self._orders = RelayOrders(
            self._relay, self._netlink, self._ports, self._settings.dc_prefixes
        )

    async def _ensure_base(self) -> None:
        """Sysctls, rules, tables, tunnels and relay, then read what the kernel holds of ours."""
        netlink = self._open_netlink()
        underlays = environment.find_underlays(netlink, self._settings)
        sysctl.ensure(sysctl.for_node(tuple(link.name for link in underlays)))
        environment.ensure_rules(netlink, self._rules())
        await self._tunnels.start(underlays)
        self._ports.read()
        self._routes.read()
        await self._filters.read()
        await self._circuits.read()
        await self._tunnels.ensure(underlays)

    def _rules(self) -> list[Rule]:
        return environment.node_rules(self._tunnels.rules(), self._settings)

    def _open_netlink(self) -> Netlink:
        if self._netlink is None:
            raise DataPlaneError("the data plane is not started", "call start() first")
        return self._netlink

    async def close(self) -> None:
        """See DataPlane.close: taps, routes, filters and the relay work on."""
        self._closing = True
        if self._recovery is not None:
            self._recovery.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._recovery
            self._recovery = None
        async with self._lock:
            await self._relay.close()
            if self._netlink is not None:
                self._netlink.close()
                self._netlink = None

    async def remove_all(self) -> None:
        """See DataPlane.remove_all.  Sysctls stay.  Also without start(): nothing is made first."""
        self._closing = True
        if self._netlink is None:
            self._open()
        async with self._lock:
            netlink = self._open_netlink()
            self._ports.read()
            self._routes.read()
            # Nothing may come out of a tunnel any more before what leads it goes.
            await self._relay.stop()
            environment.remove_routing(netlink)
            for name in list(self._ports.taps):
                self._ports.remove(name)
            await filter.run_nft(filter.removal_script())
            await remove_guard()
            await remove_circuit_guard()
            for vm in list(self._ledger.vms()):
                self._ledger.close(vm)
            self._desired = {}
            self._filters = Filters(self._settings.dc_prefixes)
            self._orders.forget()
            self._routes.read()
        await self.close()

    # -- reconciliation -----------------------------------------------------------------------

    async def resync(self, desired: Mapping[VmKey, VmDataPlane]) -> Sequence[Failure]:
        """See DataPlane.resync.  Raises DataPlaneError where the base itself cannot be made."""
        async with self._lock:
            return await self._resync(desired)

    async def _resync(self, desired: Mapping[VmKey, VmDataPlane]) -> Sequence[Failure]:
        await self._ensure_base()
        self._desired = {}
        self._filters.forget_wishes()
        self._tunnels.forget()
        self._orders.synchronised = True
        failures = await self._reconcile(list(desired.values()), tell_all=True)
        for vm in [v for v in self._ledger.vms() if v not in self._desired]:
            self._ledger.close(vm)
        return [*failures, *await self._remove_leftovers()]

    async def apply(self, desired: Sequence[VmDataPlane]) -> Sequence[Failure]:
        """See DataPlane.apply."""
        async with self._lock:
            return await self._reconcile(desired)

    async def _reconcile(
        self, desired: Sequence[VmDataPlane], tell_all: bool = False
    ) -> list[Failure]:
        adjacent, ways = self._adjacency(), self._tunnels.ways
        plans = [plan(state, self._settings, adjacent, ways) for state in desired]
        failures = [failure for made in plans for failure in made.failures]
        for state in desired:
            # In the order of their last apply: two that claim an address keep their order too.
            self._desired.pop(state.vm, None)
            if not is_absent(state):
                self._desired[state.vm] = state
                self._ledger.open(state.vm)
        failures += await self._add_ports(plans)
        failures += await self._tunnels.tell(plans, tell_all)
        failures += self._turn_routes(plans)
        failures += await self._retire(plans)
        return failures

    def _adjacency(self) -> Adjacent:
        return adjacency(self._open_netlink(), self._tunnels.indices.values())

    async def _add_ports(self, plans: Sequence[Plan]) -> list[Failure]:
        """Prepare taps, filter and count, then open them."""
        failures = []
        prepared: dict[VmKey, list[Port]] = {}
        scripts: dict[VmKey, str] = {}
        for made in plans:
            script = self._filters.count_script(made)
            for port in made.ports:
                tap = self._ports.taps.get(port.name)
                if tap is not None and tap.settled == port:
                    continue
                try:
                    new = self._ports.prepare(port)
                except (VmMobilityError, OSError) as error:
                    failures.append(Failure(made.vm, f"tap {port.name}", str(error)))
                    continue
                prepared.setdefault(made.vm, []).append(port)
                if rewritten := self._filters.filter_script(port, anew=new):
                    self._ledger.restart(made.vm, f"filter {port.name}")
                    script += rewritten
            if script:
                scripts[made.vm] = script
        for vm, reason in (await run_scripts(scripts)).items():
            failures.append(Failure(vm, "filter", reason))
            self._filters.failed(vm, prepared.pop(vm, []))
        try:
            mine = [port for ports in prepared.values() for port in ports]
            await self._circuits.admit(self._ports.sources(mine))
        except (DataPlaneError, OSError) as error:
            failures += [Failure(vm, "circuits", str(error)) for vm in prepared]
            prepared = {}
        await self._filters.learn()
        for port in (port for ports in prepared.values() for port in ports):
            try:
                self._ports.open(port)
                self._orders.ports_changed = True
            except (VmMobilityError, OSError) as error:
                failures.append(Failure(port.vm, f"tap {port.name}", str(error)))
        return failures

    def _turn_routes(self, plans: Sequence[Plan]) -> list[Failure]:
        """Install and turn routes; then remove those that a VM no longer wants."""
        wanted: list[tuple[VmKey, Route]] = []
        surplus: list[RouteName] = []
        for made in plans:
            names = set(made.keep)
            for name in made.keep:
                self._routes.keep(made.vm, name)
            for wish in made.routes:
                tunnel = self._tunnels.indices.get(wish.interface)
                route = wish.route(tunnel or self._ports.index(wish.interface))
                names.add(wish.name)
                if route.hop.ifindex or wish.hop:  # else its tap failed, and was reported
                    wanted.append((made.vm, route))
            surplus += [name for name in self._routes.of(made.vm) if name not in names]
        refused = self._routes.turn(wanted)
        failures = [Failure(vm, f"route {r.prefix}", str(why)) for vm, r, why in refused]
        owners = {name: self._routes.owners.get(name) for name in surplus}
        # What should have taken its place is not there: the old way stays, in whichever table.
        stays = {(vm, route.prefix) for vm, route, _ in refused}
        mine = {n: vm for n, vm in owners.items() if vm is not None and (vm, n.prefix) not in stays}
        taken = {route.name for _, route in wanted}
        for name, refusal in self._routes.remove([n for n in mine if n not in taken]):
            owner = owners[name]
            if owner is not None:
                failures.append(Failure(owner, f"route {name.prefix}", str(refusal)))
        return failures

    async def _retire(self, plans: Sequence[Plan]) -> list[Failure]:
        """After the routes: remove tunnel entries, taps, filters and counters no longer wanted."""
        failures = []
        scripts: dict[VmKey, str] = {}
        for made in plans:
            wanted = {port.name for port in made.ports}
            script = ""
            for name in self._ports.of(made.vm) - wanted:
                try:
                    script += self._remove_tap(name)
                except DataPlaneError as error:
                    failures.append(Failure(made.vm, f"tap {name}", str(error)))
            script += self._filters.settle(made)
            if script:
                scripts[made.vm] = script
            if made.entry is None:
                self._ledger.close(made.vm)
        await self._circuits.settle(self._ports.sources())
        failures += await self._tunnels.retire(plans)
        for vm, reason in (await run_scripts(scripts)).items():
            failures.append(Failure(vm, "filter", reason))
        return failures

    def _remove_tap(self, name: str) -> str:
        """Remove a tap, keep its last numbers; answers the script that removes its filter."""
        tap = self._ports.taps[name]
        owner = tap.settled.vm if tap.settled is not None else None
        last = rtnetlink.link_named(self._open_netlink(), name)
        if owner is not None and last is not None:
            self._ledger.note(owner, "consumed", f"tap {name}", last.tx_packets)
            self._ledger.restart(owner, f"tap {name}")
            self._ledger.restart(owner, f"filter {name}")
        self._ports.remove(name)
        self._orders.ports_changed = True
        self._routes.forget_interface(tap.link.index)
        return self._filters.unfilter_script(name)

    async def _remove_leftovers(self) -> list[Failure]:
        """Remove what is ours by its mark and wanted by nobody."""
        netlink, tunnels = self._open_netlink(), self._tunnels
        failures = []
        script = ""
        for name in [n for n, tap in self._ports.taps.items() if tap.settled is None]:
            try:
                script += self._remove_tap(name)
            except DataPlaneError as error:
                failures.append(Failure(VmKey(0, ""), f"tap {name}", str(error)))
        base = {route.name for route in environment.tunnelled_blackholes()}
        stale = [n for n in self._routes.held if n not in self._routes.owners and n not in base]
        self._routes.remove(stale)
        netlink.batch([rtnetlink.delete_route(route) for route in self._routes.strangers])
        # Tunnels of another back end, which an earlier daemon used: no route leads there any more.
        environment.remove_surplus(netlink, self._rules(), tunnels.indices.keys())
        script += self._filters.leftovers_script(self._ports.taps)
        if script:
            try:
                await filter.run_nft(script)
            except (DataPlaneError, OSError) as error:
                failures.append(Failure(VmKey(0, ""), "filter", str(error)))
        return failures

    # -- audit --------------------------------------------------------------------------------

    async def audit(self, vms: Collection[VmKey] | None = None) -> Sequence[Drift]:
        """See DataPlane.audit.

        The first look is made without the lock: nobody who turns a route waits for it.  Only
        where it finds something, a second one is made while nothing else is under way.
        """
        if not self._orders.synchronised:
            return []
        _, _, found = await self._look(vms)
        if not found:
            return []
        async with self._lock:
            _, _, found = await self._look(vms)
            return await self._repair() if found else []

    async def _look(self, vms: Collection[VmKey] | None) -> tuple[Seen, list[Plan], list[Drift]]:
        netlink = self._open_netlink()
        faults = await self._tunnels.faults()
        if fault := await self._circuits.fault(self._ports.sources()):
            faults.append(("", "circuits", fault))
        if self.relay_deaths != self._relay_deaths_told:
            faults.append(("", "relay", "had died; another was started"))
        seen = await look(netlink, self._filters)
        adjacent = self._adjacency()
        states = [s for vm, s in self._desired.items() if vms is None or vm in vms]
        comparison = Comparison(
            seen, self._settings, self._filters, self._routes.owners, self._tunnels
        )
        plans, found = [], list(comparison.of_node(netlink))
        for state in states:
            plans.append(made := plan(state, self._settings, adjacent, self._tunnels.ways))
            found += comparison.of_vm(made)
            await asyncio.sleep(0)
        if vms is None:
            found += comparison.strays(plans)
        found += tunnel_drifts(faults, [state.vm for state in states])
        return seen, plans, found

    async def _repair(self) -> list[Drift]:
        """Under the lock: look at everything, make all of it right, and look again."""
        seen, plans, found = await self._look(None)
        self._open_netlink().batch([rtnetlink.delete_route(r) for r in duplicates(seen, plans)])
        try:
            for failure in await self._resync(dict(self._desired)):
                self._on_failure(f"{failure.vm}: {failure.item}: {failure.reason}")
        except (VmMobilityError, OSError) as error:
            self._on_failure(f"drift cannot be repaired: {error}")
        self._relay_deaths_told = self.relay_deaths
        _, _, left = await self._look(None)
        differing = {(drift.vm, drift.item) for drift in left}
        return [replace(d, repaired=(d.vm, d.item) not in differing) for d in found]

    def circuit(self, port: str) -> int:
        """The number of the circuit whose end is this port.  Raises DataPlaneError."""
        return self._ports.number(port)

    # -- relay and counters -------------------------------------------------------------------

    def _relay_lost(self) -> None:
        if self._closing:
            return
        self.relay_deaths += 1
        self._on_failure("the relay process died; starting another")
        self._recovery = asyncio.get_running_loop().create_task(
            self._recover(), name="relay recovery"
        )

    async def _recover(self) -> None:
        """Start another relay; as its device may be gone too, look at everything again."""
        async with self._lock:
            try:
                if not self._orders.synchronised:
                    await self._orders.ensure()
                    return
                for failure in await self._resync(dict(self._desired)):
                    self._on_failure(f"{failure.vm}: {failure.item}: {failure.reason}")
            except (VmMobilityError, OSError) as error:
                # The next apply or traffic tries again; routes to the TUN drop, never loop.
                self._on_failure(f"the relay is not back: {error}")

    async def traffic(self) -> Mapping[VmKey, Traffic]:
        """See DataPlane.traffic.  Costs two nft listings (some 3 ms each) and one relay order."""
        async with self._lock:
            raw = Sources(self._open_netlink(), self._filters, self._tunnels, self._ports)
            await raw.note(self._ledger)
            return {vm: self._ledger.totals(vm) for vm in self._desired}
