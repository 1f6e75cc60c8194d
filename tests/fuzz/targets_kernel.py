"""Fuzz targets below the engines: what the relay's process reads, packets, netlink."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, cast

from tests.contract.frames import solicitation
from tests.fuzz.target import Target
from tests.fuzz.targets_store import folder
from vmmobility.drivers.linux import netlink, policy_rules, rtnetlink
from vmmobility.drivers.linux.neighbour_proxy import GuestPort, NeighbourProxy, answer
from vmmobility.drivers.linux.ownership import ROUTE_PROTOCOL
from vmmobility.drivers.linux.relay_control import Control
from vmmobility.drivers.linux.relay_table import RelayTable, Verdict, read_entry
from vmmobility.drivers.linux.tunnel_messages import Encapsulation, new_tunnel
from vmmobility.errors import DataPlaneError
from vmmobility.lab.control_capture import udp_of

MAC, GATEWAY_MAC, GATEWAY = b"\2\0\0\0\0\5", b"\2\x76\x6d\x6d\0\1", IPv6Address("fe80::1")
PORT = {"name": "vmt0", "mac": MAC.hex(":"), "own": ["fd77::5/128", "fd78::/64"]}
ENTRIES: list[dict[str, Any]] = [
    {"vm": "0/vm", "mode": "local", "prefixes": ["10.0.0.5/32", "fd01::5/128"],
     "accept": ["192.0.2.1"]},
    {"vm": "0/gone", "mode": "redirect", "prefixes": ["10.0.0.0/24", "fd01::/64"],
     "targets": ["192.0.2.2", "2001:db8::2"], "accept": ["192.0.2.1", "192.0.2.2"]},
    {"vm": "0/none", "mode": "none", "prefixes": ["10.0.7.0/25"]},
]  # fmt: skip


class _Ports:
    """In place of the neighbour proxy, whose socket needs root."""

    def __init__(self) -> None:
        self.ports: dict[str, Any] = {}
        self.answered = 0


@cache
def _control() -> Control:
    return Control(folder() / "relay.sock", RelayTable(), cast(NeighbourProxy, _Ports()), ["--x"])


def relay_order(data: bytes) -> str:
    """A line from the daemon: done, or refused and nothing has changed."""
    control = _control()
    before = _held(control)
    reply = control._obey(data.replace(b"\n", b" "))
    json.dumps(reply)
    if not reply["ok"]:
        assert _held(control) == before, "a refused order has changed something"
        return str(reply["error"]).split(":")[0]
    if len(before) > 30000:
        control.table.replace_all([])
    return "done " + " ".join(sorted(reply))


def _held(control: Control) -> str:
    table = control.table
    entries = {vm: (e.mode, e.prefixes, e.targets, sorted(e.accept)) for vm, e in
               table._entries.items()}  # fmt: skip
    return f"{entries} {table._hosts.keys()} {table._networks} {control._proxy.ports}"


def _orders() -> Iterator[bytes]:
    for order in (
        {"op": "set", "entries": ENTRIES, "ports": [PORT]},
        {"op": "change", "put": ENTRIES[:1], "gone": ["0/none"]},
        {"op": "change", "put": [], "ports": [PORT, {**PORT, "name": "vmt1", "own": []}]},
        {"op": "counters"}, {"op": "hello"}, {"op": "stop"},
    ):  # fmt: skip
        yield json.dumps(order).encode()


def relay_packet(data: bytes) -> str:
    """One octet that says whence, then a packet: verdicts keep the guards (invariant 3)."""
    table = RelayTable()
    table.replace_all(map(read_entry, ENTRIES))
    whence, packet = data[:1] or b"\0", data[1:]
    if whence < b"\x40":
        verdict, where, _, _ = table.from_kernel(packet)
    else:
        peer = "192.0.2.2" if whence < b"\x80" else "192.0.2.1"
        version = 4 if whence[0] & 1 else 6
        verdict, where, spent, _ = table.from_peer(packet, version, peer)
        if verdict is Verdict.SEND:
            assert where != peer, "it goes back to whence it came"
            place = 8 if version == 4 else 7
            assert spent[place] == packet[place] - 1 > 0, "it spends no hop"
    assert len(table.counters()) == len(ENTRIES)
    return f"{verdict.value} {where}"


def _packets() -> Iterator[bytes]:
    for whence in (b"\0", b"\x41", b"\x81"):
        for last in (5, 77):
            udp = b"\x22\x2b\x22\x2b\0\x10\0\0payload!"
            head = b"\x45\0\0\x24\0\0\0\0\x40\x11\0\0" + bytes((198, 51, 100, 7, 10, 0, 0, last))
            yield whence + head + udp
    for whence in (b"\0", b"\x40", b"\x80"):
        for text in ("fd01::5", "fd01::77"):
            ends = IPv6Address("2001:db8::9").packed + IPv6Address(text).packed
            yield (
                whence + b"\x60\0\0\0\0\x10\x11\x40" + ends + b"\x22\x2b\x22\x2b\0\x10\0\0payload!"
            )


def neighbour(data: bytes) -> str:
    port = GuestPort(MAC, (IPv6Network("fd77::5/128"),))
    reply = answer(data[6:], data[:6], port, GATEWAY_MAC, GATEWAY)
    if reply is None:
        return "silence"
    assert len(reply) == 72
    assert reply[24:40] == data[6 + 8 : 6 + 24], "it goes to somebody else"
    return "answer"


def captured(data: bytes) -> str:
    found = udp_of(data)
    return "none" if found is None else f"udp of IPv{ip_address(found[0]).version}"


# ---- netlink -----------------------------------------------------------------------------------


def split(data: bytes) -> str:
    """A netlink datagram: its messages, their attributes, the refusals in them."""
    count = 0
    for kind, _, _, body in netlink.split_messages(data):
        count += 1
        assert len(body) <= len(data)
        netlink.parse_attributes(body)
        if kind == netlink.NLMSG_ERROR:
            str(netlink._refusal(body))
    return f"{min(count, 5)} messages"


class _Kernel:
    """A netlink socket whose every answer is one body."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def dump(self, *_: object) -> list[bytes]:
        return [self._body]

    def get(self, *_: object) -> bytes:
        return self._body


