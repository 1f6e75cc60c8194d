"""The API's socket: its mode, in the way, stale, without a daemon; shutting down."""

from __future__ import annotations

import asyncio
import signal
import socket
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.asked_api import VM, asking, failure, manager
from tests.unit.fake_services import FakeManager
from vmmobility.api.client import ManagerClient, NveClient
from vmmobility.api.errors import Conflict, Unavailable
from vmmobility.api.manager_api import manager_api
from vmmobility.api.server import serve
from vmmobility.errors import ApiError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


# --- the socket ---


def mode_of(path: Path) -> int | None:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else None


def test_the_socket_has_its_mode_and_goes(path: Path):
    async def run() -> None:
        before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        async with serve(manager_api(FakeManager()), path):
            assert mode_of(path) == 0o660
            assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
        assert mode_of(path) is None

    asyncio.run(run())


def test_a_stale_socket_is_replaced(path: Path):
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert path.exists()
    assert manager(path, lambda client: client.status())["role"] == "manager"


def test_a_live_socket_is_refused(path: Path):
    async def run() -> None:
        async with serve(manager_api(FakeManager()), path):
            with pytest.raises(Conflict, match="another daemon"):
                async with serve(manager_api(FakeManager()), path):
                    pass
            with ManagerClient(path) as client:
                assert await asyncio.to_thread(client.status)

    asyncio.run(run())


def test_a_file_in_the_way_is_kept(path: Path):
    path.write_text("precious")
    with pytest.raises(Conflict, match="no socket"):
        manager(path, lambda client: client.status())
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long(tmp_path: Path):
    with pytest.raises(Unavailable, match="too long"):
        manager(tmp_path / ("x" * 110), lambda client: client.status())


def test_shutting_down_does_not_wait_for_those_who_wait(path: Path):
    async def run() -> ApiError:
        service = FakeManager()
        with ManagerClient(path) as client:
            async with asyncio.TaskGroup() as group:
                async with serve(manager_api(service), path):
                    move = await asyncio.to_thread(client.start_move, VM, "nve-b")
                    asked = group.create_task(
                        asyncio.to_thread(failure, lambda: client.move(move["id"], wait_s=600))
                    )
                    await service.waiting.wait()
                    began = time.monotonic()
                assert time.monotonic() - began < 10
        return asked.result()

    assert isinstance(asyncio.run(run()), ApiError)


def test_the_bodys_error_comes_out_as_it_is(path: Path):
    async def run() -> None:
        async with serve(manager_api(FakeManager()), path):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(run())
    assert not path.exists()


def test_cancelling_the_daemon_closes_the_api(path: Path):
    async def run() -> None:
        started = asyncio.Event()

        async def daemon() -> None:
            async with serve(manager_api(FakeManager()), path):
                started.set()
                await asyncio.Event().wait()

        async with asyncio.TaskGroup() as group:
            task = group.create_task(daemon())
            await started.wait()
            task.cancel()
        assert task.cancelled()
        assert mode_of(path) is None

    asyncio.run(run())


# --- no daemon ---


def test_no_daemon_is_an_error_with_a_remedy(path: Path):
    with ManagerClient(path) as client:
        error = failure(client.status)
        assert "no such socket" in error.message
        assert "vmmob manager run" in error.remedy
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        assert "nobody listens" in failure(client.status).message
        path.unlink()
        path.write_text("")
        assert "no socket" in failure(client.status).message


def test_another_server_is_an_error_with_a_remedy(path: Path):
    async def other(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>"})

    with NveClient(path) as client:
        assert "no JSON" in asking(other, path, lambda: failure(client.status)).message


def test_a_failure_that_is_no_json_is_no_other_daemon(path: Path):
    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 502, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>"})

    with NveClient(path) as client:
        error = asking(proxy, path, lambda: failure(client.status))
    assert isinstance(error, Unavailable)
    assert "HTTP status 502" in error.message
