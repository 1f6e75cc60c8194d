"""Live daemons and a QEMU that is started, moved and killed by hand: the network follows it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.contract.hand_run import HandRun
from tests.contract.waiting import until
from tests.daemon.live_fabric import LiveFabric, live_fabric
from vmmobility.lab import workdir
from vmmobility.lab.guest.image import guest_image, kernel_arguments
from vmmobility.lab.inside import udp_ask
from vmmobility.wire.values import Interface, VmKey

pytestmark = [pytest.mark.netns, pytest.mark.lab, pytest.mark.qemu]

VM = VmKey(0, "hand1")
ADDRESSES = ("10.1.0.77", "fd01::77")
INTERFACE = Interface(
    bytes.fromhex("525400000777"), (ip_network("10.1.0.77/32"), ip_network("fd01::77/128"))
)
BOOT_S = 40.0
CHECK_S = 10.0


@pytest.fixture
def fabric() -> Iterator[LiveFabric]:
    with live_fabric() as live:
        yield live


class Host:
    """One NVE's host, and the hands on it."""

    def __init__(self, fabric: LiveFabric, nve: str, folder: Path) -> None:
        self.nve = nve
        self.fabric = fabric
        self._qmp = folder / nve / "nve.qmp"
        with fabric.nve(nve) as client:
            ports = client.expect_vm(self._definition())["ports"]
        image = guest_image(workdir.cache())
        words = ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-cpu", "max"]
        words += ["-append", kernel_arguments([INTERFACE])]
        words += ["-netdev", f"tap,id=net0,ifname={ports[0]},script=no,downscript=no"]
        device = f"virtio-net-pci,netdev=net0,mac={INTERFACE.mac_text},romfile="
        space = fabric.daemons._spaces.name(nve)
        self.hands = HandRun(
            folder / nve, [*words, "-device", device], ["ip", "netns", "exec", space]
        )

    def _definition(self) -> dict[str, Any]:
        interface = {"mac": INTERFACE.mac_text, "addresses": list(ADDRESSES)}
        return {
            "vni": 0,
            "vm_id": VM.vm_id,
            "kind": "external",
            "machine": {"qmp": str(self._qmp)},
            "interface": [interface],
        }

    def phase(self) -> str:
        with self.fabric.nve(self.nve) as client:
            return next((str(r["phase"]) for r in client.vms() if r["vm"] == VM.vm_id), "absent")


def serving(fabric: LiveFabric) -> str:
    with fabric.manager() as client:
        return next((str(r["nve"]) for r in client.vms() if r["vm"] == VM.vm_id), "")


def echoes(fabric: LiveFabric, limit_s: float = 5.0) -> None:
    for address in ADDRESSES:
        assert udp_ask(fabric._lab.spaces.name("near"), address, 7, b"echo", limit_s) == b"echo"


async def sees_it_wait(host: Host) -> None:
    """As the operator's guide asks: the NVE has found the QEMU that waits for the guest."""
    await until(host.hands.is_watched, bool)
    with host.fabric.nve(host.nve) as client:
        await asyncio.to_thread(client.check, CHECK_S)


def test_the_network_follows_a_guest_that_hands_move(fabric: LiveFabric, tmp_path: Path) -> None:
    a, b = (Host(fabric, nve, tmp_path) for nve in ("nve-a", "nve-b"))

    def settled(nve: str) -> None:
        fabric.eventually(lambda: serving(fabric) == nve, f"it is registered at {nve or 'no NVE'}")

    async def by_hand() -> None:
        await a.hands.boot()
        await asyncio.to_thread(settled, "nve-a")
        await asyncio.to_thread(echoes, fabric, BOOT_S)
        await b.hands.await_copy()
        await sees_it_wait(b)
        await a.hands.migrate(b.hands)
        await asyncio.to_thread(settled, "nve-b")
        await asyncio.to_thread(echoes, fabric)
        assert await asyncio.to_thread(a.phase) == "redirecting"
        # Hands let it go on where it had left: the one that is served stays, the other is stopped.
        await a.hands.say("cont")
        await until(a.hands.status, "paused".__eq__)
        assert await b.hands.status() == "running"
        assert await asyncio.to_thread(serving, fabric) == "nve-b"
        await asyncio.to_thread(echoes, fabric)
        await a.hands.end()
        await b.hands.end()
        await asyncio.to_thread(settled, "")

    async def whole() -> None:
        try:
            await by_hand()
        finally:
            for host in (a, b):
                await host.hands.end()

    asyncio.run(asyncio.wait_for(whole(), 100))
