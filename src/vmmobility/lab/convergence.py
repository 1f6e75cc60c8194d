"""Has a fabric with routing daemons converged?  Its routers' kernels and BGP sessions say so.

Converged: every BGP session is up, every router's kernel has a route to every link's subnet and
every home prefix, and none of that has changed for a moment.  Not here: starting the daemons
(frr.py, bird.py).
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from typing import Protocol

from vmmobility.drivers.frr.plan import RouterPlan
from vmmobility.errors import LabError
from vmmobility.lab.fabric_values import Fabric
from vmmobility.lab.frr_plans import expected_prefixes
from vmmobility.lab.namespaces import Namespaces
from vmmobility.wire.values import FAMILIES, Prefix

CONVERGED_S = 60.0
_POLL_S = 0.1
_SETTLED_S = 0.5
_AT_ONCE = 4
_DEFAULTS = {4: "0.0.0.0/0", 6: "::/0"}


class Speakers(Protocol):
    """The routers of one lab that run one software."""

    @property
    def plans(self) -> Mapping[str, RouterPlan]:
        """Name -> what it shall do."""

    def sessions(self, router: str) -> dict[str, str]:
        """BGP neighbour -> state, as that router sees it."""


class Convergence:
    """Watches one lab's routers."""

    def __init__(self, fabric: Fabric, spaces: Namespaces, *speakers: Speakers) -> None:
        self._expected = expected_prefixes(fabric)
        self._spaces = spaces
        self._speakers = {router: one for one in speakers for router in one.plans}

    def wait(self, within_s: float = CONVERGED_S) -> float:
        """Until it has converged; how long that took.  LabError that names what is missing."""
        begun = time.monotonic()
        self._await_sessions(begun + within_s)
        before: dict[str, dict[Prefix, str]] = {}
        settled_since = time.monotonic()
        while True:
            now = self.tables()
            missing = {r: self._expected - set(found) for r, found in now.items()}
            if now != before or any(missing.values()):
                settled_since = time.monotonic()
            elif time.monotonic() - settled_since >= _SETTLED_S:
                return time.monotonic() - begun
            before = now
            if time.monotonic() - begun > within_s:
                raise LabError(f"not converged after {within_s:g} s: {_named(missing)}",
                               "ask its daemons: docs/lab.md says how")  # fmt: skip
            time.sleep(_POLL_S)

    def tables(self) -> dict[str, dict[Prefix, str]]:
        """Router -> prefix -> next hops, of its kernel's main table."""
        routers = list(self._speakers)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return dict(zip(routers, pool.map(self._table, routers), strict=True))

    def _table(self, router: str) -> dict[Prefix, str]:
        found: dict[Prefix, str] = {}
        for family in FAMILIES:
            command = ["ip", "-n", self._spaces.name(router), f"-{family}", "-j", "route", "show"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            for route in json.loads(done.stdout or "[]"):
                text = route["dst"]
                prefix = ip_network(_DEFAULTS[family] if text == "default" else text)
                hops = [
                    f"{hop.get('gateway', hop.get('via', {}).get('host', ''))} {hop.get('dev', '')}"
                    for hop in route.get("nexthops", [route])
                ]
                found[prefix] = found.get(prefix, "") + ", ".join(sorted(hops))
        return found

    def _await_sessions(self, deadline: float) -> None:
        waiting = [n for n, one in self._speakers.items() if one.plans[n].bgp is not None]
        down: list[str] = []
        while waiting:
            down = [text for router in waiting for text in self._down(router)]
            waiting = [r for r in waiting if any(text.startswith(f"{r} - ") for text in down)]
            if waiting and time.monotonic() > deadline:
                raise LabError(f"BGP sessions are down: {', '.join(down)}", "are its links up?")
            if waiting:
                time.sleep(_POLL_S)

    def _down(self, router: str) -> Iterable[str]:
        found = self._speakers[router].sessions(router)
        bgp = self._speakers[router].plans[router].bgp
        for neighbour in bgp.neighbours if bgp is not None else ():
            state = found.get(str(neighbour.address), "unknown")
            if state != "Established":
                yield f"{router} - {neighbour.address} ({state})"


def _named(missing: dict[str, frozenset[Prefix]]) -> str:
    """For each router a few of the prefixes that it lacks."""
    parts = []
    for router, prefixes in missing.items():
        if prefixes:
            some = sorted(map(str, prefixes))
            parts.append(f"{router} lacks {', '.join(some[:4])}" + (" …" if some[4:] else ""))
    return "; ".join(parts) or "routes still change"
