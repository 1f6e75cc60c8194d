"""A protected guest and its standby, for the tests of checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.contract.hypervisor_nodes import LOOPBACK, VM, Node, Pair
from vmmobility.drivers.hypervisor.interface import GuestEvent


@dataclass
class Protected:
    """A pair whose destination keeps checkpoints of the source's guest."""

    pair: Pair
    door: tuple[str, int, str, int] = ("", 0, "", 0)

    @property
    def source(self) -> Node:
        return self.pair.source

    @property
    def standby(self) -> Node:
        return self.pair.destination

    async def receive(self) -> int:
        """Open the standby's door; the number of what is complete there."""
        self.door = await self.standby.hypervisor.receive_checkpoints(
            self.pair.definition, LOOPBACK
        )
        return self.door[3]

    async def begin(self, *, final: bool = False) -> None:
        await self.source.hypervisor.checkpoint(VM, *self.door[:3], final=final)

    async def outcome(self) -> dict[str, Any]:
        return (await self.source.next(GuestEvent.CHECKPOINT)).detail

    async def checkpoint(self, *, final: bool = False) -> dict[str, Any]:
        """A checkpoint that becomes complete; its figures."""
        await self.begin(final=final)
        told = await self.outcome()
        assert told["ok"], told
        held = await self.standby.next(GuestEvent.CHECKPOINT_HELD)
        assert held.detail["number"] == told["number"]
        return told

    async def fails(self) -> str:
        """A checkpoint that does not become complete; why."""
        await self.begin()
        told = await self.outcome()
        assert not told["ok"], told
        return str(told["reason"])

    async def activate(self) -> None:
        await self.standby.hypervisor.activate(self.pair.definition, [self.standby.port])
        await self.standby.next(GuestEvent.RESUMED)
