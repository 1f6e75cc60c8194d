"""What QEMU needs and does not find is named, and nothing of it stays."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.contract.hypervisor_nodes import (
    TCG,
    definition,
    guest_machine,
)
from vmmobility.drivers.hypervisor.qemu import QemuHypervisor
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.errors import EnvironmentProblem, HypervisorError


def test_a_missing_kernel_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor = QemuHypervisor(tmp_path, print, TCG)
        with pytest.raises(HypervisorError, match="kernel /no/such/kernel does not exist"):
            await hypervisor.start(definition(kernel="/no/such/kernel"), ["tap"])

    asyncio.run(scenario())


def test_a_missing_qemu_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = QemuSettings(accelerator="tcg", binary="no-such-qemu")
        hypervisor = QemuHypervisor(tmp_path, print, settings)
        with pytest.raises(EnvironmentProblem, match="no-such-qemu"):
            await hypervisor.start(definition(kernel=__file__), ["tap"])

    asyncio.run(scenario())


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
