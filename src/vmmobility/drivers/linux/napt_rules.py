"""The NAPT box's nftables table as text: its fixed rules, and what its sets and maps hold.

The rules never change; a change of state is a change of elements (and of the pool's rules), one
transaction.  NAT chains see a flow's first packet only: what is alive keeps its mapping.  IPv6 is
in no chain of ours (the table's family is ip).

Not here: comparing and running (napt_table.py).  Rests on nft's syntax (1.0.6 is enough).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from vmmobility.drivers.linux.ownership import NAPT_TABLE
from vmmobility.drivers.napt_state import MOST_POOL
from vmmobility.engine.napt_plane import NaptState

COUNTERS = ("no_pool", "unknown", "unmapped", "untranslated")

_SETS = {
    "inside": "set inside { type ipv4_addr; flags interval; auto-merge; }",
    "exempt": "set exempt { type ipv4_addr; flags interval; auto-merge; }",
    "detoured": "set detoured { type ipv4_addr; }",
    "mapped": "set mapped { type ipv4_addr; }",
    "departing": "set departing { type ipv4_addr; }",
    "publics": "set publics { type ipv4_addr; flags interval; auto-merge; }",
    "static_in": "map static_in { type ipv4_addr : ipv4_addr; }",
    "static_out": "map static_out { type ipv4_addr : ipv4_addr; }",
    "ports_in": "map ports_in "
    "{ type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service; }",
    "ports_out": "map ports_out "
    "{ type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service; }",
}

_ERRORS = (
    "icmp type { destination-unreachable, source-quench, redirect, time-exceeded, "
    "parameter-problem }"
)
_PORTED = "meta l4proto { tcp, udp }"

_CHAINS: dict[str, tuple[str, ...]] = {
    # What another box translates, or has translated, is no flow of this one: its entry would clash
    # with the one by which the flow was, or will be, handed over, and cost it its port.
    "early": (
        "type filter hook prerouting priority raw; policy accept;",
        "ip saddr @detoured notrack",
        "ip saddr @publics notrack",
        "ip saddr @departing notrack",
        "ip saddr @exempt return",
        "ip saddr @inside return",
        "ip daddr @inside notrack",
        "ip daddr @mapped notrack",
        "ip daddr @detoured notrack",
    ),
    # While a mapping is handed over what comes in passes one box and what goes out another: a
    # SYN-ACK, or the ACK after it, is of no flow that this one knows (`invalid`), and NAT chains
    # never see it.  An address for an address needs no flow.  Nor has one what comes from a public
    # address of ours: from a VM that is at another box already, to one here.
    # Errors quote a packet, which would stay as it is: they are left to be dropped.
    "stray": (
        "type filter hook prerouting priority mangle; policy accept;",
        "ip saddr @detoured return",
        f"{_ERRORS} return",
        "ct state untracked ip saddr @publics ip daddr set ip daddr map @static_in",
        "ct state untracked ip saddr @departing ip daddr set ip daddr map @static_in",
        "ct state invalid ip daddr @publics ip saddr set ip saddr map @static_out",
        "ct state invalid ip daddr set ip daddr map @static_in",
    ),
    # Whose mapping is kept at another box is translated there, whomever it speaks to.
    "prerouting": (
        "type nat hook prerouting priority dstnat; policy accept;",
        "ip saddr @detoured return",
        "dnat ip to ip daddr map @static_in",
        f"{_PORTED} dnat ip to meta l4proto . ip daddr . th dport map @ports_in",
    ),
    # RFC 4787, REQ-9: who speaks to a public address from inside comes with its own public one.
    "postrouting": (
        "type nat hook postrouting priority srcnat; policy accept;",
        "ip saddr @detoured return",
        "ct original ip daddr @publics goto outgoing",
        "ip daddr @exempt return",
        "ip daddr @inside return",
        "goto outgoing",
    ),
    "outgoing": (
        "",
        "snat ip to ip saddr map @static_out",
        f"{_PORTED} snat ip to meta l4proto . ip saddr . th sport map @ports_out",
        "ip saddr @inside goto pool",
    ),
    # What came to a public address and was led nowhere would go round by the default route.
    "forward": (
        "type filter hook forward priority filter; policy accept;",
        "ip saddr @detoured return",
        'ip daddr @publics counter name "unmapped" drop',
    ),
    # After the translation: what still has a private source must not go outside (RFC 3022, 5.1).
    "leaving": (
        "type filter hook postrouting priority 150; policy accept;",
        "ip saddr @detoured return",
        "ip daddr @exempt return",
        "ip daddr @inside return",
        f"{_ERRORS} goto private",
        "ct state invalid ip saddr set ip saddr map @static_out",
        "goto private",
    ),
    "private": (
        "",
        'ip saddr @inside counter name "untranslated" drop',
    ),
}

CHAINS = (*_CHAINS, "pool")


@dataclass(frozen=True, slots=True)
class Content:
    """What may change: elements by set or map, in nft's words, and the rules of the pool."""

    elements: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: dict.fromkeys(_SETS, ())
    )
    pool: tuple[str, ...] = ()


