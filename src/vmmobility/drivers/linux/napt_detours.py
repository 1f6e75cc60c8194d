"""Detours in the kernel: a rule for each address, and a table for each box that they lead to.

    rule    from PRIVATE lookup TABLE        priority 79
    table   default via the way to the box   metric 7
            unreachable default              metric 8: if the box's way ends, nothing leaks
            throw PREFIX                     what is exempt, or inside, keeps its normal way

TABLE is the box's IPv4 address as a number.  All of it has protocol 78.  Not here: that detoured
packets are not translated (napt_rules.py).  Rests on rtnetlink.py for reading links and ways.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from vmmobility.drivers.linux import policy_rules, rtnetlink
from vmmobility.drivers.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    Netlink,
    Refusal,
    Request,
    attribute,
    number,
    parse_attributes,
    u32,
)
from vmmobility.drivers.linux.ownership import NAPT_PROTOCOL, NAPT_RULE_PRIORITY
from vmmobility.drivers.linux.policy_rules import RTM_DELRULE, RTM_NEWRULE
from vmmobility.drivers.linux.rtnetlink import RTM_DELROUTE, RTM_NEWROUTE
from vmmobility.drivers.napt_plane import NaptFailure
from vmmobility.drivers.napt_state import detour_item
from vmmobility.engine.napt_plane import NaptState

_BODY = struct.Struct("=BBBBBBBBI")
_UNICAST, _UNREACHABLE, _THROW = 1, 7, 9
_FIB_MATCH = 0x2000
_METRIC, _LAST_METRIC = 7, 8
_EVERYWHERE = IPv4Network("0.0.0.0/0")
_GONE = {errno.ENOENT, errno.ESRCH}


@dataclass(frozen=True, slots=True)
class Rule:
    """What comes from an address looks up the table of the box."""

    private: IPv4Address
    box: IPv4Address
    priority: int = NAPT_RULE_PRIORITY


@dataclass(frozen=True, slots=True)
class Route:
    """One route of a box's table; (box, prefix, metric) is its name."""

    box: IPv4Address
    prefix: IPv4Network
    kind: int
    metric: int = 0
    ifindex: int = 0
    gateway: IPv4Address | None = None

    def __str__(self) -> str:
        words = {_UNICAST: f"via {self.gateway}", _UNREACHABLE: "unreachable", _THROW: "throw"}
        return f"{words.get(self.kind, 'of another kind')} {self.prefix} in table {int(self.box)}"


@dataclass(frozen=True, slots=True)
class Detours:
    """Rules and routes, wanted or held."""

    rules: frozenset[Rule]
    routes: frozenset[Route]


def held(netlink: Netlink) -> Detours:
    """What the kernel holds of ours.  Raises DataPlaneError where it cannot be read."""
    with rtnetlink.reading():
        return Detours(frozenset(_rules(netlink)), frozenset(_routes(netlink)))


def _rules(netlink: Netlink) -> Iterator[Rule]:
    header = _BODY.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
    for body in netlink.dump(policy_rules.RTM_GETRULE, header):
        found = parse_attributes(body[_BODY.size :])
        if found.get(21) == bytes([NAPT_PROTOCOL]):
            private = IPv4Address(found.get(2, bytes(4)))
            box = IPv4Address(number(found.get(15, b"\0")))
            yield Rule(private, box, number(found.get(6, b"\0")))


def _routes(netlink: Netlink) -> Iterator[Route]:
    header = _BODY.pack(socket.AF_INET, 0, 0, 0, 0, NAPT_PROTOCOL, 0, 0, 0)
    for body in netlink.dump(rtnetlink.RTM_GETROUTE, header):
        fields = _BODY.unpack_from(body)
        if fields[5] != NAPT_PROTOCOL:
            continue
        found = parse_attributes(body[_BODY.size :])
        box = IPv4Address(number(found[15]) if 15 in found else fields[4])
        prefix = IPv4Network((found.get(1, bytes(4)), fields[1]))
        gateway = IPv4Address(found[5]) if 5 in found else None
        ifindex = number(found.get(4, b"\0")) if fields[7] == _UNICAST else 0
        yield Route(box, prefix, fields[7], number(found.get(6, b"\0")), ifindex, gateway)


def wanted(netlink: Netlink, state: NaptState) -> tuple[Detours, list[NaptFailure]]:
    """What a state's detours need now; a box that no route leads to fails, and leads nowhere."""
    rules, routes, failed = set(), set(), []
    kept = list(collapse_addresses((*state.inside, *state.exempt)))
    ways: dict[IPv4Address, Route | str] = {}
    for one in state.detours:
        rules.add(Rule(one.private, one.box))
        if one.box not in ways:
            ways[one.box] = way = _way(netlink, one.box)
            routes.add(Route(one.box, _EVERYWHERE, _UNREACHABLE, _LAST_METRIC))
            routes.update(Route(one.box, prefix, _THROW) for prefix in kept)
            if isinstance(way, Route):
                routes.add(way)
        reason = ways[one.box]
        if isinstance(reason, str):
            failed.append(NaptFailure(detour_item(one.private), reason))
    return Detours(frozenset(rules), frozenset(routes)), failed


def _way(netlink: Netlink, box: IPv4Address) -> Route | str:
    """The way to a box: itself on a link, else the gateway towards it; or why there is none."""
    found = rtnetlink.look_up(netlink, box)
    if isinstance(found, Refusal):
        return f"no route leads to the box {box}: {found}"
    if not found.ifindex:
        return f"no route leads to the box {box}, or it is this one"
    if _by_default(netlink, box):
        return f"only the default route leads to the box {box}: it would leave untranslated"
    if found.gateway is not None and not isinstance(found.gateway, IPv4Address):
        return f"the way to the box {box} has an IPv6 gateway, {found.gateway}"
    gateway = found.gateway or box
    return Route(box, _EVERYWHERE, _UNICAST, _METRIC, found.ifindex, gateway)


