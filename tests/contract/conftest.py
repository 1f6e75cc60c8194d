"""The data planes that contract tests are given: each with every back end of its tunnels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from tests.contract.dataplane_fabric import Fabric, make_fabric
from tests.contract.planes import NEAR, OTHER, REDIRECT, Plane, fake_plane, linux_plane, state
from tests.contract.router_planes import Kernel, LinuxHands, Router, fake_router, linux_router
from vmmobility.drivers.linux import tunnel_choice
from vmmobility.drivers.linux.router_driver import LinuxRouterPlane

BACK_ENDS = [pytest.param(name, marks=pytest.mark.netns) for name in ("relay", "kernel")]


@cache
def lack_of_kernel_tunnels() -> str:
    """What keeps this kernel from carrying tunnels; "" if nothing does."""
    with ThreadPoolExecutor(1) as thread:  # it enters another namespace
        return thread.submit(tunnel_choice.lack_of_kernel_tunnels).result()


def need(back_end: str) -> None:
    """Skip where this kernel has not that back end; fail where it must have it."""
    lack = lack_of_kernel_tunnels() if back_end == "kernel" else ""
    if lack and os.environ.get("VMMOB_EXPECT_KERNEL_TUNNELS") == "1":
        pytest.fail(f"kernel tunnels are expected here: {lack}")
    if lack:
        pytest.skip(f"needs kernel tunnels: {lack}")


@pytest.fixture(params=["fake", *BACK_ENDS])
def plane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plane]:
    """Each data plane in turn, started and empty."""
    need(request.param)
    made = fake_plane() if request.param == "fake" else linux_plane(tmp_path, request.param)
    for one in made:
        one.start()
        one.resync()
        yield one


@pytest.fixture(params=BACK_ENDS)
def linux(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plane]:
    """The Linux data plane with one VM that is delivered to and one that is redirected."""
    need(request.param)
    for plane in linux_plane(tmp_path, request.param):
        plane.start()
        plane.resync()
        plane.apply(state(accept_from=(NEAR,)), state(OTHER, 6, **REDIRECT))
        assert plane.audit() == []
        yield plane


@pytest.fixture(scope="session", params=BACK_ENDS)
def standing_fabric(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fabric]:
    need(request.param)
    yield from make_fabric(tmp_path_factory.mktemp("relays"), request.param)


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
