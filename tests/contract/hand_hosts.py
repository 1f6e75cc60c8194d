"""Two hosts whose guests others run, each watched by an NVE's driver: in memory, or QEMU by hand.

QEMU's two hosts share this machine; the operator has a monitor of each, beside the NVE's.  Not
here: QEMU's command line and the operator's monitor (hand_run.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tests.contract.hand_run import HandRun
from tests.contract.waiting import LIMIT_S
from vmmobility.drivers.hypervisor.external import ExternalHypervisor
from vmmobility.drivers.hypervisor.fake_external import FakeExternalHypervisor, FakeHands
from vmmobility.drivers.hypervisor.interface import (
    GuestEvent,
    GuestReport,
    Hypervisor,
    VmDefinition,
)
from vmmobility.drivers.hypervisor.settings import ExternalSettings
from vmmobility.engine.dataplane import port_name
from vmmobility.wire.registry import GuestLife
from vmmobility.wire.values import Interface, VmKey

QUIET_S = 0.3  # so long nothing must be reported
VM = VmKey(0, "by-hand")
INTERFACE = Interface(
    bytes.fromhex("525400000201"), (ip_network("10.1.0.9/32"), ip_network("fd01::9/128"))
)
HASTY = ExternalSettings(absent_s=0.05, retry_s=0.1, answer_s=1.0, patrol_s=1.0)

T = TypeVar("T")


class Hands(Protocol):
    """What people do on one host."""

    async def boot(self) -> None: ...
    async def await_copy(self) -> None: ...
    async def migrate(self, to: Any) -> None: ...
    async def pause(self) -> None: ...
    async def cont(self) -> None: ...
    async def kill(self) -> None: ...
    async def status(self) -> str: ...


class FakeHost:
    """FakeHands as Hands."""

    def __init__(self) -> None:
        self.hands = FakeHands()

    async def boot(self) -> None:
        self.hands.boot(VM)

    async def await_copy(self) -> None:
        self.hands.await_copy_of(VM)

    async def migrate(self, to: FakeHost) -> None:
        self.hands.migrate(VM, to.hands)

    async def pause(self) -> None:
        self.hands.pause(VM)

    async def cont(self) -> None:
        self.hands.cont(VM)

    async def kill(self) -> None:
        self.hands.kill(VM)

    async def status(self) -> str:
        runs = self.hands.guests[VM] in (GuestLife.RUNNING, GuestLife.ARRIVED)
        return "running" if runs else "paused"


class QemuHost(HandRun):
    """HandRun as Hands."""

    async def pause(self) -> None:
        await self.say("stop")

    async def cont(self) -> None:
        await self.say("cont")

    async def kill(self) -> None:
        await self.end()


class Node:
    """One host: its hands, its hypervisor, and the reports that have come."""

    def __init__(self, hands: Any, qmp: Path) -> None:
        self.hands: Hands = hands
        self.definition = VmDefinition(VM, "external", (INTERFACE,), machine={"qmp": str(qmp)})
        self.reports: asyncio.Queue[GuestReport] = asyncio.Queue()
        self.notes: list[dict[str, Any]] = []
        self.hypervisor: Hypervisor = self._open()

    def _open(self) -> Hypervisor:
        if isinstance(self.hands, FakeHost):
            return FakeExternalHypervisor(self.reports.put_nowait, self.hands.hands)
        return ExternalHypervisor(self.reports.put_nowait, self.note, HASTY)

    def note(self, name: str, **detail: Any) -> None:
        self.notes.append({"event": name, **detail})

    async def boot(self) -> None:
        """Somebody boots the guest, and that is reported."""
        await self.hands.boot()
        await self.next(GuestEvent.ARRIVED)

    async def watch(self) -> None:
        await self.hypervisor.watch(self.definition, [port_name(VM, 0)])

    async def restart(self) -> dict[VmKey, bool]:
        """The daemon dies, and another adopts what it finds."""
        await self.hypervisor.close()
        self.hypervisor = self._open()
        return await self.hypervisor.adopt([self.definition])

    async def next(self, event: GuestEvent) -> dict[str, Any]:
        """The next report, which must be `event`; its detail."""
        async with asyncio.timeout(LIMIT_S):
            report = await self.reports.get()
        assert report.event is event, report
        assert report.vm == VM
        return report.detail

    async def noted(self) -> list[dict[str, Any]]:
        return self.notes

    async def quiet(self) -> None:
        """Nothing is reported, for as long as a report might take."""
        patience = QUIET_S if isinstance(self.hypervisor, ExternalHypervisor) else 0.01
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                report = await self.reports.get()
                raise AssertionError(f"it reported {report}")

    async def life(self) -> GuestLife:
        return await self.hypervisor.query(VM)


class Pair:
    """Two hosts that both watch for the VM."""

    def __init__(self, source: Node, destination: Node) -> None:
        self.source = source
        self.destination = destination

    async def migrated(self) -> None:
        """Booted at the source, moved by hand, and so reported."""
        await self.source.boot()
        await self.destination.hands.await_copy()
        await self.source.hands.migrate(self.destination.hands)
        await self.source.next(GuestEvent.DEPARTED)
        await self.destination.next(GuestEvent.ARRIVED)


PairTest = Callable[[Pair], Awaitable[None]]
Run = Callable[[PairTest], None]


def play(make: Callable[[Path], Any], folder: Path, test: PairTest) -> None:
    async def whole() -> None:
        nodes = [Node(make(folder / end), folder / end / "nve.qmp") for end in ("a", "b")]
        try:
            for node in nodes:
                await node.watch()
            await test(Pair(*nodes))
        finally:
            for node in nodes:
                await node.hypervisor.close()
                if isinstance(node.hands, QemuHost):
                    await node.hands.end()

    asyncio.run(asyncio.wait_for(whole(), 60))
