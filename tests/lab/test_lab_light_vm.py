"""The light hypervisor without daemons: a VM moves between two NVE namespaces, nothing is lost."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import tempfile

import pytest

from vmmobility.drivers.hypervisor.interface import GuestEvent, VmDefinition
from vmmobility.drivers.hypervisor.light import LightHypervisor
from vmmobility.drivers.hypervisor.light_tap import open_tap
from vmmobility.errors import HypervisorError
from vmmobility.lab import fabric as fabrics
from vmmobility.lab import teardown, workdir
from vmmobility.lab.correspondents import Correspondents, Pair
from vmmobility.lab.counting import Window, count_tcp, count_udp
from vmmobility.lab.fabric_values import PROBE_EVERY_MS
from vmmobility.lab.inside import python, python_environment, set_namespace
from vmmobility.lab.namespaces import Namespaces
from vmmobility.wire.values import Interface, VmKey

pytestmark = [pytest.mark.netns, pytest.mark.lab]

TAP = "vmtlight.0"
VM = VmKey(0, "vm1")


def ip(namespace, *lines):
    text = "".join(line + "\n" for line in lines)
    subprocess.run(["ip", "-n", namespace, "-batch", "-"], input=text, text=True, check=True)


class Node:
    """A hypervisor that lives in an NVE's namespace, as the daemon would."""

    def __init__(self, spaces, nve, folder):
        self.namespace = spaces.name(nve)
        self.folder = folder / nve
        self.reports = []
        self.light = LightHypervisor(self.folder, self.hear)
        self.changed = asyncio.Event()

    def hear(self, report):
        self.reports.append(report)
        self.changed.set()

    def events(self):
        return [report.event.value for report in self.reports]

    async def heard(self, event):
        async with asyncio.timeout(10):
            while event.value not in self.events():
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
def lab(monkeypatch):
    short = tempfile.TemporaryDirectory(prefix="vml")  # a unix socket's path is at most 107 bytes
    monkeypatch.setenv("XDG_RUNTIME_DIR", short.name)
    fabric = fabrics.load_fabric(fabrics.built_in()["one-segment"])
    info = workdir.create("light", "one-segment", owned=True)
    spaces = Namespaces(fabric, info.lab_id)
    spaces.up()
    vm = fabric.vm("vm1")
    for nve in ("nve-a", "nve-b"):
        for key in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
            command = ["ip", "netns", "exec", spaces.name(nve), "sysctl", "-qw", key]
            subprocess.run(command, check=True)
        ip(
            spaces.name(nve),
            f"tuntap add dev {TAP} mode tap",
            f"link set {TAP} address 02:76:6d:6d:00:01 txqueuelen 10000 up",
            f"address add 169.254.1.1/32 dev {TAP}",
            f"address add fe80::1/64 dev {TAP} nodad",
            *(f"neigh add {a.ip} lladdr {vm.mac} dev {TAP} nud permanent" for a in vm.addresses),
        )
    point_at_tap(spaces, fabric, "nve-a")
    guest = subprocess.Popen(
        python("vmmobility.lab.light_guest", namespace=spaces.name("vm1")),
        env=python_environment(),
    )
    yield fabric, spaces, info
    guest.kill()
    guest.wait()
    assert teardown.tear_down(info) == []
    short.cleanup()


def point_at_tap(spaces, fabric, nve):
    lines = [f"route replace {a.ip} dev {TAP}" for a in fabric.vm("vm1").addresses]
    ip(spaces.name(nve), *lines)


def point_at_nve(spaces, fabric, source, target):
    end = fabric.first_end(target)
    lines = [
        f"route replace {a.ip} via {end.address(a.version)}" for a in fabric.vm("vm1").addresses
    ]
    ip(spaces.name(source), *lines)


def definition(fabric, spaces):
    vm = fabric.vm("vm1")
    mac = bytes.fromhex(vm.mac.replace(":", ""))
    interface = Interface(mac, tuple(a.network for a in vm.addresses))
    return VmDefinition(VM, "netns", (interface,), machine={"namespace": spaces.name("vm1")})


