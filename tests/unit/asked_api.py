"""A daemon's API served by fakes over a real unix socket, and asked by a client or by hand."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from starlette.types import ASGIApp

from tests.unit.fake_services import FakeManager, FakeNve
from vmmobility.api.client import ManagerClient, NveClient
from vmmobility.api.manager_api import manager_api
from vmmobility.api.nve_api import nve_api
from vmmobility.api.server import serve
from vmmobility.errors import ApiError
from vmmobility.wire.values import VmKey

T = TypeVar("T")
VM = VmKey(0, "vm1")


def asking(app: ASGIApp, path: Path, question: Callable[[], T]) -> T:
    """What a client in another thread gets while the API is served."""

    async def run() -> T:
        async with serve(app, path):
            return await asyncio.to_thread(question)

    return asyncio.run(run())


def manager(
    path: Path, question: Callable[[ManagerClient], T], service: FakeManager | None = None
) -> T:
    with ManagerClient(path) as client:
        return asking(manager_api(service or FakeManager()), path, lambda: question(client))


def nve(path: Path, question: Callable[[NveClient], T], service: FakeNve | None = None) -> T:
    with NveClient(path) as client:
        return asking(nve_api(service or FakeNve()), path, lambda: question(client))


def raw(path: Path, request: str) -> tuple[int, Any]:
    """Status and JSON of a hand-written request."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        return raw_at(sock, request)


def raw_at(sock: socket.socket, request: str) -> tuple[int, Any]:
    """The same on a connection that is there."""
    sock.sendall(request.encode())
    answer = b""
    while chunk := sock.recv(65536):
        answer += chunk
    head, _, text = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(text)


def request(method: str, target: str, body: str = "") -> str:
    return (
        f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    )


def failure(call: Callable[[], object]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call()
    assert caught.value.remedy
    return caught.value
