"""A NAPT box's desired state without its contradictions: what is left, and what fails.

Shared by every NaptPlane, so that all refuse the same.  Pure.  Not here: what a kernel refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import TypeVar

from vmmobility.drivers.napt_plane import NaptFailure, NaptUsage, PoolUse
from vmmobility.engine.napt_plane import Detour, Flow, NaptState, PortMapping, StaticMapping

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}
MOST_POOL = 256
"""More public addresses than this a pool cannot have: inside hosts are spread over so many."""

T = TypeVar("T")


def static_item(mapping: StaticMapping) -> str:
    """How a failure or a drift calls it."""
    return f"static {mapping.private}"


def outward_item(mapping: StaticMapping) -> str:
    """How a failure or a drift calls it."""
    return f"outward {mapping.private}"


def port_item(mapping: PortMapping) -> str:
    """How a failure or a drift calls it."""
    name = PROTOCOLS.get(mapping.protocol, str(mapping.protocol))
    return f"port {name} {mapping.public}:{mapping.public_port}"


def detour_item(private: IPv4Address) -> str:
    """How a failure or a drift calls it."""
    return f"detour {private}"


def flow_item(flow: Flow) -> str:
    """How a failure calls it: protocol, private end, remote end."""
    name = PROTOCOLS.get(flow.protocol, str(flow.protocol))
    (private, port), (remote, remote_port) = flow.private, flow.remote
    return f"flow {name} {private}:{port} {remote}:{remote_port}"


def settle(state: NaptState) -> tuple[NaptState, list[NaptFailure]]:
    """The state without what contradicts something before it, and what was left out."""
    failures: list[NaptFailure] = []
    privates: dict[IPv4Address, IPv4Address] = {}
    publics: dict[IPv4Address, IPv4Address] = {}

    def static_fault(one: StaticMapping) -> str:
        if one.private in privates:
            return f"{one.private} is {privates[one.private]} already"
        if one.public in publics:
            return f"{one.public} is {publics[one.public]}'s already"
        privates[one.private], publics[one.public] = one.public, one.private
        return ""

    taken: dict[tuple[int, IPv4Address, int], PortMapping] = {}

    def port_fault(one: PortMapping) -> str:
        key = (one.protocol, one.public, one.public_port)
        if one.protocol not in (6, 17):
            return "only TCP (6) and UDP (17) have ports"
        if not (0 < one.public_port < 65536 and 0 < one.private_port < 65536):
            return "a port is a number from 1 to 65535"
        if one.public in publics:
            return f"all ports of {one.public} are {publics[one.public]}'s"
        if key in taken:
            return f"it leads to {taken[key].private}:{taken[key].private_port} already"
        taken[key] = one
        return ""

    def detour_fault(one: Detour) -> str:
        if one.private in privates:
            return f"{one.private} is {privates[one.private]} at this box"
        if one.private in detoured:
            return f"it leads to {detoured[one.private]} already"
        detoured[one.private] = one.box
        return ""

    detoured: dict[IPv4Address, IPv4Address] = {}
    static = _kept(state.static, static_fault, static_item, failures)
    outward = _kept(state.outward, static_fault, outward_item, failures)
    ports = _kept(state.ports, port_fault, port_item, failures)
    detours = _kept(state.detours, detour_fault, lambda d: detour_item(d.private), failures)
    pool = _pool(state, publics, failures)
    settled = replace(
        state, static=static, outward=outward, ports=ports, detours=detours, pool=pool
    )
    return settled, failures


def _kept(
    items: Iterable[T],
    fault: Callable[[T], str],
    name: Callable[[T], str],
    failures: list[NaptFailure],
) -> tuple[T, ...]:
    kept = []
    for item in dict.fromkeys(items):
        reason = fault(item)
        if reason:
            failures.append(NaptFailure(name(item), reason))
        else:
            kept.append(item)
    return tuple(kept)


def _pool(
    state: NaptState, publics: dict[IPv4Address, IPv4Address], failures: list[NaptFailure]
) -> tuple[IPv4Address, ...]:
    first, last = state.pool_ports
    if not 0 < first <= last < 65536:
        for public in dict.fromkeys(state.pool):
            reason = f"{first}-{last} is no range of ports (1 to 65535)"
            failures.append(NaptFailure(f"pool {public}", reason))
        return ()
    seen: list[IPv4Address] = []

    def fault(public: IPv4Address) -> str:
        if public in publics:
            return f"all ports of {public} are {publics[public]}'s"
        if len(seen) == MOST_POOL:
            return f"a pool has at most {MOST_POOL} addresses"
        seen.append(public)
        return ""

    return _kept(state.pool, fault, lambda public: f"pool {public}", failures)


def count_flows(state: NaptState, flows: Iterable[Flow]) -> NaptUsage:
    """How the state's translated flows divide: static ones, those of mapped ports, the pool's.

    A flow of a mapping that the state has no more is none of them.
    """
    static_ones = {one.public for one in (*state.static, *state.outward)}
    ports = {(one.protocol, one.public, one.public_port) for one in state.ports}
    pool: dict[IPv4Address, list[tuple[int, int]]] = {public: [] for public in state.pool}
    static_flows = port_flows = 0
    for flow in flows:
        public, port = flow.public
        if public in static_ones:
            static_flows += 1
        elif (flow.protocol, public, port) in ports:
            port_flows += 1
        elif flow.outgoing and public in pool:
            pool[public].append((flow.protocol, port))
    use = tuple(PoolUse(public, len(own), len(set(own))) for public, own in pool.items())
    return NaptUsage(
        static_flows=static_flows,
        port_flows=port_flows,
        pool_flows=sum(row.flows for row in use),
        pool=use,
    )
