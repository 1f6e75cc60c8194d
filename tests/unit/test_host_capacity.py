"""What a host tells of itself: limits, reserves, and what cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmmobility.drivers.linux.host_capacity import CapacityLimits, measure
from vmmobility.engine.capacity import (
    MOST,
    HostCapacity,
    Resources,
    from_option,
    resources_of,
    to_option,
)

MEMINFO = "MemTotal:        4194304 kB\nMemFree: 1 kB\nMemAvailable:    2097152 kB\n"


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(MEMINFO)
    return path


def test_a_host_without_limits_keeps_its_reserve(tmp_path: Path, meminfo: Path):
    limits = CapacityLimits(reserve_memory_mib=100)
    found = measure(limits, tmp_path / "disks" / "to-be", 3, lambda: 2, meminfo)
    assert (found.total.vcpus, found.free.vcpus) == (16, 13)
    assert (found.total.memory_mib, found.free.memory_mib) == (3996, 1948)
    assert found.total.storage_mib >= found.free.storage_mib >= 0
    assert found.total.storage_mib > 0


def test_limits_win(tmp_path: Path, meminfo: Path):
    limits = CapacityLimits(vcpus=4, memory_mib=1000, storage_mib=1)
    found = measure(limits, tmp_path, 9, lambda: 2, meminfo)
    assert found.total == Resources(4, 1000, 1)
    assert found.free.vcpus == 0
    assert found.free.memory_mib == 1000


def test_what_cannot_be_read_is_not_known(tmp_path: Path):
    found = measure(CapacityLimits(), tmp_path, 0, lambda: 1, tmp_path / "nothing")
    assert (found.total.memory_mib, found.free.memory_mib) == (0, 0)
    limited = measure(CapacityLimits(memory_mib=512), tmp_path, 0, lambda: 1, tmp_path / "nothing")
    assert (limited.total.memory_mib, limited.free.memory_mib) == (512, 512)


def test_a_real_host_has_something():
    found = measure(CapacityLimits(), Path("/"), 0)
    assert found.total.vcpus > 0
    assert found.total.memory_mib > 0


def test_the_option_and_back():
    host = HostCapacity(Resources(16, 8192, 100), Resources(1, 2, 3))
    assert from_option(to_option(host, 1.0)) == host
    assert to_option(host, 0.05).interval_ms == 50
    assert to_option(HostCapacity(Resources(MOST + 1, 0, 0)), 1.0).vcpus == MOST


@pytest.mark.parametrize(
    ("definition", "wanted"),
    [
        (b'{"kind":"qemu","vcpus":2,"memory_mib":512}', Resources(2, 512, 0)),
        (
            b'{"vcpus":1,"memory_mib":64,"disk":[{"size_mib":10},{"size_mib":5}]}',
            Resources(1, 64, 15),
        ),
        (b'{"kind":"netns","vcpus":1,"memory_mib":128}', Resources()),
        (b'{"kind":"external"}', Resources()),
        (b"[1]", Resources()),
        (b"\xff", Resources()),
        (b'{"vcpus":"two","disk":7}', Resources()),
    ],
)
def test_what_a_definition_asks_for(definition: bytes, wanted: Resources):
    assert resources_of(definition) == wanted
