"""The UDP endpoint: bound addresses, batches, replies from the address that was asked."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from vmmobility.daemon import endpoint as module
from vmmobility.daemon.endpoint import MAX_OCTETS, UdpEndpoint
from vmmobility.engine.outputs import Endpoint, Send
from vmmobility.errors import EnvironmentProblem
from vmmobility.wire.values import Address

ADDRESSES: list[Address] = [ip_address("127.0.0.1"), ip_address("127.0.0.2"), ip_address("::1")]
Batch = list[tuple[bytes, Endpoint, Address]]


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def client(address: Address) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    opened = socket.socket(family, socket.SOCK_DGRAM)
    opened.bind(("127.0.0.9" if address.version == 4 else "::1", 0))
    opened.settimeout(5)
    return opened


def play(part: Callable[[UdpEndpoint, int], Any]) -> None:
    async def whole() -> None:
        port = free_port()
        endpoint = UdpEndpoint(ADDRESSES, port)
        try:
            await part(endpoint, port)
        finally:
            endpoint.close()
            endpoint.close()

    asyncio.run(whole())


@pytest.mark.parametrize("address", ADDRESSES, ids=str)
def test_who_asked_where_and_the_answer_from_there(address: Address):
    async def part(endpoint: UdpEndpoint, port: int) -> None:
        got: asyncio.Future[Batch] = asyncio.get_running_loop().create_future()
        endpoint.open(got.set_result)
        with client(address) as asking:
            asking.sendto(b"question", (str(address), port))
            [(data, source, local)] = await asyncio.wait_for(got, 5)
            assert (data, local) == (b"question", address)
            assert (str(source.address), source.port) == asking.getsockname()[:2]
            endpoint.send(Send(b"answer", source, local))
            answer, where = asking.recvfrom(100)
            assert (answer, where[:2]) == (b"answer", (str(address), port))
        assert endpoint.unsent == 0

    play(part)


def test_what_comes_between_bind_and_open_waits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BATCH", 2)

    async def part(endpoint: UdpEndpoint, port: int) -> None:
        endpoint.bind()
        endpoint.bind()
        batches: list[list[bytes]] = []
        done = asyncio.Event()

        def receive(batch: Batch) -> None:
            batches.append([data for data, _, _ in batch])
            if sum(map(len, batches)) == 3:
                done.set()

        with client(ADDRESSES[0]) as asking:
            for text in (b"a", b"b", b"c"):
                asking.sendto(text, ("127.0.0.1", port))
            endpoint.open(receive)
            await asyncio.wait_for(done.wait(), 5)
        assert batches == [[b"a", b"b"], [b"c"]]

    play(part)


def test_a_datagram_that_is_too_long_is_seen_as_such():
    async def part(endpoint: UdpEndpoint, port: int) -> None:
        got: asyncio.Future[Batch] = asyncio.get_running_loop().create_future()
        endpoint.open(got.set_result)
        with client(ADDRESSES[0]) as asking:
            asking.sendto(b"x" * 9000, ("127.0.0.1", port))
            [(data, _, _)] = await asyncio.wait_for(got, 5)
        assert len(data) == MAX_OCTETS > 1232

    play(part)


def test_what_cannot_leave_is_counted():
    async def part(endpoint: UdpEndpoint, port: int) -> None:
        endpoint.open(lambda batch: None)
        endpoint.send(Send(b"x" * 70000, Endpoint(ADDRESSES[0], port)))
        assert endpoint.unsent == 1
        endpoint.close()
        endpoint.send(Send(b"x", Endpoint(ADDRESSES[0], port)))
        assert endpoint.unsent == 2

    play(part)


@pytest.mark.parametrize("address", ["127.0.0.1", "192.0.2.1"])
def test_an_address_that_cannot_be_had_names_itself(address: str):
    async def part(endpoint: UdpEndpoint, port: int) -> None:
        endpoint.bind()
        other = UdpEndpoint([ip_address("127.0.0.3"), ip_address(address)], port)
        with pytest.raises(EnvironmentProblem) as refused:
            other.bind()
        assert f"{address} port {port}" in refused.value.message
        assert refused.value.remedy
        again = UdpEndpoint([ip_address("127.0.0.3")], port)
        again.bind()  # nothing of the failed attempt is held
        again.close()

    play(part)


def test_what_has_no_source_leaves_by_the_side_that_the_kernel_would_choose():
    async def part(port: int) -> None:
        endpoint = UdpEndpoint([ip_address("127.0.0.2"), ip_address("127.0.0.1")], port)
        endpoint.bind()
        try:
            with client(ip_address("127.0.0.1")) as hearing:
                to = Endpoint(ip_address("127.0.0.9"), hearing.getsockname()[1])
                endpoint.send(Send(b"word", to))
                assert hearing.recvfrom(99) == (b"word", ("127.0.0.1", port))
        finally:
            endpoint.close()

    asyncio.run(part(free_port()))


def test_without_a_free_descriptor_it_still_sends() -> None:
    """Which address to send from is asked of the kernel by a socket; there may be none to have."""

    async def part(endpoint: UdpEndpoint, port: int) -> None:
        endpoint.bind()
        with client(ADDRESSES[0]) as receiver:
            there = Endpoint(ip_address("127.0.0.9"), receiver.getsockname()[1])
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
            try:
                endpoint.send(Send(b"here", there))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert receiver.recv(16) == b"here"

    play(part)
