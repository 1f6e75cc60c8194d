"""nftables: the taps' source filters and the per-address counters, as text for `nft -f`.

Two tables of ours: `inet vmmobility` counts what leaves towards taps and onward, and what senders
are told is too big, and keeps guests' packets about tunnels from this host; `netdev vmmobility` has
one ingress chain a tap.  nft runs only when ports or
entries come and go, never when a route turns: counters exist for both directions all the time.
Every removal is `add; delete` in one transaction, so that a thing already gone is no error.

Not here: when to call (driver.py).  Rests on the `nft` program (1.0.6 is enough).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Network,
    IPv6Network,
    collapse_addresses,
    ip_network,
)
from typing import Any

from vmmobility.drivers.linux.outside import OUTSIDE
from vmmobility.drivers.linux.ownership import NFT_TABLE, TAP_PREFIX
from vmmobility.errors import DataPlaneError
from vmmobility.wire.values import Prefix

TO_TAP, ONWARD, TOO_BIG = "to_tap", "onward", "too_big"
KINDS = (TO_TAP, ONWARD, OUTSIDE, TOO_BIG)
"""What may be counted of each prefix."""
COUNTING, SIZES, TENANTS = "counting", "sizes", "tenants"
BASE_CHAINS = {COUNTING: 4, SIZES: 2, TENANTS: 3}
"""The chains of `inet vmmobility` that count, or keep guests' packets from this host, and their
numbers of rules."""
_HOOKS = {COUNTING: "postrouting", SIZES: "output", TENANTS: "input"}
_SPOOFED = "spoofed"


@dataclass(slots=True)
class Counts:
    """The counters of our tables: of counted elements, and of spoofed frames by tap."""

    counted: dict[tuple[str, Prefix], int] = field(default_factory=dict)
    spoofed: dict[str, int] = field(default_factory=dict)


async def run_nft(script: str) -> None:
    """Run one transaction.  Raises DataPlaneError with nft's first words."""
    await _nft("-f", "-", text=script)


