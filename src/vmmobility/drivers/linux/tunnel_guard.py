"""Who may tunnel what to this node, where the kernel opens the tunnels: nftables texts and reading.

A packet that peers tunnel here passes the chain `arriving` while it is still closed: where its
outer source and its inner destination are an accepted pair, it is marked.  Opened it comes in by a
device of ours with that mark, or without: what lacks it `opened` drops, counted by VM prefix, and
whatever is for this host itself.  Where the ruleset is flushed a policy rule still keeps it from
being forwarded, but the kernel looks up its own addresses before any rule of ours.  Other tunnels
of this host are not touched.  `leaving` gives outer packets the DF bit of the inner ones (RFC 2003
Section 3.1: a packet that may be fragmented may be so in its tunnel).

The inner destination is matched by its place, so outer headers with IPv4 options or with IPv6
extension headers (fragments too) are never accepted.

Not here: when it is changed (guard_state.py).  Rests on filter.py to run nft (1.0.6 is enough).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network, summarize_address_range
from typing import Any

from vmmobility.drivers.linux import filter
from vmmobility.drivers.linux.ownership import ACCEPTED_MARK, KERNEL_TUNNELS, NFT_GUARD_TABLE
from vmmobility.errors import DataPlaneError
from vmmobility.wire.values import FAMILIES, Address, Prefix

Pair = tuple[Address, Prefix]
"""A peer's locator, and a prefix to which it may tunnel packets here."""

_TABLE = f"inet {NFT_GUARD_TABLE}"
_WORD = {4: "ip", 6: "ip6"}
_INNER_DESTINATION = {4: "@nh,288,32", 6: "@nh,512,128"}  # outer header, then 16 or 24 octets
_CLOSED = {4: "ip protocol 4 ip hdrlength 5", 6: "ip6 nexthdr 41"}
_HOPS = {4: "ip ttl", 6: "ip6 hoplimit"}
_OF_THIS_HOST = "{ local, broadcast, multicast }"
"""Not `anycast`: by that nft also means the first address of any IPv6 prefix that is on a link."""
_INNER_DF_CLEAR = "@nh,209,1 0"
_HOOKS = {
    "arriving": "type filter hook input priority 0; policy accept;",
    "opened": "type filter hook prerouting priority -300; policy accept;",
    "leaving": "type filter hook output priority 0; policy accept;",
}


@dataclass(slots=True)
class Held:
    """What nft lists of the guard.

    there:    whether the table is
    rules:    its chains and their rules as nft shows them, in one text
    accepted: the pairs; refused: packets by prefix that were dropped
    """

    there: bool = False
    rules: str = ""
    accepted: set[Pair] = field(default_factory=set)
    refused: dict[Prefix, int] = field(default_factory=dict)


def base_script() -> str:
    """The table with its chains made anew; pairs and counters that exist are kept."""
    lines = [f"add table {_TABLE}"]
    for version in FAMILIES:
        key = f"{_WORD[version]} saddr . {_INNER_DESTINATION[version]}"
        lines.append(f"add set {_TABLE} accepted{version} {{ typeof {key}; flags interval; }}")
        kind = f"type ipv{version}_addr; flags interval; counter;"
        lines.append(f"add set {_TABLE} refused{version} {{ {kind} }}")
    for name, hook in _HOOKS.items():
        chain = f"{_TABLE} {name}"
        lines += [f"add chain {chain}", f"flush chain {chain}", f"delete chain {chain}"]
        lines.append(f"add chain {chain} {{ {hook} }}")
        lines += [f"add rule {chain} {rule}" for rule in _rules(name)]
    return "\n".join(lines) + "\n"


def _rules(chain: str) -> Iterator[str]:
    if chain == "leaving":
        yield f"{_CLOSED[4]} {_INNER_DF_CLEAR} ip frag-off set 0"
        return
    for version in FAMILIES:
        word, name = _WORD[version], KERNEL_TUNNELS[version]
        if chain == "arriving":
            key = f"{word} saddr . {_INNER_DESTINATION[version]}"
            yield f"{_CLOSED[version]} {key} @accepted{version} meta mark set {ACCEPTED_MARK:#x}"
            continue
        # A look-up that matches counts in the element.
        counted = f"{word} daddr @refused{version}"
        # codespell:ignore-begin iifname
        unaccepted = f'iifname "{name}" meta mark != {ACCEPTED_MARK:#x}'
        yield f"{unaccepted} {counted} drop"
        yield f"{unaccepted} counter drop"
        # No VM has an address of this host's, nor a group's: never accepted, but the kernel would
        # deliver it here.
        yield f'iifname "{name}" fib daddr type {_OF_THIS_HOST} counter drop'
        # The kernel drops what has no hop left, and says so to its sender: count it here.
        yield f'iifname "{name}" {_HOPS[version]} < 2 {counted}'
        # codespell:ignore-end