def content(state: NaptState) -> Content:
    """What the table holds for a state that does not contradict itself."""
    leaving = (*state.static, *state.outward)
    names = {6: "tcp", 17: "udp"}
    ports_in: list[str] = []
    ports_out: dict[str, str] = {}
    for one in state.ports:
        name = names[one.protocol]
        inner, outside = f"{one.private} . {one.private_port}", f"{one.public} . {one.public_port}"
        ports_in.append(f"{name} . {outside} : {inner}")
        # The first one, where a private port has many public ones.
        ports_out.setdefault(f"{name} . {inner}", outside)
    # What is translated outward alone comes in from another box, translated already.
    mapped = {*(s.private for s in leaving), *(p.private for p in state.ports)}
    publics = {*(s.public for s in state.static), *(p.public for p in state.ports), *state.pool}
    outer = [*state.publics, *(IPv4Network(public) for public in publics)]
    return Content(
        {
            "inside": tuple(str(p) for p in collapse_addresses(state.inside)),
            "exempt": tuple(str(p) for p in collapse_addresses(state.exempt)),
            "detoured": tuple(str(one.private) for one in state.detours),
            "mapped": tuple(str(private) for private in sorted(mapped)),
            "departing": tuple(str(public) for public in state.departing),
            "publics": tuple(str(p) for p in collapse_addresses(outer)),
            "static_in": tuple(f"{one.public} : {one.private}" for one in state.static),
            "static_out": tuple(f"{one.private} : {one.public}" for one in leaving),
            "ports_in": tuple(ports_in),
            "ports_out": tuple(f"{key} : {value}" for key, value in ports_out.items()),
        },
        tuple(_pool_rules(state.pool, state.pool_ports)),
    )


def _pool_rules(pool: Sequence[IPv4Address], ports: tuple[int, int]) -> list[str]:
    """RFC 4787, REQ-2: all flows of an inside host have one public address ("paired").

    Hosts are spread over slots, slots over addresses; an address that comes or goes turns only
    the slots that it takes or leaves.  A TCP segment in the middle of a connection gets no new
    port: it would be answered with a reset that ends the connection inside.
    """
    if not pool:
        return ['counter name "no_pool" drop']
    slots: dict[IPv4Address, list[int]] = {public: [] for public in pool}
    for slot in range(MOST_POOL):
        slots[max(pool, key=lambda public: _weight(slot, public))].append(slot)
    rules = ['tcp flags & (fin | syn | rst | ack) != syn counter name "unknown" drop']
    for public, own in slots.items():
        if not own:
            continue
        which = f"jhash ip saddr mod {MOST_POOL} seed 0x1 {{ {', '.join(map(str, own))} }} "
        which = which if len(pool) > 1 else ""
        rules.append(f"{which}{_PORTED} snat ip to {public}:{ports[0]}-{ports[1]}")
        rules.append(f"{which}snat ip to {public}")
    return rules


def _weight(slot: int, public: IPv4Address) -> bytes:
    return hashlib.sha256(slot.to_bytes(2, "big") + public.packed).digest()


def whole_script(wanted: Content, counts: Mapping[str, tuple[int, int]] | None = None) -> str:
    """The table anew, whatever stood there, in one transaction.

    counts: what counters begin with, (packets, octets) by name
    """
    counts = counts or {}
    lines = [f"add table ip {NAPT_TABLE}", f"delete table ip {NAPT_TABLE}"]
    lines.append(f"table ip {NAPT_TABLE} {{")
    for name in COUNTERS:
        packets, octets = counts.get(name, (0, 0))
        lines.append(f"counter {name} {{ packets {packets} bytes {octets} }}")
    lines += _SETS.values()
    lines += ["chain pool {", *wanted.pool, "}"]
    # Those without a hook before those that go to them, and after the pool.
    for name in sorted(_CHAINS, key=lambda name: name not in ("outgoing", "private")):
        lines += [f"chain {name} {{", *_CHAINS[name], "}"]
    lines.append("}")
    lines += [_add(name, items) for name, items in wanted.elements.items() if items]
    return "\n".join(lines) + "\n"


def change_script(held: Content, wanted: Content) -> str:
    """From one content to another, in one transaction; "" where they are equal."""
    lines = []
    for name, items in wanted.elements.items():
        if sorted(items) != sorted(held.elements.get(name, ())):
            lines.append(
                f"flush set ip {NAPT_TABLE} {name}"
                if name in _PLAIN
                else f"flush map ip {NAPT_TABLE} {name}"
            )
            if items:
                lines.append(_add(name, items))
    if wanted.pool != held.pool:
        lines.append(f"flush chain ip {NAPT_TABLE} pool")
        lines += [f"add rule ip {NAPT_TABLE} pool {rule}" for rule in wanted.pool]
    return "".join(f"{line}\n" for line in lines)


_PLAIN = {name for name, words in _SETS.items() if words.startswith("set ")}


def _add(name: str, items: Sequence[str]) -> str:
    return f"add element ip {NAPT_TABLE} {name} {{ {', '.join(items)} }}"


def removal_script() -> str:
    """Remove the table, whether it exists or not."""
    return f"add table ip {NAPT_TABLE}\ndelete table ip {NAPT_TABLE}\n"
