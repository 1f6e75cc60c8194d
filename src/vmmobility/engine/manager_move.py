"""One move as the manager records it, and its durable form.

Not here: what a move does (manager_moves.py), its states (manager_transitions.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from vmmobility.engine.binding_update_list import make_nve, nve_from_json, nve_to_json
from vmmobility.engine.manager_transitions import FINAL, MoveState
from vmmobility.errors import VmMobilityError
from vmmobility.wire.move_terms import NO_TERMS, MoveTerms, terms_from_json, terms_to_json
from vmmobility.wire.options import Endpoint
from vmmobility.wire.values import Nve, VmKey

if TYPE_CHECKING:
    from vmmobility.engine.channel import Peer

__all__ = ["Move", "MoveRefused", "MoveTerms"]


class Release(IntEnum):
    """How far the routers that hold to the source have come.  They let go in this order, for one
    that has let go sends what it gets to those nearer the destination."""

    HOLDING = 0  # they are told to hold: nothing is announced before all do
    HELD = 1  # they do
    NEAR = 2  # the border routers of the destination's data centre are told to let go
    BORDERS = 3  # all border routers are
    ALL = 4  # the source's routers are, too
    FORCED = 5  # by policy: border routers lead to the destination, whatever the fabric does


@dataclass(slots=True)
class Move:
    """One move.  phases: (name, milliseconds since the request) for people.

    epoch: reserved for the destination's attach; endpoint: where its hypervisor takes the memory
    cleared: False from the first request to the destination until it has nothing left of the move
    home:    the VM's addresses lie in the destination's covering prefixes
    relaying: the destination sends on to the source what the fabric leads there already
    release: how far the routers that hold to the source have come
    silent:  routers that had not answered when policy went on without them (not durable)
    sure:    begun in this manager's life, or its source has told since that it has not switched;
             one that was set back into a move would else turn it back though its guest runs
    terms:   what whoever asked for it has asked besides
    mode:    "hot"; "warm": to its standby (manager_warm.py); "cold": the guest does not run while
             it is moved
    wakes:   it ran, was suspended for the move, and is let go on where it is then
    progress: how far its copies have come, in octets, as the source said last (not durable)
    """

    move_id: str
    vm: VmKey
    source: Nve
    destination: Nve
    ticket: bytes
    epoch: int
    state: MoveState = MoveState.PREPARING
    back_epoch: int = 0
    endpoint: Endpoint | None = None
    reason: str = ""
    started_ns: int = 0
    phases: list[tuple[str, float]] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    began: float = 0.0
    deadline: float | None = None
    cleared: bool = True
    sure: bool = True
    home: bool = False
    relaying: bool = False
    release: Release = Release.HOLDING
    silent: frozenset[str] = frozenset()
    terms: MoveTerms = NO_TERMS
    mode: str = "hot"
    wakes: bool = False
    progress: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool | None:
        return self.state is MoveState.DONE if self.state in FINAL else None


class CommandRefused(VmMobilityError):
    """What people asked for cannot be.  kind: "unknown-vm", "unknown-nve", "conflict"."""

    def __init__(self, kind: str, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.kind = kind


class MoveRefused(CommandRefused):
    """A move that cannot begin, or not be given up."""


class ReleaseRefused(CommandRefused):
    """A binding that may not be released."""


class GuestRefused(CommandRefused):
    """A guest that cannot become what people want of it, now."""


def nve_of_peer(peer: Peer) -> Nve:
    """An NVE's locators as configured at the manager (before it has attached anything)."""
    if peer.via:
        return Nve(peer.node_id)  # the addresses are the box's; it says its own
    return make_nve(peer.node_id, tuple(e.address for e in peer.endpoints))


def move_to_json(move: Move) -> dict[str, Any]:
    """The durable form of a move (keys of docs/architecture.md where people see them)."""
    return {
        "vni": move.vm.vni,
        "vm": move.vm.vm_id,
        "source": nve_to_json(move.source),
        "destination": nve_to_json(move.destination),
        "ticket": move.ticket.hex(),
        "epoch": move.epoch,
        "back_epoch": move.back_epoch,
        "state": move.state.value,
        "endpoint": [str(move.endpoint.address), move.endpoint.port] if move.endpoint else None,
        "reason": move.reason,
        "started_ns": move.started_ns,
        "phases": list(move.phases),
        "measured": dict(move.measured),
        "cleared": move.cleared,
        "home": move.home,
        "relaying": move.relaying,
        "release": move.release.value,
        "mode": move.mode,
        "wakes": move.wakes,
        "terms": terms_to_json(move.terms),
    }


def move_from_json(move_id: str, value: Mapping[str, Any]) -> Move:
    endpoint = value["endpoint"]
    return Move(
        move_id,
        VmKey(value["vni"], value["vm"]),
        nve_from_json(value["source"]),
        nve_from_json(value["destination"]),
        bytes.fromhex(value["ticket"]),
        value["epoch"],
        MoveState(value["state"]),
        value["back_epoch"],
        Endpoint(ip_address(endpoint[0]), endpoint[1]) if endpoint else None,
        value["reason"],
        value["started_ns"],
        [(name, at) for name, at in value["phases"]],
        value["measured"],
        cleared=value["cleared"],
        sure=False,
        home=value.get("home", False),
        relaying=value.get("relaying", False),
        release=Release(value.get("release", 0)),
        mode=value.get("mode", "hot"),
        wakes=value.get("wakes", False),
        terms=terms_from_json(value.get("terms", {})),
    )