def removal_script() -> str:
    """Remove the table, whether it exists or not."""
    return f"add table {_TABLE}\ndelete table {_TABLE}\n"


async def remove_guard() -> None:
    """Remove the table if it is there.  Raises DataPlaneError."""
    if await filter.list_json("table", "inet", NFT_GUARD_TABLE) is not None:
        await filter.run_nft(removal_script())


def _element(pair: Pair) -> str:
    peer, prefix = pair
    first, last = int(prefix.network_address), int(prefix.broadcast_address)
    inner = f"{first:#x}" if first == last else f"{first:#x}-{last:#x}"
    return f"accepted{prefix.version} {{ {peer} . {inner} }}"


def accept_script(pairs: Iterable[Pair]) -> str:
    """Accept what these peers tunnel to these prefixes."""
    return "".join(f"add element {_TABLE} {_element(pair)}\n" for pair in _ordered(pairs))


def unaccept_script(pairs: Iterable[Pair]) -> str:
    """Accept it no longer, whether it was or not."""
    return "".join(
        f"{verb} element {_TABLE} {_element(pair)}\n"
        for pair in _ordered(pairs)
        for verb in ("add", "delete")
    )


def count_script(prefixes: Sequence[Prefix]) -> str:
    """Count what is refused to these prefixes."""
    return "".join(f"add element {_TABLE} refused{p.version} {{ {p} }}\n" for p in prefixes)


def uncount_script(prefixes: Sequence[Prefix]) -> str:
    """Count it no longer."""
    return "".join(
        f"{verb} element {_TABLE} refused{p.version} {{ {p} }}\n"
        for p in prefixes
        for verb in ("add", "delete")
    )


def _ordered(pairs: Iterable[Pair]) -> list[Pair]:
    return sorted(pairs, key=lambda pair: (pair[1].version, int(pair[0]), str(pair[1])))


async def read_held() -> Held:
    """What nft lists now.  Raises DataPlaneError where it cannot be asked, or read."""
    listed = await filter.list_json("table", "inet", NFT_GUARD_TABLE)
    if listed is None:
        return Held()
    held, rules = Held(there=True), []
    try:
        for item in listed:
            if "set" in item:
                _read_set(item["set"], held)
            elif "chain" in item:
                chain = item["chain"]
                rules.append({key: chain[key] for key in sorted(chain) if key != "handle"})
            elif "rule" in item:
                shown = [_stateless(one) for one in item["rule"]["expr"]]
                rules.append({"chain": item["rule"]["chain"], "expr": shown})
    except (KeyError, TypeError, ValueError) as error:
        raise DataPlaneError(f"nft lists the guard in an unknown way: {error!r}") from error
    held.rules = json.dumps(rules, sort_keys=True)
    return held


def _stateless(statement: dict[str, Any]) -> dict[str, Any]:
    """A rule's statement without what it has counted."""
    return {"counter": None} if "counter" in statement else statement


def _read_set(content: dict[str, Any], held: Held) -> None:
    name = str(content["name"])
    version = int(name[-1])
    for element in content.get("elem", ()):
        if name.startswith("accepted"):
            peer, inner = element["concat"]
            for prefix in _prefixes(inner, version):
                held.accepted.add((ip_address(peer), prefix))
        elif name.startswith("refused"):
            value = element["elem"]["val"]
            if isinstance(value, dict) and "prefix" in value:
                value = f"{value['prefix']['addr']}/{value['prefix']['len']}"
            if isinstance(value, str):
                packets = int(element["elem"].get("counter", {}).get("packets", 0))
                held.refused[ip_network(value)] = packets


def _prefixes(inner: Any, version: int) -> list[Prefix]:
    """The prefixes of a raw value: a number, or a range of them."""
    first, last = inner["range"] if isinstance(inner, dict) else (inner, inner)
    width = {4: 4, 6: 16}[version]
    ends = [ip_address(_number(end).to_bytes(width, "big")) for end in (first, last)]
    return list(summarize_address_range(ends[0], ends[1]))


def _number(value: Any) -> int:
    return value if isinstance(value, int) else int(str(value), 0)
