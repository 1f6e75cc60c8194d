"""The lab's guest: built once, boots, answers, and keeps its memory whole over a hot move."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from vmmobility.drivers.hypervisor.interface import GuestEvent, GuestReport, VmDefinition
from vmmobility.drivers.hypervisor.qemu import QemuHypervisor
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.errors import EnvironmentProblem, LabError
from vmmobility.lab import workdir
from vmmobility.lab.guest import image, kernel_package
from vmmobility.lab.guest.cpio import Archive
from vmmobility.lab.guest.image import guest_image, kernel_arguments
from vmmobility.wire.values import Interface, VmKey

BUILD = workdir.cache()
BOOT_LIMIT_S = 40.0
ANSWER_S = 0.5
VM = VmKey(0, "image-test")
FIRST = Interface(
    bytes.fromhex("5254000a0001"), (ip_network("10.1.0.1/32"), ip_network("fd01::1/128"))
)
SECOND = Interface(
    bytes.fromhex("5254000a0002"), (ip_network("10.2.0.8/29"), ip_network("fd02::/64"))
)


def test_the_command_line_carries_addresses_and_prefixes() -> None:
    words = kernel_arguments([FIRST, SECOND], mem_mib=16, dirty_mibps=2).split()
    assert "mem_mib=16" in words
    assert "dirty_mibps=2" in words
    assert "vmm=52:54:00:0a:00:01,10.1.0.1/32,fd01::1/128" in words
    assert "vmm=52:54:00:0a:00:02,10.2.0.9@10.2.0.8/29,fd02::1@fd02::/64" in words


def test_too_many_addresses_are_refused() -> None:
    many = tuple(ip_network(f"fd01::{n:x}/128") for n in range(200))
    with pytest.raises(LabError, match="fewer addresses"):
        kernel_arguments([Interface(FIRST.mac, many)])


def test_a_missing_tool_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="apt-cache is not installed"):
        guest_image(tmp_path / "build")


@pytest.mark.qemu
def test_a_second_build_is_answered_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    built = guest_image(BUILD)
    for module in (image, kernel_package):
        monkeypatch.setattr(module, "run", lambda *_, **__: pytest.fail("it has built again"))
    assert guest_image(BUILD) == built


@pytest.mark.qemu
def test_the_archive_is_one_that_others_read(tmp_path: Path) -> None:
    archive = Archive()
    archive.add_folder("bin")
    archive.add_file("bin/a", b"hello", mode=0o755)
    (tmp_path / "x.cpio").write_bytes(archive.finish())
    command = ["busybox", "cpio", "-i", "-F", "x.cpio"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "bin/a").read_bytes() == b"hello"
    assert os.access(tmp_path / "bin/a", os.X_OK)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread's network namespace is `namespace` meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        if libc.setns(there.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        try:
            yield
        finally:
            libc.setns(home.fileno(), 0)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def plug(namespace: str, taps: list[str]) -> None:
    """The taps of the routed attach: same gateway on each, permanent neighbours, routes."""
    for tap, interface in zip(taps, (FIRST, SECOND), strict=True):
        ip("-n", namespace, "tuntap", "add", "dev", tap, "mode", "tap")
        ip("-n", namespace, "link", "set", tap, "address", "02:00:00:00:00:01", "up")
        ip("-n", namespace, "addr", "add", "fe80::1/64", "dev", tap, "nodad")
        ip("-n", namespace, "addr", "add", "169.254.1.1/32", "dev", tap)
        route(namespace, tap, interface)


def route(namespace: str, tap: str, interface: Interface) -> None:
    for prefix in interface.prefixes:
        for address in {str(prefix[0]), str(prefix[1 % prefix.num_addresses])}:
            station = ("lladdr", interface.mac_text, "dev", tap, "nud", "permanent")
            ip("-n", namespace, "neigh", "replace", address, *station)
        ip("-n", namespace, "route", "replace", str(prefix), "dev", tap)


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"vmi{os.getpid() % 100000}"
    ip("netns", "add", name)
    ip("-n", name, "link", "set", "lo", "up")
    yield name
    ip("netns", "del", name)


def ask(
    namespace: str, address: str, port: int, word: bytes, limit_s: float = BOOT_LIMIT_S
) -> bytes:
    """Send until an answer comes."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with inside(namespace):
        client = socket.socket(family, socket.SOCK_DGRAM)
    deadline = time.monotonic() + limit_s
    with client:
        client.settimeout(ANSWER_S)
        client.connect((address, port))
        while time.monotonic() < deadline:
            try:
                client.send(word)
                return client.recv(2048)
            except (TimeoutError, ConnectionError):
                continue
    pytest.fail(f"no answer from {address} port {port} within {limit_s} s")


