"""GoBGP in a lab: passive collectors that hear border routers and say nothing.

What they have heard is somebody else's reading of our routes.  Children of the lab, ended by pid;
all files are in the lab's folder.  Not here: what is asserted of it (collected.py).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

from vmmobility.errors import EnvironmentProblem, LabError
from vmmobility.lab.fabric_values import Fabric, Node
from vmmobility.lab.frr_plans import end_at
from vmmobility.lab.namespaces import Namespaces
from vmmobility.wire.values import FAMILIES, Address, Prefix

GOBGPD = "gobgpd"
GOBGP = "gobgp"
ORIGINS = ("IGP", "EGP", "INCOMPLETE")
_START_S = 30.0
_ROUTER_IDS = int(IPv4Address("10.254.0.0"))
_ESTABLISHED = 6
# Path attributes' numbers (RFC 4271, RFC 1997).
_ORIGIN, _AS_PATH, _COMMUNITIES = 1, 2, 8


def missing_tools() -> str:
    """Why no collector can run here; "" if it can."""
    for program in (GOBGPD, GOBGP):
        if shutil.which(program) is None:
            return f"no {program}: GoBGP is not installed"
    return ""


@dataclass(frozen=True, slots=True)
class Heard:
    """One path in a collector's table."""

    prefix: Prefix
    peer: Address
    origin: str
    as_path: tuple[int, ...]
    communities: tuple[str, ...]


class Collectors:
    """The collectors of one lab."""

    def __init__(self, fabric: Fabric, spaces: Namespaces, folder: Path) -> None:
        self._fabric = fabric
        self.names = tuple(node.name for node in fabric.of_kind("collector"))
        self._spaces = spaces
        self._folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def home(self, collector: str) -> Path:
        """That collector's folder: configuration and log."""
        return self._folder / collector

    def start(self) -> None:
        """All of them; they listen for their peers, soon."""
        if self.names and (missing := missing_tools()):
            raise EnvironmentProblem(f"this fabric has a collector, {missing}",
                                     "apt install gobgpd")  # fmt: skip
        for number, node in enumerate(self._fabric.of_kind("collector"), 1):
            home = self.home(node.name)
            home.mkdir(parents=True)
            config = home / "gobgpd.toml"
            config.write_text(collector_toml(self._fabric, node, IPv4Address(_ROUTER_IDS + number)))
            command = ["ip", "netns", "exec", self._spaces.name(node.name), GOBGPD, "-f",
                       str(config), "--api-hosts=127.0.0.1:50051", "--pprof-disable",
                       "--log-plain"]  # fmt: skip
            with (home / "gobgpd.log").open("ab") as log:
                self.processes[node.name] = subprocess.Popen(
                    command, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True)  # fmt: skip

    def heard(self, collector: str) -> list[Heard]:
        """Every path that it has, both families, from whichever peer."""
        return [
            one
            for family in FAMILIES
            for text, paths in self._ask(collector, "global", "rib", "-a", f"ipv{family}").items()
            for one in _paths(ip_network(text), paths)
        ]

    def sessions(self, collector: str) -> dict[str, str]:
        """Peer -> state, as the collector sees it."""
        return {
            peer["conf"]["neighbor_address"]: (
                "Established" if peer["state"].get("session_state") == _ESTABLISHED else "down"
            )
            for peer in self._ask(collector, "neighbor")
        }

    def _ask(self, collector: str, *words: str) -> Any:
        command = ["ip", "netns", "exec", self._spaces.name(collector), GOBGP, "-j", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False,
                              timeout=_START_S, cwd=self.home(collector))  # fmt: skip
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip()
            raise LabError(f"{collector}: gobgp {' '.join(words)}: {said}", "does it run?")
        return json.loads(done.stdout or "{}")

    def stop(self) -> None:
        """End them all at once."""
        for process in self.processes.values():
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
        for process in self.processes.values():
            process.wait()
        self.processes.clear()


def collector_toml(fabric: Fabric, node: Node, router_id: IPv4Address) -> str:
    """GoBGP's configuration: it waits for its peers and announces nothing."""
    return "\n".join(_config(fabric, node, router_id)) + "\n"


def _config(fabric: Fabric, node: Node, router_id: IPv4Address) -> Iterator[str]:
    yield "[global.config]"
    yield f"  as = {node.asn}"
    yield f'  router-id = "{router_id}"'
    yield "[global.apply-policy.config]"
    yield '  default-export-policy = "reject-route"'
    for peer in node.peers:
        for address in end_at(fabric, peer, node.name).addresses:
            yield "[[neighbors]]"
            yield "  [neighbors.config]"
            yield f'    neighbor-address = "{address.ip}"'
            yield f"    peer-as = {fabric.node(peer).asn}"
            yield "  [neighbors.transport.config]"
            yield "    passive-mode = true"
            yield "  [neighbors.timers.config]"
            yield "    hold-time = 3"
            yield "    keepalive-interval = 1"
            yield "  [[neighbors.afi-safis]]"
            yield "    [neighbors.afi-safis.config]"
            yield f'      afi-safi-name = "ipv{address.version}-unicast"'


def _paths(prefix: Prefix, paths: list[dict[str, Any]]) -> Iterator[Heard]:
    for path in paths:
        attributes = {attribute["type"]: attribute for attribute in path["attrs"]}
        segments = attributes.get(_AS_PATH, {}).get("as_paths") or []
        numbers = attributes.get(_COMMUNITIES, {}).get("communities") or []
        yield Heard(
            prefix,
            ip_address(path["neighbor-ip"]),
            ORIGINS[attributes[_ORIGIN]["value"]],
            tuple(asn for segment in segments for asn in segment["asns"]),
            tuple(f"{number >> 16}:{number & 0xFFFF}" for number in numbers),
        )
