"""What an engine is told, and what it is only asked: the one list that recorder and replay follow.

An input changes an engine and is recorded; a question does not and is not.  A test fails when an
engine gains a public name that stands in no list.  Rests on the engines.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vmmobility.engine.channel import Peer
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.manager_settings import ManagerSettings
from vmmobility.engine.nve import NveEngine, NveSettings
from vmmobility.engine.router import RouterEngine, RouterSettings
from vmmobility.wire.registry import Role

Engine = ManagerEngine | NveEngine | RouterEngine

FLUSH = "flush"  # an input with an answer: the outputs
SET_SECRETS = "set_secrets"  # the channel's, when keys turn over
_ALL = ("started", "datagram_received", "timer", "persisted", "persist_failed")
_BOTH = (*_ALL, "check")
_ROUTER = (*_ALL, "routes_applied", "sighted", "explained")
INPUTS: dict[Role, tuple[str, ...]] = {
    Role.MANAGER: (
        *_BOTH,
        "ask_nodes",
        "start_move",
        "abort_move",
        "release",
        "order_guest",
        "provision",
        "cancel_provision",
        "onboard",
        "request_vm",
        "confirm_vm",
        "delete_vm",
        "offboard",
        "tell_time",
        "cordon",
        "uncordon",
        "drain",
        "abort_drain",
        "declare_group",
        "delete_group",
        "protect",
        "unprotect",
    ),
    Role.NVE: (
        *_BOTH,
        "tell_time",
        "start_vm",
        "stop_vm",
        "relocate_vm",
        "expect_vm",
        "unexpect_vm",
        "data_plane_applied",
        "audited",
        "order_done",
        "guest_report",
        "traffic",
        "traffic_counted",
        "host_measured",
    ),
    Role.DEFAULT_ROUTER: _ROUTER,
    Role.BORDER_ROUTER: _ROUTER,
}
QUESTIONS: dict[Role, tuple[str, ...]] = {
    Role.MANAGER: (
        "next_timer",
        "announced",
        "fabric",
        "routers_of",
        "liveness_of",
        "group_of",
        "life_state",
        "place_of",
        "room_of",
        "taken_of",
    ),
    Role.NVE: ("next_timer", "wants_traffic", "desired", "definitions", "places"),
    Role.DEFAULT_ROUTER: ("next_timer", "desired", "watched"),
    Role.BORDER_ROUTER: ("next_timer", "desired", "watched"),
}
ENGINES: dict[Role, type[Engine]] = {
    Role.MANAGER: ManagerEngine,
    Role.NVE: NveEngine,
    Role.DEFAULT_ROUTER: RouterEngine,
    Role.BORDER_ROUTER: RouterEngine,
}


@dataclass(frozen=True)
class Origin:
    """All that an engine is made from, but for its randomness.  now: monotonic seconds."""

    role: Role
    settings: ManagerSettings | NveSettings | RouterSettings
    peers: Sequence[Peer]
    state: Mapping[str, Any]
    boot: int
    now: float

    @property
    def node_id(self) -> str:
        match self.settings:
            case ManagerSettings(node_id=node) | RouterSettings(router_id=node):
                return node
            case NveSettings(own=own):
                return own.nve_id

    def make(self, randomness: random.Random) -> Engine:
        """The engine as it began.  Raises ValueError if settings and role differ."""
        settings = self.settings
        if self.role is Role.MANAGER and isinstance(settings, ManagerSettings):
            return ManagerEngine(settings, self.peers, self.state, self.boot, randomness, self.now)
        if self.role is Role.NVE and isinstance(settings, NveSettings):
            return NveEngine(settings, self.peers, self.state, self.boot, randomness)
        if ENGINES.get(self.role) is RouterEngine and isinstance(settings, RouterSettings):
            return RouterEngine(settings, self.peers, self.state, self.boot, randomness)
        raise ValueError(f"{type(settings).__name__} are no settings of {self.role.name}")
