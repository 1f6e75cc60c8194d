"""A manager and two NVEs that reach each other by NAPT boxes, all real, in namespaces.

        nve-a -- edge-1 -- core -- edge-2 -- nve-b
                            |
                      manager, near
At the edges run the boxes napt-1 and napt-2.  NVEs have private IPv4 locators, VMs private IPv4
addresses; between the boxes only public ones have routes.
Not here: fabrics without boxes, and what is asked of both (live_fabric.py).
"""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager
from typing import Any

from tests.daemon.dialogues import Dialogue
from tests.daemon.live_fabric import LiveFabric, left_bare
from vmmobility.api.client import NaptClient
from vmmobility.lab import napt_daemons
from vmmobility.lab.daemons import Daemons, to_toml
from vmmobility.lab.fabric_values import Node
from vmmobility.lab.inside import udp_ask

STEP_S, LIFETIME_S = 20, 8  # a busy machine, and three hops
LINGER_S = 300.0  # no test is so slow that the public route turns too late
POOLS = {"napt-1": "198.51.100.0/28", "napt-2": "203.0.113.0/28"}
EDGES = {"napt-1": "edge-1", "napt-2": "edge-2"}
BEHIND = {"edge-1": "nve-a", "edge-2": "nve-b"}
VM, PRIVATE = "vm1", "10.1.0.5"


def tables(policy: str) -> dict[str, Any]:
    """The fabric; policy: of its boxes, "keep" or "hand-over"."""
    return {
        "timers": {"step_s": STEP_S, "lifetime_s": LIFETIME_S},
        "router": [{"name": name} for name in ("core", *BEHIND)],
        "napt": [
            {"name": box, "at": edge, "publics": [POOLS[box]], "policy": policy}
            for box, edge in EDGES.items()
        ],
        "nve": [
            {"name": "nve-a", "prefixes": ["10.1.0.0/24", "fd01::/64"]},
            {"name": "nve-b", "prefixes": ["10.2.0.0/24", "fd02::/64"]},
        ],
        "manager": [{"name": "manager"}],
        "correspondent": [{"name": "near"}],
        "link": [
            {"nodes": ["core", "manager"]},
            {"nodes": ["core", "near"]},
            *({"nodes": ["core", edge]} for edge in BEHIND),
            *({"nodes": [edge, nve]} for edge, nve in BEHIND.items()),
        ],
        "vm": [{"name": VM, "kind": "netns", "home": "nve-a", "addresses": [PRIVATE, "fd01::5"]}],
    }


class ApartDaemons(Daemons):
    """The lab's daemons; but its boxes share a link, and these reach each other by the core."""

    def _ipv4(self, node: str, towards: str) -> str:
        return str(self.fabric.end_towards(node, towards).address(4))

    def _box_toml(self, node: Node) -> str:
        box = self.fabric.box(node.name)
        [other] = (each for each in self.fabric.boxes if each != box)
        nve, there = BEHIND[box.at], [self._ipv4(other.at, "core")]
        table = {
            **self._node_table(node),
            "addresses": [self._ipv4(box.at, nve), self._ipv4(box.at, "core")],
        }
        napt = {
            "inside": [str(prefix) for prefix in napt_daemons.private(self.fabric, box)],
            "pool": [POOLS[box.name]],
            "policy": box.policy,
        }
        around = [
            {
                "id": nve,
                "role": "nve",
                "side": "inside",
                "addresses": [self._ipv4(nve, box.at)],
            },
            {
                "id": "manager",
                "role": "manager",
                "side": "outside",
                "addresses": [self._ipv4("manager", "core")],
            },
            {
                "id": other.name,
                "role": "napt",
                "side": "outside",
                "addresses": there,
                "pool": [POOLS[other.name]],
                "detour": there,
            },
        ]
        timers = {"linger_s": LINGER_S}
        return to_toml({"node": table, "timers": timers, "napt": napt, "neighbour": around})


class NaptFabric(LiveFabric):
    """Up at once; close() takes it down and answers what is left behind."""

    def __init__(self, policy: str) -> None:
        self._dialogues: list[Dialogue] = []
        super().__init__(ApartDaemons, tables(policy))

    def box(self, name: str) -> NaptClient:
        return NaptClient(self.daemons.socket(name))

    def mappings(self, box: str) -> dict[str, dict[str, Any]]:
        """A box's mappings by private address."""
        with self.box(box) as client:
            return {row["private"]: row for row in client.mappings()}

    def status_of_box(self, box: str) -> dict[str, Any]:
        with self.box(box) as client:
            return client.status()

    def lead(self, public: str, box: str) -> None:
        """Host routes: the core leads a public address to that box, and the box, inside, the VM's
        own to its NVE."""
        edge = EDGES[box]
        self._route("core", f"{public}/32", edge)
        self._route(edge, f"{PRIVATE}/32", BEHIND[edge])

    def _route(self, node: str, prefix: str, to: str) -> None:
        gateway = self._lab.fabric.end_towards(to, node).address(4)
        self.ip(node, "route", "replace", prefix, "via", str(gateway))

    def dialogues(self, public: str, when: str) -> list[Dialogue]:
        """New flows from outside with the VM at its public address, one TCP and one UDP; `close`
        ends them."""
        near = self._lab.spaces.name("near")
        made = [
            Dialogue(near, public, kind, f"{name} begun {when}")
            for kind, name in ((socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp"))
        ]
        self._dialogues += made
        return made

    def close(self) -> list[str]:
        for dialogue in self._dialogues:
            dialogue.close()
        return super().close()

    def echoes_at(self, public: str) -> None:
        """The VM answers a correspondent outside at its public address.  Raises LabError."""
        assert udp_ask(self._lab.spaces.name("near"), public, 7, b"echo", 5.0) == b"echo"


def napt_fabric(policy: str = "keep") -> AbstractContextManager[NaptFabric]:
    """A NaptFabric that leaves nothing behind."""
    return left_bare(lambda: NaptFabric(policy))
