"""What is malformed, too long or too slow: bounded, answered where there is somebody to answer, and
nobody else waits for it."""

from __future__ import annotations

import contextlib
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.namespaces import wait_for
from tests.unit.asked_api import failure
from tests.unit.descriptors import descriptors_left
from tests.unit.tcp_api import LOOPBACKS, TcpApi, tcp_api
from vmmobility.api import door, http, patience, server
from vmmobility.api.client import ManagerClient
from vmmobility.api.door import Bounds, Door
from vmmobility.api.errors import ApiError, Unavailable

HEAD_S = 0.3
BODY_S = 0.4


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TcpApi]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience.PatientProtocol, "head_s", HEAD_S)
        patch.setattr(http, "BODY_S", BODY_S)
        patch.setattr(server, "FROM_AFAR", Bounds(unknown=8, source=6, known=6, asker=4))
        with tcp_api(tmp_path_factory.mktemp("api")) as api:
            yield api


@pytest.fixture
def api(shared: TcpApi) -> Iterator[TcpApi]:
    shared.counts.clear()
    yield shared
    with shared.client(shared.secrets["read"]) as client:
        assert client.status()["role"] == "manager"


def connected(api: TcpApi, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((address, api.ports[address]), timeout=10)


def closed(sock: socket.socket) -> bytes:
    """What came until the server closed."""
    found = b""
    try:
        while data := sock.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found


@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize("sent", [b"", b"GET /v1/sta", b"GET /v1/status HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_does_not_come_is_not_waited_for(api: TcpApi, address: str, sent: bytes):
    with connected(api, address) as sock:
        sock.sendall(sent)
        assert closed(sock) == b""
    assert api.counts["slow"] == 1


def test_octet_by_octet_is_too_slow_as_well(api: TcpApi):
    sent = 0
    with connected(api) as sock:
        sock.settimeout(HEAD_S / 50)
        for octet in b"GET /v1/status HTTP/1.1\r\nX: " + b"x" * 5000:
            try:
                sock.sendall(bytes([octet]))
                sent += 1
                if not sock.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    assert 10 < sent < 5000
    assert api.counts["slow"] == 1


def test_the_second_request_of_a_connection_has_the_same_limit(api: TcpApi):
    bearer = f"Authorization: Bearer {api.secrets['read']}\r\n".encode()
    with connected(api) as sock:
        sock.sendall(b"GET /v1/moves HTTP/1.1\r\nHost: x\r\n" + bearer + b"\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        sock.sendall(b"GET /v1/mo")
        rest = closed(sock)
    assert b"HTTP/1.1" not in rest
    assert api.counts["slow"] == 1


def test_a_body_that_does_not_come_is_answered(api: TcpApi):
    bearer = f"Authorization: Bearer {api.secrets['operate']}\r\n"
    head = f"POST /v1/moves HTTP/1.1\r\nHost: x\r\n{bearer}Content-Length: 50\r\n\r\n{{"
    with connected(api) as sock:
        sock.sendall(head.encode())
        answer = b""
        while not answer.endswith(b"}") and (data := sock.recv(65536)):
            answer += data
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"did not come within" in answer


def test_a_body_that_is_too_long_is_refused_before_it_is_read(api: TcpApi):
    bearer = f"Authorization: Bearer {api.secrets['operate']}\r\n"
    head = f"POST /v1/moves HTTP/1.1\r\nHost: x\r\n{bearer}Content-Length: {1 << 40}\r\n\r\n"
    with connected(api) as sock:
        sock.sendall(head.encode())
        answer = b""
        try:
            for _ in range(64):
                sock.sendall(b"x" * 65536)
        except OSError:
            pass
        answer = closed(sock)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    with api.client(api.secrets["read"]) as client:
        assert client.moves() == []


def test_a_head_that_is_too_long_is_refused(api: TcpApi):
    with connected(api) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * (1 << 20))
        answer = closed(sock)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


def test_the_silent_do_not_keep_out_who_has_a_token(api: TcpApi):
    """They have the very address of who is let in."""
    crowd = [connected(api) for _ in range(40)]
    try:
        with api.client(api.secrets["read"]) as client:
            assert client.status()["role"] == "manager"
    finally:
        for each in crowd:
            each.close()
    assert api.counts["surplus"] >= 34


def following(api: TcpApi, role: str) -> socket.socket:
    """A connection that goes on as this role's."""
    sock = connected(api)
    bearer = f"Authorization: Bearer {api.secrets[role]}"
    sock.sendall(f"GET /v1/events HTTP/1.1\r\nHost: x\r\n{bearer}\r\n\r\n".encode())
    return sock


def test_who_has_too_many_connections_is_told_in_json(api: TcpApi):
    crowd = [following(api, "read") for _ in range(4)]
    try:
        for each in crowd:
            assert each.recv(12) == b"HTTP/1.1 200"
        with api.client(api.secrets["read"]) as client:
            error = failure(client.status)
        assert isinstance(error, Unavailable)
        assert "as one asker may have" in error.message
        crowd += [following(api, "operate") for _ in range(2)]
        for each in crowd[4:]:
            assert each.recv(12) == b"HTTP/1.1 200"
        with api.client(api.secrets["admin"]) as client:
            assert isinstance(failure(client.status), Unavailable)
        with ManagerClient(api.socket) as client:
            assert client.status()
    finally:
        for each in crowd:
            each.close()
    wait_for(lambda: _quietly(lambda: _status(api)), "the API answers again")


def _status(api: TcpApi) -> object:
    with api.client(api.secrets["read"]) as client:
        return client.status()


def _quietly(call: Callable[[], object]) -> bool:
    try:
        return bool(call())
    except ApiError:
        return False


def test_a_handshake_that_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(door, "HANDSHAKE_S", 0.3)
    with tcp_api(tmp_path, tls=True) as api, connected(api) as sock:
        assert closed(sock) == b""
        with api.client(api.secrets["read"]) as client:
            assert client.status()


def test_the_silent_before_tls_do_not_take_all_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server, "FROM_AFAR", Bounds(unknown=8, source=6, known=6, asker=4))
    with tcp_api(tmp_path, tls=True) as api:
        crowd = [connected(api) for _ in range(60)]
        try:
            for each in crowd[:54]:
                assert closed(each) == b""
            with api.client(api.secrets["read"]) as client:
                assert client.status()
        finally:
            for each in crowd:
                each.close()
        assert api.counts["surplus"] == 55


def test_without_a_descriptor_for_a_newcomer_the_others_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(door, "AGAIN_S", 0.05)
    with tcp_api(tmp_path) as api, api.client(api.secrets["read"]) as client:
        assert client.status()
        newcomer = socket.socket()
        newcomer.settimeout(10)
        with descriptors_left(0):
            newcomer.connect(("127.0.0.1", api.ports["127.0.0.1"]))
            wait_for(lambda: api.counts["descriptors"] > 0, "it is out of descriptors")
            assert client.status()
        with newcomer:
            bearer = f"Authorization: Bearer {api.secrets['read']}"
            newcomer.sendall(f"GET /v1/status HTTP/1.1\r\nHost: x\r\n{bearer}\r\n\r\n".encode())
            assert newcomer.recv(12) == b"HTTP/1.1 200"


def test_a_source_with_many_gives_way_to_others():
    """No source loses a place to one that has more."""
    counts: Counter[str] = Counter()
    at = Door(Bounds(unknown=10, source=8, known=1, asker=1), counts)
    first = at.accepted("2001:db8::/64")
    crowd = [at.accepted("192.0.2.1") for _ in range(8)]
    second = at.accepted("192.0.2.2")
    others = [at.accepted(f"192.0.2.{host}") for host in range(3, 8)]
    assert [each.is_open for each in crowd] == [False] * 5 + [True] * 3
    assert all(each.is_open for each in (first, second, *others))
    assert counts["surplus"] == 5


def test_a_place_is_given_back_once_and_by_whoever_had_it():
    at = Door(Bounds(unknown=2, source=2, known=2, asker=1), Counter())
    one, two, late = at.accepted(""), at.accepted(""), at.accepted("")
    assert not one.is_open  # the oldest gave way
    assert all(two.is_let_in("ci") for _ in range(2))
    assert not late.is_let_in("ci")
    assert late.is_let_in("ops")
    assert late.is_let_in("web")  # a proxy's, for one after another
    assert not late.is_let_in("ci")
    two.left()
    two.left()
    assert late.is_let_in("ci")
    assert two.is_let_in("ci")  # nobody hears that answer: it takes no place
    late.left()
    assert at.accepted("").is_let_in("ci")


@pytest.mark.parametrize(
    ("family", "address", "source"),
    [
        (socket.AF_INET, ("192.0.2.1", 1), "192.0.2.1"),
        (socket.AF_INET6, ("2001:db8:0:1::5", 1, 0, 0), "2001:db8:0:1::/64"),
        (socket.AF_INET6, ("fe80::5%eth0", 1, 0, 2), "fe80::/64"),
        (socket.AF_UNIX, "", ""),
    ],
)
def test_whose_connections_are_counted_together(
    family: socket.AddressFamily, address: object, source: str
):
    with socket.socket(family) as sock:
        assert door.source_of(sock, address) == source


LINES = (
    b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"POST /v1/moves HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\n{}x",
    b"POST /v1/moves HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n",
    b"GET http://other/v1/status HTTP/1.0\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /v1/status HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
)


def test_nothing_that_is_no_request_harms_it(api: TcpApi):
    """Damaged requests, each on a connection of its own: an answer of 4xx, or the end."""
    chance = random.Random(7)
    answered = set()
    plain = b"content-type: application/json"
    for _ in range(300):
        data = bytearray(chance.choice(LINES))
        for _ in range(chance.randint(0, 4)):
            place = chance.randrange(len(data))
            data[place : place + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        with connected(api) as sock:
            try:
                sock.sendall(bytes(data))
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                continue
            answer = closed(sock)
        if answer:
            answered.add(int(answer.split()[1]))
            assert plain in answer.lower()
    assert {400, 401} <= answered
    assert not {status for status in answered if status < 400 or status >= 500}
