from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from vmmobility.drivers.hypervisor import accelerator
from vmmobility.drivers.hypervisor.accelerator import choose_accelerator
from vmmobility.errors import EnvironmentProblem


def choose(wanted: str, binary: str, state_dir: Path) -> str:
    return asyncio.run(choose_accelerator(wanted, binary, state_dir))


class Probe:
    """Stands for kvm_runs(): counts and answers."""

    def __init__(self, answer: bool) -> None:
        self.answer = answer
        self.count = 0

    async def __call__(self, binary: str) -> bool:
        self.count += 1
        return self.answer


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process that has not probed yet, where `true` stands for QEMU."""
    monkeypatch.setattr(accelerator, "_answers", {})
    return monkeypatch


@pytest.mark.parametrize(("runs", "expected"), [(True, "kvm"), (False, "tcg")])
def test_auto_probes_once_a_process_and_once_a_boot(
    fresh: pytest.MonkeyPatch, tmp_path: Path, runs: bool, expected: str
) -> None:
    probe = Probe(runs)
    fresh.setattr(accelerator, "kvm_runs", probe)
    for _ in range(2):
        assert choose("auto", "true", tmp_path) == expected
    fresh.setattr(accelerator, "_answers", {})  # the daemon starts again
    assert choose("auto", "true", tmp_path) == expected
    assert probe.count == 1


@pytest.mark.parametrize("text", ["", "[]", '{"key": "another boot", "accelerator": "kvm"}'])
def test_a_file_that_is_not_of_this_boot_is_not_believed(
    fresh: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    (tmp_path / "accelerator.json").write_text(text)
    fresh.setattr(accelerator, "kvm_runs", Probe(False))
    assert choose("auto", "true", tmp_path) == "tcg"


def test_an_order_is_obeyed_without_a_probe(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh.setattr(accelerator, "kvm_runs", None)
    assert choose("kvm", "true", tmp_path) == "kvm"


def test_a_wrong_order_and_a_missing_qemu_are_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="'fast'"):
        choose("fast", "true", tmp_path)
    with pytest.raises(EnvironmentProblem, match="no-such-qemu"):
        choose("auto", "no-such-qemu", tmp_path)


def test_the_rom_jumps_from_the_reset_vector_to_its_start() -> None:
    rom = accelerator._ROM
    assert len(rom) == 0x10000
    assert rom[0xFFF0] == 0xE9
    offset = int.from_bytes(rom[0xFFF1:0xFFF3], "little")
    assert (0xFFF3 + offset) & 0xFFFF == 0
