"""Streams between hosts: who is believed under TLS, what passes, how they end and break."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.make_stream_certificates import Authority, openssl
from vmmobility.drivers.hypervisor.stream_tls import StreamTls
from vmmobility.drivers.hypervisor.streams import Doorway, Streams, is_broken
from vmmobility.errors import HypervisorError

LOOPBACK = "127.0.0.1"
LIMIT_S = 10.0
STALL_S = 5.0
PORTS = (0, 0)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def files(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return authority.issue(tmp_path_factory.mktemp("tls"), [LOOPBACK, "::1"])


class Meeting:
    """Both ends of a stream, and what passed between them."""

    def __init__(self, dialled: socket.socket, taken: socket.socket, relay: Relay | None) -> None:
        self.dialled = dialled
        self.taken = taken
        self.relay = relay
        for end in (dialled, taken):
            end.settimeout(LIMIT_S)


class Relay:
    """A path that keeps all that passes, and can be cut."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.seen = b""
        self._server = socket.create_server((LOOPBACK, 0))
        self.at: tuple[str, int] = self._server.getsockname()
        self._target = target
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        come, _ = self._server.accept()
        self._ends = [come, socket.create_connection(self._target)]
        for source, sink in (self._ends, self._ends[::-1]):
            threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while octets := source.recv(65536):
                self.seen += octets
                sink.sendall(octets)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            self.cut()

    def cut(self) -> None:
        """Both hosts see the end of the connection, which no host has said."""
        for end in self._ends:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                end.shutdown(socket.SHUT_RDWR)


def meet(
    tls: Path | None, test: Callable[[Meeting], None], *, relayed: bool = False, at: str = LOOPBACK
) -> None:
    """Run a test in a thread, with both ends of a stream."""

    async def scenario() -> None:
        streams = Streams(STALL_S, tls)
        come: asyncio.Queue[socket.socket] = asyncio.Queue()

        async def enter(connection: socket.socket) -> None:
            come.put_nowait(connection.dup())

        doorway = Doorway(streams, enter)
        door = doorway.open(at, PORTS)
        relay = Relay(door) if relayed else None
        where = relay.at if relay else door
        dialled = await asyncio.to_thread(streams.connect, "vm1", *where)
        async with asyncio.timeout(LIMIT_S):
            taken = await come.get()
        with dialled, taken:
            await asyncio.to_thread(test, Meeting(dialled, taken, relay))
        await doorway.close()

    asyncio.run(scenario())


def read_all(connection: socket.socket) -> bytes:
    found = b""
    while octets := connection.recv(1 << 20):
        found += octets
    return found


def say_all(connection: socket.socket, octets: bytes) -> None:
    with connection:
        connection.sendall(octets)


