"""The data planes that contract tests are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.dataplane_fabric import DC_OF_FABRIC, Fabric, make_fabric
from tests.contract.napt_planes import Box, LinuxBox, fake_boxes, linux_boxes
from tests.contract.planes import DC, Plane, fake_plane, linux_plane
from tests.contract.router_planes import Kernel, LinuxHands, Router, fake_router, linux_router
from vmmobility.drivers.linux.router_driver import LinuxRouterPlane


@pytest.fixture(params=["fake", pytest.param("linux", marks=pytest.mark.netns)])
def plane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plane]:
    """Each data plane in turn, started and empty."""
    made = fake_plane() if request.param == "fake" else linux_plane(tmp_path)
    for one in made:
        one.start()
        one.resync()
        yield one


@pytest.fixture(params=["fake", pytest.param("linux", marks=pytest.mark.netns)])
def dc_plane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plane]:
    """Each data plane in turn, started and empty, and told what the data centres' prefixes are."""
    made = fake_plane(DC) if request.param == "fake" else linux_plane(tmp_path, DC)
    for one in made:
        one.start()
        one.resync()
        yield one


@pytest.fixture(scope="session")
def standing_fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    yield from make_fabric(tmp_path_factory.mktemp("relays"))


@pytest.fixture(scope="session")
def standing_dc_fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    yield from make_fabric(tmp_path_factory.mktemp("relays"), DC_OF_FABRIC)


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
def linux_pair() -> Iterator[tuple[LinuxBox, LinuxBox]]:
    for pair in linux_boxes():
        for box in pair:
            box.start()
        yield pair
