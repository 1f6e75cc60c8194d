"""The hypervisor desk with servers that stand apart: orders go to the server that they name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import ip_network

import pytest

from tests.contract.waiting import until_true
from vmmobility.daemon.hypervisor_desk import HypervisorDesk
from vmmobility.drivers.hypervisor import definition as definitions
from vmmobility.drivers.hypervisor.fake import FakeHypervisor
from vmmobility.drivers.hypervisor.interface import GuestEvent, GuestReport, VmDefinition
from vmmobility.engine.outputs import HypervisorOrder, Order
from vmmobility.wire.registry import GuestLife
from vmmobility.wire.values import Interface, VmKey

VM, OTHER = VmKey(0, "vm1"), VmKey(0, "vm2")


def definition(vm: VmKey) -> bytes:
    interface = Interface(b"\x02\0\0\0\0\1", (ip_network("10.1.0.5/32"),))
    made = VmDefinition(vm, "qemu", (interface,), machine={"kernel": "/boot/k"})
    return definitions.encode(made)


class Rig:
    """Two servers, and a desk in front of them."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self.reports: list[GuestReport] = []
        self.servers = {name: FakeHypervisor(self.reports.append) for name in ("s1", "s2")}
        self.answers: list[tuple[VmKey, Order, str]] = []
        self.noted: list[str] = []
        self.desk = HypervisorDesk(
            {},
            group,
            lambda vm, order, result, error: self.answers.append((vm, order, error)),
            lambda name, **detail: self.noted.append(name),
            dict(self.servers),
        )

    async def order(self, order: Order, vm: VmKey, server: str) -> str:
        """Its error."""
        before = len(self.answers)
        self.desk.take(HypervisorOrder(order, vm, {"definition": definition(vm), "server": server}))
        await until_true(lambda: len(self.answers) > before)
        return self.answers[-1][2]

    async def lives(self, vm: VmKey) -> dict[str, GuestLife]:
        return {name: await server.query(vm) for name, server in self.servers.items()}


@pytest.fixture
def run() -> Callable[[Callable[[Rig], Awaitable[None]]], None]:
    async def with_rig(test: Callable[[Rig], Awaitable[None]]) -> None:
        async with asyncio.TaskGroup() as group:
            await test(Rig(group))

    return lambda test: asyncio.run(with_rig(test))


Run = Callable[[Callable[[Rig], Awaitable[None]]], None]


def test_orders_go_where_they_say(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        assert await rig.order(Order.START, VM, "s2") == ""
        assert await rig.lives(VM) == {"s1": GuestLife.NONE, "s2": GuestLife.RUNNING}
        # Both are queued before the first is carried out.
        rig.desk.take(HypervisorOrder(Order.STOP, VM, {"server": "s2"}))
        assert await rig.order(Order.START, OTHER, "s1") == ""
        await until_true(lambda: (VM, Order.STOP, "") in rig.answers)
        assert await rig.lives(VM) == {"s1": GuestLife.NONE, "s2": GuestLife.NONE}

    run(scenario)


def test_a_server_that_is_gone_is_named(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        assert "s3" in await rig.order(Order.START, VM, "s3")
        assert await rig.desk.adopt({VM: definition(VM)}, {VM: ("s3",)}) == {VM: False}
        assert "guest.unclear" in rig.noted

    run(scenario)


def test_guests_are_adopted_and_strays_ended_at_their_servers(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        for vm, server in ((VM, "s2"), (OTHER, "s2")):
            await rig.order(Order.START, vm, server)
        async with asyncio.TaskGroup() as group:
            again = Rig(group)
            again.desk._servers = dict(rig.servers)
            known = {VM: definition(VM)}
            assert await again.desk.adopt(known, {VM: ("s2",)}) == {VM: True}
            for name in rig.servers:
                await again.desk.sweep_server(name, known, spare=False)
        assert (await rig.lives(VM))["s2"] is GuestLife.RUNNING
        assert (await rig.lives(OTHER))["s2"] is GuestLife.NONE
        assert GuestEvent.STARTED in [report.event for report in rig.reports]

    run(scenario)


def test_a_vm_that_may_be_at_two_servers_is_a_stray_at_neither(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.order(Order.START, VM, "s2")
        async with asyncio.TaskGroup() as group:
            again = Rig(group)
            again.desk._servers = dict(rig.servers)
            known = {VM: definition(VM)}
            assert await again.desk.adopt(known, {VM: ("s1", "s2")}) == {}
            for name in rig.servers:
                await again.desk.sweep_server(name, known, spare=False)
        assert (await rig.lives(VM))["s2"] is GuestLife.RUNNING

    run(scenario)
