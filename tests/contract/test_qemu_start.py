"""What QEMU needs and does not find is named, and nothing of it stays."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.contract.hypervisor_nodes import (
    LOOPBACK,
    TCG,
    definition,
    guest_machine,
)
from vmmobility.drivers.hypervisor.interface import Disk, VmDefinition
from vmmobility.drivers.hypervisor.qemu import QemuHypervisor
from vmmobility.errors import EnvironmentProblem, HypervisorError
from vmmobility.lab import workdir


def test_a_missing_kernel_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor = QemuHypervisor(tmp_path, print, TCG)
        gone = str(workdir.cache() / "no-such-kernel")
        with pytest.raises(HypervisorError, match=f"kernel {gone} does not exist"):
            await hypervisor.start(definition(kernel=gone), ["tap"])

    asyncio.run(scenario())


def test_a_missing_qemu_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = replace(TCG, binary="no-such-qemu", images=(Path(__file__).parent,))
        hypervisor = QemuHypervisor(tmp_path, print, settings)
        with pytest.raises(EnvironmentProblem, match="no-such-qemu"):
            await hypervisor.start(definition(kernel=__file__), ["tap"])

    asyncio.run(scenario())


BRINGING_UP: list[Callable[[QemuHypervisor, VmDefinition], Awaitable[Any]]] = [
    lambda qemu, vm: qemu.start(vm, ["tap"]),
    lambda qemu, vm: qemu.prepare_incoming(vm, ["tap"], LOOPBACK),
    lambda qemu, vm: qemu.receive_checkpoints(vm, LOOPBACK),
    lambda qemu, vm: qemu.keep(vm),
]


@pytest.mark.parametrize("bring_up", BRINGING_UP)
@pytest.mark.parametrize("what", ["kernel", "initrd", "disk"])
def test_a_vm_has_no_file_of_its_host(tmp_path: Path, what: str, bring_up: Any) -> None:
    """Nor is one opened, made or removed on the way to that answer."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "secret").write_text("of the host")
    (other / "secret.handed").write_text("of another VM")
    path = str(other / "secret")
    machine = {"kernel": str(workdir.cache() / "k"), what: path}
    disk = machine.pop("disk", "")
    vm = replace(definition(**machine), disks=(Disk(disk, "raw", 1),) if disk else ())

    async def scenario() -> None:
        hypervisor = QemuHypervisor(tmp_path / "g", print, TCG)
        with pytest.raises(
            HypervisorError, match=f"{what} {path} is in none of this host's folders"
        ):
            await bring_up(hypervisor, vm)
        await hypervisor.close()

    asyncio.run(scenario())
    assert sorted(file.name for file in other.iterdir()) == ["secret", "secret.handed"]
    assert not (tmp_path / "g").exists()


@pytest.mark.qemu
@pytest.mark.netns
def test_what_qemu_says_of_a_tap_that_is_missing_is_passed_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor = QemuHypervisor(tmp_path, print, TCG)
        kernel = guest_machine()["kernel"]
        with pytest.raises(HypervisorError, match=r"contract: QEMU did not start: .*no-such/tap"):
            await hypervisor.start(definition(kernel=kernel), ["no-such/tap"])
        assert await hypervisor.adopt([definition(kernel=kernel)]) == {}

    asyncio.run(scenario())
