"""A NaptPlane under its contract's tests: the in-memory twin, or Linux drivers in namespaces.

            outside: 198.51.100.7, .8 (the world), 10.99.0.9 (another data centre: exempt)
             │ 10.0.1.2        │ 10.0.2.2
       box1 ─┴── 10.0.3.x ──── ┴─ box2
             │ 10.0.4.1        │ 10.0.5.1
            inside: 10.77.0.5, .6, .7 (one namespace with a link to each box)

192.0.2.0/24 is routed to box1, 203.0.113.0/24 to box2; the inside is behind box1 until turned.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Protocol

from tests.contract.namespaces import Namespace, join, wait_for
from vmmobility.drivers.dataplane import Drift
from vmmobility.drivers.fake_napt_plane import FakeNaptPlane
from vmmobility.drivers.linux.filter_listing import generation
from vmmobility.drivers.linux.napt_driver import LinuxNaptPlane
from vmmobility.drivers.napt_plane import NaptFailure, NaptPlane, NaptUsage
from vmmobility.engine.napt_plane import (
    Detour,
    Flow,
    NaptState,
    PortMapping,
    StaticMapping,
)

End = tuple[str, int]
UDP, TCP = 17, 6

A, B, C = "10.77.0.5", "10.77.0.6", "10.77.0.7"
WORLD, ELSEWHERE, SISTER = "198.51.100.7", "198.51.100.8", "10.99.0.9"
PUBLIC, SECOND, MAPPED = "192.0.2.5", "192.0.2.6", "192.0.2.1"
POOL, FAR_POOL = "192.0.2.9", "203.0.113.9"
BOX1, BOX2 = "10.0.3.1", "10.0.3.2"


def static(private: str, public: str) -> StaticMapping:
    return StaticMapping(IPv4Address(private), IPv4Address(public))


def port(protocol: int, private: str, inner: int, public: str, outer: int) -> PortMapping:
    return PortMapping(protocol, IPv4Address(private), inner, IPv4Address(public), outer)


def detour(private: str, box: str) -> Detour:
    return Detour(IPv4Address(private), IPv4Address(box))


def state(
    *items: StaticMapping | PortMapping | Detour,
    pool: Sequence[str] = (POOL,),
    pool_ports: tuple[int, int] = (1024, 65535),
    outward: Sequence[StaticMapping] = (),
) -> NaptState:
    return NaptState(
        inside=(IPv4Network("10.77.0.0/16"),),
        exempt=(IPv4Network("10.99.0.0/16"),),
        static=tuple(i for i in items if isinstance(i, StaticMapping)),
        ports=tuple(i for i in items if isinstance(i, PortMapping)),
        pool=tuple(map(IPv4Address, pool)),
        detours=tuple(i for i in items if isinstance(i, Detour)),
        pool_ports=pool_ports,
        publics=(IPv4Network("192.0.2.0/24"),),
        outward=tuple(outward),
    )


class Hands(Protocol):
    """Packets through the box, and other hands than the driver's at what it holds."""

    def outgoing(self, private: End, remote: End) -> End | None:
        """Send UDP from inside; as whom it arrives outside, None: dropped and counted."""

    def incoming(self, remote: End, public: End) -> End | None: ...
    def remove_static(self, private: str, public: str) -> None: ...
    def remove_table(self) -> None: ...
    def writes(self) -> int: ...
    def clean(self) -> bool:
        """Whether nothing of ours is installed."""


class Box:
    """A NAPT plane, called from outside its event loop."""

    def __init__(self, plane: NaptPlane, await_: Callable[[Any], Any], hands: Hands) -> None:
        self.plane, self.await_, self.hands = plane, await_, hands

    def start(self) -> None:
        self.await_(self.plane.start())

    def apply(self, desired: NaptState) -> Sequence[NaptFailure]:
        found: Sequence[NaptFailure] = self.await_(self.plane.apply(desired))
        return found

    def resync(self, desired: NaptState) -> Sequence[NaptFailure]:
        found: Sequence[NaptFailure] = self.await_(self.plane.resync(desired))
        return found

    def audit(self) -> Sequence[Drift]:
        found: Sequence[Drift] = self.await_(self.plane.audit())
        return found

    def export(self, private: str) -> tuple[Flow, ...]:
        found: tuple[Flow, ...] = self.await_(self.plane.export_flows(IPv4Address(private)))
        return found

    def bring_in(self, flows: Sequence[Flow]) -> Sequence[NaptFailure]:
        found: Sequence[NaptFailure] = self.await_(self.plane.import_flows(flows))
        return found

    def drop(self, private: str, public: str | None = None) -> int:
        which = None if public is None else IPv4Address(public)
        found: int = self.await_(self.plane.drop_flows(IPv4Address(private), which))
        return found

    def usage(self) -> NaptUsage:
        found: NaptUsage = self.await_(self.plane.usage())
        return found

    def close(self) -> None:
        self.await_(self.plane.close())

    def remove_all(self) -> None:
        self.await_(self.plane.remove_all())


