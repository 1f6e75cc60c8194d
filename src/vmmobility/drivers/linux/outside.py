"""Senders outside the data centres, and tunnels: policy rules, route tables, the guard's text.

Section 3: "Tunneling MUST NOT be used between a VM located in a data center and a host in some
other site".  Two parts: routes lead only senders inside into a tunnel where others have a way of
their own, and a guard drops whatever would leave by a tunnel's device, or has come by one, from
any other sender, whatever the routes say.

Pure.  Not here: when rules and guard are made (environment.py, filter_state.py), the same for
packets that never meet the kernel's routes (inside.py, in the relay).
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from vmmobility.drivers.linux.ownership import (
    INSIDE_RULE_PRIORITY,
    INSIDE_TABLE,
    NFT_TABLE,
    TUNNEL_PREFIX,
)
from vmmobility.drivers.linux.policy_rules import Rule
from vmmobility.engine.dataplane import Outside, VmDataPlane
from vmmobility.wire.values import Prefix

OUTSIDE = "outside"
"""The sets that count, for each VM address, what the guard drops; and Traffic's count of it."""

GUARD = "tunnels"
"""The guard's chain in our inet table."""

_WORDS = {4: "ip", 6: "ip6"}


def collapsed(dc_prefixes: Sequence[Prefix]) -> list[Prefix]:
    """The same addresses by as few prefixes as can be, none inside another."""
    v4 = [p for p in dc_prefixes if isinstance(p, IPv4Network)]
    v6 = [p for p in dc_prefixes if isinstance(p, IPv6Network)]
    return [*collapse_addresses(v4), *collapse_addresses(v6)]


def inside_rules(dc_prefixes: Sequence[Prefix]) -> list[Rule]:
    """By these rules packets from inside look up the tunnels that others must not see."""
    return [
        Rule(p.version, "", INSIDE_TABLE, INSIDE_RULE_PRIORITY, p) for p in collapsed(dc_prefixes)
    ]


def queues_outside(state: VmDataPlane, dc_prefixes: Sequence[Prefix]) -> bool:
    """Whether, in a redirect by tunnel, what comes from outside waits in the taps: then the
    tunnel's route is for senders inside alone.  Without taps nothing can wait here."""
    return bool(dc_prefixes) and state.outside is Outside.QUEUE and state.plugged


def guard_rules(dc_prefixes: Sequence[Prefix]) -> list[str]:
    """The guard's rules; none where no data centre prefix is configured."""
    if not dc_prefixes:
        return []
    devices = f'"{TUNNEL_PREFIX}*"'
    # codespell:ignore-begin iifname
    rules = [f"iifname != {devices} oifname != {devices} accept"]
    # codespell:ignore-end
    for version, word in _WORDS.items():
        own = [str(p) for p in collapsed(dc_prefixes) if p.version == version]
        if own:
            rules.append(f"{word} saddr {{ {', '.join(own)} }} accept")
    # A look-up that matches counts in the element.
    rules += [f"{word} daddr @{OUTSIDE}{version} drop" for version, word in _WORDS.items()]
    return [*rules, "counter drop"]


def guard_script(dc_prefixes: Sequence[Prefix], digest: str) -> str:
    """Make the guard's chain anew in one transaction; its sets must be there."""
    chain = f"inet {NFT_TABLE} {GUARD}"
    lines = [f"add chain {chain}", f"flush chain {chain}", f"delete chain {chain}"]
    lines.append(f"add chain {chain} {{ type filter hook forward priority 0; policy accept; }}")
    lines.append(f'add rule {chain} counter comment "{digest}"')
    lines += [f"add rule {chain} {rule}" for rule in guard_rules(dc_prefixes)]
    return "\n".join(lines) + "\n"
