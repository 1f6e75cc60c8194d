"""A manager and two NVEs that reach each other by NAPT boxes, all real, in namespaces.

        nve-a -- napt-1 -- core -- napt-2 -- nve-b
                            |
                      manager, near
NVEs have private IPv4 locators, VMs private IPv4 addresses; between the boxes only public ones have
routes.  Not here: fabrics without boxes (live_fabric.py).
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any

from tests.daemon.dialogues import Dialogue
from tests.daemon.live_fabric import LiveFabric, ShortTimers
from vmmobility.api.client import NaptClient
from vmmobility.lab import laboratory, workdir
from vmmobility.lab.daemons import Daemons, to_toml
from vmmobility.lab.fabric import parse_fabric
from vmmobility.lab.inside import python, python_environment, udp_ask

STEP_S, LIFETIME_S = 20.0, 8  # a busy machine, and three hops
LINGER_S = 300.0  # no test is so slow that the public route turns too late
POOLS = {"napt-1": "198.51.100.0/28", "napt-2": "203.0.113.0/28"}
BEHIND = {"napt-1": "nve-a", "napt-2": "nve-b"}
VM, PRIVATE = "vm1", "10.1.0.5"
FABRIC: dict[str, Any] = {
    "router": [{"name": name} for name in ("core", *BEHIND)],
    "nve": [
        {"name": "nve-a", "prefixes": ["10.1.0.0/24", "fd01::/64"]},
        {"name": "nve-b", "prefixes": ["10.2.0.0/24", "fd02::/64"]},
    ],
    "manager": [{"name": "manager"}],
    "correspondent": [{"name": "near"}],
    "link": [
        {"nodes": ["core", "manager"]},
        {"nodes": ["core", "near"]},
        *({"nodes": ["core", box]} for box in BEHIND),
        *({"nodes": [box, nve]} for box, nve in BEHIND.items()),
    ],
    "vm": [{"name": VM, "kind": "netns", "home": "nve-a", "addresses": [PRIVATE, "fd01::5"]}],
}


class BoxedDaemons(ShortTimers):
    """The lab's daemons and, in the routers' namespaces, two boxes."""

    policy = "keep"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.boxes = tuple(self.fabric.node(name) for name in BEHIND)

    def ipv4(self, one: str, other: str) -> str:
        """The address of `one` on its link with `other`."""
        link = next(n for n in self.fabric.links if n.end(one) and n.end(other))
        end = link.end(one)
        assert end is not None
        return next(str(a.ip) for a in end.addresses if a.version == 4)

    def network(self, box: str) -> str:
        """The private network between a box and its NVE."""
        link = next(n for n in self.fabric.links if n.end(box) and n.end(BEHIND[box]))
        end = link.end(box)
        assert end is not None
        return next(str(a.network) for a in end.addresses if a.version == 4)

    def _key(self, *nodes: str) -> None:
        command = python("vmmobility", "key", "new", *nodes, "--dir", str(self._folder / "keys"))
        subprocess.run(command, check=True, capture_output=True, env=python_environment())

    def _make_keys(self) -> None:
        super()._make_keys()
        for box, nve in BEHIND.items():
            self._key(f"{box}:napt", f"{nve}:nve")
            self._key(f"{box}:napt", "manager:manager")
        self._key(*(f"{box}:napt" for box in BEHIND))

    def configure(self) -> None:
        nodes, self.nodes = self.nodes, self.nodes + self.boxes
        Daemons.configure(self)  # with the timers that stand here
        self.nodes = nodes

    def _toml(self, node: Any) -> str:
        return self._box_toml(node) if node in self.boxes else super()._toml(node)

    def _manager_toml(self) -> str:
        node = self.fabric.node("manager")
        table = {**self._node_table(node), "addresses": self._addresses("manager")}
        peers = [{"id": nve, "role": "nve", "via": box} for box, nve in BEHIND.items()]
        boxes = [
            {"id": box, "addresses": [self.ipv4(box, "core")], "pool": [pool]}
            for box, pool in POOLS.items()
        ]
        timers = {"step_s": STEP_S, "lifetime_s": LIFETIME_S}
        return to_toml({"node": table, "timers": timers, "peer": peers, "napt": boxes})

    def _nve_toml(self, node: Any) -> str:
        box = next(box for box, nve in BEHIND.items() if nve == node.name)
        table = {
            **self._node_table(node),
            "locators": self._addresses(node.name),
            "home_prefixes": [str(p) for p in node.home_prefixes],
            "redirect": node.redirect,
        }
        boxes = [
            {
                "id": name,
                **({"addresses": [self.ipv4(name, node.name)]} if name == box else {}),
                "pool": [pool],
            }
            for name, pool in POOLS.items()
        ]
        return to_toml(
            {
                "node": table,
                "manager": [{"id": "manager", "via": box}],
                "napt": boxes,
                "hypervisor": {"accelerator": "tcg"},
            }
        )

    def _box_toml(self, node: Any) -> str:
        name, nve = node.name, BEHIND[node.name]
        other = next(box for box in BEHIND if box != name)
        prefix = next(
            str(p) for p in self.fabric.node(nve).home_prefixes if ip_network(p).version == 4
        )
        table = {
            **self._node_table(node),
            "addresses": [self.ipv4(name, nve), self.ipv4(name, "core")],
        }
        napt = {
            "inside": [self.network(name), prefix],
            "pool": [POOLS[name]],
            "policy": self.policy,
        }
        around = [
            {"id": nve, "role": "nve", "side": "inside", "addresses": [self.ipv4(nve, name)]},
            {
                "id": "manager",
                "role": "manager",
                "side": "outside",
                "addresses": [self.ipv4("manager", "core")],
            },
            {
                "id": other,
                "role": "napt",
                "side": "outside",
                "addresses": [self.ipv4(other, "core")],
                "pool": [POOLS[other]],
                "detour": [self.ipv4(other, "core")],
            },
        ]
        timers = {"linger_s": LINGER_S}
        return to_toml({"node": table, "timers": timers, "napt": napt, "neighbour": around})

    def start(self, name: str) -> None:
        if name not in BEHIND:
            super().start(name)
            return
        home = self.home(name)
        (home / "state").mkdir(exist_ok=True)
        self.socket(name).unlink(missing_ok=True)
        command = python(
            "vmmobility", "napt", "run", "--config", str(home / "config.toml"),
            namespace=self._spaces.name(name),
        )  # fmt: skip
        with (home / "stderr.txt").open("ab") as stderr:
            self._meant_to_end.discard(name)
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
                start_new_session=True, env=python_environment())  # fmt: skip

    def start_all(self) -> None:
        self._lead_to_pools()
        super().start_all()  # `boxes` first

    def _lead_to_pools(self) -> None:
        """Public addresses lead to their boxes; private ones to nobody outside."""
        private = [self.network(box) for box in BEHIND]
        private += [f"10.{n}.0.0/24" for n in (1, 2)]
        for box, pool in POOLS.items():
            self.route("core", "replace", pool, "via", self.ipv4(box, "core"))
        for node in ("manager", "near"):
            for pool in POOLS.values():
                self.route(node, "replace", pool, "via", self.ipv4("core", node))
            for network in private:
                self.route(node, "del", network)
        for network in private:
            self.route("core", "del", network)
        for box, nve in BEHIND.items():
            for pool in POOLS.values():
                self.route(nve, "replace", pool, "via", self.ipv4(box, nve))
            other = next(b for b in BEHIND if b != box)
            self.route(box, "replace", POOLS[other], "via", self.ipv4("core", box))

    def route(self, node: str, *words: str) -> None:
        where = ["ip", "-n", self._spaces.name(node), "route", *words]
        subprocess.run(where, check=words[0] != "del", capture_output=True)


class HandingOver(BoxedDaemons):
    """The same, but mappings go where their VMs are."""

    policy = "hand-over"


class NaptFabric(LiveFabric):
    """Up at once; close() takes it down and answers what is left behind."""

    def __init__(self, daemons: type[BoxedDaemons] = BoxedDaemons) -> None:
        fabric = parse_fabric(FABRIC, "tests", "tests")
        info = workdir.create("tests", "tests", owned=True)
        self._lab = laboratory.Laboratory(fabric, info, lambda line: None)
        self._dialogues: list[Dialogue] = []
        self.daemons: BoxedDaemons = daemons(fabric, self._lab.spaces, info.folder)
        self._lab.daemons = self.daemons
        try:
            self._lab.up()
        except BaseException:
            self._lab.down()
            raise

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
        own, daemons = f"{PRIVATE}/32", self.daemons
        daemons.route("core", "replace", f"{public}/32", "via", daemons.ipv4(box, "core"))
        daemons.route(box, "replace", own, "via", daemons.ipv4(BEHIND[box], box))

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


@contextmanager
def napt_fabric(daemons: type[BoxedDaemons] = BoxedDaemons) -> Iterator[NaptFabric]:
    """A NaptFabric that leaves nothing behind."""
    live = NaptFabric(daemons)
    try:
        yield live
    finally:
        left = live.close()
    assert left == []


__all__ = ["HandingOver", "NaptFabric", "napt_fabric"]
