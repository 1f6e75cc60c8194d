"""Which node held which route when: `ip monitor route` in every router and NVE.

Keeps the routes to VMs' addresses only.  Not here: showing them (report_html.py).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vmmobility.lab.fabric import Fabric
from vmmobility.lab.inside import yield_the_cpu
from vmmobility.lab.namespaces import Namespaces


@dataclass(frozen=True, slots=True)
class RouteChange:
    """A route to a VM's address came (via: local, tunnel, host-route) or went (via: none).

    protocol: who made it, as iproute2 names it: "77" is ours
    """

    at_ns: int
    node: str
    family: str
    address: str
    via: str
    text: str
    protocol: str = ""


@dataclass(frozen=True, slots=True)
class RouteSpan:
    """A node's route to a VM's address from one time to another; end_ns None: it still holds."""

    node: str
    family: str
    via: str
    text: str
    start_ns: int
    end_ns: int | None


class RouteRecorder:
    """One monitor a router and NVE, from start() to stop()."""

    def __init__(self, fabric: Fabric, spaces: Namespaces, folder: Path) -> None:
        self._fabric = fabric
        self._spaces = spaces
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._nodes = [n.name for n in fabric.nodes if n.kind in ("router", "nve")]

    def start(self) -> None:
        """Start the monitors."""
        self._folder.mkdir(exist_ok=True)
        for node in self._nodes:
            with (self._folder / f"{node}.txt").open("wb") as out:
                command = ["ip", "-n", self._spaces.name(node), "-o", "-ts", "monitor", "route"]
                self._processes.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=subprocess.DEVNULL,
                        start_new_session=True,
                        env={**os.environ, "TZ": "UTC"},
                    )
                )
                yield_the_cpu(self._processes[-1].pid)

    def stop(self) -> None:
        """End the monitors."""
        for process in self._processes:
            process.terminate()
            process.wait()
        self._processes.clear()

    def changes(self, vm: str) -> list[RouteChange]:
        """Every change so far for one VM's addresses, in order of time."""
        addresses: dict[str, int] = {str(a.ip): a.version for a in self._fabric.vm(vm).addresses}
        found: list[RouteChange] = []
        for node in self._nodes:
            path = self._folder / f"{node}.txt"
            lines = path.read_text(errors="replace").splitlines() if path.exists() else []
            interfaces = {
                end.interface
                for link in self._fabric.links
                for end in link.ends
                if end.node == node
            }
            for line in lines:
                change = parse_line(line, node, addresses, interfaces)
                if change is not None:
                    found.append(change)
        return sorted(found, key=lambda change: change.at_ns)


def parse_line(
    line: str, node: str, addresses: dict[str, int], interfaces: Iterable[str]
) -> RouteChange | None:
    """One line of `ip -o -ts monitor route` as a change, if it is about one of the addresses."""
    stamp, _, rest = line.partition("] ")
    words = rest.split()
    deleted = words[:1] == ["Deleted"]
    words = words[1:] if deleted else words
    while words and words[0] in ("local", "unicast", "blackhole", "unreachable", "multicast"):
        if words[0] != "unicast":
            return None
        words = words[1:]
    address = words[0].split("/")[0] if words else ""
    if address not in addresses:
        return None
    if "table" in words and words[words.index("table") + 1] not in ("main", "254"):
        return None  # the relay's own table; packets of others never look there
    device = words[words.index("dev") + 1] if "dev" in words else ""
    protocol = words[words.index("proto") + 1] if "proto" in words else ""
    via = "none" if deleted else kind_of(device, interfaces)
    moment = datetime.fromisoformat(stamp.lstrip("[")).replace(tzinfo=UTC)
    at_ns = int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000
    family = "ipv4" if addresses[address] == 4 else "ipv6"
    return RouteChange(at_ns, node, family, address, via, " ".join(words), protocol)


def kind_of(device: str, interfaces: Iterable[str]) -> str:
    """What a route out of that device is: to the VM's tap, a host route, or into the tunnel."""
    if device.startswith("vmt"):
        return "local"
    return "host-route" if device in interfaces else "tunnel"


def spans(changes: Iterable[RouteChange]) -> list[RouteSpan]:
    """Changes of one VM as spans: a node's next route of the family, or a deletion, ends one."""
    open_spans: dict[tuple[str, str], RouteChange] = {}
    found: list[RouteSpan] = []
    for change in changes:
        key = (change.node, change.family)
        before = open_spans.get(key)
        if before is not None:
            same_gone = change.via == "none" and change.text != before.text
            if same_gone or (change.via == before.via and change.text == before.text):
                continue  # an older route goes after the newer came, or a repetition
            found.append(_span(before, change.at_ns))
            del open_spans[key]
        if change.via != "none":
            open_spans[key] = change
    found += [_span(change, None) for change in open_spans.values()]
    return sorted(found, key=lambda span: span.start_ns)


def _span(change: RouteChange, end_ns: int | None) -> RouteSpan:
    return RouteSpan(change.node, change.family, change.via, change.text, change.at_ns, end_ns)