def kernel_answer(data: bytes) -> str:
    """The body of a message, whatever it was asked for (the first octet says what)."""
    kernel = cast(netlink.Netlink, _Kernel(data[1:]))
    readers = (
        lambda: list(rtnetlink.routes_of_ours(kernel)),
        lambda: [rtnetlink.look_up(kernel, ip_address("10.0.0.1"))],
        lambda: list(rtnetlink.links(kernel)),
        lambda: [rtnetlink.link_named(kernel, "vmt0")],
        lambda: list(rtnetlink.addresses(kernel)),
        lambda: list(rtnetlink.permanent_neighbours(kernel)),
        lambda: list(policy_rules.rules_of_ours(kernel)),
    )
    which = (data[0] if data else 0) % len(readers)
    try:
        return f"{which}: {len(readers[which]())}"
    except DataPlaneError:
        return f"{which}: DataPlaneError"


def _bodies() -> Iterator[bytes]:
    hop = rtnetlink.NextHop(3, ip_address("10.0.0.9"))
    route4 = rtnetlink.Route(254, ip_network("10.0.0.5/32"), hop)
    route6 = rtnetlink.Route(1000, ip_network("fd01::5/128"), rtnetlink.NextHop(4))
    ends = Encapsulation(ip_address("fd00::1"), ip_address("fd00::2"))
    tunnelled = rtnetlink.Route(7700, ip_network("fd01::6/128"), rtnetlink.NextHop(6, tunnel=ends))
    for route in (route4, route6, tunnelled):
        body = rtnetlink.new_route(route).body
        yield from (b"\0" + body, b"\1" + body)
    link = rtnetlink._LINK.pack(0, 1, 5, 0x41, 0) + netlink.text(3, "vmt0")
    link += netlink.attribute(1, MAC) + netlink.u32(4, 1500) + netlink.attribute(23, bytes(200))
    yield from (b"\2" + link, b"\3" + link)
    yield b"\2" + new_tunnel("vmmob-ip6", 6, 1460).body
    yield b"\4" + rtnetlink.new_address(5, ip_address("fd01::1"), 64).body
    yield b"\5" + rtnetlink.new_neighbour(5, ip_address("10.0.0.5"), MAC).body
    yield b"\6" + policy_rules.new_rule(policy_rules.Rule(4, "vmt0", 100, 7)).body
    yield b"\6" + policy_rules.new_rule(policy_rules.Rule(6, "vmmob-ip6", 0, 78, mark=9)).body


def _netlink_datagrams() -> Iterator[bytes]:
    bodies = list(_bodies())
    packed = b""
    for number, body in enumerate(bodies):
        size = netlink._HEADER.size + len(body) - 1
        packed += netlink._HEADER.pack(size, 24, 0, number, 0) + body[1:] + b"\0" * (-size % 4)
    yield packed
    refusal = (-17).to_bytes(4, "little", signed=True) + netlink._HEADER.pack(16, 24, 0, 1, 0)
    refusal += netlink.text(netlink.NLMSGERR_ATTR_MSG, "File exists")
    yield netlink._HEADER.pack(16 + len(refusal), netlink.NLMSG_ERROR, 0, 1, 0) + refusal


TARGETS = (
    Target("relay-order", relay_order, lambda: _orders(), (b'"op"', b'"redirect"', b'"prefixes"'),
           longest=20000),
    Target("relay-packet", relay_packet, lambda: _packets(), (b"\x0a\0\0\5",), longest=2048),
    Target("neighbour", neighbour,
           lambda: [MAC + solicitation(MAC, "fd77::5", "fd99::7")[14:]], (MAC, b"\xfe\x80"),
           longest=2048),
    Target("captured-packet", captured, lambda: (p[1:] for p in _packets()), longest=2048),
    Target("netlink", split, lambda: _netlink_datagrams(), (bytes((ROUTE_PROTOCOL,)),)),
    Target("netlink-answer", kernel_answer, lambda: _bodies(), (bytes((ROUTE_PROTOCOL,)),)),
)  # fmt: skip