def control(namespace: str, word: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(ask(namespace, "10.1.0.1", 8, word))
    return answer


def echo_by_tcp(namespace: str, address: str) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with inside(namespace):
        client = socket.socket(family, socket.SOCK_STREAM)
    with client:
        client.settimeout(BOOT_LIMIT_S)
        client.connect((address, 7))
        client.send(b"hello")
        return client.recv(100)


async def awaited(reports: asyncio.Queue[GuestReport], event: GuestEvent) -> None:
    """Of progress there may be any number."""
    async with asyncio.timeout(BOOT_LIMIT_S):
        while (report := await reports.get()).event is GuestEvent.PROGRESS:
            pass
    assert report.event is event, report


async def move(
    definition: VmDefinition, namespace: str, tmp_path: Path, taps: dict[str, list[str]]
) -> None:
    """Boot at a, look at the guest, move it to b, look again; all of it in the namespace."""
    settings = QemuSettings(accelerator="tcg", images=(workdir.cache(),))
    queues: dict[str, asyncio.Queue[GuestReport]] = {end: asyncio.Queue() for end in "ab"}
    nodes = {end: QemuHypervisor(tmp_path / end, queues[end].put_nowait, settings) for end in "ab"}
    try:
        await nodes["a"].start(definition, taps["a"])
        await awaited(queues["a"], GuestEvent.STARTED)
        await asyncio.to_thread(look, namespace)
        place = await nodes["b"].prepare_incoming(definition, taps["b"], "127.0.0.1")
        await nodes["a"].copy_out(VM, *place)
        await awaited(queues["a"], GuestEvent.CONVERGED)
        await nodes["a"].switch_over(VM)
        await awaited(queues["a"], GuestEvent.ABOUT_TO_STOP)
        for tap, interface in zip(taps["b"], (FIRST, SECOND), strict=True):
            route(namespace, tap, interface)
        await nodes["a"].proceed(VM)
        await awaited(queues["a"], GuestEvent.STOPPED)
        await awaited(queues["b"], GuestEvent.RESUMED)
        await awaited(queues["a"], GuestEvent.COMPLETED)
        await nodes["a"].stop(VM)
        await asyncio.to_thread(look, namespace)
    finally:
        for node in nodes.values():
            await node.stop(VM)
            await node.close()


def look(namespace: str) -> None:
    """The guest answers at every address, and its memory is whole."""
    status = control(namespace, b"status")
    assert status["memory_pages"] == 16 * 256
    for address in ("10.1.0.1", "fd01::1", "10.2.0.9", "10.2.0.14", "fd02::1"):
        assert ask(namespace, address, 7, b"hello") == b"hello"
    for address in ("10.1.0.1", "fd01::1"):
        assert echo_by_tcp(namespace, address) == b"hello"
    checked = control(namespace, b"check")
    assert checked["bad_pages"] == 0
    assert checked["dirtied_pages"] > status["dirtied_pages"]


@pytest.mark.qemu
@pytest.mark.netns
def test_a_guest_answers_and_its_memory_is_whole_after_a_move(
    namespace: str, tmp_path: Path
) -> None:
    taps = {end: [f"vmi{end}{n}" for n in range(2)] for end in "ab"}
    for end in "ba":  # the routes of the last, a, stay
        plug(namespace, taps[end])
    built = guest_image(BUILD)
    machine = {
        "kernel": str(built.kernel),
        "initrd": str(built.initrd),
        "append": kernel_arguments([FIRST, SECOND], mem_mib=16, dirty_mibps=4),
    }
    definition = VmDefinition(VM, "qemu", (FIRST, SECOND), machine=machine)
    with inside(namespace):  # threads that it makes are there too
        asyncio.run(move(definition, namespace, tmp_path, taps))