def _by_default(netlink: Netlink, box: IPv4Address) -> bool:
    """Whether a box is reached as the outside is: then so are those who pass there."""
    header = _BODY.pack(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, _FIB_MATCH)
    answer = netlink.get(rtnetlink.RTM_GETROUTE, header + attribute(1, box.packed))
    with rtnetlink.reading():
        return isinstance(answer, Refusal) or _BODY.unpack_from(answer)[1] == 0


def prepare(netlink: Netlink, have: Detours, want: Detours) -> list[NaptFailure]:
    """New detours as far as nothing passes yet: unreachable tables, then the rules.

    Nothing of a new detour goes out, translated or not, until the rules of nftables know it.
    """
    rules, routes = _new(have, want)
    failed = _make(netlink, routes)
    outcomes = netlink.batch([_rule(RTM_NEWRULE, NLM_F_CREATE, rule) for rule in rules])
    for rule, outcome in zip(rules, outcomes, strict=True):
        if outcome is not None:
            failed.append(NaptFailure(detour_item(rule.private), f"its rule is refused: {outcome}"))
    return failed


def _new(have: Detours, want: Detours) -> tuple[list[Rule], list[Route]]:
    """What `prepare` makes."""
    rules = sorted(want.rules - have.rules, key=lambda rule: rule.private)
    boxes = {rule.box for rule in rules}
    return rules, [r for r in want.routes - have.routes if r.box in boxes and r.kind != _UNICAST]


def take_back(netlink: Netlink, have: Detours, want: Detours) -> list[NaptFailure]:
    """What `prepare` has made: the rules of nftables will not know of it."""
    rules, routes = _new(have, want)
    there = {(r.box, r.prefix, r.metric) for r in have.routes}
    return remove(netlink, rules, [r for r in routes if (r.box, r.prefix, r.metric) not in there])


def complete(netlink: Netlink, have: Detours, want: Detours) -> list[NaptFailure]:
    """All that is wanted stands, then what is not wanted goes: rules before their tables."""
    failed = _make(netlink, want.routes - have.routes)
    rules = have.rules - want.rules
    names = {(r.box, r.prefix, r.metric) for r in want.routes}
    routes = [r for r in have.routes - want.routes if (r.box, r.prefix, r.metric) not in names]
    return failed + remove(netlink, rules, routes)


def remove(netlink: Netlink, rules: Iterable[Rule], routes: Collection[Route]) -> list[NaptFailure]:
    """Remove rules, then routes; what is gone already is no error."""
    named = [(detour_item(r.private), _rule(RTM_DELRULE, 0, r)) for r in rules]
    named += [(f"route {r}", Request(RTM_DELROUTE, 0, _route(r))) for r in routes]
    outcomes = netlink.batch([request for _, request in named])
    return [
        NaptFailure(item, f"cannot be removed: {outcome}")
        for (item, _), outcome in zip(named, outcomes, strict=True)
        if outcome is not None and outcome.number not in _GONE
    ]


def _make(netlink: Netlink, routes: Iterable[Route]) -> list[NaptFailure]:
    # The last resort before the way: a table is never without it.
    ordered = sorted(routes, key=lambda r: (r.kind == _UNICAST, str(r)))
    flags = NLM_F_CREATE | NLM_F_REPLACE
    outcomes = netlink.batch([Request(RTM_NEWROUTE, flags, _route(r)) for r in ordered])
    return [
        NaptFailure(f"route {route}", f"is refused: {outcome}")
        for route, outcome in zip(ordered, outcomes, strict=True)
        if outcome is not None
    ]


def _rule(kind: int, flags: int, rule: Rule) -> Request:
    body = _BODY.pack(socket.AF_INET, 0, 32, 0, 0, 0, 0, 1, 0) + attribute(2, rule.private.packed)
    body += u32(6, rule.priority) + u32(15, int(rule.box))
    return Request(kind, flags, body + attribute(21, bytes([NAPT_PROTOCOL])))


def _route(route: Route) -> bytes:
    length = route.prefix.prefixlen
    body = _BODY.pack(socket.AF_INET, length, 0, 0, 0, NAPT_PROTOCOL, 0, route.kind, 0)
    body += attribute(1, route.prefix.network_address.packed) + u32(15, int(route.box))
    if route.metric:
        body += u32(6, route.metric)
    if route.ifindex:
        body += u32(4, route.ifindex)
    if route.gateway is not None:
        body += attribute(5, route.gateway.packed)
    return body


def faults(netlink: Netlink, have: Detours, want: Detours) -> Iterator[tuple[str, str]]:
    """What differs: (item, in words what is wrong)."""
    names = {link.index: link.name for link in rtnetlink.links(netlink)}
    for rule in sorted(want.rules - have.rules, key=str):
        yield detour_item(rule.private), f"has no rule to the box {rule.box}"
    for rule in sorted(have.rules - want.rules, key=str):
        yield detour_item(rule.private), f"has a rule to the box {rule.box} that nobody asked for"
    wishes = {(r.box, r.prefix, r.metric): r for r in want.routes}
    there = {(r.box, r.prefix, r.metric): r for r in have.routes}
    for key, route in wishes.items():
        if key not in there:
            yield f"route {route}", "is gone"
        elif there[key] != route:
            way = names.get(there[key].ifindex, "nothing")
            yield f"route {route}", f"is {there[key]} by {way}"
    for key, route in there.items():
        if key not in wishes:
            yield f"route {route}", "stands, and nobody asked for it"
