"""Hypervisor nodes whose guests live at servers of their own: an agent, a line, the remote driver.

For the tests of every hypervisor, and of what becomes of a broken line.  Not here: circuits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from tests.contract.hypervisor_nodes import LOOPBACK, Node, Pair
from vmmobility.drivers.hypervisor.interface import GuestReport, Hypervisor, VmDefinition
from vmmobility.drivers.hypervisor.remote import RemoteHypervisor
from vmmobility.drivers.hypervisor.server_agent import ServerAgent
from vmmobility.drivers.hypervisor.server_link import ServerAddress, ServerLink
from vmmobility.engine.capacity import HostCapacity, Resources, ServerRoom

NVE = "nve-a"
SECRET = bytes(range(32))
KEYS = {1: SECRET}
HAS = HostCapacity(Resources(16, 4096, 100), Resources(16, 2048, 50))


class Taps:
    """Circuits without a kernel: names alone."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}

    def ensure(self, ports: Mapping[str, int]) -> None:
        self.held.update(ports)

    def remove(self, ports: Collection[str]) -> None:
        for port in ports:
            self.held.pop(port, None)

    def names(self) -> Collection[str]:
        return list(self.held)


class ServerNode(Node):
    """A node whose driver is a RemoteHypervisor; `inner` is the node at its server."""

    def __init__(self, name: str, inner: Node, group: asyncio.TaskGroup) -> None:
        super().__init__(inner.port)
        self.name, self.inner, self.group = name, inner, group
        self.kill, self.hang, self.unhang = inner.kill, inner.hang, inner.unhang
        self.has_booted = inner.has_booted
        self.dawdle, self.time_out = inner.dawdle, inner.time_out
        self.driver = lambda: self.inner.hypervisor
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.taps = Taps()
        self.keys = dict(KEYS)
        self.port_number = 0
        self.agent: ServerAgent
        self.link: ServerLink
        self._agent_task: asyncio.Task[None] | None = None
        self._link_task: asyncio.Task[None] | None = None
        # What the server's driver reports goes to the agent of now.
        inner.hear = self._hear_inner  # type: ignore[method-assign]

    def _hear_inner(self, report: GuestReport) -> None:
        self.agent.report(report)

    def hear(self, report: GuestReport) -> None:
        assert report.detail.pop("server") == self.name
        super().hear(report)

    def look(self, used: int) -> ServerRoom:
        """What the server has."""
        free = replace(HAS.free, vcpus=HAS.free.vcpus - used)
        return ServerRoom(self.name, True, 8, replace(HAS, free=free))

    def note(self, name: str, **detail: Any) -> None:
        self.events.append((name, detail))

    def noted(self, name: str) -> int:
        return sum(one == name for one, _ in self.events)

    async def begin(self) -> None:
        await self.start_agent()
        self.start_link()

    async def start_agent(self) -> None:
        self.agent = ServerAgent(
            self.name, NVE, LOOPBACK, self.taps, self.keys.get, self.note, self.look
        )
        kinds: dict[str, Hypervisor] = {"qemu": self.inner.hypervisor}
        self.agent.hypervisors = kinds
        server = await asyncio.start_server(self.agent.accept, LOOPBACK, self.port_number)
        self.port_number = server.sockets[0].getsockname()[1]
        self._agent_task = self.group.create_task(self._run_agent(self.agent, server))

    @staticmethod
    async def _run_agent(agent: ServerAgent, server: asyncio.Server) -> None:
        async with server:
            await agent.run(server)

    def start_link(self) -> None:
        address = ServerAddress(self.name, ip_address(LOOPBACK), self.port_number)
        self.link = ServerLink(NVE, address, lambda: (1, SECRET), self.note)
        self.hypervisor = RemoteHypervisor(self.link, self.hear, lambda port: 4711)
        self._link_task = self.group.create_task(self.link.run())

    async def stop_agent(self) -> None:
        await _ended(self._agent_task)
        await self.inner.hypervisor.close()

    async def stop_link(self) -> None:
        await _ended(self._link_task)

    async def restart(self) -> None:
        """Both daemons end, and others are there."""
        await self.stop_link()
        await self.stop_agent()
        self.inner.hypervisor = self.inner.reopen()
        await self.begin()

    async def restart_agent(self) -> None:
        await self.stop_agent()
        self.inner.hypervisor = self.inner.reopen()
        await self.start_agent()

    async def restart_nve(self) -> None:
        await self.stop_link()
        self.start_link()

    async def end(self) -> None:
        await self.stop_link()
        await self.stop_agent()


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def at_servers(definition: VmDefinition, *inner: Node) -> AsyncIterator[Pair]:
    """These nodes, each as a server of an NVE."""
    async with asyncio.TaskGroup() as group:
        source, destination = (
            ServerNode(f"server-{number}", node, group) for number, node in enumerate(inner, 1)
        )
        for node in (source, destination):
            await node.begin()
        try:
            yield Pair(definition, source, destination)
        finally:
            for node in (source, destination):
                await node.end()