async def in_node(node, work):
    """Run a coroutine whose processes must be born in the node's namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    set_namespace(node.namespace)
    try:
        return await work
    finally:
        ctypes.CDLL(None).setns(home, 0x40000000)
        os.close(home)


async def take_and_leave(tap):
    """It is free: whoever held it has let go of it."""
    os.close(open_tap(tap))


async def move(spaces, fabric, source, target, names):
    vm = definition(fabric, spaces)
    listen = str(fabric.first_end(names[1]).address(4))
    address, port = await in_node(target, target.light.prepare_incoming(vm, [TAP], listen))
    await source.light.copy_out(VM, address, port)
    await source.heard(GuestEvent.CONVERGED)
    await source.light.switch_over(VM)
    await source.heard(GuestEvent.ABOUT_TO_STOP)
    point_at_tap(spaces, fabric, names[1])
    point_at_nve(spaces, fabric, *names)
    await source.light.proceed(VM)
    await source.heard(GuestEvent.COMPLETED)
    await target.heard(GuestEvent.RESUMED)
    await source.light.stop(VM)


def test_moves_there_and_back_without_loss(lab):
    fabric, spaces, info = lab
    pairs = [Pair("near", "vm1"), Pair("far", "vm1")]
    probes = Correspondents(info.folder / "probes", PROBE_EVERY_MS)

    async def scene():
        a, b = Node(spaces, "nve-a", info.folder), Node(spaces, "nve-b", info.folder)
        await in_node(a, a.light.start(definition(fabric, spaces), [TAP]))
        assert a.events() == ["started"]
        addresses = [str(x.ip) for x in fabric.vm("vm1").addresses]
        namespaces = {pair.correspondent: spaces.name(pair.correspondent) for pair in pairs}
        await asyncio.to_thread(probes.start, pairs, namespaces, {"vm1": addresses})
        await move(spaces, fabric, a, b, ("nve-a", "nve-b"))
        assert a.events()[1:] == ["progress", "converged", "about-to-stop", "stopped", "completed"]
        assert b.events() == ["resumed"]
        a.reports.clear()
        await b.light.close()  # the daemon restarts: the VM lives on and is found again
        assert await b.light.adopt([definition(fabric, spaces)]) == {VM: True}
        await move(spaces, fabric, b, a, ("nve-b", "nve-a"))
        assert a.events() == ["resumed"]
        await asyncio.to_thread(probes.stop)
        await a.light.stop(VM)
        assert await b.light.adopt([definition(fabric, spaces)]) == {}

    asyncio.run(scene())
    for pair in pairs:
        for version in (4, 6):
            count = count_udp(probes.udp(pair, version), Window(0, 2**63))
            assert (count.lost, count.duplicated) == (0, 0)
            assert count.sent > 20
            assert count_tcp(probes.tcp(pair, version), Window(0, 2**63)).survived


def test_cancelled_and_failed_moves_leave_the_vm_at_the_source(lab):
    fabric, spaces, info = lab

    async def scene():
        a, b = Node(spaces, "nve-a", info.folder), Node(spaces, "nve-b", info.folder)
        vm = definition(fabric, spaces)
        await in_node(a, a.light.start(vm, [TAP]))
        listen = str(fabric.first_end("nve-b").address(6))
        address, port = await in_node(b, b.light.prepare_incoming(vm, [TAP], listen))
        assert (address, port) == await b.light.prepare_incoming(vm, [TAP], listen)
        await a.light.copy_out(VM, address, port)
        await a.heard(GuestEvent.CONVERGED)
        await a.light.cancel(VM)
        await a.heard(GuestEvent.FAILED)
        await b.heard(GuestEvent.FAILED)
        await in_node(b, take_and_leave(TAP))
        a.reports.clear()
        address, port = await in_node(b, b.light.prepare_incoming(vm, [TAP], listen))
        await a.light.copy_out(VM, address, port)
        await b.light.stop(VM)  # the destination dies
        await a.heard(GuestEvent.FAILED)
        assert a.reports[-1].detail["running"] is True
        assert await a.light.adopt([vm]) == {VM: True}
        await a.light.stop(VM)

    asyncio.run(scene())


def test_a_paused_card_lets_go_of_its_vm_and_gets_it_back_only_from_nobody(lab):
    fabric, spaces, info = lab

    async def scene():
        a, b = Node(spaces, "nve-a", info.folder), Node(spaces, "nve-b", info.folder)
        vm = definition(fabric, spaces)
        await in_node(a, a.light.start(vm, [TAP]))
        await a.light.pause(VM)
        await in_node(b, b.light.start(vm, [TAP]))  # a standby takes over
        with pytest.raises(HypervisorError, match="eth0"):
            await a.light.resume(VM)
        assert (a.light.state(VM), b.light.state(VM)) == ("paused", "running")
        await b.light.stop(VM)
        await a.light.resume(VM)
        assert a.light.state(VM) == "running"
        await a.light.pause(VM)
        listen = str(fabric.first_end("nve-b").address(4))
        address, port = await in_node(b, b.light.prepare_incoming(vm, [TAP], listen, held=True))
        await a.light.copy_out(VM, address, port)  # suspended, it moves
        await a.light.switch_over(VM)
        await a.light.proceed(VM)
        await b.heard(GuestEvent.RESUMED)
        await a.light.stop(VM)
        await b.light.keep(vm)
        await b.light.resume(VM)
        assert b.light.state(VM) == "running"
        await b.light.stop(VM)

    asyncio.run(scene())