# -- the twin -----------------------------------------------------------------------------------


def _end(end: End) -> tuple[IPv4Address, int]:
    return IPv4Address(end[0]), end[1]


def _words(end: tuple[IPv4Address, int] | None) -> End | None:
    return None if end is None else (str(end[0]), end[1])


class FakeHands:
    def __init__(self, fake: FakeNaptPlane) -> None:
        self.fake = fake

    def outgoing(self, private: End, remote: End) -> End | None:
        return _words(self.fake.outgoing(UDP, _end(private), _end(remote)))

    def incoming(self, remote: End, public: End) -> End | None:
        return _words(self.fake.incoming(UDP, _end(remote), _end(public)))

    def remove_static(self, private: str, public: str) -> None:
        assert self.fake.held is not None
        kept = tuple(s for s in self.fake.held.static if s != static(private, public))
        self.fake.held = replace(self.fake.held, static=kept)

    def remove_table(self) -> None:
        self.fake.held = None

    def writes(self) -> int:
        return self.fake.writes

    def clean(self) -> bool:
        return self.fake.held is None and not self.fake.flows


def fake_boxes() -> Iterator[tuple[Box, Box]]:
    loop = asyncio.new_event_loop()
    made = []
    for _ in range(2):
        fake = FakeNaptPlane()
        made.append(Box(fake, loop.run_until_complete, FakeHands(fake)))
    yield made[0], made[1]
    loop.close()


# -- Linux --------------------------------------------------------------------------------------


class World:
    """The namespaces; sockets are made in them and used from the test."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        names = ("outside", "box1", "box2", "inside")
        self.outside, self.box1, self.box2, self.inside = (self._space(name) for name in names)
        join(self.box1, "out", self.outside, "b1", 1)
        join(self.box2, "out", self.outside, "b2", 2)
        join(self.box1, "side", self.box2, "side", 3)
        join(self.box1, "in", self.inside, "b1", 4)
        join(self.box2, "in", self.inside, "b2", 5)
        for address in (WORLD, ELSEWHERE, SISTER):
            self.outside.ip("addr", "add", f"{address}/32", "dev", "lo")
        for address in (A, B, C):
            self.inside.ip("addr", "add", f"{address}/32", "dev", "lo")
        for space in (self.outside, self.box1, self.box2, self.inside):
            for name in ("all", "default", "b1", "b2", "out", "in", "side"):
                key = f"net.ipv4.conf.{name}.rp_filter"
                space.run("sysctl", "-qew", f"{key}=0")
        self.route(self.outside, "192.0.2.0/24", "10.0.1.1")
        self.route(self.outside, "203.0.113.0/24", "10.0.2.1")
        self.route(self.outside, "10.77.0.0/16", "10.0.1.1")
        self.route(self.box1, "default", "10.0.1.2")
        self.route(self.box2, "default", "10.0.2.2")
        self.route(self.inside, "default", "10.0.4.1")
        self.route(self.box1, "10.77.0.0/16", "10.0.4.2")
        self.route(self.box2, "10.77.0.0/16", BOX1)

    def _space(self, name: str) -> Namespace:
        space = Namespace(name)
        self.stack.callback(space.close)
        return space

    def route(self, space: Namespace, prefix: str, gateway: str) -> None:
        space.ip("route", "replace", prefix, "via", gateway)

    def socket(self, space: Namespace, kind: int, address: str, number: int) -> socket.socket:
        made = space.call(socket.socket, socket.AF_INET, kind)
        self.stack.callback(made.close)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, number))
        made.settimeout(10)
        return made

    def behind_box2(self, private: str) -> None:
        """The inside host is reached by box2 now, and leaves by it."""
        self.route(self.inside, "default", "10.0.5.1")
        self.route(self.box2, f"{private}/32", "10.0.5.2")
        self.route(self.box1, f"{private}/32", BOX2)

    def public_to_box2(self, public: str) -> None:
        """The world's route of a public address leads to box2 now."""
        self.route(self.outside, f"{public}/32", "10.0.2.1")


