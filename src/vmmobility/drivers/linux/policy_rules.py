"""Policy rules as rtnetlink messages, both ways: which packets look up which table.

Not here: which rules there should be (environment.py, router_environment.py, outside.py), routes
(rtnetlink.py).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from vmmobility.drivers.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Netlink,
    Request,
    attribute,
    number,
    parse_attributes,
    text,
    u32,
)
from vmmobility.drivers.linux.ownership import ROUTE_PROTOCOL
from vmmobility.drivers.linux.rtnetlink import name_of, reading
from vmmobility.wire.values import Prefix

RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34

_RULE = struct.Struct("=BBBBBBBBI")
_AF = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy rule: packets that come in by `interface` ("": by any) use `table`.

    table: 0 is none: the packets are dropped; source: only packets from there (None: all)
    mark:  only packets that bear it (0: all)
    """

    version: int
    interface: str
    table: int
    priority: int
    source: Prefix | None = None
    mark: int = 0


def new_rule(rule: Rule) -> Request:
    """Install a policy rule; the kernel refuses with EEXIST where it stands already."""
    return Request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, _rule(rule))


def delete_rule(rule: Rule) -> Request:
    """Remove a policy rule of ours."""
    return Request(RTM_DELRULE, 0, _rule(rule))


def _rule(rule: Rule) -> bytes:
    to_table, blackhole = 1, 6
    action = to_table if rule.table else blackhole
    source = rule.source
    length = source.prefixlen if source is not None else 0
    body = _RULE.pack(_AF[rule.version], 0, length, 0, 0, 0, 0, action, 0)
    if source is not None:
        body += attribute(2, source.network_address.packed)
    if rule.interface:
        body += text(3, rule.interface)
    if rule.mark:
        body += u32(10, rule.mark)
    body += u32(6, rule.priority) + u32(15, rule.table)
    return body + attribute(21, bytes([ROUTE_PROTOCOL]))


def rules_of_ours(netlink: Netlink) -> Iterator[Rule]:
    """Every policy rule with our protocol number."""
    for version, family in _AF.items():
        for body in netlink.dump(RTM_GETRULE, _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            found = parse_attributes(body[_RULE.size :])
            if found.get(21) != bytes([ROUTE_PROTOCOL]):
                continue
            with reading():
                length = _RULE.unpack_from(body)[2]
                source = ip_network((found[2], length)) if 2 in found else None
            yield Rule(
                version,
                name_of(found),
                number(found.get(15, b"\0")),
                number(found.get(6, b"\0")),
                source,
                mark=number(found.get(10, b"\0")),
            )
