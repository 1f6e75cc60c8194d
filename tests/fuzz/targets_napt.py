"""Fuzz targets of a NAPT box: what it makes of messages that cross it, and reads back from a store.

An input is datagrams, each after its length in two octets; the first octet says who sends it to
whom.  Every one is sealed anew with the hop's key, so that mutations get past the seal.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Any

from tests.fuzz import seeds
from tests.fuzz.target import Target
from tests.fuzz.targets_engine import PYTHONS
from tests.fuzz.targets_wire import WORDS, joined, split, with_length
from vmmobility.engine.channel import Peer
from vmmobility.engine.napt import NaptEngine
from vmmobility.engine.napt_plane import Flow
from vmmobility.engine.napt_settings import NaptPolicy, NaptSettings, Neighbour
from vmmobility.engine.outputs import (
    Endpoint,
    ExportFlows,
    ImportFlows,
    Output,
    Persist,
    Send,
    SetNapt,
)
from vmmobility.wire.authentication import TRAILER, Seal, seal
from vmmobility.wire.message import decode_part
from vmmobility.wire.origin import RELAYED_TRAILER, read_receiver, receiver_option
from vmmobility.wire.registry import MAX_DATAGRAM, Role

SECRET = bytes(32)
ROLES = {"manager": Role.MANAGER, "nve-a": Role.NVE, "nve-b": Role.NVE, "napt-2": Role.NAPT}
ADDRESSES = {"manager": "192.0.2.10", "nve-a": "10.0.1.2", "napt-2": "192.0.2.2"}
WAYS = (  # who to whom: across the box, and to the box itself
    ("nve-a", "manager"),
    ("manager", "nve-a"),
    ("nve-b", "nve-a"),
    ("napt-2", ""),
    ("nve-a", ""),
    ("nve-a", "nobody"),
)
SETTINGS = NaptSettings(
    "napt-1",
    (IPv4Network("10.0.0.0/8"),),
    (IPv4Network("198.51.100.0/29"),),
    policy=NaptPolicy.HAND_OVER,
)


def _engine(state: dict[str, Any]) -> NaptEngine:
    def hop(name: str) -> Peer:
        endpoint = Endpoint(ip_address(ADDRESSES[name]), 8747)
        return Peer(name, ROLES[name], (endpoint,), {1: SECRET}, 1)

    around = [
        Neighbour(hop("nve-a"), inside=True),
        Neighbour(hop("manager"), inside=False),
        Neighbour(
            hop("napt-2"),
            inside=False,
            behind=(("nve-b", Role.NVE),),
            pool=(IPv4Network("203.0.113.0/28"),),
            detour=IPv4Address("192.0.2.2"),
        ),
    ]
    return NaptEngine(SETTINGS, around, state, 7, random.Random(1), 0.0)


def _known() -> dict[str, Any]:
    """As if each hop were proven under boot 5."""
    crossing = {f"as/{receiver}/mark/{sender}": [5, 0] for sender, receiver in WAYS if receiver}
    return {**crossing, "mark/napt-2": [5, 0], "mark/nve-a": [5, 0], "mark/manager": [5, 0]}


class Box:
    """A box with its disk; its kernel refuses what `refuses` says."""

    def __init__(self, refuses: bool) -> None:
        self.disk = _known()
        self.engine, self.refuses = _engine(dict(self.disk)), refuses
        self.said = set[str]()

    def hear(self, way: int, body: bytes, counter: int) -> None:
        sender, receiver = WAYS[way % len(WAYS)]
        option = receiver_option(receiver) if receiver else b""
        data = with_length(body + option + bytes(TRAILER))[:-TRAILER]
        sealed = seal(data, Seal(sender, 1, 5, counter), SECRET)
        source = Endpoint(ip_address(ADDRESSES.get(sender, "192.0.2.2")), 8747)
        self.engine.datagram_received(sealed, source, None, float(counter))
        self.engine.timer(float(counter))
        while outputs := self.engine.flush():
            for output in outputs:
                self._carry_out(output, float(counter))

    def _carry_out(self, output: Output, now: float) -> None:
        match output:
            case Persist(number, changes):
                for key, value in json.loads(json.dumps(changes)):
                    self.disk[key] = value
                self.engine.persisted(number)
            case SetNapt(state, tag):
                used = Counter(m.public for m in state.static)
                assert not used or max(used.values()) == 1, f"one public for two: {used}"
                failures = ["static 10.1.0.5: no"] if self.refuses else []
                self.engine.napt_applied(tag, failures, now)
            case ExportFlows(number, private):
                flow = Flow(6, (private, 1), (private, 1), (private, 2), True, 9)
                self.engine.flows_exported(number, [flow], "", now)
            case ImportFlows(number):
                self.engine.flows_imported(number, [], now)
            case Send(data):
                trailer = RELAYED_TRAILER if read_receiver(data) else TRAILER
                message = decode_part(data, trailer).message
                self.said.add(f"{message.purpose.name} {message.status.name}")


def box(data: bytes) -> str:
    one = Box(refuses=len(data) % 2 == 1)
    for counter, datagram in enumerate(split(data), 1):
        if 1 <= len(datagram) <= MAX_DATAGRAM - RELAYED_TRAILER:
            one.hear(datagram[0], datagram[1:], counter)
    disk = {key: value for key, value in one.disk.items() if value is not None}
    again = _engine(json.loads(json.dumps(disk)))
    assert again.desired() == one.engine.desired(), "a restart changes what the kernel should hold"
    return " ".join(sorted({*one.engine.channel.drops, *one.said})) or "nothing"


def _crossings() -> Iterator[bytes]:
    """What nodes say to each other, each on every way, and all in turn."""
    bodies = [d[:-TRAILER] for d in seeds.datagrams() if len(d) > TRAILER]
    for way in range(len(WAYS)):
        some = tuple(bytes([way]) + body for body in bodies[way::7])
        yield from (joined((one,)) for one in some[::9])
        yield joined(some[:24])


def state(data: bytes) -> str:
    """Mappings of a store, as they are read and would be written."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        return type(error).__name__
    if not isinstance(found, dict):
        return "no object"
    try:
        engine = _engine(found)
    except PYTHONS as error:
        return type(error).__name__
    mappings = engine.mappings
    for mapping in mappings.vms.values():
        mappings.save(mapping)
    persists = [o for o in engine.flush() if isinstance(o, Persist)]
    written = {k: v for p in persists for k, v in p.changes if v is not None}
    again = _engine(json.loads(json.dumps(written))).mappings
    assert again.vms == mappings.vms, "they are others when written"
    return f"{min(len(written), 3)} read"


def _disks() -> Iterator[bytes]:
    one = {"private": "10.0.1.2", "public": "198.51.100.1"}
    vm = {
        "public": "198.51.100.2", "owner": "napt-1", "ours": True, "here": True, "holder": "",
        "epoch": 3, "moving": False, "ended": False,
    }  # fmt: skip
    for disk in (
        {"locator/nve-a": one},
        {"map/0/vm1/10.1.0.5": vm},
        {"locator/nve-a": one, "map/0/vm1/10.1.0.5": {**vm, "ended": True}},
        {"map/7/vm-2/10.1.0.6": {**vm, "ours": False, "owner": "napt-2", "holder": "napt-3"}},
    ):
        yield json.dumps(disk, separators=(",", ":")).encode()


DISK_WORDS = (b'"map/0/', b'"locator/', b'"ended":true', b'"ours":false', b'"public"', b"null")
TARGETS = (
    Target("napt", box, lambda: _crossings(), WORDS, longest=8192, weight=0.1),
    Target("napt-state", state, lambda: _disks(), DISK_WORDS),
)
