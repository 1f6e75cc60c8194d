"""What leads an address at a router, as rows for people: the kernel's rules, and each one's route.

Not here: other nodes' answers; who prints it.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from vmmobility.drivers.linux.fib import Fib
from vmmobility.drivers.linux.fib_messages import FibRoute, dump_routes
from vmmobility.drivers.linux.fib_table import FibTable
from vmmobility.drivers.linux.netlink import Attributes, Netlink, number, parse_attributes
from vmmobility.drivers.linux.policy_rules import RTM_GETRULE
from vmmobility.drivers.linux.rtnetlink import reading
from vmmobility.wire.values import Address

_RULE = struct.Struct("=BBBBBBBBI")
_AF = {4: socket.AF_INET, 6: socket.AF_INET6}
_DST, _SRC, _IN, _PRIORITY, _MARK, _TABLE, _OUT, _L3MDEV = 1, 2, 3, 6, 10, 15, 17, 19
_TO_TABLE = 1
_NARROWING = {20: "user", 22: "protocol", 23: "source port", 24: "destination port"}
_INVERTED = 0x2
_ENDING = {6: "blackhole", 7: "unreachable", 8: "prohibit"}
_ACTIONS = {2: "goto", **_ENDING}


@dataclass(frozen=True, slots=True)
class _Selector:
    priority: int
    table: int
    action: int
    only: str


def rows(netlink: Netlink, fib: Fib, address: Address) -> list[dict[str, Any]]:
    """One row a rule; see RouterPlane.explain."""
    selectors = list(_rules(netlink, address))
    tables: dict[int, FibTable] = dict(fib.tables)
    unread = {s.table for s in selectors if s.action == _TO_TABLE} - tables.keys()
    for one in unread:
        tables[one] = FibTable()
    if unread:
        for unmirrored in dump_routes(netlink, unread):
            tables[unmirrored.table].append(unmirrored)
    found = []
    settled = False
    for selector in selectors:
        row: dict[str, Any] = {"priority": selector.priority, "only": selector.only}
        route: FibRoute | None = None
        if selector.action == _TO_TABLE:
            route = tables[selector.table].match(address)
            row |= {"table": selector.table, **_shown(fib, route)}
        else:
            row |= {"table": None, **_shown(fib, None)}
            row["kind"] = _ACTIONS.get(selector.action, f"action {selector.action}")
        ends = selector.action in _ENDING or (route is not None and route.kind_text != "throw")
        row["leads"] = ends and not selector.only and not settled
        settled = settled or row["leads"]
        found.append(row)
    return found


def _shown(fib: Fib, route: FibRoute | None) -> dict[str, Any]:
    if route is None:
        return {"prefix": None, "metric": None, "protocol": None, "kind": None, "ours": False,
                "next_hops": []}  # fmt: skip
    hops = [
        {
            "interface": fib.interface(hop.ifindex),
            "gateway": str(hop.gateway) if hop.gateway is not None else None,
        }
        for hop in route.hops
    ]
    return {
        "prefix": str(route.prefix),
        "metric": route.metric,
        "protocol": route.protocol,
        "kind": route.kind_text,
        "ours": route.ours,
        "next_hops": hops,
    }


def _rules(netlink: Netlink, address: Address) -> Iterator[_Selector]:
    """The rules that packets to the address may meet, in the kernel's order."""
    header = _RULE.pack(_AF[address.version], 0, 0, 0, 0, 0, 0, 0, 0)
    bodies = netlink.dump(RTM_GETRULE, header)
    with reading():
        for body in bodies:
            _, to, source, tos, table, _, _, action, flags = _RULE.unpack_from(body)
            found = parse_attributes(body[_RULE.size :])
            inverted = bool(flags & _INVERTED)
            if (
                to
                and not inverted
                and address not in ip_network((found.get(_DST, b""), to), strict=False)
            ):
                continue
            only = _only(found, source, tos)
            if inverted:
                destination = f" to {ip_address(found.get(_DST, b''))}/{to}" if to else ""
                only = f"not {only}{destination}"
            table = number(found[_TABLE]) if _TABLE in found else table
            priority = number(found.get(_PRIORITY, b""))
            yield _Selector(priority, table, action, only)


def _only(found: Attributes, source: int, tos: int) -> str:
    """What narrows a rule to some packets, in words."""
    words = []
    if source:
        words.append(f"from {ip_address(found.get(_SRC, b''))}/{source}")
    for kind, name in ((_IN, "in by"), (_OUT, "out by")):
        if kind in found:
            words.append(f"{name} {found[kind].rstrip(bytes(1)).decode(errors='replace')}")
    if number(found.get(_MARK, b"")):
        words.append(f"mark {number(found[_MARK]):#x}")
    if number(found.get(_L3MDEV, b"")):
        words.append("in by a VRF")
    if tos:
        words.append(f"tos {tos:#x}")
    words += [name for kind, name in _NARROWING.items() if kind in found]
    return ", ".join(words)