def in_thread(run: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("secured", [False, True])
@pytest.mark.parametrize("at", [LOOPBACK, "::1"])
def test_octets_pass_both_ways_and_each_way_ends_for_itself(files: Path, secured: bool, at: str):
    there, back = os.urandom(5 << 20), os.urandom(3 << 20)

    def test(ends: Meeting) -> None:
        def send() -> None:
            ends.dialled.sendall(there)
            ends.dialled.shutdown(socket.SHUT_WR)

        sending = in_thread(send)
        assert read_all(ends.taken) == there
        sending.join(LIMIT_S)
        sending = in_thread(lambda: say_all(ends.taken, back))
        assert read_all(ends.dialled) == back
        sending.join(LIMIT_S)
        assert is_broken(ends.dialled)

    meet(files if secured else None, test, at=at)


@pytest.mark.parametrize("secured", [False, True])
def test_what_was_said_before_a_close_arrives_though_nobody_read_the_answer(
    files: Path, secured: bool
):
    words = os.urandom(100_000)

    def test(ends: Meeting) -> None:
        ends.dialled.sendall(words)
        ends.dialled.close()
        assert read_all(ends.taken) == words

    meet(files if secured else None, test)


@pytest.mark.parametrize("secured", [False, True])
def test_only_tls_hides_what_passes(files: Path, secured: bool):
    words = b"the memory of a guest " * 1000

    def test(ends: Meeting) -> None:
        sending = in_thread(lambda: say_all(ends.dialled, words))
        assert read_all(ends.taken) == words
        sending.join(LIMIT_S)
        assert ends.relay is not None
        assert len(ends.relay.seen) >= len(words)
        assert (b"memory of a guest" not in ends.relay.seen) is secured

    meet(files if secured else None, test, relayed=True)


def test_a_path_that_is_cut_breaks_both_ends(files: Path):
    def test(ends: Meeting) -> None:
        ends.dialled.sendall(b"half of it")
        assert ends.taken.recv(100) == b"half of it"
        assert ends.relay is not None
        assert not is_broken(ends.taken)
        ends.relay.cut()
        assert read_all(ends.taken) == read_all(ends.dialled) == b""
        assert is_broken(ends.taken)
        assert is_broken(ends.dialled)
        for end in (ends.taken, ends.dialled):  # not as one that has ended: nothing goes out, too
            with pytest.raises(BrokenPipeError):
                end.sendall(b"more")

    meet(files, test, relayed=True)


def test_an_end_that_nobody_hears_any_more_is_let_go_of(
    files: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vmmobility.drivers.hypervisor.tls_pump.LINGER_S", 0.2)

    def test(ends: Meeting) -> None:
        ends.dialled.close()
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            ends.taken.sendall(bytes(1 << 30))

    meet(files, test)


def test_an_end_that_is_held_for_long_is_not_let_go_of(
    files: Path, monkeypatch: pytest.MonkeyPatch
):
    """What was written before a close waits for a reader that is slow."""
    monkeypatch.setattr("vmmobility.drivers.hypervisor.tls_pump.LINGER_S", 0.0)
    words = os.urandom(16 << 20)

    def test(ends: Meeting) -> None:
        sending = in_thread(lambda: say_all(ends.dialled, words))
        found = ends.taken.recv(1)
        sending.join(0.5)  # all buffers are full, and nobody reads
        assert sending.is_alive()
        found += read_all(ends.taken)
        assert found == words

    meet(files, test)


# -- who is believed -----------------------------------------------------------------------------


def refusal(door: Path | None, dialler: Path | None) -> tuple[str, list[str]]:
    """What the one who dials hears, and what the door tells of it."""

    async def scenario() -> tuple[str, list[str]]:
        told: list[str] = []
        known = asyncio.Event()

        def refused(peer: str, error: HypervisorError) -> None:
            assert peer == LOOPBACK
            told.append(str(error))
            known.set()

        async def enter(connection: socket.socket) -> None:
            raise AssertionError("let in")

        doorway = Doorway(Streams(STALL_S, door, refused), enter)
        at = doorway.open(LOOPBACK, PORTS)
        with pytest.raises(HypervisorError) as caught:
            await asyncio.to_thread(Streams(STALL_S, dialler).connect, "vm1", *at)
        async with asyncio.timeout(LIMIT_S):
            await known.wait()
        await doorway.close()
        return str(caught.value), told

    return asyncio.run(scenario())


def test_an_authority_of_their_own_is_not_believed(files: Path, tmp_path: Path):
    other = Authority(tmp_path / "ca").issue(tmp_path / "tls", [LOOPBACK])
    said, (told,) = refusal(files, other)
    assert "vm1: the certificate of 127.0.0.1 port" in said
    assert f"{other}/ca-cert.pem" in said
    assert f"does not believe {files}/server-cert.pem" in told


def test_a_stranger_who_believes_the_door_is_refused_by_it(
    files: Path, authority: Authority, tmp_path: Path
):
    other = Authority(tmp_path / "ca").issue(tmp_path / "tls", [LOOPBACK])
    (other / "ca-cert.pem").write_bytes(authority.certificate.read_bytes())
    said, (told,) = refusal(files, other)
    assert f"does not take {other}/client-cert.pem" in said
    assert "certificate is not believed" in told


def test_a_certificate_of_another_address_is_not_believed(
    files: Path, authority: Authority, tmp_path: Path
):
    elsewhere = authority.issue(tmp_path / "tls", ["192.0.2.1"])
    said, _ = refusal(elsewhere, files)
    assert "name 127.0.0.1 (subjectAltName)" in said
    assert "mismatch" in said


def test_an_expired_certificate_is_not_believed(files: Path, authority: Authority, tmp_path: Path):
    expired = authority.issue(tmp_path / "tls", [LOOPBACK], days=-1)
    assert "certificate has expired" in refusal(expired, files)[0]
    said, (told,) = refusal(files, expired)
    assert "certificate expired" in said
    assert "certificate has expired" in told


def test_a_server_certificate_lets_nobody_in(files: Path, tmp_path: Path):
    """The certificates say what they are for."""
    for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    for part in ("cert", "key"):
        (tmp_path / f"client-{part}.pem").write_bytes((files / f"server-{part}.pem").read_bytes())
        (tmp_path / f"client-{part}.pem").chmod(0o600)
    (tmp_path / "server-key.pem").chmod(0o600)
    said, (told,) = refusal(files, tmp_path)
    assert "does not take" in said
    assert "purpose" in told or "not believed" in told


def test_a_revoked_certificate_is_refused(files: Path, authority: Authority, tmp_path: Path):
    folder = authority.certificate.parent
    revoked = authority.issue(tmp_path / "tls", [LOOPBACK])
    (tmp_path / "index").touch()
    (tmp_path / "openssl.cnf").write_text(
        f"[ca]\ndefault_ca = it\n[it]\ndatabase = {tmp_path}/index\ndefault_md = sha256\n"
        "default_crl_days = 30\n"
    )
    keys = ("-cert", authority.certificate, "-keyfile", folder / "ca-key.pem")
    signing = ("-config", tmp_path / "openssl.cnf", *keys)
    openssl("ca", *signing, "-revoke", revoked / "client-cert.pem")
    careful = authority.issue(tmp_path / "careful", [LOOPBACK])
    openssl("ca", *signing, "-gencrl", "-out", careful / "ca-crl.pem")
    StreamTls(careful).check((LOOPBACK,))
    said, (told,) = refusal(careful, revoked)
    assert "revoked" in said
    assert "revoked" in told


def test_who_does_not_speak_tls_is_told(files: Path):
    """And so is the one at the door who does not."""

    async def scenario() -> None:
        known = asyncio.Event()

        async def enter(connection: socket.socket) -> None:
            raise AssertionError("let in")

        doorway = Doorway(Streams(STALL_S, files, lambda peer, error: known.set()), enter)
        at = doorway.open(LOOPBACK, PORTS)
        reader, writer = await asyncio.open_connection(*at)
        writer.write(b"disks\n")
        assert b"TLS is wanted here" in await reader.read()
        writer.close()
        await known.wait()
        await doorway.close()

    asyncio.run(scenario())


def test_a_door_without_tls_is_named(files: Path):
    async def scenario() -> str:
        async def enter(connection: socket.socket) -> None:
            await asyncio.get_running_loop().sock_recv(connection, 5)

        doorway = Doorway(Streams(STALL_S), enter)
        at = doorway.open(LOOPBACK, PORTS)
        with pytest.raises(HypervisorError) as caught:
            await asyncio.to_thread(Streams(STALL_S, files).connect, "vm1", *at)
        await doorway.close()
        return str(caught.value)

    said = asyncio.run(scenario())
    assert "does not speak TLS" in said
    assert "at both ends, or at neither" in said


def test_a_silent_stranger_keeps_nobody_out(files: Path):
    async def scenario() -> None:
        streams = Streams(STALL_S, files)
        come = asyncio.Event()

        async def enter(connection: socket.socket) -> None:
            come.set()

        doorway = Doorway(streams, enter)
        at = doorway.open(LOOPBACK, PORTS)
        strangers = [socket.create_connection(at) for _ in range(40)]
        (await asyncio.to_thread(streams.connect, "vm1", *at)).close()
        await come.wait()
        await doorway.close()
        for stranger in strangers:
            assert stranger.recv(1) == b""
            stranger.close()

    asyncio.run(scenario())


# -- files ---------------------------------------------------------------------------------------


def test_sound_files_are_sound(files: Path):
    StreamTls(files).check((LOOPBACK, "::1"))
    StreamTls(files).check(())


def copy_of(files: Path, folder: Path) -> Path:
    for file in files.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
        (folder / file.name).chmod(file.stat().st_mode)
    return folder


ALL = ("ca-cert.pem", "server-cert.pem", "server-key.pem", "client-cert.pem", "client-key.pem")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("fault", ["missing", "nonsense"])
def test_a_file_that_is_no_use_is_named(files: Path, tmp_path: Path, name: str, fault: str):
    broken = copy_of(files, tmp_path)
    if fault == "missing":
        (broken / name).unlink()
    else:
        (broken / name).write_text("nonsense")
    with pytest.raises(HypervisorError) as caught:
        StreamTls(broken).check((LOOPBACK,))
    named = name if name == "ca-cert.pem" or fault == "missing" else name.split("-")[0]
    assert f"{broken}/{named}" in caught.value.message
    assert caught.value.remedy


def test_a_door_whose_files_are_no_use_is_not_opened(files: Path, tmp_path: Path):
    """So a move that could not come about is refused before anything is prepared."""
    broken = copy_of(files, tmp_path)
    (broken / "server-key.pem").unlink()

    async def enter(connection: socket.socket) -> None:
        raise AssertionError("let in")

    async def scenario() -> None:
        with pytest.raises(HypervisorError, match=r"server-key.pem cannot be read"):
            Doorway(Streams(STALL_S, broken), enter).open(LOOPBACK, PORTS)

    asyncio.run(scenario())


def test_a_key_that_everyone_can_read_is_refused(files: Path, tmp_path: Path):
    broken = copy_of(files, tmp_path)
    (broken / "client-key.pem").chmod(0o644)
    with pytest.raises(HypervisorError, match=r"client-key.pem is open to everyone"):
        StreamTls(broken).check((LOOPBACK,))


def test_a_key_with_a_password_asks_nobody(files: Path, tmp_path: Path):
    broken = copy_of(files, tmp_path)
    key = broken / "server-key.pem"
    openssl("pkey", "-in", files / key.name, "-aes256", "-passout", "pass:secret", "-out", key)
    key.chmod(0o600)
    with pytest.raises(HypervisorError, match=re.escape(f"{key} cannot be used: it has a")):
        StreamTls(broken).check((LOOPBACK,))


def test_check_finds_what_peers_would_not_believe(authority: Authority, tmp_path: Path):
    expired = authority.issue(tmp_path / "expired", [LOOPBACK], days=-1)
    with pytest.raises(HypervisorError, match=r"server-cert.pem would not .*has expired"):
        StreamTls(expired).check((LOOPBACK,))
    elsewhere = authority.issue(tmp_path / "elsewhere", ["192.0.2.1"])
    with pytest.raises(HypervisorError, match=r"does not name 192.0.2.9.*IP:192.0.2.9"):
        StreamTls(elsewhere).check(("192.0.2.1", "192.0.2.9"))
    sound = authority.issue(tmp_path / "sound", [LOOPBACK])
    for part in ("cert", "key"):
        file = sound / f"client-{part}.pem"
        file.write_bytes((expired / file.name).read_bytes())
    with pytest.raises(HypervisorError, match=r"client-cert.pem would not .*has expired"):
        StreamTls(sound).check((LOOPBACK,))
