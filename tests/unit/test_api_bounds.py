"""What is malformed, too long or too slow: bounded, answered where there is somebody to answer, and
nobody else waits for it."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator

import pytest

from tests.contract.namespaces import wait_for
from tests.unit.tcp_api import LOOPBACKS, TcpApi, tcp_api
from vmmobility.api import http, patience, server

HEAD_S = 0.3
BODY_S = 0.4


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TcpApi]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience.PatientProtocol, "head_s", HEAD_S)
        patch.setattr(http, "BODY_S", BODY_S)
        patch.setattr(server, "MOST_CONNECTIONS", 20)
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


def test_too_many_connections_are_refused_and_the_others_go_on(api: TcpApi):
    crowd = [connected(api) for _ in range(30)]
    try:
        status, _ = 0, b""
        with connected(api) as sock:
            sock.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            status = int(closed(sock).split()[1])
        assert status == 503
    finally:
        for each in crowd:
            each.close()

    def served() -> bool:
        with api.client(api.secrets["read"]) as client:
            return bool(client.status())

    wait_for(lambda: _quietly(served), "the API answers again")


def _quietly(call: object) -> bool:
    try:
        return bool(call())  # type: ignore[operator]
    except Exception:
        return False


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
    assert {400, 401} <= answered
    assert not {status for status in answered if status < 400 or status >= 500}
