"""The data planes that contract tests are given: each with every back end of its tunnels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from tests.contract.dataplane_fabric import DC_OF_FABRIC, Fabric, make_fabric
from tests.contract.disk_machines import Run, two_machines
from tests.contract.napt_planes import Box, LinuxBox, LinuxPair, fake_boxes, linux_boxes
from tests.contract.planes import DC, NEAR, OTHER, REDIRECT, Plane, fake_plane, linux_plane, state
from tests.contract.router_planes import Kernel, LinuxHands, Router, fake_router, linux_router
from vmmobility.drivers.linux import tunnel_choice
from vmmobility.drivers.linux.router_driver import LinuxRouterPlane
from vmmobility.drivers.linux.settings import TunnelWish

# In the kernel guest (tests/kernel_guest): a thousand packets a second are too many for its CPUs.
EMULATED = os.environ.get("VMMOB_EXPECT_KERNEL_TUNNELS") == "1"
BACK_ENDS = [pytest.param(name, marks=pytest.mark.netns) for name in ("relay", "kernel")]


@cache
def lack_of_kernel_tunnels() -> str:
    """What keeps this kernel from carrying tunnels; "" if nothing does."""
    with ThreadPoolExecutor(1) as thread:  # it enters another namespace
        return thread.submit(tunnel_choice.lack_of_kernel_tunnels).result()


def need(back_end: str) -> None:
    """Skip where this kernel has not that back end; fail where it must have it."""
    lack = lack_of_kernel_tunnels() if back_end == "kernel" else ""
    if lack and EMULATED:
        pytest.fail(f"kernel tunnels are expected here: {lack}")
    if lack:
        pytest.skip(f"needs kernel tunnels: {lack}")


Give = Callable[[TunnelWish], Plane]


@pytest.fixture(scope="module")
def standing_planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Give]:
    """The Linux data plane by back end, made once a module: a process is slow to start."""
    made: dict[str, Plane] = {}
    with contextlib.ExitStack() as stack:

        def give(back_end: TunnelWish) -> Plane:
            need(back_end)
            if back_end not in made:
                folder = tmp_path_factory.mktemp(back_end)
                standing = contextlib.contextmanager(linux_plane)(folder, back_end)
                made[back_end] = stack.enter_context(standing)
            made[back_end].start()
            made[back_end].resync()
            return made[back_end]

        yield give


@pytest.fixture(params=["fake", *BACK_ENDS])
def plane(request: pytest.FixtureRequest, standing_planes: Give) -> Iterator[Plane]:
    """Each data plane in turn, started and empty."""
    if request.param != "fake":
        yield standing_planes(request.param)
        return
    for one in fake_plane():
        one.start()
        one.resync()
        yield one


@pytest.fixture(params=["fake", *BACK_ENDS])
def dc_plane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plane]:
    """Each data plane in turn, started and empty, and told what the data centres' prefixes are."""
    if request.param != "fake":
        need(request.param)
    made = fake_plane(DC) if request.param == "fake" else linux_plane(tmp_path, request.param, DC)
    for one in made:
        one.start()
        one.resync()
        yield one


@pytest.fixture(params=BACK_ENDS)
def linux_dc_plane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plane]:
    """The Linux one of them alone."""
    need(request.param)
    for one in linux_plane(tmp_path, request.param, DC):
        one.start()
        one.resync()
        yield one


@pytest.fixture(params=BACK_ENDS)
def linux(request: pytest.FixtureRequest, standing_planes: Give) -> Plane:
    """The Linux data plane with one VM that is delivered to and one that is redirected."""
    one = standing_planes(request.param)
    one.apply(state(accept_from=(NEAR,)), state(OTHER, 6, **REDIRECT))
    assert one.audit() == []
    return one


@pytest.fixture(scope="session", params=BACK_ENDS)
def standing_fabric(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fabric]:
    need(request.param)
    yield from make_fabric(tmp_path_factory.mktemp("relays"), request.param)


@pytest.fixture(scope="session", params=BACK_ENDS)
def standing_dc_fabric(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fabric]:
    need(request.param)
    yield from make_fabric(tmp_path_factory.mktemp("relays"), request.param, DC_OF_FABRIC)


@pytest.fixture
def dc_fabric(standing_dc_fabric: Fabric) -> Fabric:
    """Three NVEs that hold nothing; one of the host's addresses is outside their data centres."""
    for node in (standing_dc_fabric.a, standing_dc_fabric.b, standing_dc_fabric.c):
        node.resync()
    return standing_dc_fabric


@pytest.fixture
def fabric(standing_fabric: Fabric) -> Fabric:
    """Three NVEs that hold nothing."""
    for node in (standing_fabric.a, standing_fabric.b, standing_fabric.c):
        node.resync()
    return standing_fabric


@pytest.fixture(params=["fake", pytest.param("linux", marks=pytest.mark.netns)])
def router(request: pytest.FixtureRequest) -> Iterator[Router]:
    """Each router plane in turn, started and empty."""
    for one in fake_router() if request.param == "fake" else linux_router():
        one.start()
        assert one.resync() == []
        yield one


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    for router in linux_router():
        assert isinstance(router.plane, LinuxRouterPlane)
        assert isinstance(router.hands, LinuxHands)
        made = Kernel(router.plane, router.await_, router.hands)
        made.driver = router.plane
        made.start()
        assert made.resync() == []
        yield made


@pytest.fixture(params=["fake", pytest.param("linux", marks=pytest.mark.netns)])
def boxes(request: pytest.FixtureRequest) -> Iterator[tuple[Box, Box]]:
    """Two NAPT boxes of each kind in turn, started and empty."""
    made: Iterator[tuple[Box, Box]] = fake_boxes() if request.param == "fake" else linux_boxes()
    for pair in made:
        for box in pair:
            box.start()
        yield pair


@pytest.fixture
def linux_pair() -> Iterator[LinuxPair]:
    for pair in linux_boxes():
        for box in pair:
            box.start()
        yield pair


@pytest.fixture
def box(linux_pair: LinuxPair) -> LinuxBox:
    """One of them; the contract's own tests have one of each kind."""
    return linux_pair[0]


@pytest.fixture
def disk_run(tmp_path: Path) -> Iterator[Run]:
    """What runs a test with two machines for guests with disks."""
    with two_machines(tmp_path) as made:
        yield made
