"""Tunnels of Debian's own kernel, by the tests that the relay passes on this machine's.

A guest that does not run is a failure here, not a skip; where the programs are missing the marker's
skip fails CI (tests/conftest.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel_guest.suite import CHOICE, QUICK, QUICK_CHOICE, Results, run_suite

pytestmark = [pytest.mark.qemu, pytest.mark.netns]


Tell = Callable[[str, object], None]


def check(results: Results, record_property: Tell) -> None:
    record_property("in Debian's kernel", results.closing)
    assert results.ended.status == 0, results.closing
    assert results.skipped == ()
    assert len(results.with_kernel_tunnels) > 0, results.ran


@pytest.mark.timeout(1300)
def test_the_kernels_own_tunnels_pass_the_tunnel_tests(
    tmp_path: Path, record_property: Tell
) -> None:
    check(run_suite(QUICK, QUICK_CHOICE, tmp_path, 1200, print), record_property)


@pytest.mark.slow
@pytest.mark.timeout(5500)
def test_the_whole_data_plane_suite_passes(tmp_path: Path, record_property: Tell) -> None:
    paths = sorted(str(path) for path in Path("tests/contract").glob("test_dataplane_*.py"))
    check(run_suite(paths, CHOICE, tmp_path, 5400, print), record_property)


@pytest.mark.slow
@pytest.mark.lab
@pytest.mark.timeout(1900)
def test_ten_moves_by_the_kernels_tunnels_lose_nothing(
    tmp_path: Path, record_property: Tell
) -> None:
    choice = "ten_moves and kernel"
    check(
        run_suite(["tests/lab/test_lab_tunnels.py"], choice, tmp_path, 1800, print), record_property
    )
