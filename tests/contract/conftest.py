"""The data planes that contract tests are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.dataplane_fabric import Fabric, make_fabric
from tests.contract.planes import Plane, fake_plane, linux_plane


@pytest.fixture(params=["fake", pytest.param("linux", marks=pytest.mark.netns)])
def plane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plane]:
    """Each data plane in turn, started and empty."""
    made = fake_plane() if request.param == "fake" else linux_plane(tmp_path)
    for one in made:
        one.start()
        one.resync()
        yield one


@pytest.fixture(scope="session")
def standing_fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    yield from make_fabric(tmp_path_factory.mktemp("relays"))


@pytest.fixture
def fabric(standing_fabric: Fabric) -> Fabric:
    """Three NVEs that hold nothing."""
    for node in (standing_fabric.a, standing_fabric.b, standing_fabric.c):
        node.resync()
    return standing_fabric
