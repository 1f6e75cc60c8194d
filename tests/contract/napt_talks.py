"""Connected pairs of sockets through NAPT boxes: each end hears every byte that the other one says.

Not here: where the inside end is (napt_planes.World).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from tests.contract.napt_planes import (
    MAPPED,
    PUBLIC,
    TCP,
    UDP,
    WORLD,
    A,
    World,
    port,
    static,
)

FAR = "203.0.113.9"
_CHUNK = b"0123456789abcdef" * 64


@dataclass
class Talk:
    """One connected pair of sockets: what each end says, the other one hears in full."""

    name: str
    inside: socket.socket
    outside: socket.socket
    said: list[int] = field(default_factory=lambda: [0, 0])

    def exchange(self, times: int = 3) -> None:
        """Both ends speak in turn; each hears every byte."""
        for _ in range(times):
            for n, (mouth, ear) in enumerate(
                ((self.inside, self.outside), (self.outside, self.inside))
            ):
                text = (f"{self.name} {n} {self.said[n]} ").encode() + _CHUNK
                mouth.sendall(text)
                heard = b""
                while len(heard) < len(text):
                    part = ear.recv(65536)
                    assert part, f"{self.name}: the connection has ended"
                    heard += part
                assert heard == text
                self.said[n] += 1


def tcp_in(world: World, public: tuple[str, int], inside: tuple[str, int]) -> Talk:
    """A connection from the world to a public address and port."""
    door = world.socket(world.inside, socket.SOCK_STREAM, *inside)
    door.listen()
    caller = world.socket(world.outside, socket.SOCK_STREAM, WORLD, 0)
    caller.connect(public)
    answer, _ = door.accept()
    world.stack.callback(answer.close)
    answer.settimeout(20)
    return Talk(f"tcp in {public}", answer, caller)


def tcp_out(world: World, private: tuple[str, int], number: int) -> Talk:
    """A connection that the inside begins."""
    door = world.socket(world.outside, socket.SOCK_STREAM, WORLD, number)
    door.listen()
    caller = world.socket(world.inside, socket.SOCK_STREAM, *private)
    caller.connect((WORLD, number))
    answer, peer = door.accept()
    world.stack.callback(answer.close)
    answer.settimeout(20)
    return Talk(f"tcp out as {peer}", caller, answer)


def udp_in(world: World, public: tuple[str, int], inside: tuple[str, int]) -> Talk:
    server = world.socket(world.inside, socket.SOCK_DGRAM, *inside)
    caller = world.socket(world.outside, socket.SOCK_DGRAM, WORLD, 0)
    caller.connect(public)
    caller.send(b"hello")
    server.connect(server.recvfrom(100)[1])
    return Talk(f"udp in {public}", server, caller)


def udp_out(world: World, private: tuple[str, int], number: int) -> Talk:
    server = world.socket(world.outside, socket.SOCK_DGRAM, WORLD, number)
    caller = world.socket(world.inside, socket.SOCK_DGRAM, *private)
    caller.connect((WORLD, number))
    caller.send(b"hello")
    peer = server.recvfrom(100)[1]
    server.connect(peer)
    return Talk(f"udp out as {peer}", caller, server)


STATIC = (static(A, PUBLIC),)
PORTS = (port(TCP, A, 8080, MAPPED, 80), port(UDP, A, 5300, MAPPED, 53))


def talks_with_static(world: World) -> list[Talk]:
    return [
        tcp_in(world, (PUBLIC, 8081), (A, 8081)),
        udp_in(world, (PUBLIC, 8082), (A, 8082)),
        tcp_out(world, (A, 8083), 8083),
        udp_out(world, (A, 8084), 8084),
    ]


def talks_with_ports_and_pool(world: World) -> list[Talk]:
    return [
        tcp_in(world, (MAPPED, 80), (A, 8080)),
        udp_in(world, (MAPPED, 53), (A, 5300)),
        tcp_out(world, (A, 7001), 7001),
        udp_out(world, (A, 7002), 7002),
    ]
