"""Fuzz targets of engines: what a router makes of its manager's datagrams, and what engines read
back from a store.

A router's input is datagrams, each after its length in two octets; every one is sealed anew with
its manager's key, so that mutations get past the seal.  What a store holds is JSON; its checksums
stand before it (targets_store.py), so nothing finer than Python's own errors is promised for what
no engine wrote, but what is read is what would be written.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

from tests.fuzz import seeds
from tests.fuzz.target import Target
from tests.fuzz.targets_wire import WORDS, joined, split, with_length
from vmmobility.engine.channel import Peer
from vmmobility.engine.fabric_record import fabric_to_json, load_fabric
from vmmobility.engine.fabric_routes import Sight
from vmmobility.engine.outputs import Endpoint, Output, Persist, Send, SetRoutes
from vmmobility.engine.router import RouterEngine, RouterSettings
from vmmobility.wire.authentication import TRAILER, Seal, seal
from vmmobility.wire.message import decode_part
from vmmobility.wire.registry import MAX_DATAGRAM, Role

SECRET = bytes(32)
MANAGER = Endpoint(ip_address("fd00::99"), 8747)
MARK = {"mark/manager": [5, 0]}
PYTHONS = (KeyError, TypeError, ValueError, AttributeError)  # of what no engine wrote
DISK_WORDS = (b'"epoch"', b'"state":"KEEP"', b'"state":"NONE"', b'"serving"', b'"previous":null',
              b'"interfaces"', b'"routers"', b'"route/0/', b'"fabric/0/', b"null")  # fmt: skip


def _engine(state: dict[str, Any]) -> RouterEngine:
    peer = Peer("manager", Role.MANAGER, (MANAGER,), {1: SECRET}, 1)
    return RouterEngine(RouterSettings("r1"), [peer], state, 7, random.Random(1))


class Router:
    """A router with its disk, and a kernel that refuses what `refuses` says."""

    def __init__(self, refuses: bool) -> None:
        self.engine, self.disk = _engine(dict(MARK)), dict[str, Any](MARK)
        self.refuses, self.said = refuses, set[str]()

    def hear(self, datagram: bytes, counter: int) -> None:
        """One datagram under the manager's seal, and all that follows from it."""
        data = seal(datagram[:-TRAILER], Seal("manager", 1, 5, counter), SECRET)
        self.engine.datagram_received(data, MANAGER, None, float(counter))
        self.engine.timer(float(counter))
        while outputs := self.engine.flush():
            for output in outputs:
                self._carry_out(output, float(counter))

    def _carry_out(self, output: Output, now: float) -> None:
        if isinstance(output, Persist):
            written = json.loads(json.dumps(output.changes))
            for key, value in written:
                old = self.disk.get(key)
                assert not old or key[:6] != "route/" or value["epoch"] >= old["epoch"], "it fell"
                self.disk[key] = value
            self.engine.persisted(output.number)
        elif isinstance(output, SetRoutes):
            failures = ["no route"] if self.refuses else []
            sight = Sight(not self.refuses, covered=False)
            self.engine.routes_applied(output.state.vm, output.tag, failures, sight, now)
        elif isinstance(output, Send):
            self.said.add(decode_part(output.data, TRAILER).message.status.name)


def router(data: bytes) -> str:
    one = Router(refuses=len(data) % 2 == 1)
    for counter, datagram in enumerate(split(data), 1):
        if len(datagram) <= MAX_DATAGRAM - TRAILER:
            one.hear(with_length(datagram + bytes(TRAILER)), counter)
    again = _engine(one.disk)
    assert again.desired() == one.engine.desired(), "a restart changes what the kernel should hold"
    states = {e.state.name for e in one.engine.entries.values()}
    return " ".join(sorted({*one.engine.channel.drops, *one.said, *states})) or "nothing"


def _state(data: bytes) -> dict[str, Any] | str:
    """The store's contents, or why they are none."""
    try:
        state = json.loads(data)
    except (ValueError, RecursionError) as error:
        return type(error).__name__
    return state if isinstance(state, dict) else "no object"


def _read(data: bytes, again: Callable[[dict[str, Any]], tuple[object, dict[str, Any]]]) -> str:
    """again: state -> (what was read, what would be written)."""
    state = _state(data)
    if isinstance(state, str):
        return state
    try:
        found, written = again(state)
    except PYTHONS as error:
        return type(error).__name__
    assert again(json.loads(json.dumps(written)))[0] == found, "it is another one when written"
    return f"{min(len(written), 3)} read"


def _routes(state: dict[str, Any]) -> tuple[object, dict[str, Any]]:
    engine = _engine(state)
    for entry in engine.entries.values():
        engine._save(entry)
    persists = [o for o in engine.flush() if isinstance(o, Persist)]
    return engine.entries, {k: v for p in persists for k, v in p.changes}


def _fabric(state: dict[str, Any]) -> tuple[object, dict[str, Any]]:
    found = load_fabric(state)
    written = {e.key: fabric_to_json(e) for e in found.values() if e.routers}
    return {vm: e for vm, e in found.items() if e.routers}, written


def _orders() -> Iterator[bytes]:
    """What a manager tells routers, one by one and in turn."""
    heard = [d[:-TRAILER] for d in seeds.routed().orders]
    yield from (joined((d,)) for d in heard)
    yield joined(tuple(heard))
    yield joined(tuple(reversed(heard)))


def _disks(kind: str) -> Iterator[bytes]:
    for disk in seeds.routed().disks:
        kept = {k: v for k, v in disk.items() if k.startswith(kind)}
        if kept:
            yield json.dumps(kept, separators=(",", ":")).encode()


TARGETS = (
    Target("router", router, lambda: _orders(), WORDS, longest=8192),
    Target("router-state", lambda d: _read(d, _routes), lambda: _disks("route/"), DISK_WORDS),
    Target("fabric-state", lambda d: _read(d, _fabric), lambda: _disks("fabric/"), DISK_WORDS),
)
