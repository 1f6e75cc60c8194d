"""What the manager's API serves of drains and cordons; a part of manager_service.Manager.

Not here: HTTP (api/drain_routes.py), decisions (engine/manager_drains.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from vmmobility.daemon.drain_views import cordon_view, drain_rows, drain_view
from vmmobility.engine.manager_drain import Drain
from vmmobility.engine.outputs import Event

if TYPE_CHECKING:
    from vmmobility.engine.manager import ManagerEngine

Result = TypeVar("Result")
ENDED_EVENTS = frozenset({"drain.done", "drain.incomplete", "drain.aborted"})


class DrainService:
    """Answers about drains, and waiting for their end."""

    if TYPE_CHECKING:
        _engine: ManagerEngine

        def _command(self, feed: Callable[[float], Result]) -> Result: ...

    _waiting_drains: dict[str, list[asyncio.Future[None]]]

    def drains(self) -> list[dict[str, Any]]:
        return [self._drain_view(drain) for drain in self._engine.drains.values()]

    def drain(self, id: str) -> dict[str, Any] | None:
        drain = self._engine.drains.get(id)
        return None if drain is None else {**self._drain_view(drain), "vms": drain_rows(drain)}

    async def start_drain(
        self, nve: str, to: list[str], parallel: int, uncordon: bool
    ) -> dict[str, Any]:
        def begin(now: float) -> Drain:
            self._engine.tell_time(time.time_ns(), now)
            return self._engine.drain(nve, to, parallel, uncordon, now)

        drain = self._command(begin)
        return {**self._drain_view(drain), "vms": drain_rows(drain)}

    async def abort_drain(self, id: str) -> dict[str, Any]:
        drain = self._command(lambda now: self._engine.abort_drain(id, now))
        return {**self._drain_view(drain), "vms": drain_rows(drain)}

    async def wait_drain(self, id: str, seconds: float) -> dict[str, Any] | None:
        drain = self._engine.drains.get(id)
        if drain is not None and drain.ok is None:
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting = self._waiting_drains.setdefault(id, [])
            waiting.append(ended)
            try:
                await asyncio.wait([ended], timeout=seconds)
            finally:
                waiting.remove(ended)
        return self.drain(id)

    async def cordon(self, nve: str) -> dict[str, Any]:
        return cordon_view(self._command(lambda now: self._engine.cordon(nve, now)))

    async def uncordon(self, nve: str) -> dict[str, Any]:
        self._command(lambda now: self._engine.uncordon(nve, now))
        return {"nve": nve, "cordoned": False, "since_ns": None}

    def _drain_view(self, drain: Drain) -> dict[str, Any]:
        moves = self._engine.moves
        under_way = (moves.get(each.move_id) for each in drain.vms.values())
        progress = {
            move.move_id: getattr(move, "progress", None) or {}
            for move in under_way
            if move is not None and move.ok is None
        }
        return drain_view(drain, progress, time.time_ns())

    def _drain_event(self, event: Event) -> None:
        if event.name in ENDED_EVENTS:
            for ended in list(self._waiting_drains.pop(event.detail["drain"], [])):
                if not ended.done():
                    ended.set_result(None)
