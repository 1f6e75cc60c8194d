"""A plan's IGP as FRR's configuration: OSPFv2 with OSPFv3, or IS-IS for both families.

Each timer that differs from FRR's own stands under a comment that says why.  Not here: the
route-maps that it names (policies.py).  Rests on plan.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmmobility.drivers.frr.plan import InterfacePlan, RouterPlan
from vmmobility.wire.values import FAMILIES

_ISIS = "vmmob"
_OSPF = {4: "ip ospf", 6: "ipv6 ospf6"}
_ROUTER = {4: "ospf", 6: "ospf6"}

_OSPF_LINK = (
    ("hello-interval 1", "A neighbour that is gone without a word is noticed after 4 s, not 40."),
    ("dead-interval 4", ""),
    ("retransmit-interval 2", "A lost update is sent again after 2 s, not 5."),
)
_WIRE = "network point-to-point", "No designated router to wait for: adjacent in 1 s, not 40."
_SPF = "timers throttle spf 0 10 100", "Compute at once; 50 ms and up to 5 s are FRR's own."
_ARRIVAL = "timers lsa min-arrival 0", "Take an LSA that follows its elder within the second."
_THROTTLE = (
    "timers throttle lsa all 0",
    "Send a changed LSA at once: else a route that goes, or a VM that moves on within 5 s,\n"
    "lingers for seconds as a second way to where the VM is no more.",
)
_ISIS_WHY = (
    "Send a changed LSP within 1 s of the last one (the least there is), not 30.\n"
    "Compute at once, and soon again while changes come."
)


def igp(plan: RouterPlan) -> Iterator[str]:
    """Interfaces and routing process."""
    if plan.igp == "ospf":
        yield from _ospf(plan)
    elif plan.igp == "isis":
        yield from _isis(plan)


def _comment(text: str, indent: str = " ") -> Iterator[str]:
    yield from (f"{indent}! {line}" for line in text.splitlines())


def _ospf(plan: RouterPlan) -> Iterator[str]:
    for interface in plan.interfaces:
        yield f"interface {interface.name}"
        for family in FAMILIES:
            yield from _ospf_interface(interface, _OSPF[family], explained=family == 4)
        yield "exit"
    for family in FAMILIES:
        name = _ROUTER[family]
        yield f"router {name}"
        yield f" {name} router-id {plan.router_id}"
        timers = [_SPF, *([_THROTTLE] if family == 4 else []), _ARRIVAL]
        for line, why in timers:
            yield from _comment(why)
            yield f" {line}"
        for source, route_map in _sources(plan):
            yield f" redistribute {source} route-map {route_map}{family}"
        yield "exit"


def _ospf_interface(interface: InterfacePlan, word: str, explained: bool) -> Iterator[str]:
    """The comments stand once, with IPv4."""
    yield f" {word} area 0"
    if interface.igp == "passive":
        yield f" {word} passive"
        return
    for line, why in (*_OSPF_LINK, *(() if interface.shared else (_WIRE,))):
        if explained:
            yield from _comment(why)
        yield f" {word} {line}"


def _sources(plan: RouterPlan) -> Iterator[tuple[str, str]]:
    """(whose routes, by which route-map) go into the IGP.  IS-IS cannot tell a border router's
    routes that lead out from those that lead in: it announces neither."""
    if plan.bgp is None or (plan.igp == "ospf" and plan.uplinks()):
        yield "kernel", "HOST"
    if plan.static:
        yield "static", "HOME"
    if plan.bgp is not None:
        yield "bgp", "FROMBGP"


def _isis(plan: RouterPlan) -> Iterator[str]:
    for interface in plan.interfaces:
        yield f"interface {interface.name}"
        yield f" ip router isis {_ISIS}"
        yield f" ipv6 router isis {_ISIS}"
        yield " isis circuit-type level-2-only"
        if interface.igp == "passive":
            yield " isis passive"
        else:
            yield from _comment("A neighbour that is gone is noticed after 4 s, not 30.")
            yield " isis hello-interval 1"
            yield " isis hello-multiplier 4"
            yield from _comment("A lost update is asked for again after 1 s.")
            yield " isis csnp-interval 1"
            yield " isis psnp-interval 1"
            if not interface.shared:
                yield from _comment("No designated router to elect.")
                yield " isis network point-to-point"
        yield "exit"
    yield f"router isis {_ISIS}"
    yield f" net {_net(plan)}"
    yield " is-type level-2-only"
    yield " metric-style wide"
    yield from _comment(_ISIS_WHY)
    yield " lsp-gen-interval 1"
    yield (
        " spf-delay-ietf init-delay 0 short-delay 20 long-delay 100 holddown 1000 time-to-learn 100"
    )
    for family in FAMILIES:
        for source, route_map in _sources(plan):
            kind = f"ipv{family} {source} level-2"
            yield f" redistribute {kind} route-map {route_map}{family}"
    yield "exit"


def _net(plan: RouterPlan) -> str:
    """The NET: the router-id in decimal as its system part."""
    digits = "".join(f"{octet:03d}" for octet in plan.router_id.packed)
    return f"49.0001.{digits[:4]}.{digits[4:8]}.{digits[8:]}.00"
