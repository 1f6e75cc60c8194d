"""The way of packets to a VM, hop by hop, by the kernels' own look-ups.

Each namespace is asked where it would send the packet that came in there (`ip route get`, with its
source and interface: rules, all tables and the choice among equal paths count), and the answer is
followed to the node that owns the next hop, until a tap is reached.  A tunnel is one hop: the NVE
says where to.
Not here: which ways should be walked and when (settled.py).  Rests on iproute2.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vmmobility.drivers.linux.ownership import (
    ACCEPTED_MARK,
    HOLD_TABLE,
    KERNEL_TUNNELS,
    TUN_NAME,
    TUNNEL_DEVICES,
    TUNNELLED_TABLE,
    is_our_tap,
)
from vmmobility.lab.fabric import Fabric, Link
from vmmobility.lab.namespaces import Namespaces

TUNNEL = "(tunnel)"
_MOST_HOPS = 64

# (NVE, VM) -> the NVE to which it redirects the VM's packets, or ""
Target = Callable[[str, str], str]


@dataclass(frozen=True, slots=True)
class Path:
    """Nodes in order, the VM last; `(tunnel)` before a node that a tunnel leads to.

    broken: why it does not reach the VM, "" if it does; then the last hop says so, too
    """

    hops: tuple[str, ...]
    broken: str = ""


@dataclass(frozen=True, slots=True)
class _Packet:
    vm: str
    address: str
    version: int
    source: str = ""


class PathWalker:
    """Walks the ways through one lab's namespaces as they are now."""

    def __init__(self, fabric: Fabric, spaces: Namespaces, target: Target) -> None:
        self._fabric = fabric
        self._spaces = spaces
        self._target = target

    def walk(self, source: str, vm: str, version: int, first: str = "") -> Path:
        """From a node, or from a VM whose NVE is `first`, to the VM's address of that family."""
        own = str(self._fabric.vm(source).address(version)) if first else ""
        packet = _Packet(vm, str(self._fabric.vm(vm).address(version)), version, own)
        hops, node, came_by = [source], source, ""
        been: set[tuple[str, str]] = set()
        while len(hops) < _MOST_HOPS:
            if (node, came_by) in been:
                return _broken(hops, f"loop at {node}")
            been.add((node, came_by))
            route, refusal = self._look_up(node, packet, came_by)
            device = str(route.get("dev", ""))
            if not packet.source:
                packet = _Packet(vm, packet.address, version, str(route.get("prefsrc", "")))
            if first and node == source:
                node, came_by = first, ""  # a VM's own link: whatever its tap is called there
                hops.append(node)
            elif is_our_tap(device):
                return Path((*hops, vm))
            elif device in TUNNEL_DEVICES or (came_by in TUNNEL_DEVICES and not device):
                further = self._target(node, vm)
                if not further:
                    return _broken(hops, f"{node} leads into a tunnel to nobody")
                hops += [TUNNEL, further]
                node, came_by = further, self._way_in(further, version)
            elif not device or route.get("type", "unicast") != "unicast":
                return _broken(hops, f"no route at {node}: {refusal or route.get('type')}")
            else:
                gateway = str(route.get("gateway") or _via(route) or packet.address)
                found = self._across(node, device, gateway)
                if found is None:
                    return _broken(hops, f"nobody has {gateway} on {device} of {node}")
                node, came_by = found
                hops.append(node)
        return _broken(hops, "too long")

    def _way_in(self, node: str, version: int) -> str:
        """The device by which packets of that family come out of a tunnel at a node."""
        name = KERNEL_TUNNELS[version]
        command = ["ip", "-n", self._spaces.name(node), "link", "show", name]
        done = subprocess.run(command, capture_output=True, check=False)
        return name if done.returncode == 0 else TUN_NAME

    def _look_up(self, node: str, packet: _Packet, came_by: str) -> tuple[dict[str, Any], str]:
        command = ["ip", "-n", self._spaces.name(node), "-j", f"-{packet.version}", "route", "get",
                   packet.address]  # fmt: skip
        if came_by:
            command += ["from", packet.source, "iif", came_by]  # codespell:ignore iif
        if came_by in KERNEL_TUNNELS.values():
            command += ["mark", str(ACCEPTED_MARK)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            why = " ".join(done.stderr.split()).removeprefix("RTNETLINK answers: ")
            return (self._longest_match(node, packet, came_by) if packet.version == 6 else {}), why
        found = read_routes(done.stdout)
        return (found[0] if found else {}), ""

    def _longest_match(self, node: str, packet: _Packet, came_by: str) -> dict[str, Any]:
        """Linux 6.18 denies some IPv6 routes by next-hop objects to `route get`, and forwards by
        them all the same: read what its tables say, in the order of our rules."""
        tunnelled = came_by in TUNNEL_DEVICES
        for table in (str(TUNNELLED_TABLE),) if tunnelled else (str(HOLD_TABLE), "main"):
            command = ["ip", "-n", self._spaces.name(node), "-j", "-6", "route", "show", "table",
                       table, "match", packet.address]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found = read_routes(done.stdout) if done.returncode == 0 else []
            if found:
                best = max(found, key=_preference)
                return {**best, **(best.get("nexthops") or [{}])[0]}
        return {}

    def _across(self, node: str, device: str, gateway: str) -> tuple[str, str] | None:
        """(the node that owns the gateway on that device's link, its interface there)."""
        for link in self._fabric.links:
            end = link.end(node)
            if end is None or end.interface != device:
                continue
            others = [other for other in link.ends if other.node != node]
            if len(others) > 1:
                others = [o for o in others if self._owns(link, o.node, o.interface, gateway)]
            return (others[0].node, others[0].interface) if others else None
        return None

    def _owns(self, link: Link, node: str, device: str, gateway: str) -> bool:
        end = link.end(node)
        if end is not None and gateway in (str(a.ip) for a in end.addresses):
            return True
        command = ["ip", "-n", self._spaces.name(node), "-j", "address", "show", "dev", device]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        infos = [info for row in json.loads(done.stdout or "[]") for info in row["addr_info"]]
        return any(info.get("local") == gateway for info in infos)


def read_routes(text: str) -> list[dict[str, Any]]:
    """What `ip -j route` has printed.

    A route into a kernel tunnel has two `dst` there: its prefix, then the tunnel's end.
    """
    found: list[dict[str, Any]] = json.loads(
        text or "[]", object_pairs_hook=lambda pairs: dict(reversed(pairs))
    )
    return found


def _preference(route: dict[str, Any]) -> tuple[int, int]:
    """The longest prefix, and of one prefix the smallest metric."""
    text = str(route["dst"])
    length = 0 if text == "default" else int(text.partition("/")[2] or 128)
    return length, -int(route.get("metric", 0))


def _via(route: dict[str, Any]) -> str:
    """An IPv4 route's next hop that is an IPv6 address."""
    via = route.get("via")
    return str(via.get("host", "")) if isinstance(via, dict) else ""


def _broken(hops: list[str], why: str) -> Path:
    return Path((*hops, f"({why})"), why)
