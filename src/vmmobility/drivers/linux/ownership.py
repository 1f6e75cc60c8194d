"""How a restarted daemon knows what in the kernel is ours: numbers and names, nothing else.

Whatever carries one of these marks is ours to change and to remove; nothing else ever is.
docs/design/dataplane.md explains each.
"""

from __future__ import annotations

ROUTE_PROTOCOL = 77
"""rtm_protocol of every route and rule of ours (free in /etc/iproute2/rt_protos)."""

ROUTE_METRIC = 7
"""Metric of VM routes: below routing daemons' (FRR: 20), and never shared with an operator's."""

FLOOR_METRIC = 0xFFFFFFFF
"""Metric of the blackhole beneath each VM route of the main table: the worst there is, so that any
other route to the same prefix comes first.  Where the route goes with its interface, packets end
here; by the default route they would come back (invariant 3, no loop)."""

MAIN_TABLE = 254
TUNNELLED_TABLE = 7700
"""The table of packets that came out of a tunnel: tap routes, a blackhole, and with kernel tunnels
the redirects to the next peer: never a way into the underlay as it is."""

RULE_PRIORITY = 77
"""Priority of the rule: what comes out of a tunnel looks up table 7700."""

HOLD_TABLE = 7701
"""A router's table of VM routes that its routing daemon must not see: looked up before main."""

HOLD_RULE_PRIORITY = 78
"""Priority of the router's rule: all packets look up table 7701 first."""

INSIDE_TABLE = 7702
"""The table of redirects by tunnel that only senders inside the data centres may see."""

INSIDE_RULE_PRIORITY = 79
"""Priority of the rules, one a data centre prefix: packets from there look up table 7702 first."""

TAP_PREFIX = "vmt"
TUN_NAME = "vmmob-tun"
"""The relay's device, for both IP versions."""

KERNEL_TUNNELS = {4: "vmmob-ip4", 6: "vmmob-ip6"}
"""The kernel tunnels' devices by IP version."""

TUNNEL_DEVICES = (TUN_NAME, *KERNEL_TUNNELS.values())

TUNNEL_PREFIX = "vmmob-"
"""How the names of all devices that lead into a tunnel begin."""

NFT_TABLE = "vmmobility"
"""Name of our two nftables tables: inet (counters) and netdev (source filters)."""

NFT_GUARD_TABLE = "vmmobility_tunnels"
"""The nftables table (inet) that guards the kernel tunnels."""

NFT_CIRCUIT_TABLE = "vmmobility_circuits"
"""The nftables table (inet) that guards the circuits of an NVE's servers."""

NFT_SERVER_TABLE = "vmmobility_server"
"""The nftables table (inet) of a server that stands apart from its NVE."""

ACCEPTED_MARK = 0x766D0077
"""Packet mark of what a peer may tunnel here: kernel tunnels deliver nothing without it."""

UNACCEPTED_RULE_PRIORITY = 78
"""Priority of the rule: what comes in by a kernel tunnel without the mark goes nowhere."""

NAPT_PROTOCOL = 78
"""Protocol of a NAPT box's rules and routes: its own, for an NVE or a router may share its kernel,
and each of those takes every rule of protocol 77 for its own."""

NAPT_RULE_PRIORITY = 79
"""Priority of the rules that detour an address whose mapping is kept at another box.  Their table
is that box's IPv4 address as a number: no record is needed to know whose it is."""

NAPT_TABLE = "vmmob_napt"
"""Name of a NAPT box's nftables table, family ip."""

DEFAULT_GATEWAY_MAC = bytes.fromhex("02766d6d0001")
"""The taps' MAC, the same at every NVE, so that a moved guest's neighbour caches stay true."""


def is_our_tap(name: str) -> bool:
    """Whether an interface name is one of our taps'."""
    return name.startswith(TAP_PREFIX)
