"""A plan's prefix-lists and route-maps: which route may go from where to where.

Not here: who applies them (igp.py, bgp.py).  Rests on plan.

    VM        VMs' host routes           COVERING  what this data centre announces
    SHORT     whatever is no host route  HOME      NVEs' home prefixes
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vmmobility.drivers.frr.plan import (
    COVERING_TAG,
    HOST_TAG,
    IMPORTED_TAG,
    BgpPlan,
    RouterPlan,
)
from vmmobility.wire.values import FAMILIES, Prefix

WORD = {4: "ip", 6: "ipv6"}
_BITS = {4: 32, 6: 128}
_EVERYTHING = {4: "0.0.0.0/0", 6: "::/0"}


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of a route-map.  matches, sets: lines without their first word."""

    matches: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    permit: bool = True


def prefix_lists(plan: RouterPlan) -> Iterator[str]:
    """The lists that the route-maps below name."""
    home = [route.prefix for route in plan.static]
    for family in FAMILIES:
        bits, word = _BITS[family], WORD[family]
        longer = f" ge {bits}"
        yield from _list(f"VM{family}", plan.vm_prefixes, family, longer)
        yield from _list(f"HOME{family}", home, family)
        if plan.bgp is not None:
            yield from _list(f"COVERING{family}", plan.covering, family)
            everything = f"{_EVERYTHING[family]} le {bits - 1}"
            yield f"{word} prefix-list SHORT{family} seq 5 permit {everything}"


def _list(name: str, prefixes: Iterable[Prefix], family: int, suffix: str = "") -> Iterator[str]:
    number = 0
    for prefix in sorted({p for p in prefixes if p.version == family}):
        number += 5
        end = suffix if prefix.prefixlen < prefix.max_prefixlen else ""
        yield f"{WORD[family]} prefix-list {name} seq {number} permit {prefix}{end}"


def igp_maps(plan: RouterPlan) -> Iterator[str]:
    """What goes into the IGP: VMs' host routes of the kernel, home prefixes, what BGP learns."""
    if plan.igp == "none":
        return
    for family in FAMILIES:
        if plan.bgp is None or plan.igp == "ospf":
            yield "! A VM's host route that the router agent has put into the kernel."
            yield from _map(f"HOST{family}", _host_entries(plan, family))
        if plan.static:
            home = _Entry((_in(f"HOME{family}", family),), _igp_sets(plan, 1, None))
            yield from _map(f"HOME{family}", [home])
        if plan.bgp is not None:
            yield "! Host routes of other data centres lose against those of this one (type 2, and"
            yield "! not the tag by which BGP knows its own: what came by BGP never goes back)."
            hosts = _Entry((_in(f"VM{family}", family),), _igp_sets(plan, 2, IMPORTED_TAG))
            short = _Entry((_in(f"SHORT{family}", family),), _igp_sets(plan, 2, COVERING_TAG))
            yield from _map(f"FROMBGP{family}", [hosts, short])


def _host_entries(plan: RouterPlan, family: int) -> Iterator[_Entry]:
    """A border router's host route by an uplink leads out; one that leads in is for BGP alone:
    its own data centre must not go by the border to reach a VM inside."""
    vms = _in(f"VM{family}", family)
    if plan.bgp is None:
        yield _Entry((vms,), _igp_sets(plan, 1, HOST_TAG))
        return
    for uplink in plan.uplinks():
        sets = _igp_sets(plan, 2, IMPORTED_TAG)
        yield _Entry((vms, f"interface {uplink.name}"), sets)


def _igp_sets(plan: RouterPlan, kind: int, tag: int | None) -> tuple[str, ...]:
    if plan.igp != "ospf":
        return ()  # IS-IS knows no types, and its tags do not match
    return (f"metric-type type-{kind}", *(() if tag is None else (f"tag {tag}",)))


def bgp_maps(plan: RouterPlan, bgp: BgpPlan) -> Iterator[str]:
    """What goes into BGP, and what is told to and taken from whom."""
    if bgp.transit:
        for family in FAMILIES:
            yield from _map(f"OWN{family}", [_Entry((_in(f"COVERING{family}", family),),
                                                    ("origin igp",))])  # fmt: skip
        yield from _map("OPEN", [_Entry()])
        return
    yield f"bgp community-list standard VMMOB seq 5 permit {bgp.community}"
    yield "! Only this network's own: a host route that a neighbour withdraws must not come back"
    yield "! from another one that has not heard of it yet."
    yield "bgp as-path access-list OURS seq 5 permit ^$"
    for family in FAMILIES:
        yield from _into_bgp(plan, bgp, family)
        yield from _neighbour_maps(family)
    if any(neighbour.listens_only for neighbour in bgp.neighbours):
        yield "! A collector listens; nothing that it says is taken."
        yield from _map("NOTHING", [_Entry(permit=False)])


def _into_bgp(plan: RouterPlan, bgp: BgpPlan, family: int) -> Iterator[str]:
    vms, covering = _in(f"VM{family}", family), _in(f"COVERING{family}", family)
    marks = (f"community {bgp.community}", "origin igp")
    own = _Entry((covering,), ("origin igp",))
    yield from _map(f"OWN{family}", [own])
    if plan.igp != "none":
        tag = (f"tag {HOST_TAG}",) if plan.igp == "ospf" else ()
        yield from _map(f"TOBGP{family}", [_Entry((vms, *tag), marks), own])
    out = [_Entry((vms, f"interface {up.name}"), permit=False) for up in plan.uplinks()]
    yield "! A host route of the kernel that leads out of this network is not this network's."
    yield from _map(f"HOSTBGP{family}", [*out, _Entry((vms,), marks)])


def _neighbour_maps(family: int) -> Iterator[str]:
    vms, short = _in(f"VM{family}", family), _in(f"SHORT{family}", family)
    covering = _in(f"COVERING{family}", family)
    hosts = _Entry((vms, "community VMMOB"))
    not_ours = _Entry((covering,), permit=False)
    ours = _Entry((vms, "community VMMOB", "as-path OURS"))
    yield "! Host routes: from and to border routers of the same operator only."
    yield from _map(f"INSIDE-IN{family}", [hosts, not_ours, _Entry((short,))])
    yield from _map(f"INSIDE-OUT{family}", [ours, _Entry((short,))])
    yield from _map(f"OUTSIDE-IN{family}", [not_ours, _Entry((short,))])
    yield from _map(f"OUTSIDE-OUT{family}", [_Entry((covering,))])


def _in(name: str, family: int) -> str:
    return f"{WORD[family]} address prefix-list {name}"


def _map(name: str, entries: Iterable[_Entry]) -> Iterator[str]:
    for number, entry in enumerate(entries, 1):
        yield f"route-map {name} {'permit' if entry.permit else 'deny'} {10 * number}"
        yield from (f" match {line}" for line in entry.matches)
        yield from (f" set {line}" for line in entry.sets)
        yield "exit"
