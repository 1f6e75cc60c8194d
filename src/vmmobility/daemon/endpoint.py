"""The UDP endpoint: a socket an address, drained in batches in the event loop.

Not here: what datagrams mean (engine/channel.py).  Rests on the standard library alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from vmmobility.engine.outputs import Endpoint, Send
from vmmobility.errors import EnvironmentProblem
from vmmobility.wire.values import Address

BATCH = 256  # datagrams taken before their outputs leave
RECEIVE_BUFFER = 4 << 20  # octets; a burst of registrations waits here
MAX_OCTETS = 2048  # more than any valid datagram, so that a longer one is seen as such

Receiver = Callable[[list[tuple[bytes, Endpoint, Address]]], None]


class UdpEndpoint:
    """Sockets bound to this node's own addresses.  `receiver` gets each batch of
    (datagram, source, the own address that it came to)."""

    def __init__(self, addresses: Sequence[Address], port: int) -> None:
        self._addresses = tuple(addresses)
        self._port = port
        self._sockets: dict[Address, socket.socket] = {}
        self.unsent = 0

    def bind(self) -> None:
        """Take the addresses; what comes waits until open().  Idempotent.

        Raises EnvironmentProblem naming the address and the remedy.
        """
        for address in self._addresses:
            if address in self._sockets:
                continue
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            opened = socket.socket(family, socket.SOCK_DGRAM)
            opened.setblocking(False)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            try:
                opened.bind((str(address), self._port))
            except OSError as error:
                opened.close()
                self.close()
                raise EnvironmentProblem(
                    f"cannot listen on {address} port {self._port}: {error.strerror}",
                    "give an address of this host that no other daemon uses",
                ) from error
            self._sockets[address] = opened

    def open(self, receiver: Receiver) -> None:
        """Begin to receive, on addresses that bind() takes if that was not done before."""
        self.bind()
        loop = asyncio.get_running_loop()
        for address, opened in self._sockets.items():
            loop.add_reader(opened, self._drain, opened, address, receiver)

    def _drain(self, opened: socket.socket, address: Address, receiver: Receiver) -> None:
        batch = []
        for _ in range(BATCH):
            try:
                data, source = opened.recvfrom(MAX_OCTETS)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                continue  # an ICMP error of an earlier datagram: retransmission sees to it
            host = source[0].partition("%")[0]
            batch.append((data, Endpoint(ip_address(host), source[1]), address))
        if batch:
            receiver(batch)

    def send(self, output: Send) -> None:
        """Send one datagram; what cannot leave now is lost, and retransmission sees to it."""
        opened = self._sockets.get(output.source) if output.source else None
        if opened is None:
            opened = self._towards(output.destination)
        if opened is None:
            self.unsent += 1
            return
        try:
            opened.sendto(output.data, (str(output.destination.address), output.destination.port))
        except OSError:
            self.unsent += 1

    def _towards(self, destination: Endpoint) -> socket.socket | None:
        """The socket whose address the kernel would choose: a box has one on each of its sides, and
        what leaves by the wrong one has no way back.  Else the family's first."""
        address = destination.address
        own = [a for a in self._sockets if a.version == address.version]
        if len(own) > 1:
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((str(address), destination.port))  # sends nothing
                chosen = ip_address(probe.getsockname()[0].partition("%")[0])
                own.sort(key=lambda a: a != chosen)
        return self._sockets[own[0]] if own else None

    def close(self) -> None:
        """Let go of the sockets.  Idempotent."""
        loop = asyncio.get_running_loop()
        for opened in self._sockets.values():
            with contextlib.suppress(ValueError, OSError):
                loop.remove_reader(opened)
            opened.close()
        self._sockets.clear()
