"""A daemon in front of one kernel plane: its life from the first record to the last, comparisons.

What the kernel holds outlives it (fail static).
Not here: the roles (router.py, napt.py); the NVE's daemon, which has guests, too (nve.py).
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from vmmobility.daemon.api_place import ApiPlace
from vmmobility.daemon.assembly import (
    ServeApi,
    Stopped,
    drift_words,
    note_drift,
    note_recovery,
    on_hangup,
    on_signals,
    open_store,
)
from vmmobility.daemon.endpoint import UdpEndpoint
from vmmobility.daemon.event_log import EventLog
from vmmobility.daemon.node_config import ListenerConfig
from vmmobility.daemon.plane_worker import KernelPlane, PlaneWorker
from vmmobility.daemon.pump import Engine, Pump
from vmmobility.drivers.dataplane import Drift
from vmmobility.engine.channel import Channel
from vmmobility.errors import Unavailable

AnyConfig = TypeVar("AnyConfig", bound=ListenerConfig)


class PlaneEngine(Engine, Protocol):
    """What such a daemon needs of its engine."""

    @property
    def channel(self) -> Channel: ...
    def started(self, now: float) -> None: ...


class PlaneDaemon(ABC):
    """One node put together.

    role: its name in the log; noun: in words; work: what its worker does
    engine, pump, _worker: from prepare() on
    """

    role: ClassVar[str]
    noun: ClassVar[str]
    work: ClassVar[str]

    engine: PlaneEngine
    pump: Pump
    _config: ListenerConfig
    _plane: KernelPlane
    _worker: PlaneWorker

    def __init__(self, config: ListenerConfig, plane: KernelPlane, log: EventLog) -> None:
        self._config = config
        self._plane = plane
        self._log = log
        self._since = time.monotonic()
        self._endpoint = UdpEndpoint(config.addresses, config.port)
        self._counts: Counter[str] = Counter()
        self._ready = False

    @abstractmethod
    def prepare(self, store: Any, state: Mapping[str, Any], boot: int) -> None:
        """Engine, pump and addresses; nothing in the kernel is touched yet."""

    @abstractmethod
    async def _resync(self) -> Callable[[], None]:
        """Make the kernel hold what is on record; how to tell the engine, once it has started,
        what came of it."""

    @abstractmethod
    def vm_count(self) -> int:
        """VMs that are on record."""

    def record_count(self) -> int:
        """Records that a comparison looks at: a VM's each, unless the role has more."""
        return self.vm_count()

    async def begin(self, group: asyncio.TaskGroup) -> None:
        """Make the kernel hold what is on record, and begin to speak."""
        await self._plane.start()
        tell = await self._resync()
        self.pump.open()
        self.pump.input(self.engine.started)
        tell()
        group.create_task(self._worker.run(), name=self.work)
        self._ready = True

    async def end(self) -> None:
        """Let go of everything, leaving the kernel as it is."""
        if hasattr(self, "pump"):
            self.pump.close()
        await self._plane.close()

    def reload(self) -> None:
        on_hangup(self.engine.channel, self._config.keys_dir, self._log)

    def _drifted(self, drift: Drift) -> None:
        note_drift(self._log, self._counts, drift, node=self._config.node_id)

    def _trouble(self, reason: str) -> None:
        self._log.note("data-plane.failure", reason=reason)

    def _check_ready(self) -> None:
        """The API's socket is taken before the kernel is touched, so it may be asked early."""
        if not self._ready:
            raise Unavailable(f"the {self.noun} is starting", "ask again in a moment")

    async def check(self, limit_s: float) -> dict[str, Any]:
        """Compare the kernel with the record, and repair it."""
        self._check_ready()
        try:
            async with asyncio.timeout(limit_s):
                found = await self._worker.audit()
        except TimeoutError:
            raise Unavailable(
                f"not ended within {limit_s:g} s", "ask with a longer --timeout"
            ) from None
        drift = [
            {
                "vni": each.vm.vni if each.vm else None,
                "vm": each.vm.vm_id if each.vm else None,
                "nve": self._config.node_id,
                **drift_words(each),
            }
            for each in found
        ]
        return {
            "checked": self.record_count(),
            "drift": drift,
            "repaired": sum(each.repaired for each in found),
            "unanswered": [],
        }


async def serve(
    make: Callable[[AnyConfig, EventLog], PlaneDaemon], config: AnyConfig, serve_api: ServeApi
) -> None:
    """Run the daemon that `make` makes until a signal, or the error that ended it."""
    store, state, boot = open_store(config.state_dir)
    log = EventLog(config.node_id, config.log_file)
    note_recovery(store, log)
    daemon = make(config, log)
    try:
        daemon.prepare(store, state, boot)
        with on_signals(daemon.pump.stop, daemon.reload):
            # Address and socket come first: a second daemon, started by mistake, touches nothing.
            async with (
                serve_api(daemon, ApiPlace(config.api_socket, note=log.note)),
                asyncio.TaskGroup() as group,
            ):
                await daemon.begin(group)
                log.note("started", role=daemon.role, boot=boot, vms=daemon.vm_count())
                await daemon.pump.run()
                raise Stopped
    except* Stopped:
        log.note("stopped")
    finally:
        await daemon.end()
        store.close()
        log.close()
