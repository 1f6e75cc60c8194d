"""A manager's API at TCP addresses of this machine, with tokens, and TLS if that is wanted."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from tests.unit.asked_api import raw_at
from tests.unit.fake_services import FakeManager
from vmmobility.api.client import ManagerClient
from vmmobility.api.declared import ApiRole
from vmmobility.api.manager_api import manager_api
from vmmobility.api.remote import Remote
from vmmobility.api.server import serve
from vmmobility.api.tokens import add_token
from vmmobility.daemon.api_place import ApiConfig, ApiPlace, Listen

TLS = Path(__file__).parent / "tls"
LOOPBACKS = ("127.0.0.1", "::1")


@dataclass
class TcpApi:
    """ports: by address; secrets: a token a role."""

    folder: Path
    tls: bool
    service: FakeManager = field(default_factory=FakeManager)
    ports: dict[str, int] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens.json"

    @property
    def socket(self) -> Path:
        return self.folder / "api.sock"

    def note(self, name: str, **detail: Any) -> None:
        self.notes.append((name, detail))

    def noted(self, name: str) -> list[dict[str, Any]]:
        return [detail for told, detail in self.notes if told == name]

    def url(self, address: str = "127.0.0.1") -> str:
        host = f"[{address}]" if ":" in address else address
        return f"http{'s' if self.tls else ''}://{host}:{self.ports[address]}"

    def client(self, secret: str, address: str = "127.0.0.1") -> ManagerClient:
        return ManagerClient(
            Remote(self.url(address), secret, TLS / "ca.pem" if self.tls else None)
        )

    def raw(self, request: str, address: str = "127.0.0.1") -> tuple[int, Any]:
        with socket.create_connection((address, self.ports[address]), timeout=20) as sock:
            return raw_at(sock, request)

    def place(self) -> ApiPlace:
        listen = tuple(Listen(ip_address(a), port) for a, port in self.ports.items())
        certificate, key = (TLS / "server.pem", TLS / "server.key") if self.tls else (None, None)
        config = ApiConfig(listen, certificate, key, self.tokens)
        return ApiPlace(self.socket, config, self.note, self.counts)


@contextmanager
def tcp_api(folder: Path, *, tls: bool = False) -> Iterator[TcpApi]:
    """Served in a thread of its own, at IPv4 and IPv6, with a token for each role."""
    api = TcpApi(folder, tls)
    for role in ApiRole:
        api.secrets[role.text], _ = add_token(api.tokens, role.text, role, time.time(), None)
    api.ports = {address: free_port(address) for address in LOOPBACKS}
    ready, ends = threading.Event(), list[Callable[[], object]]()

    async def run() -> None:
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(end.set))
        async with serve(manager_api(api.service), api.place()):
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(20)
        yield api
    finally:
        for each in ends:
            each()
        thread.join(20)
    assert not thread.is_alive()


def free_port(address: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
