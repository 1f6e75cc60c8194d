"""The NAPT box's worker: its engine's orders to the kernel, one after the other, in their order.

Not here: what the state should be (engine/napt.py), how it is made (drivers/napt_plane.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address

from vmmobility.daemon.plane_worker import PlaneWorker
from vmmobility.drivers.dataplane import Drift
from vmmobility.drivers.napt_plane import NaptFailure, NaptPlane
from vmmobility.engine.napt_plane import Flow
from vmmobility.engine.outputs import DropFlows, ExportFlows, ImportFlows, SetNapt
from vmmobility.errors import DataPlaneError

Order = SetNapt | ExportFlows | ImportFlows | DropFlows

AGAIN_S = 5.0
"""After so long flows that could not be forgotten are tried again."""


class NaptWorker(PlaneWorker):
    """Takes an engine's orders.

    applied(tag, failures), exported(number, flows, error), imported(number, failures): the answers
    drifted, trouble, check_s: a PlaneWorker's
    """

    _plane: NaptPlane

    def __init__(
        self,
        plane: NaptPlane,
        applied: Callable[[int, Sequence[str]], None],
        exported: Callable[[int, Sequence[Flow], str], None],
        imported: Callable[[int, Sequence[str]], None],
        drifted: Callable[[Drift], None],
        trouble: Callable[[str], None],
        check_s: float,
    ) -> None:
        super().__init__(plane, drifted, trouble, check_s)
        self._applied = applied
        self._exported = exported
        self._imported = imported
        self._orders: deque[Order] = deque()
        self._undone: list[DropFlows] = []

    def give(self, order: Order) -> None:
        """What waits is done in the order given; of two states that follow each other the last."""
        if self._orders and isinstance(order, SetNapt) and isinstance(self._orders[-1], SetNapt):
            self._orders.pop()
        self._orders.append(order)
        self._wake.set()

    async def _work(self) -> None:
        while self._orders:
            await self._carry_out(self._orders.popleft())

    async def _carry_out(self, order: Order) -> None:
        self._undone = [one for one in self._undone if not _overtaken(one, order)]
        match order:
            case SetNapt(state, tag):
                self._applied(tag, await self._tried(self._plane.apply(state)))
            case ImportFlows(number, flows):
                self._imported(number, await self._tried(self._plane.import_flows(flows)))
            case DropFlows():
                await self._forget(order)
            case ExportFlows(number, private):
                await self._export(number, private)

    async def _forget(self, order: DropFlows) -> None:
        """Once, and again until it is done, or overtaken: flows that outlive their mapping lead to
        whoever gets the address next."""
        try:
            await self._plane.drop_flows(order.private, order.public)
        except (DataPlaneError, OSError) as error:
            self._trouble(f"the flows of {order.private} are not forgotten: {error}")
            if not self._undone:
                asyncio.get_running_loop().call_later(AGAIN_S, self._try_again)
            self._undone.append(order)

    def _try_again(self) -> None:
        # In front: what is given later may overtake it, and what was has been asked.
        self._orders.extendleft(reversed(self._undone))
        self._undone = []
        self._wake.set()

    async def _export(self, number: int, private: IPv4Address) -> None:
        try:
            flows = await self._plane.export_flows(private)
        except (DataPlaneError, OSError) as error:
            self._exported(number, (), str(error))
        else:
            self._exported(number, flows, "")

    @staticmethod
    async def _tried(work: Awaitable[Sequence[NaptFailure]]) -> list[str]:
        try:
            return [str(failure) for failure in await work]
        except (DataPlaneError, OSError) as error:
            return [str(error)]


def _overtaken(undone: DropFlows, order: Order) -> bool:
    """Whether an order says that the flows that could not be forgotten are right again."""
    match order:
        case SetNapt(state, _):
            return any(_concerns(undone, one.private, one.public) for one in state.static)
        case ImportFlows(_, flows):
            return any(_concerns(undone, flow.private[0], flow.public[0]) for flow in flows)
        case _:
            return order == undone


def _concerns(undone: DropFlows, private: IPv4Address, public: IPv4Address) -> bool:
    return undone.private == private and undone.public in (None, public)
