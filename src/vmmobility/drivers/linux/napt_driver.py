"""LinuxNaptPlane: a NAPT box's desired state in, the kernel reconciled, failures out.

What stands is read from the kernel at every resync and audit; between them the driver knows what
it wrote last.  A change is one nftables transaction between two steps of the detours (prepare,
complete), so that nothing of an address leaves by the wrong way or with the wrong mapping.

Not here: rules (napt_rules.py), comparison (napt_table.py), routing (napt_detours.py), flows
(napt_flows.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address

from vmmobility.drivers.dataplane import Drift
from vmmobility.drivers.linux import (
    napt_conntrack,
    napt_detours,
    napt_environment,
    napt_flows,
    napt_table,
)
from vmmobility.drivers.linux.napt_conntrack import NETLINK_NETFILTER
from vmmobility.drivers.linux.napt_rules import (
    Content,
    change_script,
    content,
    removal_script,
    whole_script,
)
from vmmobility.drivers.linux.napt_table import Listing
from vmmobility.drivers.linux.netlink import Netlink
from vmmobility.drivers.napt_plane import NaptFailure, NaptUsage
from vmmobility.drivers.napt_state import count_flows, settle
from vmmobility.engine.napt_plane import Flow, NaptState
from vmmobility.errors import DataPlaneError, VmMobilityError


class LinuxNaptPlane:
    """The NaptPlane of a Linux router.  One instance a network namespace.

    `on_failure` hears in words of what an audit could not repair.
    """

    def __init__(self, on_failure: Callable[[str], None] | None = None) -> None:
        self._on_failure = on_failure or (lambda _: None)
        self._routing: Netlink | None = None
        self._flows: Netlink | None = None
        self._desired: NaptState | None = None
        self._content: Content | None = None
        self._turn = asyncio.Lock()

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """See NaptPlane.start."""
        napt_environment.check_programs()
        _, flows = self._open()
        await napt_environment.check_kernel(flows)
        napt_environment.ensure_settings()

    def _open(self) -> tuple[Netlink, Netlink]:
        if self._routing is None or self._flows is None:
            self._routing, self._flows = Netlink(), Netlink(NETLINK_NETFILTER)
        return self._routing, self._flows

    def _started(self) -> tuple[Netlink, Netlink]:
        if self._routing is None or self._flows is None:
            raise DataPlaneError("the NAPT data plane is not started", "call start() first")
        return self._routing, self._flows

    async def close(self) -> None:
        """See NaptPlane.close."""
        for netlink in (self._routing, self._flows):
            if netlink is not None:
                netlink.close()
        self._routing = self._flows = None
        self._desired = self._content = None

    async def remove_all(self) -> None:
        """See NaptPlane.remove_all.  Raises DataPlaneError where something cannot be removed."""
        napt_environment.check_programs()
        routing, flows = self._open()
        async with self._turn:
            shown = await napt_table.held()
            publics = shown.prefixes("publics") if shown is not None else []
            if shown is not None:
                await napt_table.run(removal_script())
            entries = {
                entry.ident: entry
                for entry, flow in napt_flows.all_translated(flows)
                if any(flow.public[0] in prefix for prefix in publics)
            }
            napt_flows.remove(flows, entries.values())
            standing = napt_detours.held(routing)
            failures = napt_detours.remove(routing, standing.rules, list(standing.routes))
        await self.close()
        if failures:
            raise DataPlaneError(str(failures[0]))

    # -- reconciliation -----------------------------------------------------------------------

    async def apply(self, desired: NaptState) -> Sequence[NaptFailure]:
        """See NaptPlane.apply."""
        self._started()
        async with self._turn:
            return await self._make(desired)

    async def resync(self, desired: NaptState) -> Sequence[NaptFailure]:
        """See NaptPlane.resync."""
        self._started()
        napt_environment.ensure_settings()
        async with self._turn:
            self._content = None
            return await self._make(desired)

    async def _make(self, desired: NaptState) -> list[NaptFailure]:
        """The detours' first step, the rules, the detours' second step.

        Nothing is changed where the kernel cannot be read, or the rules are refused as a whole
        (the detours of the state before stay as they are, too).
        """
        routing, _ = self._started()
        state, failures = settle(desired)
        have = napt_detours.held(routing)
        want, unreachable = napt_detours.wanted(routing, state)
        failures += unreachable
        failures += napt_detours.prepare(routing, have, want)
        wish = content(state)
        try:
            script = await self._script(wish)
            if script:
                await napt_table.run(script)
        except (DataPlaneError, OSError) as error:
            self._content = None
            self._desired = desired
            failures += napt_detours.take_back(routing, have, want)
            return [*failures, NaptFailure("rules", str(error))]
        self._content, self._desired = wish, desired
        failures += napt_detours.complete(routing, have, want)
        return failures

    async def _script(self, wish: Content) -> str:
        """What makes the table so: elements only where the rest is known to be right."""
        if self._content is not None:
            return change_script(self._content, wish)
        shown, wanted = await napt_table.held(), await napt_table.picture(wish)
        if shown is not None and not list(napt_table.faults(shown, wanted)):
            return ""
        if shown is not None and napt_table.only_elements(shown, wanted):
            return change_script(Content(dict.fromkeys(wish.elements, ("?",)), ("?",)), wish)
        return whole_script(wish, shown.counts if shown is not None else None)

    async def audit(self) -> Sequence[Drift]:
        """See NaptPlane.audit."""
        self._started()
        if self._desired is None:
            return []
        async with self._turn:
            desired = self._desired
            wanted = await napt_table.picture(content(settle(desired)[0]))
            found = await self._differences(desired, wanted)
            if not found:
                return []
            try:
                napt_environment.ensure_settings()
                self._content = None
                for failure in await self._make(desired):
                    self._on_failure(str(failure))
            except (VmMobilityError, OSError) as error:
                self._on_failure(f"drift cannot be repaired: {error}")
            left = {drift.item for drift in await self._differences(desired, wanted)}
            return [replace(drift, repaired=drift.item not in left) for drift in found]

    async def _differences(self, desired: NaptState, wanted: Listing) -> list[Drift]:
        shown = await napt_table.held()

        def tell() -> Iterator[tuple[str, str]]:
            routing, _ = self._started()
            yield from napt_environment.faults()
            yield from napt_table.faults(shown, wanted)
            want, _ = napt_detours.wanted(routing, settle(desired)[0])
            yield from napt_detours.faults(routing, napt_detours.held(routing), want)

        return [Drift(None, item, words) for item, words in tell()]

    # -- flows --------------------------------------------------------------------------------

    async def export_flows(self, private: IPv4Address) -> tuple[Flow, ...]:
        """See NaptPlane.export_flows."""
        return napt_flows.export(self._started()[1], private)

    async def import_flows(self, flows: Sequence[Flow]) -> Sequence[NaptFailure]:
        """See NaptPlane.import_flows."""
        return napt_flows.bring_in(self._started()[1], flows)

    async def drop_flows(self, private: IPv4Address, public: IPv4Address | None = None) -> int:
        """See NaptPlane.drop_flows."""
        return napt_flows.drop(self._started()[1], private, public)

    async def usage(self) -> NaptUsage:
        """See NaptPlane.usage.  Reads the whole flow table."""
        _, netlink = self._started()
        shown = await napt_table.held()
        dropped = shown.dropped if shown is not None else {}
        total = sum(1 for _ in napt_conntrack.entries(netlink))
        flows = [flow for _, flow in napt_flows.all_translated(netlink)]
        failed, lost = napt_conntrack.failures(netlink)
        counted = count_flows(settle(self._desired or NaptState())[0], flows)
        return replace(
            counted,
            flows=total,
            limit=napt_environment.flow_limit(),
            exhausted=failed,
            table_full=max(0, lost - failed),
            no_pool=dropped.get("no_pool", 0),
            unknown=dropped.get("unknown", 0),
            unmapped=dropped.get("unmapped", 0),
            untranslated=dropped.get("untranslated", 0),
        )
