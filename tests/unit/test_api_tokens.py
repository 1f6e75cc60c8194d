"""Who may ask the API off its unix socket: tokens, roles, TLS, what is written down."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.contract.namespaces import wait_for
from tests.unit.asked_api import VM, failure, request
from tests.unit.tcp_api import LOOPBACKS, TLS, TcpApi, free_port, tcp_api
from vmmobility.api import listener
from vmmobility.api.client import ManagerClient
from vmmobility.api.declared import ApiRole
from vmmobility.api.errors import Forbidden, Unauthorized, Unavailable
from vmmobility.api.remote import Remote, remote_of
from vmmobility.api.server import serve
from vmmobility.api.tokens import PREFIX, TokenDesk, add_token, hashed, read_tokens, revoke_token
from vmmobility.daemon.api_place import ApiConfig, ApiPlace, Listen
from vmmobility.errors import ConfigError, Conflict, NotFound


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TcpApi]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listener, "REFUSALS_A_SECOND", 1000)
        with tcp_api(tmp_path_factory.mktemp("api")) as api:
            yield api


@pytest.fixture
def api(shared: TcpApi) -> TcpApi:
    shared.notes.clear()
    shared.counts.clear()
    return shared


def asked(target: str, *headers: str, method: str = "GET", body: str = "") -> str:
    plain = request(method, target, body)
    return plain.replace("Host: x\r\n", "Host: x\r\n" + "".join(f"{h}\r\n" for h in headers))


# --- tokens at work ---


@pytest.mark.parametrize("address", LOOPBACKS)
def test_each_role_may_what_it_may(api: TcpApi, address: str):
    with api.client(api.secrets["read"], address) as client:
        assert client.status()["role"] == "manager"
        assert isinstance(failure(lambda: client.start_move(VM, "nve-b")), Forbidden)
    with api.client(api.secrets["operate"], address) as client:
        assert client.start_move(VM, "nve-b")["to"] == "nve-b"
        error = failure(lambda: client.release(VM))
        assert isinstance(error, Forbidden)
        assert "--role admin" in error.remedy
    with api.client(api.secrets["admin"], address) as client:
        assert isinstance(failure(lambda: client.release(VM)), Conflict)  # it was let through
    assert api.counts == {"role": 2}


@pytest.mark.parametrize(
    ("headers", "what"),
    [
        ((), "no token was sent"),
        (("Authorization: Basic eDp5",), "no token was sent"),
        (("Authorization: Bearer",), "no token was sent"),
        (("Authorization: Bearer a", "Authorization: Bearer b"), "no token was sent"),
        (("Authorization: Bearer vmmob_wrong",), "not known"),
        (("Authorization: bearer \xff\xfe",), "not known"),
        ((f"Authorization: Bearer {'x' * 4000}",), "not known"),
    ],
)
def test_who_is_not_known_is_refused_counted_and_told(api: TcpApi, headers: tuple[str], what: str):
    status, answer = api.raw(asked("/v1/status", *headers))
    assert (status, what in answer["error"], bool(answer["remedy"])) == (401, True, True)
    assert sum(api.counts.values()) == 1
    [told] = api.noted("api.refused")
    assert (told["status"], told["source"]) == (401, "127.0.0.1")
    assert not any("vmmob_" in json.dumps(detail) for _, detail in api.notes)


def test_refusals_are_all_counted_and_not_all_told(api: TcpApi, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listener, "REFUSALS_A_SECOND", 1)
    began = int(time.monotonic())
    for _ in range(20):
        api.raw(asked("/v1/status"))
    assert api.counts == {"no-token": 20}
    assert len(api.noted("api.refused")) <= int(time.monotonic()) - began + 1


def test_even_the_description_needs_a_token(api: TcpApi):
    assert api.raw(asked("/v1/openapi.json"))[0] == 401
    assert api.raw(asked("/v1/nothing"))[0] == 401
    bearer = f"Authorization: Bearer {api.secrets['read']}"
    assert api.raw(asked("/v1/openapi.json", bearer))[0] == 200
    assert api.raw(asked("/v1/nothing", bearer))[0] == 404


def test_what_changes_something_is_written_down_with_who(api: TcpApi):
    with api.client(api.secrets["operate"], "::1") as client:
        client.moves()
        client.cordon("nve-a")
        failure(lambda: client.offboard(VM))
    with ManagerClient(api.socket) as client:
        client.uncordon("nve-a")
    wait_for(lambda: len(api.noted("api.request")) == 3, "all three are written down")
    told = [
        (t["who"], t["role"], t["method"], t["path"], t["status"]) for t in api.noted("api.request")
    ]
    assert told == [
        ("operate", "operate", "PUT", "/v1/nves/nve-a/cordon", 200),
        ("operate", "operate", "DELETE", "/v1/onboarded/vm1?vni=0", 403),
        (f"uid {os.getuid()}", "admin", "DELETE", "/v1/nves/nve-a/cordon", 200),
    ]
    assert api.noted("api.request")[0]["source"] == "::1"


def test_a_revoked_token_ends_and_a_new_one_counts_at_once(api: TcpApi):
    secret, made = add_token(api.tokens, "passing", ApiRole.READ, time.time(), None)
    with api.client(secret) as client:
        assert client.status()
        revoke_token(api.tokens, made.name)
        assert isinstance(failure(client.status), Unauthorized)


def test_a_file_that_is_wrong_lets_nobody_in(api: TcpApi):
    kept = api.tokens.read_bytes()
    try:
        for content, mode in ((b"{", 0o600), (kept, 0o644)):
            api.tokens.write_bytes(content)
            api.tokens.chmod(mode)
            with api.client(api.secrets["admin"]) as client:
                error = failure(client.status)
            assert isinstance(error, Unavailable)
            assert "tokens cannot be read" in error.message
        api.tokens.unlink()
        with api.client(api.secrets["admin"]) as client:
            assert isinstance(failure(client.status), Unauthorized)
    finally:
        api.tokens.write_bytes(kept)
        api.tokens.chmod(0o600)
    with api.client(api.secrets["admin"]) as client:
        assert client.status()


def test_the_unix_socket_needs_no_token(api: TcpApi):
    with ManagerClient(api.socket) as client:
        assert client.status()["role"] == "manager"


# --- TLS ---


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TcpApi]:
    with tcp_api(tmp_path_factory.mktemp("tls"), tls=True) as api:
        yield api


@pytest.mark.parametrize("address", LOOPBACKS)
def test_tls(tls: TcpApi, address: str):
    with tls.client(tls.secrets["read"], address) as client:
        assert client.status()["role"] == "manager"


def test_a_certificate_of_nobodys_is_not_believed(tls: TcpApi):
    with ManagerClient(Remote(tls.url(), tls.secrets["read"])) as client:
        error = failure(client.status)
    assert isinstance(error, Unavailable)
    assert "CERTIFICATE_VERIFY_FAILED" in error.message
    assert "--ca" in error.remedy


def test_clear_text_at_a_tls_address_is_no_request(tls: TcpApi):
    with ManagerClient(Remote(tls.url().replace("https", "http"), "x")) as client:
        assert isinstance(failure(client.status), Unavailable)


@pytest.mark.parametrize(
    ("certificate", "key"), [("absent.pem", "server.key"), ("server.key", "server.key")]
)
def test_a_certificate_that_is_none(tmp_path: Path, certificate: str, key: str):
    listen = (Listen(ip_address("127.0.0.1"), free_port("127.0.0.1")),)
    config = ApiConfig(listen, TLS / certificate, TLS / key, tmp_path / "tokens")

    async def run() -> None:
        async with serve(lambda *_: None, ApiPlace(tmp_path / "s", config)):  # type: ignore[arg-type]
            pass

    with pytest.raises(ConfigError, match="tls_certificate"):
        asyncio.run(run())
    assert not (tmp_path / "s").exists()


# --- the file ---


def test_the_file_holds_no_secret_and_is_its_owners(tmp_path: Path):
    path = tmp_path / "new" / "tokens.json"
    secret, made = add_token(path, "ci", ApiRole.OPERATE, 1000.5, 2000.5)
    assert secret.startswith(PREFIX)
    assert len(secret) == len(PREFIX) + 43  # 256 bits
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_tokens(path) == [made]
    assert (made.sha256, made.created_s, made.expires_s) == (hashed(secret), 1000, 2000)
    with pytest.raises(Conflict, match="ci already"):
        add_token(path, "ci", ApiRole.READ, 0, None)
    assert revoke_token(path, "ci") == made
    with pytest.raises(NotFound):
        revoke_token(path, "ci")
    assert read_tokens(path) == []


def test_the_file_stays_its_owners(tmp_path: Path):
    """Root makes tokens for a daemon that runs as another user."""
    daemon = 4711 if os.geteuid() == 0 else os.geteuid()
    path = tmp_path / "tokens.json"
    add_token(path, "first", ApiRole.READ, 0, None)
    assert path.stat().st_uid == tmp_path.stat().st_uid
    os.chown(path, daemon, -1)
    add_token(path, "second", ApiRole.READ, 0, None)
    revoke_token(path, "first")
    assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (daemon, 0o600)
    folder = tmp_path / "daemons"
    folder.mkdir()
    os.chown(folder, daemon, -1)
    add_token(folder / "tokens.json", "first", ApiRole.READ, 0, None)
    assert (folder / "tokens.json").stat().st_uid == daemon


def test_a_token_ends_when_it_should(tmp_path: Path):
    now = [1000.0]
    path = tmp_path / "tokens"
    secret, _ = add_token(path, "ci", ApiRole.READ, now[0], 1060)
    desk = TokenDesk(path, lambda: now[0])
    assert desk.asker(secret).name == "ci"
    now[0] = 1060.0
    with pytest.raises(Unauthorized, match="ci has expired"):
        desk.asker(secret)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"tokens": 1}', '{"tokens": [{}]}', "[" * 100_000, '{"tokens": [], "x": 1}',
     '{"tokens": [{"name": "a", "role": "god", "sha256": "", "created_s": 1, "expires_s": null}]}'],
)  # fmt: skip
def test_a_file_that_is_none(tmp_path: Path, text: str):
    path = tmp_path / "tokens"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="no file of tokens"):
        read_tokens(path)


# --- a manager's URL ---


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("manager", "no URL"),
        ("ftp://x", "no URL"),
        ("https://x/v1", "no URL"),
        ("https://x:99999", "no URL"),
        ("http://192.0.2.1:8749", "in clear"),
        ("http://manager:8749", "in clear"),
        ("https://192.0.2.1", "no token to send"),
    ],
)
def test_urls_that_cannot_be(url: str, what: str):
    with pytest.raises(ConfigError, match=what):
        remote_of(url, None, None)


def test_a_file_without_a_token(tmp_path: Path):
    file = tmp_path / "token"
    for content in (b"", b"a b", b"\xff"):
        file.write_bytes(content)
        file.chmod(0o600)
        with pytest.raises(ConfigError, match="holds no token"):
            remote_of("https://[::1]:8749", file, None)
    file.write_text("secret")
    assert remote_of("http://[::1]:8749/", file, None).url == "http://[::1]:8749"
