"""What goes over a link, captured and decoded by tshark: BGP UPDATEs and OSPF's external LSAs.

Nothing of ours reads a packet here.  Rests on tshark and its field names.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from vmmobility.wire.values import Prefix

TSHARK = "tshark"
FILTER = "tcp port 179 or proto 89 or ip6 proto 89"
_LIMIT_S, _LIMIT_KIB = 120, 20_000
_START_S = 20.0
MAX_AGE = 3600
# RFC 4271: NLRI and withdrawn routes of IPv4; RFC 4760: MP_REACH_NLRI and MP_UNREACH_NLRI of IPv6.
_REACHED = ("bgp.nlri_prefix", "bgp.mp_reach_nlri_ipv6_prefix")
_WITHDRAWN = ("bgp.withdrawn_prefix", "bgp.mp_unreach_nlri_ipv6_prefix")

Tree = list[tuple[str, Any]]
"""A JSON object as tshark writes it: a key may come many times."""


def missing_tools() -> str:
    """Why nothing can be decoded here; "" if it can."""
    return "no tshark" if shutil.which(TSHARK) is None else ""


@dataclass(frozen=True)
class Update:
    """A BGP UPDATE.  origin: 0 is IGP; None if it has no path."""

    at_s: float
    source: str
    reached: frozenset[Prefix]
    withdrawn: frozenset[Prefix]
    origin: int | None
    communities: frozenset[str]


@dataclass(frozen=True)
class Lsa:
    """An external LSA in a Link State Update of OSPF version 2 or 3."""

    at_s: float
    prefix: Prefix
    tag: int
    age_s: int
    origin: str
    metric_type: int


class Capture:
    """tshark on one interface of a namespace, from its making until decoded()."""

    def __init__(self, namespace: str, interface: str, file: Path) -> None:
        self._file = file
        command = ["ip", "netns", "exec", namespace, TSHARK, "-q", "-i", interface, "-f", FILTER,
                   "-w", str(file), "-a", f"duration:{_LIMIT_S}", "-a",
                   f"filesize:{_LIMIT_KIB}"]  # fmt: skip
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._await_start()

    def _await_start(self) -> None:
        timer = threading.Timer(_START_S, self._process.kill)
        timer.start()
        assert self._process.stderr is not None
        said = []
        for line in self._process.stderr:
            said.append(line)
            if "Capture started" in line:
                timer.cancel()
                return
        raise AssertionError("".join(said))

    def stop(self) -> None:
        """End the capture; its file is whole on return."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        self._process.communicate(timeout=_START_S)

    def frames(self) -> list[Tree]:
        """Every frame's layers."""
        command = [TSHARK, "-r", str(self._file), "-T", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout, object_pairs_hook=list)
        return [next(_values(frame, "layers")) for frame in found]

    def updates(self) -> list[Update]:
        """Every BGP UPDATE, in order."""
        return [update for frame in self.frames() for update in _updates(frame)]

    def lsas(self) -> list[Lsa]:
        """Every external LSA that was sent, in order."""
        return [lsa for frame in self.frames() for lsa in _lsas(frame)]


def _objects(tree: Any) -> Iterator[Tree]:
    """The object and all inside it."""
    if isinstance(tree, list):
        if tree and all(isinstance(one, tuple) for one in tree):
            yield tree
            for _, value in tree:
                yield from _objects(value)
        else:
            for value in tree:
                yield from _objects(value)


def _values(tree: Any, key: str) -> Iterator[Any]:
    for one in _objects(tree):
        yield from (value for name, value in one if name == key)


def _at_s(frame: Tree) -> float:
    return float(next(_values(frame, "frame.time_epoch")))


def _updates(frame: Tree) -> Iterator[Update]:
    for name, message in frame:
        if name == "bgp" and next(_values(message, "bgp.type"), "") == "2":
            origin = next(_values(message, "bgp.update.path_attribute.origin"), None)
            source = next(_values(frame, "ip.src"), None) or next(_values(frame, "ipv6.src"))
            yield Update(
                _at_s(frame), source, _prefixes(message, _REACHED), _prefixes(message, _WITHDRAWN),
                None if origin is None else int(origin), _communities(message),
            )  # fmt: skip


def _prefixes(message: Tree, fields: tuple[str, ...]) -> frozenset[Prefix]:
    found = set()
    for one in _objects(message):
        keys = dict(one)
        for field in fields:
            if field in keys and "bgp.prefix_length" in keys:
                found.add(ip_network(f"{keys[field]}/{keys['bgp.prefix_length']}"))
    return frozenset(found)


def _communities(message: Tree) -> frozenset[str]:
    numbers = _values(message, "bgp.update.path_attribute.community_as")
    values = _values(message, "bgp.update.path_attribute.community_value")
    return frozenset(f"{asn}:{value}" for asn, value in zip(numbers, values, strict=True))


def _lsas(frame: Tree) -> Iterator[Lsa]:
    for one in _objects(frame):
        if any(key == "ospf.lsa.age" for key, _ in one):
            keys = _leaves(one)
            prefix = _external(keys)
            if prefix is not None:
                tag = keys.get(
                    "ospf.lsa.asext.extrttag", keys.get("ospf.v3.lsa.external_route_tag")
                )
                metric_2 = keys.get("ospf.lsa.asext.type", keys.get("ospf.v3.as.external.flags.e"))
                yield Lsa(
                    _at_s(frame), prefix, int(tag or 0), int(keys["ospf.lsa.age"]),
                    keys["ospf.advrouter"], 2 if metric_2 in ("1", True, "true") else 1,
                )  # fmt: skip


def _external(keys: dict[str, Any]) -> Prefix | None:
    """The prefix of an external LSA with a body; None of any other LSA, or a bare header."""
    if "ospf.lsa.asext.netmask" in keys:
        return ip_network(f"{keys['ospf.lsa.id']}/{keys['ospf.lsa.asext.netmask']}")
    if "ospf.v3.as.external.flags" in keys or "ospf.v3.as.external.flags.e" in keys:
        address = keys["ospf.v3.address_prefix.ipv6"]
        return ip_network(f"{address}/{keys['ospf.prefix_length']}")
    return None


def _leaves(tree: Tree) -> dict[str, Any]:
    """Every plain value in it, the first of each name."""
    found: dict[str, Any] = {}
    for one in _objects(tree):
        for key, value in one:
            if not isinstance(value, list):
                found.setdefault(key, value)
    return found
