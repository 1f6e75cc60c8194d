"""LinuxDataPlane: desired state in, the kernel reconciled, failures out item by item.

Order within one apply (docs/design/dataplane.md): taps and filters, then the relay's entries,
then routes (one replace a prefix), and only then are old routes, relay entries, taps and filters
removed: no packet meets a hole.  A turn between local and redirect costs one relay order and one
netlink batch; nft runs only when ports or entries come and go.

Not here: messages, texts and look-ups of each part (the modules beside).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vmmobility.drivers.dataplane import Failure, Traffic
from vmmobility.drivers.linux import environment, filter, rtnetlink, sysctl
from vmmobility.drivers.linux.counters import Ledger
from vmmobility.drivers.linux.netlink import Netlink, Refusal
from vmmobility.drivers.linux.ownership import TUN_NAME
from vmmobility.drivers.linux.plan import Plan, Port, is_absent, plan, vm_name
from vmmobility.drivers.linux.ports import Ports
from vmmobility.drivers.linux.relay_client import Found, RelayClient
from vmmobility.drivers.linux.routes import RouteName, Routes
from vmmobility.drivers.linux.rtnetlink import NextHop, Route
from vmmobility.drivers.linux.settings import LinuxSettings
from vmmobility.engine.dataplane import VmDataPlane
from vmmobility.errors import DataPlaneError, VmMobilityError
from vmmobility.wire.values import Address, Prefix, VmKey


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
        self._tun_index = 0
        self._relay = RelayClient(settings, self._relay_lost)
        self._recovery: asyncio.Task[None] | None = None
        self._closing = False
        self._synchronised = False
        self._desired: dict[VmKey, VmDataPlane] = {}
        self._counted: dict[VmKey, list[Prefix]] = {}
        self._entries: dict[str, dict[str, Any]] = {}
        self._nft = filter.NftState()
        self._ledger = Ledger()
        self._ports: Ports
        self._routes: Routes
        self._ports_changed = False
        self.relay_deaths = 0

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """See DataPlane.start.  Also starts the relay, or adopts the one that runs."""
        environment.check_rights_and_programs()
        self._closing = self._synchronised = False
        if self._netlink is None:
            self._netlink = Netlink()
        self._ports = Ports(self._netlink, self._settings)
        self._routes = Routes(self._netlink)
        async with self._lock:
            await self._ensure_base()

    async def _ensure_base(self) -> None:
        """Sysctls, TUN, rules, tables and relay, then read what the kernel holds of ours."""
        netlink = self._open_netlink()
        underlays = environment.find_underlays(netlink, self._settings)
        sysctl.ensure(sysctl.for_node(tuple(link.name for link in underlays)))
        before = rtnetlink.link_named(netlink, TUN_NAME)
        self._tun_index = environment.ensure_tun(netlink, underlays)
        if before is None and self._relay.connected:
            # A relay that holds a removed device moves nothing: it must attach to the new one.
            await self._relay.stop()
        environment.ensure_rules(netlink)
        self._ports.read()
        self._routes.read()
        self._nft = await filter.read_state()
        if not self._nft.complete:
            await filter.run_nft(filter.base_script())
            self._nft = await filter.read_state()
        await self._ensure_relay()

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
        """See DataPlane.remove_all.  Sysctls stay."""
        self._closing = True
        async with self._lock:
            netlink = self._open_netlink()
            self._ports.read()
            self._routes.read()
            routes = list(rtnetlink.routes_of_ours(netlink))
            netlink.batch([rtnetlink.delete_route(route) for route in routes])
            netlink.batch([rtnetlink.delete_rule(r) for r in rtnetlink.rules_of_ours(netlink)])
            await self._relay.stop()
            for name in list(self._ports.taps):
                self._ports.remove(name)
            if (tun := rtnetlink.link_named(netlink, TUN_NAME)) is not None:
                netlink.batch([rtnetlink.delete_link(tun.index)])
            await filter.run_nft(filter.removal_script())
            for vm in list(self._ledger.vms()):
                self._ledger.close(vm)
            self._desired, self._counted, self._entries = {}, {}, {}
            self._nft = filter.NftState()
            self._routes.read()
        await self.close()

    # -- reconciliation -----------------------------------------------------------------------

    async def resync(self, desired: Mapping[VmKey, VmDataPlane]) -> Sequence[Failure]:
        """See DataPlane.resync.  Raises DataPlaneError where the base itself cannot be made."""
        async with self._lock:
            return await self._resync(desired)

    async def _resync(self, desired: Mapping[VmKey, VmDataPlane]) -> Sequence[Failure]:
        await self._ensure_base()
        self._desired, self._counted, self._entries = {}, {}, {}
        self._synchronised = True
        failures = await self._reconcile(list(desired.values()), tell_relay_all=True)
        for vm in [v for v in self._ledger.vms() if v not in self._desired]:
            self._ledger.close(vm)
        return [*failures, *await self._remove_leftovers()]

    async def apply(self, desired: Sequence[VmDataPlane]) -> Sequence[Failure]:
        """See DataPlane.apply."""
        async with self._lock:
            return await self._reconcile(desired)

    async def _reconcile(
        self, desired: Sequence[VmDataPlane], tell_relay_all: bool = False
    ) -> list[Failure]:
        plans = [plan(state, self._settings, self._adjacency()) for state in desired]
        failures = [failure for made in plans for failure in made.failures]
        for state in desired:
            if is_absent(state):
                self._desired.pop(state.vm, None)
            else:
                self._desired[state.vm] = state
                self._ledger.open(state.vm)
        failures += await self._add_ports(plans)
        failures += await self._tell_relay(plans, tell_relay_all)
        failures += self._turn_routes(plans)
        failures += await self._retire(plans)
        return failures

    def _adjacency(self) -> Callable[[Address], NextHop | str]:
        """A look-up that asks the kernel once an address."""
        netlink = self._open_netlink()
        asked: dict[Address, NextHop | str] = {}

        def ask(address: Address) -> NextHop | str:
            found = rtnetlink.look_up(netlink, address)
            if isinstance(found, Refusal):
                return f"no route to it ({found})"
            if found.gateway is not None:
                return f"it is not adjacent but behind {found.gateway}"
            if found.ifindex in (0, self._tun_index):
                return "no underlay route to it"
            return found

        def adjacent(address: Address) -> NextHop | str:
            if address not in asked:
                asked[address] = ask(address)
            return asked[address]

        return adjacent

    async def _add_ports(self, plans: Sequence[Plan]) -> list[Failure]:
        """Prepare taps, filter and count, then open them."""
        failures = []
        prepared: dict[VmKey, list[Port]] = {}
        scripts: dict[VmKey, str] = {}
        for made in plans:
            script = self._count_new(made)
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
                script += self._filter_new(port, anew=new)
            if script:
                scripts[made.vm] = script
        for vm, reason in (await self._run_scripts(scripts)).items():
            failures.append(Failure(vm, "filter", reason))
            prepared.pop(vm, None)
            self._counted.pop(vm, None)
        for port in (port for ports in prepared.values() for port in ports):
            try:
                self._ports.open(port)
                self._ports_changed = True
            except (VmMobilityError, OSError) as error:
                failures.append(Failure(port.vm, f"tap {port.name}", str(error)))
        return failures

    def _count_new(self, made: Plan) -> str:
        if self._counted.get(made.vm) == made.counted or not made.counted:
            return ""
        held = self._nft.counted
        missing = [
            prefix
            for prefix in made.counted
            if (filter.TO_TAP, prefix) not in held or (filter.ONWARD, prefix) not in held
        ]
        return filter.count_script(missing)

    def _filter_new(self, port: Port, anew: bool) -> str:
        rules = filter.filter_rules(port.mac.hex(":"), port.prefixes)
        digest = f"{filter.digest_of(rules)}/{len(rules)}"
        if not anew and self._nft.digests.get(port.name) == digest:
            return ""
        self._ledger.restart(port.vm, f"filter {port.name}")
        self._nft.digests[port.name] = digest
        return filter.filter_script(port.name, rules)

    async def _run_scripts(self, scripts: Mapping[VmKey, str]) -> dict[VmKey, str]:
        """Run all scripts as one transaction; if that fails, each alone: answers whose failed."""
        if not scripts:
            return {}
        failed = {}
        try:
            await filter.run_nft("".join(scripts.values()))
        except (DataPlaneError, OSError):
            for vm, script in scripts.items():
                try:
                    await filter.run_nft(script)
                except (DataPlaneError, OSError) as error:
                    failed[vm] = str(error)
        return failed

    async def _tell_relay(self, plans: Sequence[Plan], everything: bool) -> list[Failure]:
        """Add and change relay entries, before any route turns to the tunnel."""
        put = []
        for made in plans:
            if made.entry is not None and self._entries.get(made.entry["vm"]) != made.entry:
                self._entries[made.entry["vm"]] = made.entry
                put.append((made.vm, made.entry))
        try:
            if await self._ensure_relay() or not (put or everything or self._ports_changed):
                return []
            await self._order_change([entry for _, entry in put], everything)
        except (VmMobilityError, OSError) as error:
            return [Failure(vm, "relay", str(error)) for vm, _ in put]
        return []

    async def _order_change(self, put: list[dict[str, Any]], everything: bool) -> None:
        """Tell the relay what changed; if it dies on that, its successor is told everything."""
        order: dict[str, Any] = {"op": "change", "put": put}
        if self._ports_changed:
            order["ports"] = self._port_orders()
        try:
            await self._relay.order(self._whole_table() if everything else order)
        except DataPlaneError:
            if self._relay.connected:
                for entry in put:
                    self._entries.pop(entry["vm"], None)
                raise
            await self._ensure_relay()
        self._ports_changed = False

    def _whole_table(self) -> dict[str, Any]:
        entries = list(self._entries.values())
        return {"op": "set", "entries": entries, "ports": self._port_orders()}

    def _port_orders(self) -> list[dict[str, Any]]:
        settled = [tap.settled for tap in self._ports.taps.values() if tap.settled is not None]
        return [
            {
                "name": port.name,
                "mac": port.mac.hex(":"),
                "own": [str(p) for p in port.prefixes if p.version == 6],
            }
            for port in settled
        ]

    def _turn_routes(self, plans: Sequence[Plan]) -> list[Failure]:
        """Install and turn routes; then remove those that a VM no longer wants."""
        wanted: list[tuple[VmKey, Route]] = []
        surplus: list[RouteName] = []
        for made in plans:
            names = set(made.keep)
            for wish in made.routes:
                hop = wish.hop or NextHop(
                    self._tun_index if wish.interface == TUN_NAME
                    else self._ports.index(wish.interface)
                )  # fmt: skip
                names.add((wish.table, wish.prefix))
                if hop.ifindex:  # else its tap failed, and was reported
                    wanted.append((made.vm, Route(wish.table, wish.prefix, hop)))
            surplus += [name for name in self._routes.of(made.vm) if name not in names]
        failures = [
            Failure(vm, f"route {route.prefix}", str(refusal))
            for vm, route, refusal in self._routes.turn(wanted)
        ]
        owners = {name: self._routes.owners.get(name) for name in surplus}
        mine = {name: owners[name] for name in surplus if owners[name] is not None}
        taken = {(route.table, route.prefix) for _, route in wanted}
        for name, refusal in self._routes.remove([n for n in mine if n not in taken]):
            owner = owners[name]
            if owner is not None:
                failures.append(Failure(owner, f"route {name[1]}", str(refusal)))
        return failures

    async def _retire(self, plans: Sequence[Plan]) -> list[Failure]:
        """After the routes: remove relay entries, taps, filters and counters no longer wanted."""
        failures = []
        gone: list[str] = []
        scripts: dict[VmKey, str] = {}
        for made in plans:
            if made.entry is None and self._entries.pop(vm_name(made.vm), None) is not None:
                gone.append(vm_name(made.vm))
            wanted = {port.name for port in made.ports}
            old = [
                name
                for name, tap in self._ports.taps.items()
                if tap.settled is not None and tap.settled.vm == made.vm and name not in wanted
            ]
            script = ""
            for name in old:
                try:
                    script += self._remove_tap(name)
                except DataPlaneError as error:
                    failures.append(Failure(made.vm, f"tap {name}", str(error)))
            uncounted = [p for p in self._counted.get(made.vm, ()) if p not in made.counted]
            script += filter.uncount_script(self._uncount(made.vm, uncounted))
            if script:
                scripts[made.vm] = script
            self._note_counted(made)
        if gone or scripts:
            await self._forget_in_relay(gone)
        for vm, reason in (await self._run_scripts(scripts)).items():
            failures.append(Failure(vm, "filter", reason))
        return failures

    async def _forget_in_relay(self, gone: list[str]) -> None:
        # A relay that is not there holds nothing: its next one is told the whole table.
        with contextlib.suppress(DataPlaneError):
            order = {"op": "change", "gone": gone, "ports": self._port_orders()}
            await self._relay.order(order)
            self._ports_changed = False

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
        self._ports_changed = True
        self._routes.forget_interface(tap.link.index)
        self._nft.digests.pop(name, None)
        return filter.unfilter_script(name)

    def _uncount(self, vm: VmKey, prefixes: Iterable[Prefix]) -> list[Prefix]:
        """Those of a VM's prefixes that no other VM counts by now."""
        others = {p for other, ps in self._counted.items() if other != vm for p in ps}
        gone = [p for p in prefixes if p not in others]
        for prefix in gone:
            for kind in (filter.TO_TAP, filter.ONWARD):
                self._nft.counted.pop((kind, prefix), None)
        return gone

    def _note_counted(self, made: Plan) -> None:
        if not made.counted:
            self._counted.pop(made.vm, None)
            self._ledger.close(made.vm)
            return
        self._counted[made.vm] = made.counted
        for prefix in made.counted:
            for kind in (filter.TO_TAP, filter.ONWARD):
                self._nft.counted.setdefault((kind, prefix), 0)

    async def _remove_leftovers(self) -> list[Failure]:
        """Remove what is ours by its mark and wanted by nobody."""
        failures = []
        script = ""
        for name in [n for n, tap in self._ports.taps.items() if tap.settled is None]:
            try:
                script += self._remove_tap(name)
            except DataPlaneError as error:
                failures.append(Failure(VmKey(0, ""), f"tap {name}", str(error)))
        base = {(route.table, route.prefix) for route in environment.tunnelled_blackholes()}
        stale = [n for n in self._routes.held if n not in self._routes.owners and n not in base]
        self._routes.remove(stale)
        self._open_netlink().batch(
            [rtnetlink.delete_route(route) for route in self._routes.strangers]
        )
        for name in [n for n in self._nft.digests if n not in self._ports.taps]:
            script += filter.unfilter_script(name)
            del self._nft.digests[name]
        wanted = {p for prefixes in self._counted.values() for p in prefixes}
        unknown = {p for _, p in self._nft.counted if p not in wanted}
        script += filter.uncount_script(self._uncount(VmKey(0, ""), sorted(unknown, key=str)))
        if script:
            try:
                await filter.run_nft(script)
            except (DataPlaneError, OSError) as error:
                failures.append(Failure(VmKey(0, ""), "filter", str(error)))
        return failures

    # -- relay and counters -------------------------------------------------------------------

    async def _ensure_relay(self) -> bool:
        """Have a relay; True if one was started or adopted now and told the whole table.

        Before the first resync an adopted relay keeps the table of the daemon before us: traffic
        must not stop while this one learns what is desired.
        """
        found = await self._relay.ensure()
        if found is Found.KNOWN or (found is Found.ADOPTED and not self._synchronised):
            return False
        await self._relay.order(self._whole_table())
        if found is Found.STARTED:
            await environment.until_running(self._open_netlink(), TUN_NAME)
        return True

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
                if not self._synchronised:
                    await self._ensure_relay()
                    return
                for failure in await self._resync(dict(self._desired)):
                    self._on_failure(f"{failure.vm}: {failure.item}: {failure.reason}")
            except (VmMobilityError, OSError) as error:
                # The next apply or traffic tries again; routes to the TUN drop, never loop.
                self._on_failure(f"the relay is not back: {error}")

    async def traffic(self) -> Mapping[VmKey, Traffic]:
        """See DataPlane.traffic.  Costs two nft listings (some 3 ms each) and one relay order."""
        async with self._lock:
            state = await filter.read_state()
            links = {link.name: link for link in rtnetlink.links(self._open_netlink())}
            relayed: dict[str, dict[str, int]] = {}
            with contextlib.suppress(DataPlaneError):
                await self._ensure_relay()
                relayed = (await self._relay.order({"op": "counters"}))["vms"]
            for vm, prefixes in self._counted.items():
                for prefix in prefixes:
                    for kind, name in ((filter.TO_TAP, "delivered"), (filter.ONWARD, "redirected")):
                        packets = state.counted.get((kind, prefix), 0)
                        self._ledger.note(vm, name, f"{kind} {prefix}", packets)
                relay = relayed.get(vm_name(vm))
                if relay is not None:
                    self._ledger.note(vm, "redirected", "relay", relay.get("forwarded", 0))
                    drops = sum(n for key, n in relay.items() if key.startswith("drop_"))
                    self._ledger.note(vm, "dropped", "relay", drops)
            for name, tap in self._ports.taps.items():
                if tap.settled is None or (link := links.get(name)) is None:
                    continue
                vm = tap.settled.vm
                self._ledger.note(vm, "consumed", f"tap {name}", link.tx_packets)
                self._ledger.note(vm, "dropped", f"filter {name}", state.spoofed.get(name, 0))
            return {vm: self._ledger.totals(vm) for vm in self._desired}
