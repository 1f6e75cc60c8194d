"""Two QEMUs in one namespace, whose path a test governs; the guest checks its own memory.

For test_qemu_failures.py and test_qemu_postcopy.py.  All lives in one namespace; the guest's memory
crosses its loopback, or a relay.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.contract.hypervisor_nodes import (
    INTERFACE,
    LIMIT_S,
    LOOPBACK,
    VM,
    Pair,
    guest_machine,
    qemu_node,
)
from tests.contract.namespaces import Namespace
from tests.lab.test_guest_image import control, inside
from vmmobility.drivers.hypervisor.interface import GuestEvent, GuestReport, VmDefinition
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.errors import HypervisorError

TEST_LIMIT_S = 60.0
SMALL_BUFFER = 64 * 1024


class Relay:
    """A path between the QEMUs that withholds the last octet it has, and can stop reading."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.eof = asyncio.Event()  # the source has closed its end
        self.open = asyncio.Event()
        self.open.set()
        self._target = target
        self._last = b""
        self._out: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None

    async def listen(self) -> tuple[str, int]:
        server = socket.create_server((LOOPBACK, 0))
        # Little room: a source that nobody reads from is soon blocked.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        self._server = await asyncio.start_server(self._carry, sock=server, limit=SMALL_BUFFER)
        address, port = server.getsockname()
        return str(address), int(port)

    async def _carry(self, source: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        _, self._out = await asyncio.open_connection(*self._target)
        with suppress(OSError):
            while True:
                await self.open.wait()
                data = await source.read(SMALL_BUFFER)
                if not data:
                    break
                self._out.write(self._last + data[:-1])
                self._last = data[-1:]
                await self._out.drain()
        back.close()
        self.eof.set()

    def release(self) -> None:
        """Let the last octet through."""
        assert self._out is not None
        self._out.write(self._last)

    def close(self) -> None:
        """Break the way to the destination."""
        assert self._out is not None
        self._out.close()

    async def end(self) -> None:
        """After the source's end has been closed: let go of all."""
        self.open.set()
        await self.eof.wait()
        self.close()
        assert self._server is not None
        self._server.close()


class Scene:
    """A Pair in a namespace."""

    def __init__(self, pair: Pair, space: Namespace) -> None:
        self.pair = pair
        self.source = pair.source
        self.destination = pair.destination
        self.space = space
        self.place = ("", 0)
        self.relay: Relay | None = None

    async def about_to_stop(self, relay: bool = False) -> Relay:
        """The copy is held and the driver awaits proceed()."""
        self.place = await self.pair.prepare()
        carrier = Relay(self.place)
        self.relay = carrier if relay else None
        where = await carrier.listen() if relay else self.place
        await self.source.hypervisor.copy_out(VM, *where)
        await self.source.next(GuestEvent.CONVERGED)
        await self.source.hypervisor.switch_over(VM)
        await self.source.next(GuestEvent.ABOUT_TO_STOP)
        return carrier

    async def outcome(self) -> GuestReport:
        """The source's last word on the move."""
        async with asyncio.timeout(LIMIT_S):
            report = await self.source.reports.get()
            while report.event is GuestEvent.STOPPED:
                report = await self.source.reports.get()
        return report

    def cut(self) -> None:
        """From now on, nothing passes between the QEMUs."""
        port = self.place[1]
        self.space.run("nft", "add table inet cut")
        self.space.run("nft", "add chain inet cut paths { type filter hook input priority 0; }")
        for end in ("dport", "sport"):
            self.space.run("nft", f"add rule inet cut paths tcp {end} {port} drop")

    def mend(self) -> None:
        """Everything passes again."""
        self.space.run("nft", "delete table inet cut")

    def lead_to_the_destination(self) -> None:
        """The guest is asked there from now on."""
        self.space.ip("neigh", "replace", "10.1.0.1", "lladdr", INTERFACE.mac_text, "dev", "tapb")
        self.space.ip("route", "replace", "10.1.0.1/32", "dev", "tapb")

    async def the_source_runs(self) -> None:
        assert await self.pair.runs_at(self.source)
        assert not await self.pair.runs_at(self.destination)

    async def check_memory(self) -> None:
        checked = await asyncio.to_thread(control, self.space.name, b"check")
        assert checked["bad_pages"] == 0
        assert checked["dirtied_pages"] > 0


SceneTest = Callable[[Scene], Awaitable[None]]
Run = Callable[[QemuSettings, SceneTest], None]


@contextmanager
def scenes(folder: Path, mem_mib: int = 16, dirty_mibps: int = 4) -> Iterator[Run]:
    """What runs a coroutine with a Scene, and ends all its guests afterwards.

    mem_mib, dirty_mibps: the guest's checksummed memory, and how much of it it rewrites each second
    """
    space = Namespace("qf")
    machine = guest_machine(mem_mib=mem_mib, dirty_mibps=dirty_mibps)
    for tap in ("tapb", "tapa"):  # the route of the last stays
        space.ip("tuntap", "add", "dev", tap, "mode", "tap")
        space.ip("link", "set", tap, "address", "02:00:00:00:00:01", "up")
    space.ip("addr", "add", "169.254.1.1/32", "dev", "tapa")
    space.ip("route", "add", "10.1.0.1/32", "dev", "tapa")
    station = ("lladdr", INTERFACE.mac_text, "dev", "tapa", "nud", "permanent")
    space.ip("neigh", "add", "10.1.0.1", *station)

    async def with_scene(settings: QemuSettings, test: SceneTest) -> None:
        source = qemu_node("tapa", folder / "a", settings)
        destination = qemu_node("tapb", folder / "b", settings)
        definition = VmDefinition(VM, "qemu", (INTERFACE,), machine=machine)
        scene = Scene(Pair(definition, source, destination), space)
        try:
            async with asyncio.timeout(TEST_LIMIT_S):
                await scene.pair.start()
                await test(scene)
        finally:
            for node in (source, destination):
                try:
                    await node.hypervisor.stop(VM)
                except HypervisorError:  # its memory is being fetched
                    node.kill()
                    await node.hypervisor.stop(VM)
                await node.hypervisor.close()
            if scene.relay is not None:
                await scene.relay.end()

    def run_it(settings: QemuSettings, test: SceneTest) -> None:
        with inside(space.name):
            asyncio.run(with_scene(settings, test))

    yield run_it
    space.close()
