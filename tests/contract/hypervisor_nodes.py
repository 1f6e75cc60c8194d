"""Two nodes with a hypervisor each, a VM that both can run, and the reports that they send.

For the tests of every hypervisor.  Not here: what must hold of them (test_hypervisor_contract.py).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from pathlib import Path

from tests.contract.waiting import until_true
from vmmobility.drivers.hypervisor import process
from vmmobility.drivers.hypervisor.fake import FakeHypervisor, FakeWorld
from vmmobility.drivers.hypervisor.interface import (
    GuestEvent,
    GuestReport,
    Hypervisor,
    VmDefinition,
)
from vmmobility.drivers.hypervisor.process import GuestFolder
from vmmobility.drivers.hypervisor.qemu import QemuHypervisor
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.lab import workdir
from vmmobility.lab.guest.image import guest_image, kernel_arguments
from vmmobility.wire.move_terms import NO_TERMS, MoveTerms
from vmmobility.wire.values import Interface, VmKey

LIMIT_S = 30.0
LOOPBACK = "127.0.0.1"
VM = VmKey(0, "contract")
INTERFACE = Interface(
    bytes.fromhex("525400000101"), (ip_network("10.1.0.1/32"), ip_network("fd01::1/128"))
)


class Node:
    """One hypervisor, its tap, and the reports that have come from it."""

    def __init__(self, port: str) -> None:
        self.port = port
        self.reports: asyncio.Queue[GuestReport] = asyncio.Queue()
        self.progress: list[GuestReport] = []
        self.on_report: Callable[[GuestReport], None] = lambda report: None
        self.hypervisor: Hypervisor
        self.reopen: Callable[[], Hypervisor]
        self.kill: Callable[[], None]
        self.hang: Callable[[], None]  # the guest answers nobody
        self.unhang: Callable[[], None]
        self.has_booted: Callable[[], bool] = lambda: True
        self.dawdle: Callable[[], None] = lambda: None  # its copies do not converge of themselves
        self.time_out: Callable[[], None] = lambda: None  # the time of a copy's terms is up
        self.driver: Callable[[], Hypervisor] = lambda: self.hypervisor  # where guests have names

    async def restart(self) -> None:
        """The daemon ends, and another is there."""
        await self.hypervisor.close()
        self.hypervisor = self.reopen()

    def hear(self, report: GuestReport) -> None:
        """The hypervisor's listener.  Of progress there may be any number."""
        if report.event is GuestEvent.PROGRESS:
            self.progress.append(report)
            return
        self.on_report(report)
        self.reports.put_nowait(report)

    async def next(self, event: GuestEvent) -> GuestReport:
        """The next report, which must be `event`."""
        async with asyncio.timeout(LIMIT_S):
            report = await self.reports.get()
        assert report.event is event, report
        assert report.vm == VM
        return report


class Pair:
    """A source node, a destination node and a VM that both can run."""

    def __init__(self, definition: VmDefinition, source: Node, destination: Node) -> None:
        self.definition = definition
        self.source = source
        self.destination = destination

    async def start(self) -> None:
        await self.source.hypervisor.start(self.definition, [self.source.port])
        await self.source.next(GuestEvent.STARTED)

    async def prepare(
        self, terms: MoveTerms = NO_TERMS, *, held: bool = False, secret: str = ""
    ) -> tuple[str, int]:
        node = self.destination
        return await node.hypervisor.prepare_incoming(
            self.definition, [node.port], LOOPBACK, terms, held=held, secret=secret
        )

    async def hold_what_is_held(self) -> None:
        """A guest that does not run, with a converged, held copy."""
        await self.source.hypervisor.copy_out(VM, *await self.prepare(held=True))
        await self.source.next(GuestEvent.CONVERGED)

    async def copy_slowly(self, terms: MoveTerms) -> None:
        """A started guest whose copy does not converge within the terms' time."""
        await self.start()
        self.source.dawdle()
        await self.source.hypervisor.copy_out(VM, *await self.prepare(terms), terms)
        self.source.time_out()

    async def hold(self, *, booted: bool = True) -> None:
        """A started guest with a converged, held copy.

        booted: wait until it is up; in its first seconds it may have nothing left to copy, and is
        then stopped when all is sent
        """
        await self.start()
        if booted:
            await until_true(self.source.has_booted)
        await self.source.hypervisor.copy_out(VM, *await self.prepare())
        converged = await self.source.next(GuestEvent.CONVERGED)
        assert {"remaining_bytes", "rounds"} <= converged.detail.keys()

    async def switch(self) -> None:
        """After hold(): the source stops, for all that it knows for good."""
        await self.source.hypervisor.switch_over(VM)
        await self.source.next(GuestEvent.ABOUT_TO_STOP)
        await self.source.hypervisor.proceed(VM)
        await self.source.next(GuestEvent.STOPPED)

    async def hand_over(self) -> None:
        """After hold(): the source has sent all; the destination's report is still to come."""
        await self.switch()
        await self.source.next(GuestEvent.COMPLETED)

    async def state_at(self, node: Node) -> str:
        driver = node.driver()
        assert isinstance(driver, FakeHypervisor | QemuHypervisor)
        return await driver.state(VM)

    async def runs_at(self, node: Node) -> bool:
        return (await node.hypervisor.adopt([self.definition])).get(VM, False)


def fake_nodes() -> tuple[Node, Node]:
    world = FakeWorld()
    nodes = Node("tapA"), Node("tapB")
    for node in nodes:
        fake = FakeHypervisor(lambda report, node=node: node.hear(report), world)  # type: ignore[misc]
        node.hypervisor = fake
        node.reopen = lambda fake=fake: fake  # type: ignore[misc]
        node.kill = lambda fake=fake: fake.kill(VM)  # type: ignore[misc]
        node.hang = lambda fake=fake: fake.fail_next.update(adopt="hangs", cancel="hangs")  # type: ignore[misc]
        node.unhang = fake.fail_next.clear
        node.dawdle = lambda fake=fake: setattr(fake, "auto_converge", False)  # type: ignore[misc]
        node.time_out = lambda fake=fake: fake.time_out(VM)  # type: ignore[misc]
    return nodes


TCG = QemuSettings(accelerator="tcg", images=(workdir.cache(),), start_limit_s=5.0)


def qemu_node(port: str, state_dir: Path, settings: QemuSettings = TCG) -> Node:
    node = Node(port)

    def open_it() -> Hypervisor:
        return QemuHypervisor(state_dir, lambda report: node.hear(report), settings)

    def send(number: signal.Signals) -> None:
        pid = process.find(GuestFolder.of(state_dir, VM))
        assert pid is not None
        os.kill(pid, number)

    node.hypervisor, node.reopen = open_it(), open_it

    def has_booted() -> bool:
        console = GuestFolder.of(state_dir, VM).console
        return console.exists() and b"init: up" in console.read_bytes()

    node.has_booted = has_booted
    node.kill = lambda: send(signal.SIGKILL)
    node.hang, node.unhang = lambda: send(signal.SIGSTOP), lambda: send(signal.SIGCONT)
    return node


def guest_machine(**arguments: int) -> dict[str, str]:
    """The lab's guest, as a definition's machine; `arguments`: what it is told at its boot."""
    image = guest_image(workdir.cache())
    append = kernel_arguments([INTERFACE], **arguments)
    return {"kernel": str(image.kernel), "initrd": str(image.initrd), "append": append}


PairTest = Callable[[Pair], Awaitable[None]]
Run = Callable[[PairTest], None]


def definition(**machine: str) -> VmDefinition:
    return VmDefinition(VM, "qemu", (INTERFACE,), machine=machine)
