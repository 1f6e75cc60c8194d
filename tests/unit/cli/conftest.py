"""Fixtures: `vmmob` in this process, and fakes of both daemons behind real sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.types import ASGIApp

from tests.unit.cli.command_line import Ran, Vmmob
from tests.unit.fake_services import FakeManager, FakeNve, FakeRouter
from vmmobility.api.manager_api import manager_api
from vmmobility.api.nve_api import nve_api
from vmmobility.api.router_api import router_api
from vmmobility.api.server import serve
from vmmobility.cli import main as cli


@pytest.fixture
def vmmob(capsys: pytest.CaptureFixture[str]) -> Vmmob:
    def run(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Ran(int(end.value.code or 0), out, err)

    return run


@contextmanager
def served(app: ASGIApp, path: Path) -> Iterator[Path]:
    """The API at this path, in a thread of its own."""
    ready = threading.Event()
    ends: list[Callable[[], object]] = []

    async def run() -> None:
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(end.set))
        async with serve(app, path):
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(20)
        yield path
    finally:
        for end in ends:
            end()
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def service() -> FakeManager:
    return FakeManager()


@pytest.fixture
def manager(
    service: FakeManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeManager]:
    with served(manager_api(service), tmp_path / "manager.sock") as path:
        monkeypatch.setenv("VMMOB_SOCKET", str(path))
        yield service


@pytest.fixture
def nve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNve]:
    service = FakeNve()
    with served(nve_api(service), tmp_path / "nve.sock") as path:
        monkeypatch.setenv("VMMOB_NVE_SOCKET", str(path))
        yield service


@pytest.fixture
def router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRouter]:
    service = FakeRouter()
    with served(router_api(service), tmp_path / "router.sock") as path:
        monkeypatch.setenv("VMMOB_ROUTER_SOCKET", str(path))
        yield service
