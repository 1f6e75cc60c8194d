"""What the manager's API serves of warm standbys; a part of manager_service.Manager.

Not here: HTTP (api/protection_routes.py), decisions (engine/manager_protection.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from vmmobility.engine.manager_protection_record import ProtectedVm
from vmmobility.wire.values import VmKey

if TYPE_CHECKING:
    from vmmobility.engine.manager import ManagerEngine

Result = TypeVar("Result")


class ProtectionService:
    """Answers about protected VMs."""

    if TYPE_CHECKING:
        _engine: ManagerEngine

        def _command(self, feed: Callable[[float], Result]) -> Result: ...

    def protected(self) -> list[dict[str, Any]]:
        return [self._protection(p) for _, p in sorted(self._engine.protected.items())]

    def protection(self, vm: VmKey) -> dict[str, Any] | None:
        """Of one VM; None if it has no standby."""
        found = self._engine.protected.get(vm)
        return None if found is None else self._protection(found)

    def stalest_s(self) -> float | None:
        """The age of the oldest last checkpoint; None if none is known."""
        now = time.monotonic()
        ages = [p.staleness_s(now) for p in self._engine.protected.values()]
        return max((round(age, 3) for age in ages if age is not None), default=None)

    async def protect(
        self,
        vm: VmKey,
        to: str,
        every_s: float,
        fail_over: bool,
        lease_s: float | None,
        at: str | None,
    ) -> dict[str, Any]:
        at_min = None if at is None else minute_of(at)

        def begin(now: float) -> ProtectedVm:
            return self._engine.protect(
                vm, to, every_s, now, fail_over=fail_over, lease_s=lease_s, at_min=at_min
            )

        return self._protection(self._command(begin))

    async def unprotect(self, vm: VmKey) -> dict[str, Any]:
        return self._protection(self._command(lambda now: self._engine.unprotect(vm, now)))

    def _protection(self, protected: ProtectedVm) -> dict[str, Any]:
        binding = self._engine.cache.bindings.get(protected.vm)
        age = protected.staleness_s(time.monotonic())
        next_s = protected.next_s(time.monotonic(), time.time())
        at_min = protected.at_min
        return {
            "vni": protected.vm.vni,
            "vm": protected.vm.vm_id,
            "nve": None if binding is None else binding.nve.nve_id,
            "standby": protected.standby.nve_id,
            "state": protected.state.value,
            "every_s": protected.interval_s,
            "at": None if at_min is None else f"{at_min // 60:02}:{at_min % 60:02}",
            "next_s": None if next_s is None else round(next_s, 3),
            "fail_over": protected.fail_over,
            "lease_s": protected.lease_s,
            "checkpoint": protected.number,
            "staleness_s": None if age is None else round(age, 3),
            "reason": protected.trouble,
        }


def minute_of(at: str) -> int:
    """Of the day, of a time of day as the API takes it ("03:00")."""
    hour, _, minute = at.partition(":")
    return int(hour) * 60 + int(minute)
