"""The NVE's data plane worker: the newest state a VM, applied in batches; counters read when due.

It also has the driver compare VMs with the kernel (audits): those that the engine asks for, after
all states that were given before, and everything at intervals.  An audit is no hurry: it runs
beside, so that no state waits for it, and takes a bounded share of the time.

Not here: what the state should be (engine/nve.py), how it is made (drivers/linux).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence

from vmmobility.drivers.dataplane import DataPlane, Drift, Traffic
from vmmobility.engine.outputs import Audit, CountTraffic, SetDataPlane
from vmmobility.errors import DataPlaneError
from vmmobility.wire.values import VmKey

POLL_S = 0.5  # how often redirected traffic is counted while a redirect waits for its end
REST, LONGEST_REST_S = 4.0, 1.0
"""After an audit none is made for so many times its duration, within bounds; requests gather."""


class DataPlaneWorker:
    """Two tasks in front of the driver: one for what is asked, one for audits.

    applied(vm, tag, failures), counted(vm, label, traffic), polled(counts): the answers
    audited(vm, drift): the answer to an audit, in words; drifted(drift): found beside it, of nobody
    or of a VM that was not asked about
    wants_traffic(): whether redirected traffic is to be counted now
    trouble(reason): traffic could not be counted; a count that was asked for has no answer then
    check_s: how often everything is compared
    """

    def __init__(
        self,
        driver: DataPlane,
        applied: Callable[[VmKey, int, Sequence[str]], None],
        counted: Callable[[VmKey, str, Traffic], None],
        polled: Callable[[Mapping[VmKey, Traffic]], None],
        audited: Callable[[VmKey, Sequence[str]], None],
        drifted: Callable[[Drift], None],
        wants_traffic: Callable[[], bool],
        trouble: Callable[[str], None],
        check_s: float = 60.0,
    ) -> None:
        self._driver = driver
        self._applied = applied
        self._counted = counted
        self._polled = polled
        self._audited = audited
        self._drifted = drifted
        self._wants_traffic = wants_traffic
        self._trouble = trouble
        self._states: dict[VmKey, SetDataPlane] = {}
        self._counts: list[CountTraffic] = []
        self._audits: dict[VmKey, None] = {}
        self._check_s = check_s
        self._given = self._done = 0
        self._wake = asyncio.Event()
        self._applied_some = asyncio.Event()
        self._audit_wanted = asyncio.Event()
        self._shaken = False

    def set(self, output: SetDataPlane) -> None:
        """The newest state of a VM; an older one that has not begun is not wanted any more."""
        self._states[output.state.vm] = output
        self._given += 1
        self._wake.set()

    def count(self, output: CountTraffic) -> None:
        self._counts.append(output)
        self._wake.set()

    def audit(self, output: Audit) -> None:
        self._audits[output.vm] = None
        self._audit_wanted.set()

    def look(self) -> None:
        """What routes rest on has changed: compare everything soon, and not when its time comes."""
        self._shaken = True
        self._audit_wanted.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve(), name="states and counters")
            group.create_task(self._compare(), name="audits")

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        poll_at = loop.time() + POLL_S
        while True:
            wait = max(0.0, poll_at - loop.time())
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                poll_at = loop.time() + POLL_S
                if self._wants_traffic() and (counts := await self._traffic()) is not None:
                    self._polled(counts)
                continue
            self._wake.clear()
            if self._states:
                await self._apply()
            if self._counts:
                await self._count()

    async def _compare(self) -> None:
        loop = asyncio.get_running_loop()
        all_at = loop.time() + self._check_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(all_at):
                    await self._audit_wanted.wait()
            self._audit_wanted.clear()
            await self._caught_up()
            begun = loop.time()
            whole, self._shaken = self._shaken or begun >= all_at, False
            await self._audit(whole)
            ended = loop.time()
            if whole:
                all_at = ended + self._check_s
            await asyncio.sleep(min(REST * (ended - begun), LONGEST_REST_S))

    async def _caught_up(self) -> None:
        """Wait until the states that were given until now have been applied."""
        given = self._given
        while self._done < given:
            self._applied_some.clear()
            await self._applied_some.wait()

    async def _apply(self) -> None:
        states, self._states, given = list(self._states.values()), {}, self._given
        failed: dict[VmKey, list[str]] = {}
        try:
            for failure in await self._driver.apply([output.state for output in states]):
                failed.setdefault(failure.vm, []).append(f"{failure.item}: {failure.reason}")
        except (DataPlaneError, OSError) as error:
            failed = {output.state.vm: [str(error)] for output in states}
        for output in states:
            self._applied(output.state.vm, output.tag, failed.get(output.state.vm, []))
        self._done = given
        self._applied_some.set()

    async def _count(self) -> None:
        wanted, self._counts = self._counts, []
        counts = await self._traffic()
        if counts is None:
            return
        for output in wanted:
            self._counted(output.vm, output.label, counts.get(output.vm, Traffic()))

    async def _audit(self, whole: bool) -> None:
        wanted, self._audits = self._audits, {}
        words: dict[VmKey, list[str]] = {vm: [] for vm in wanted}
        try:
            found = await self._driver.audit(None if whole else list(wanted))
        except (DataPlaneError, OSError) as error:
            # An answer all the same: somebody waits for it, and should know.
            self._trouble(f"the kernel cannot be compared: {error}")
            for told in words.values():
                told.append(f"cannot be read: {error}")
            found = []
        for drift in found:
            if drift.vm in words:
                still = "" if drift.repaired else " (still so)"
                words[drift.vm].append(f"{drift.item}: {drift.found}{still}")
            else:
                self._drifted(drift)
        for vm, told in words.items():
            self._audited(vm, told)

    async def _traffic(self) -> Mapping[VmKey, Traffic] | None:
        """The counters; None if they cannot be read now (the relay has just died)."""
        try:
            return await self._driver.traffic()
        except (DataPlaneError, OSError) as error:
            self._trouble(f"traffic cannot be counted: {error}")
            return None
