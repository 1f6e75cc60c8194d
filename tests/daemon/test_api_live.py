"""A manager's process with its API at IPv4 and IPv6 addresses: every answer is as its schema says,
and what people have told it outlives it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.namespaces import wait_for
from tests.unit.asked_api import failure
from tests.unit.tcp_api import LOOPBACKS, TLS, free_port
from vmmobility.api.client import ManagerClient
from vmmobility.api.declared import ApiRole, declarations
from vmmobility.api.errors import Conflict, Forbidden, Unauthorized
from vmmobility.api.manager_api import ManagerRoutes
from vmmobility.api.remote import Remote
from vmmobility.api.schema import flaw
from vmmobility.api.tokens import add_token, revoke_token
from vmmobility.daemon.event_feed import LOST
from vmmobility.errors import ApiError
from vmmobility.lab.daemons import to_toml
from vmmobility.lab.inside import python, python_environment


class Manager:
    """One on this machine's loopback, which knows two NVEs that do not run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokens = folder / "tokens.json"
        self.secrets = {
            role.text: add_token(self.tokens, role.text, role, time.time(), None)[0]
            for role in ApiRole
        }
        self.ports = {address: free_port(address) for address in LOOPBACKS}
        self.config = folder / "manager.toml"
        self.config.write_text(to_toml(self._tables()))
        self.vmmob("key", "new", "manager:manager", "nve-a:nve", "--dir", folder / "keys")
        self.vmmob("key", "new", "manager:manager", "nve-b:nve", "--dir", folder / "keys")
        self.process: subprocess.Popen[str] | None = None

    def _tables(self) -> dict[str, Any]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        node = {
            "id": "manager",
            "state_dir": str(self.folder / "state"),
            "addresses": ["127.0.0.1"],
            "api_socket": str(self.folder / "api.sock"),
            "keys_dir": str(self.folder / "keys"),
            "log_file": str(self.folder / "log.json"),
            "port": port,
        }
        host = {address: f"[{address}]" if ":" in address else address for address in LOOPBACKS}
        api = {
            "listen": [f"{host[address]}:{port}" for address, port in self.ports.items()],
            "tls_certificate": str(TLS / "server.pem"),
            "tls_key": str(TLS / "server.key"),
            "tokens": str(self.tokens),
        }
        peers = [
            {"id": name, "role": "nve", "addresses": ["127.0.0.1"]} for name in ("nve-a", "nve-b")
        ]
        return {"node": node, "peer": peers, "api": api}

    def vmmob(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            python("vmmobility", *map(str, words)), capture_output=True, text=True, check=False,
            timeout=30, env=python_environment(),
        )  # fmt: skip

    def client(self, role: str, address: str = "127.0.0.1") -> ManagerClient:
        host = f"[{address}]" if ":" in address else address
        remote = Remote(f"https://{host}:{self.ports[address]}", self.secrets[role], TLS / "ca.pem")
        return ManagerClient(remote)

    def start(self) -> None:
        words = python("vmmobility", "manager", "run", "--config", str(self.config))
        self.process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=python_environment(),
        )  # fmt: skip
        wait_for(self._answers, "the manager answers")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
        try:
            with self.client("read") as client:
                return bool(client.status())
        except ApiError:
            return False

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(sign)
            self.process.communicate(timeout=20)
            self.process = None

    def events(self, name: str) -> list[dict[str, Any]]:
        rows = map(json.loads, (self.folder / "log.json").read_text().splitlines())
        return [row for row in rows if row["event"] == name]


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    found = Manager(tmp_path_factory.mktemp("m"))
    found.start()
    yield found
    found.stop()


@pytest.mark.parametrize("address", LOOPBACKS)
def test_live_answers_are_as_declared(manager: Manager, address: str):
    """Every route that looks and names nothing."""
    asked = 0
    with manager.client("read", address) as client:
        document = client._ask("GET", "/v1/openapi.json")
        for route, _ in declarations(ManagerRoutes):
            assert route.method.lower() in document["paths"][route.path]
            if route.method == "GET" and not route.parameters and not route.stream:
                answer = client._ask("GET", route.path)
                assert flaw(answer, route.answer, closed=True) == "", route.path
                asked += 1
    assert asked >= 10


def test_roles_hold_and_changes_are_written_down(manager: Manager):
    with manager.client("read", "::1") as client:
        assert isinstance(failure(lambda: client.cordon("nve-a")), Forbidden)
    with manager.client("operate", "::1") as client:
        assert client.cordon("nve-a")["cordoned"] is True
    rows = [(row["who"], row["status"], row["source"]) for row in manager.events("api.request")]
    assert ("read", 403, "::1") in rows
    assert ("operate", 200, "::1") in rows
    log = (manager.folder / "log.json").read_text()
    assert not any(secret in log for secret in manager.secrets.values())
    assert not any(secret in manager.tokens.read_text() for secret in manager.secrets.values())


def test_a_token_that_is_revoked_ends_at_once(manager: Manager):
    manager.secrets["passing"], _ = add_token(
        manager.tokens, "passing", ApiRole.READ, time.time(), None
    )
    with manager.client("passing") as client:
        assert client.status()
        revoke_token(manager.tokens, "passing")
        assert isinstance(failure(client.status), Unauthorized)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_cordons_drains_and_ids_outlive_the_manager(manager: Manager, sign: signal.Signals):
    with manager.client("operate") as client:
        with client.events(10, after="0", follow="false") as events:
            last = [event["id"] for event in events if event][-1]
        drain = client.start_drain({"nve": "nve-b"})
        assert client.drain(drain["id"], wait_s=20)["state"] == "done"
        client.cordon("nve-a")
        assert isinstance(
            failure(lambda: client.start_drain({"nve": "nve-b", "to": ["nve-a"]})), Conflict
        )
    manager.stop(sign)
    manager.start()
    with manager.client("read") as client:
        assert {row["nve"]: row["cordoned"] for row in client.nves()} == {
            "nve-a": True,
            "nve-b": True,
        }
        assert client.drain(drain["id"])["state"] == "done"
        with client.events(10, after=last, follow="false") as events:
            assert next(event["event"] for event in events if event) == LOST


def test_an_address_that_is_taken_is_said(manager: Manager, tmp_path: Path):
    text = manager.config.read_text().replace(str(manager.folder / "api.sock"), str(tmp_path / "s"))
    text = text.replace(str(manager.folder / "state"), str(tmp_path / "state"))
    tables_port = next(line for line in text.splitlines() if line.startswith("port"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        other = probe.getsockname()[1]
    config = tmp_path / "other.toml"
    config.write_text(text.replace(tables_port, f"port = {other}"))
    done = manager.vmmob("manager", "run", "--config", config)
    assert done.returncode == 1
    assert "cannot listen there: Address already in use" in done.stderr
    assert "remedy: end what listens there" in done.stderr
    assert not (tmp_path / "s").exists()
    assert os.path.exists(manager.folder / "api.sock")
