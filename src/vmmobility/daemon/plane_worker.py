"""The task in front of a kernel plane: what waits is done, and at intervals kernel and record are
compared.

Not here: what is done (router_worker.py, napt_worker.py), the NVE's two tasks, whose audits run
beside (data_plane_worker.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from vmmobility.drivers.dataplane import Drift
from vmmobility.errors import DataPlaneError


class KernelPlane(Protocol):
    """What all planes have: a start, a comparison as a whole, an end."""

    async def start(self) -> None: ...
    async def audit(self) -> Sequence[Drift]: ...
    async def close(self) -> None: ...


class PlaneWorker(ABC):
    """One task in front of the driver.

    drifted(drift): found by a comparison; trouble(reason): it could not be made
    check_s: how often kernel and record are compared
    """

    _plane: KernelPlane

    def __init__(
        self,
        plane: KernelPlane,
        drifted: Callable[[Drift], None],
        trouble: Callable[[str], None],
        check_s: float,
    ) -> None:
        self._plane = plane
        self._drifted = drifted
        self._trouble = trouble
        self._check_s = check_s
        self._wake = asyncio.Event()

    @abstractmethod
    async def _work(self) -> None:
        """Do what waits; called after each `_wake`, and before each comparison."""

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        audit_at = loop.time() + self._check_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(audit_at):
                    await self._wake.wait()
            self._wake.clear()
            await self._work()
            if loop.time() >= audit_at:
                await self.audit()
                audit_at = loop.time() + self._check_s

    async def audit(self) -> list[Drift]:
        """Compare the kernel with what was asked, repair it, and tell what differed."""
        try:
            found = list(await self._plane.audit())
        except (DataPlaneError, OSError) as error:
            self._trouble(f"the kernel cannot be compared: {error}")
            return []
        for drift in found:
            self._drifted(drift)
        return found