async def _nft(*arguments: str, text: str = "") -> str:
    process = await asyncio.create_subprocess_exec(
        "nft",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate(text.encode())
    if process.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise DataPlaneError(f"nft: {lines[0]}", "check `nft list ruleset`")
    return output.decode()


async def list_text(family: str, chain: str = "") -> str:
    """Our table of this family, or one chain of it, as text without counters.

    "" where it is not there.  Raises DataPlaneError if nft does not work at all.
    """
    what = ["chain", family, NFT_TABLE, chain] if chain else ["table", family, NFT_TABLE]
    try:
        return await _nft("-s", "list", *what)
    except DataPlaneError as error:
        if "No such file" in str(error):
            return ""
        raise


async def list_table(name: str) -> str:
    """A table of family inet, as text without counters.  Raises DataPlaneError."""
    return await _nft("-s", "list", "table", "inet", name)


# Where the quoted packet's destination lies behind an ICMP header of eight octets: (offset, bits).
_QUOTED_DESTINATION = {4: (8 + 16, 32), 6: (8 + 24, 128)}


_TOO_BIG_ERRORS = {
    4: "icmp type destination-unreachable icmp code frag-needed",
    6: "icmpv6 type packet-too-big",
}


def _quoted(version: int) -> str:
    offset, bits = _QUOTED_DESTINATION[version]
    return f"@th,{offset * 8},{bits}"


def base_script() -> str:
    """Our tables with their own chains; sets and their counters that exist are kept."""
    lines = [f"add table inet {NFT_TABLE}", f"add table netdev {NFT_TABLE}"]
    for version in (4, 6):
        for kind in KINDS:
            # nft compares raw octets with numbers only.
            key = f"typeof {_quoted(version)}" if kind == TOO_BIG else f"type ipv{version}_addr"
            lines.append(
                f"add set inet {NFT_TABLE} {kind}{version} {{ {key}; flags interval; counter; }}"
            )
    for name, hook in _HOOKS.items():
        chain = f"inet {NFT_TABLE} {name}"
        # Made anew: whatever its type, hook and policy were turned into.  Counters are in the sets.
        lines += [f"add chain {chain}", f"flush chain {chain}", f"delete chain {chain}"]
        lines.append(
            f"add chain {chain} {{ type filter hook {hook} priority -150; policy accept; }}"
        )
        lines += [f"add rule {chain} {rule}" for rule in _base_rules(name)]
    return "\n".join(lines) + "\n"


def _base_rules(chain: str) -> Iterator[str]:
    """A look-up that matches counts in the element; the rule needs no verdict."""
    if chain == SIZES:
        # Only what this host itself says passes its output: each such error is a packet dropped.
        for version, error in _TOO_BIG_ERRORS.items():
            yield f"{error} {_quoted(version)} @{TOO_BIG}{version}"
        return
    if chain == TENANTS:
        # A guest is no router of the underlay, nor a tunnel's peer: what it says of paths would
        # hold for every VM's packets to that peer.
        # codespell:ignore-begin iifname
        for what in (*_TOO_BIG_ERRORS.values(), "meta l4proto { 4, 41 }"):
            yield f'iifname "{TAP_PREFIX}*" {what} counter drop'
        # codespell:ignore-end
        return
    for version, word in ((4, "ip"), (6, "ip6")):
        yield f'oifname "{TAP_PREFIX}*" {word} daddr @{TO_TAP}{version}'
        yield f'oifname != "{TAP_PREFIX}*" {word} daddr @{ONWARD}{version}'


def removal_script() -> str:
    """Remove both tables, whether they exist or not."""
    return "".join(
        f"add table {family} {NFT_TABLE}\ndelete table {family} {NFT_TABLE}\n"
        for family in ("inet", "netdev")
    )


def counted_prefixes(prefixes: Sequence[Prefix]) -> list[Prefix]:
    """The prefixes without those inside others: an interval set holds no overlap."""
    kept: list[Prefix] = []
    for prefix in sorted(set(prefixes), key=lambda p: (p.version, p.prefixlen)):
        if not any(other.version == prefix.version and _inside(prefix, other) for other in kept):
            kept.append(prefix)
    return kept


def _inside(inner: Prefix, outer: Prefix) -> bool:
    return int(outer.network_address) <= int(inner.network_address) and int(
        inner.broadcast_address
    ) <= int(outer.broadcast_address)


def _element(kind: str, prefix: Prefix) -> str:
    """One element of a counting set, in braces."""
    if kind != TOO_BIG:
        return f"{{ {prefix} }}"
    first, last = int(prefix.network_address), int(prefix.broadcast_address)
    return f"{{ {first:#x} }}" if first == last else f"{{ {first:#x}-{last:#x} }}"


def prefix_of(first: int, last: int, version: int) -> Prefix | None:
    """The prefix from one number to another, or None where they bound none."""
    size = last - first + 1
    if size & (size - 1) or first % size:
        return None
    if version == 4:
        return IPv4Network((first, 33 - size.bit_length()))
    return IPv6Network((first, 129 - size.bit_length()))


def count_script(prefixes: Sequence[Prefix], kinds: Sequence[str]) -> str:
    """Count packets to these prefixes: towards taps, onward, too big, and what the guard drops."""
    return "".join(
        f"add element inet {NFT_TABLE} {kind}{p.version} {_element(kind, p)}\n"
        for p in prefixes
        for kind in kinds
    )


def uncount_script(prefixes: Sequence[Prefix]) -> str:
    """Stop counting these prefixes."""
    return "".join(
        f"{verb} element inet {NFT_TABLE} {kind}{p.version} {_element(kind, p)}\n"
        for p in prefixes
        for kind in KINDS
        for verb in ("add", "delete")
    )


def _set_of(items: Sequence[str]) -> str:
    return "{ " + ", ".join(items) + " }"


def filter_rules(mac: str, prefixes: Sequence[Prefix]) -> list[str]:
    """The rules of one tap: only the guest's own MAC and addresses come out.

    What hosts say by habit and nobody here hears (multicast listener reports, RARP of QEMU's
    self-announcement, DHCP) is dropped uncounted: the counter shall tell of spoofing.
    """
    own4 = [str(p) for p in collapse_addresses(p for p in prefixes if p.version == 4)]
    own6 = [str(p) for p in collapse_addresses(p for p in prefixes if p.version == 6)]
    spoofed = f'counter drop comment "{_SPOOFED}"'
    rules = [f"ether saddr != {mac} {spoofed}", f"arp saddr ether != {mac} {spoofed}"]
    if own4:
        # Nobody but the guest owns these: proxy ARP must not claim them while they lead away.
        rules.append(f"arp operation request arp daddr ip {_set_of(own4)} drop")
        rules.append(f"ip saddr {_set_of(own4)} accept")
    rules.append(f"arp saddr ip {_set_of(['0.0.0.0', *own4])} accept")
    if own6:
        rules.append(f"ip6 saddr {_set_of(own6)} accept")
    neighbours = "{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }"
    reports = "{ mld-listener-report, mld-listener-done, mld2-listener-report }"
    rules += [
        f"ip6 saddr fe80::/10 icmpv6 type {neighbours} accept",
        "ip6 saddr :: icmpv6 type { nd-router-solicit, nd-neighbor-solicit } accept",
        # Hop-by-hop options stand before the report: match the addresses instead.
        "ip6 saddr { ::, fe80::/10 } ip6 daddr ff02::16 drop",
        f"ip6 saddr {{ ::, fe80::/10 }} icmpv6 type {reports} drop",
        "ether type 0x8035 drop",
        "ip saddr 0.0.0.0 udp dport 67 drop",
        spoofed,
    ]
    return rules


def digest_of(rules: Sequence[str]) -> str:
    """A short name of a filter's content, kept in the chain: how a resync knows it is right."""
    return hashlib.sha256("\n".join(rules).encode()).hexdigest()[:16]


def filter_script(tap: str, rules: Sequence[str]) -> str:
    """Install a tap's filter anew (an equal chain of a removed device is replaced)."""
    chain = f"netdev {NFT_TABLE} {tap}"
    lines = removal_of_chain("netdev", tap).splitlines()
    hook = f'type filter hook ingress device "{tap}" priority 0; policy drop;'
    lines.append(f"add chain {chain} {{ {hook} }}")
    lines.append(f'add rule {chain} counter comment "{digest_of(rules)}/{len(rules)}"')
    lines += [f"add rule {chain} {rule}" for rule in rules]
    return "\n".join(lines) + "\n"


def removal_of_chain(family: str, name: str) -> str:
    """Remove a chain of ours, whether it exists or not."""
    chain = f"{family} {NFT_TABLE} {name}"
    return f"add chain {chain}\nflush chain {chain}\ndelete chain {chain}\n"


async def read_counts() -> Counts:
    """Read the counters; a missing table gives none, not an error."""
    outputs = await asyncio.gather(
        *(_nft("-j", "list", "table", family, NFT_TABLE) for family in ("inet", "netdev")),
        return_exceptions=True,
    )
    counts = Counts()
    for output in outputs:
        if isinstance(output, BaseException):
            continue
        for item in json.loads(output)["nftables"]:
            if "set" in item:
                counts.counted.update(_read_set(item["set"]))
            elif "rule" in item:
                _read_rule(item["rule"], counts)
    return counts


def _read_set(content: dict[str, Any]) -> Iterator[tuple[tuple[str, Prefix], int]]:
    kind, version = str(content["name"])[:-1], int(str(content["name"])[-1])
    for item in content.get("elem", ()):
        prefix = _read_element(item["elem"]["val"], kind, version)
        if prefix is not None:
            yield (kind, prefix), int(item["elem"].get("counter", {}).get("packets", 0))


def _read_element(value: Any, kind: str, version: int) -> Prefix | None:
    if kind == TOO_BIG:
        ends = value["range"] if isinstance(value, dict) else [value, value]
        # Numbers that JSON has no room for are texts.
        first, last = (int(end, 16) if isinstance(end, str) else int(end) for end in ends)
        return prefix_of(first, last, version)
    if isinstance(value, str):
        return ip_network(value)
    if "prefix" in value:
        return ip_network(f"{value['prefix']['addr']}/{value['prefix']['len']}")
    return None


def _read_rule(rule: dict[str, Any], counts: Counts) -> None:
    if rule["family"] != "netdev":
        return
    chain = str(rule["chain"])
    counts.spoofed.setdefault(chain, 0)
    if rule.get("comment") == _SPOOFED:
        for statement in rule["expr"]:
            counts.spoofed[chain] += int(statement.get("counter", {}).get("packets", 0))


async def list_json(*what: str) -> list[dict[str, Any]] | None:
    """What `nft list` says of something, as nft's JSON objects; None where it is not there.

    Raises DataPlaneError if nft does not work at all.
    """
    try:
        found: list[dict[str, Any]] = json.loads(await _nft("-j", "list", *what))["nftables"]
    except DataPlaneError as error:
        if "No such file" in str(error):
            return None
        raise
    return found
