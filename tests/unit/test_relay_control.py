"""relay_control.py and neighbour_proxy.py: orders and solicitations, without the relay's loop."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, cast

import pytest

from tests.contract.frames import advertised_mac, checksum, solicitation
from vmmobility.drivers.linux.neighbour_proxy import NeighbourProxy, answer, read_ports
from vmmobility.drivers.linux.relay_control import Control
from vmmobility.drivers.linux.relay_table import RelayTable

MAC, GATEWAY = b"\2\0\0\0\0\5", b"\2\x76\x6d\x6d\0\1"
GATEWAY6 = IPv6Address("fe80::1")
PORTS = [{"name": "vmt0", "mac": MAC.hex(":"), "own": ["fd77::5/128", "fd78::/64"]}]
ENTRY = {"vm": "0/vm", "mode": "local", "prefixes": ["10.0.0.5/32"]}


class Ports:
    """In place of the proxy, whose socket needs root."""

    def __init__(self) -> None:
        self.ports: dict[str, Any] = {}
        self.answered = 0


class Conversation:
    """A control socket and one client of it."""

    def __init__(self, path: Path) -> None:
        self.table, self.proxy = RelayTable(), Ports()
        self.control = Control(path, self.table, cast(NeighbourProxy, self.proxy), ["--x"])
        self.poll = select.epoll()
        self.control.attach(self.poll)
        self.client = socket.socket(socket.AF_UNIX)
        self.client.settimeout(3)
        self.client.connect(str(path))
        self.turn()

    def turn(self) -> None:
        for descriptor, events in self.poll.poll(1):
            self.control.handle(descriptor, events)

    def say(self, order: object) -> dict[str, Any]:
        text = order if isinstance(order, bytes) else json.dumps(order).encode()
        self.client.sendall(text + b"\n")
        self.turn()
        answered: dict[str, Any] = json.loads(self.client.recv(65536))
        return answered


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Conversation]:
    made = Conversation(tmp_path / "relay.sock")
    yield made
    made.client.close()
    made.control.close()
    made.poll.close()
    assert not (tmp_path / "relay.sock").exists()


def test_orders_are_obeyed_and_answered(talk: Conversation) -> None:
    assert talk.say({"op": "hello"})["configuration"] == ["--x"]
    assert talk.say({"op": "set", "entries": [ENTRY], "ports": PORTS}) == {"ok": True}
    assert talk.say({"op": "counters"})["vms"] == {"0/vm": {}}
    assert set(talk.proxy.ports) == {"vmt0"}
    assert talk.say({"op": "change", "put": [{**ENTRY, "vm": "0/b"}], "gone": ["0/vm"]})["ok"]
    assert set(talk.table.counters()) == {"0/b"}
    assert set(talk.proxy.ports) == {"vmt0"}
    assert talk.say({"op": "change", "ports": []})["ok"]
    assert not talk.proxy.ports
    assert talk.say({"op": "stop"})["ok"]
    assert talk.control.stopping


@pytest.mark.parametrize(
    "order",
    [b"{", b"[]", b"7", {"op": "dance"}, {}, {"op": "set", "entries": [{}], "ports": []},
     {"op": "change", "put": [{**ENTRY, "mode": "?"}], "gone": ["0/vm"]}],
)  # fmt: skip
def test_a_wrong_order_changes_nothing(talk: Conversation, order: object) -> None:
    talk.say({"op": "set", "entries": [ENTRY], "ports": PORTS})
    assert talk.say(order)["ok"] is False
    assert set(talk.table.counters()) == {"0/vm"}
    assert set(talk.proxy.ports) == {"vmt0"}


def test_two_orders_in_one_read_and_one_in_two(talk: Conversation) -> None:
    talk.client.sendall(b'{"op":"hello"}\n{"op":"hel')
    talk.turn()
    talk.client.sendall(b'lo"}\n')
    talk.turn()
    assert talk.client.recv(65536).count(b'"ok":true') == 2


def reply(source: str, target: str, mac: bytes = MAC) -> bytes | None:
    frame = solicitation(MAC, source, target)
    return answer(frame[14:], mac, read_ports(PORTS)["vmt0"], GATEWAY, GATEWAY6)


@pytest.mark.parametrize("source", ["fd77::5", "fe80::5", "fd78::9"])
def test_what_is_elsewhere_is_answered_with_the_gateways_mac(source: str) -> None:
    made = reply(source, "fd77::200")
    assert made is not None
    assert advertised_mac(bytes(12) + b"\x86\xdd" + made, "fd77::200") == GATEWAY
    assert made[7] == 255
    assert made[44] == 0xC0  # router, solicited, not override
    assert checksum(made[8:40] + len(made[40:]).to_bytes(4, "big") + b"\0\0\0:" + made[40:]) == 0


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("::", "fd77::200"),  # duplicate address detection belongs to the owner
        ("fd77::5", "fd77::5"),
        ("fe80::5", "fd78::1234"),
        ("fd77::6", "fd77::200"),  # not the guest's own
        ("fd77::5", "fe80::9"),
        ("fd77::5", "ff02::1"),
    ],
)
def test_silence(source: str, target: str) -> None:
    assert reply(source, target) is None


def test_a_foreign_mac_and_a_short_packet_get_silence() -> None:
    assert reply("fd77::5", "fd77::200", b"\2" * 6) is None
    assert answer(b"\x60", MAC, read_ports(PORTS)["vmt0"], GATEWAY, GATEWAY6) is None
