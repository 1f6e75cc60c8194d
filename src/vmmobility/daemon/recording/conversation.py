"""A replay as a conversation that people read: who told whom what, when, and what came of it.

    0.002 nve-a      -> manager    attach vm1 nve nve-a attach-id lifetime 30
    0.002 manager    -> nve-a      attach vm1 accepted epoch 1 lifetime 30
    0.003 manager    * binding vm=vm1 nve=nve-a epoch=1

Not here: what happens (replay.py), one message's line (wire/summary.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vmmobility.daemon.recording import codec
from vmmobility.daemon.recording.inputs import SET_SECRETS, Origin
from vmmobility.daemon.recording.replay import Did, Told
from vmmobility.engine.dataplane import VmDataPlane
from vmmobility.engine.outputs import (
    Audit,
    CommandDone,
    CountTraffic,
    Endpoint,
    Event,
    Explain,
    Halt,
    HypervisorOrder,
    MeasureHost,
    Output,
    Persist,
    Send,
    SetDataPlane,
)
from vmmobility.errors import DecodeError
from vmmobility.wire.authentication import TRAILER, read_seal
from vmmobility.wire.message import decode_part
from vmmobility.wire.summary import summary
from vmmobility.wire.values import Address, Interface, VmKey

ROUTINE = frozenset({"timer", "persisted", "traffic", "traffic_counted"})
WIDTH = 10  # of a node's name


@dataclass(frozen=True)
class Line:
    """One line.  to: the receiver of a message; detail: only for who asks for every output."""

    at_s: float
    who: str
    what: str
    to: str | None = None
    detail: bool = False

    def __str__(self) -> str:
        to = f"-> {self.to:<{WIDTH}} " if self.to is not None else ""
        return f"{self.at_s:9.3f} {self.who:<{WIDTH}} {to}{self.what}".rstrip()

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "at_s": round(self.at_s, 6)}


class Narrator:
    """Tells one node's replay; it remembers who has which address, and what was asked for."""

    def __init__(self, origin: Origin) -> None:
        self._own = origin.node_id
        self._names: dict[Address, str] = {
            endpoint.address: peer.node_id for peer in origin.peers for endpoint in peer.endpoints
        }
        self._asked: dict[tuple[VmKey, int], VmDataPlane] = {}

    def lines(self, happening: Told | Did) -> Iterator[Line]:
        if isinstance(happening, Told):
            yield self._told(happening)
        else:
            yield self._did(happening.at, happening.output)

    # ---- inputs --------------------------------------------------------------------------------

    def _told(self, told: Told) -> Line:
        failed = f" and fails: {told.raised}" if told.raised is not None else ""
        given = told.arguments
        if told.name == "datagram_received":
            return self._heard(told, failed)
        match told.name:
            case "order_done":
                error = f"fails: {given['error']}" if given.get("error") else "is done"
                what = f"{given['vm']} {given['order'].value} {error}"
            case "guest_report":
                reason = given["detail"].get("reason")
                because = f" ({reason})" if reason else ""
                what = f"reports {given['vm']} {given['event']}{because}"
            case "data_plane_applied":
                what = self._held(given["vm"], given["tag"], given["failures"])
            case "persist_failed":
                what = f"the disk refuses: {given['reason']}"
            case name if name in ROUTINE:
                line = Line(told.at, self._own, f"is told {name}{_named(given)}", detail=True)
                return line if not failed else Line(told.at, self._own, f"is told {name}{failed}")
            case name if name == SET_SECRETS:
                keys = ", ".join(map(str, given["secrets"]))
                what = f"takes keys {keys} of {given['node_id']}, signs with {given['signing']}"
            case name:
                what = f"is told {name}{_named(given)}"
        return Line(told.at, self._own, what + failed)

    def _heard(self, told: Told, failed: str) -> Line:
        data: bytes = told.arguments["data"]
        source: Endpoint = told.arguments["source"]
        dropped = f" (dropped: {', '.join(told.dropped)})" if told.dropped else ""
        try:
            claimed = read_seal(data).sender
        except DecodeError:
            claimed = ""
        if claimed and not told.dropped:
            self._names.setdefault(source.address, claimed)
        who = claimed or _shown(source)
        return Line(told.at, who, _message(data) + dropped + failed, to=self._own)

    def _held(self, vm: VmKey, tag: int, failures: list[str]) -> str:
        state = self._asked.get((vm, tag))
        if failures:
            return f"the kernel refuses: {'; '.join(failures)}"
        return f"holds {vm}: {state.words() if state else f'what was asked for under {tag}'}"

    # ---- outputs -------------------------------------------------------------------------------

    def _did(self, at: float, output: Output) -> Line:
        detail = False
        match output:
            case Send(data, to):
                name = self._names.get(to.address) or _shown(to)
                return Line(at, self._own, _message(data), to=name)
            case SetDataPlane(state, tag):
                self._asked = {k: v for k, v in self._asked.items() if k[0] != state.vm}
                self._asked[state.vm, tag] = state
                what, detail = f"asks for {state.vm}: {state.words()}", True
            case HypervisorOrder(order, vm):
                what = f"orders {vm} {order.value}"
            case CommandDone(command, error=error):
                what = f"command {command} {f'fails: {error}' if error else 'is done'}"
            case Event(name, values):
                what = f"* {name}{_named(values)}"
                detail = name in ("forwarding", "drop")  # told above, by other words
            case Persist(number, changes):
                keys = ", ".join(key for key, _ in changes)
                what, detail = f"records {number}: {keys}", True
            case CountTraffic(vm, label):
                what, detail = f"counts the traffic of {vm} ({label})", True
            case Explain(addresses=addresses):
                what, detail = f"explains {', '.join(map(str, addresses))}", True
            case Audit(vm):
                what, detail = f"audits {vm}", True
            case MeasureHost():
                what, detail = "measures its host", True
            case Halt(reason):
                what = f"halts: {reason}"
        return Line(at, self._own, what, detail=detail)


def _shown(endpoint: Endpoint) -> str:
    host = f"[{endpoint.address}]" if endpoint.address.version == 6 else str(endpoint.address)
    return f"{host}:{endpoint.port}"


def _message(data: bytes) -> str:
    try:
        part = decode_part(data, TRAILER)
    except DecodeError as error:
        return f"{len(data)} octets, no message: {error}"
    more = f" part {part.number} of {part.count}" if part.count > 1 else ""
    return summary(part.message, full=True) + more


def _named(values: Mapping[str, Any]) -> str:
    return "".join(f" {name}={_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    """A value in few words: texts and numbers as they are, all else by its kind."""
    if isinstance(value, str | int | float | VmKey) or value is None:
        return str(value)
    if isinstance(value, bytes):
        return f"({len(value)} octets)"
    if isinstance(value, Interface):
        return " ".join((value.mac_text, *map(str, value.prefixes)))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple | set):
        return "[" + ", ".join(map(_value, value)) + "]"
    return codec.text(value)