class LinuxHands:
    """Hands with `nft`; UDP by sockets that stay open from call to call."""

    def __init__(self, world: World, space: Namespace) -> None:
        self.world, self.space = world, space
        self.box: Box | None = None
        self._sockets: dict[tuple[str, End], socket.socket] = {}

    def _socket(self, space: Namespace, end: End) -> socket.socket:
        key = (space.name, end)
        if key not in self._sockets:
            self._sockets[key] = made = self.world.socket(space, socket.SOCK_DGRAM, *end)
            made.setblocking(False)
        return self._sockets[key]

    def outgoing(self, private: End, remote: End) -> End | None:
        source = self._socket(self.world.inside, private)
        return self._pass(source, remote, [self._socket(self.world.outside, remote)], True)

    def incoming(self, remote: End, public: End) -> End | None:
        source = self._socket(self.world.outside, remote)
        ends = [(host, number) for host in (A, B, C) for number in (public[1], 53)]
        inside = [self._socket(self.world.inside, end) for end in dict.fromkeys(ends)]
        return self._pass(source, public, inside, False)

    def _pass(
        self, source: socket.socket, to: End, ears: list[socket.socket], outgoing: bool
    ) -> End | None:
        before = self._drops()
        source.sendto(b"?", to)

        def look() -> tuple[End | None] | None:
            for ear in ears:
                try:
                    peer: End = ear.recvfrom(100)[1]
                except BlockingIOError:
                    continue
                here: End = ear.getsockname()
                return (peer if outgoing else here,)
            return (None,) if self._drops() > before else None

        seen = wait_for(look, f"from {source.getsockname()} to {to}")
        assert seen is not None
        return seen[0]

    def _drops(self) -> int:
        assert self.box is not None
        u = self.box.usage()
        return u.no_pool + u.exhausted + u.unknown + u.unmapped + u.untranslated

    def nft(self, *words: str) -> str:
        return self.space.run("nft", *words)

    def remove_static(self, private: str, public: str) -> None:
        self.nft("delete", "element", "ip", "vmmob_napt", "static_in", f"{{ {public} }}")
        self.nft("delete", "element", "ip", "vmmob_napt", "static_out", f"{{ {private} }}")

    def remove_table(self) -> None:
        self.nft("delete", "table", "ip", "vmmob_napt")

    def writes(self) -> int:
        """nftables counts every change of its rules, whoever makes it."""
        return self.space.call(generation) or 0

    def ours(self, *what: str) -> list[dict[str, Any]]:
        """Our rules, or routes of all tables, as `ip -j` shows them."""
        shown = self.space.ip("-4", "-j", *what)
        found: list[dict[str, Any]] = json.loads(shown or "[]")
        return [one for one in found if str(one.get("protocol")) == "78"]

    def clean(self) -> bool:
        tables = self.nft("list", "tables")
        routes = self.ours("-d", "route", "show", "table", "all")
        rules = self.ours("-d", "rule", "show")
        return not tables and not routes and not rules


class LinuxBox(Box):
    """The Linux box with its insides."""

    plane: LinuxNaptPlane
    hands: LinuxHands

    @property
    def world(self) -> World:
        return self.hands.world

    @property
    def space(self) -> Namespace:
        return self.hands.space


def linux_box(world: World, space: Namespace) -> LinuxBox:
    hands = LinuxHands(world, space)
    hands.box = made = LinuxBox(space.call(LinuxNaptPlane), space.await_, hands)
    return made


LinuxPair = tuple[LinuxBox, LinuxBox]


def linux_boxes() -> Iterator[LinuxPair]:
    with ExitStack() as stack:
        world = World(stack)
        one, two = linux_box(world, world.box1), linux_box(world, world.box2)
        yield one, two
        one.remove_all()
        two.remove_all()
