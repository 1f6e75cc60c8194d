"""What other hands may change in the kernel, and the items by which an audit names it.

TAP is the local VM's tap, TUNNEL4 and TUNNEL6 are the devices of the back end at hand.  Not here:
the hands, and the audit (test_dataplane_audit.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.planes import OTHER, TAP
from vmmobility.drivers.linux.ownership import KERNEL_TUNNELS, TUN_NAME
from vmmobility.engine.dataplane import port_name

SECOND = port_name(OTHER, 0)

CHANGES = [
    ("ip link set TAP down", {f"tap {TAP}"}),
    ("ip link set TAP address 02:00:00:00:00:99", {f"tap {TAP}"}),
    ("ip link set TAP txqueuelen 5", {f"tap {TAP}"}),
    (
        # The kernel takes routes and neighbours of an interface that loses its last address.
        "ip addr del 169.254.1.1/32 dev TAP",
        {
            "address 169.254.1.1",
            "neighbour 10.77.0.5",
            "route 10.77.0.5/32",
            "route 10.77.0.5/32 in table 7700",
        },
    ),
    ("ip addr del fe80::1/64 dev TAP", {"address fe80::1"}),
    ("ip neigh del 10.77.0.5 dev TAP", {"neighbour 10.77.0.5"}),
    ("ip neigh del fd77::5 dev TAP", {"neighbour fd77::5"}),
    ("ip neigh replace 10.77.0.5 lladdr 02:00:00:00:00:99 dev TAP", {"neighbour 10.77.0.5"}),
    ("ip neigh add 10.77.0.9 lladdr 02:00:00:00:00:99 dev TAP", {"neighbour 10.77.0.9"}),
    (
        "ip route change 10.77.0.5/32 via 10.0.1.2 proto 77 metric 7",
        {"route 10.77.0.5/32"},
    ),
    (
        "ip -6 route replace fd77::5/128 via fd00:1::2 proto 77 metric 7",
        {"route fd77::5/128"},
    ),
    ("ip route replace 10.77.0.5/32 dev eth0 proto static metric 7", {"route 10.77.0.5/32"}),
    ("ip route replace blackhole 10.77.0.5/32 proto 77 metric 7", {"route 10.77.0.5/32"}),
    ("ip route append 10.77.0.5/32 dev eth0 proto 77 metric 7", {"route 10.77.0.5/32"}),
    ("ip route prepend 10.77.0.5/32 dev eth0 proto 77 metric 7", {"route 10.77.0.5/32"}),
    ("ip -6 route append fd77::5/128 via fd00:1::2 proto 77 metric 7", {"route fd77::5/128"}),
    (
        "ip route del 10.77.0.5/32 table main proto 77 && "
        "ip route add 10.77.0.5/32 dev TAP proto 77 metric 9",
        {"route 10.77.0.5/32", "route 10.77.0.5/32 metric 9"},
    ),
    (
        "ip route add 10.77.0.5/32 dev TAP table 99 proto 77 metric 7",
        {"route 10.77.0.5/32 in table 99"},
    ),
    ("ip route del 10.77.0.5/32 table 7700", {"route 10.77.0.5/32 in table 7700"}),
    ("ip -6 route del fd77::5/128 table 7700", {"route fd77::5/128 in table 7700"}),
    ("ip route del blackhole default table 7700", {"route 0.0.0.0/0 in table 7700"}),
    ("ip -6 route del blackhole default table 7700 metric 7", {"route ::/0 in table 7700"}),
    ("ip rule del priority 77", {"rule IPv4 of TUNNEL4, table 7700, priority 77"}),
    ("ip -6 rule del priority 77", {"rule IPv6 of TUNNEL6, table 7700, priority 77"}),
    (
        "ip rule add dev eth0 table 7700 priority 5 protocol 77",
        {"rule IPv4 of eth0, table 7700, priority 5"},
    ),
    ("ip link set TUNNEL4 down", {"tunnel TUNNEL4", "route 10.77.0.6/32"}),
    ("ip link set TUNNEL6 down", {"tunnel TUNNEL6", "route fd77::6/128"}),
    ("ip link set TUNNEL4 mtu 1400", {"tunnel TUNNEL4"}),
    ("sysctl -qw net/ipv4/conf/TAP/proxy_arp=0", {f"sysctl net.ipv4.conf.{TAP}.proxy_arp"}),
    ("sysctl -qw net/ipv6/conf/TAP/accept_ra=2", {f"sysctl net.ipv6.conf.{TAP}.accept_ra"}),
    (
        "sysctl -qw net/ipv4/neigh/TAP/proxy_delay=80",
        {f"sysctl net.ipv4.neigh.{TAP}.proxy_delay"},
    ),
    ("sysctl -qw net/ipv4/conf/eth0/rp_filter=1", {"sysctl net.ipv4.conf.eth0.rp_filter"}),
    ("sysctl -qw net/ipv4/conf/TUNNEL4/rp_filter=1", {"sysctl net.ipv4.conf.TUNNEL4.rp_filter"}),
    ("sysctl -qw net/ipv6/conf/TUNNEL6/forwarding=0", {"sysctl net.ipv6.conf.TUNNEL6.forwarding"}),
    ("nft flush chain netdev vmmobility TAP", {f"filter {TAP}"}),
    ("nft delete chain netdev vmmobility TAP", {f"filter {TAP}"}),
    (
        "nft add chain netdev vmmobility TAP { policy accept ; }",
        {f"filter {TAP}"},
    ),
    ("nft insert rule netdev vmmobility TAP accept", {f"filter {TAP}"}),
    ("nft replace rule netdev vmmobility TAP handle HANDLE accept", {f"filter {TAP}"}),
    ("nft flush chain inet vmmobility counting", {"filter tables"}),
    ("nft add rule inet vmmobility counting drop", {"filter tables"}),
    (
        "nft add chain inet vmmobility evil { type filter hook forward priority 0 ; }",
        {"filter inet evil"},
    ),
    (
        "nft add chain netdev vmmobility evil { type filter hook ingress device eth0 "
        "priority 0 ; policy drop ; }",
        {"filter netdev evil"},
    ),
    ("nft add element inet vmmobility to_tap4 { 10.99.0.1 }", {"counter 10.99.0.1/32"}),
    ("nft delete element inet vmmobility onward6 { fd77::5 }", {"counter fd77::5/128"}),
    ("nft delete table netdev vmmobility", {f"filter {TAP}", f"filter {SECOND}", "filter tables"}),
    ("nft flush ruleset", {f"filter {TAP}", "filter tables", "counter 10.77.0.5/32"}),
]


RELAY_CHANGES = [
    (
        "sysctl -qw net/ipv6/conf/vmmob-tun/mtu=1280",
        {"sysctl net.ipv6.conf.vmmob-tun.mtu"},
    ),
    ("ip link set vmmob-tun txqueuelen 5", {"tunnel vmmob-tun"}),
]
OUTER = "encap ip id 0 src 10.0.1.1 dst 10.0.99.2"
KERNEL_CHANGES = [
    ("ip rule del priority 78", {"rule IPv4 of vmmob-ip4, table 0, priority 78"}),
    ("ip -6 rule del priority 78", {"rule IPv6 of vmmob-ip6, table 0, priority 78"}),
    (
        "ip rule del priority 77 && ip rule add iif vmmob-ip4 table 7700 priority 77 protocol 77",
        {"rule IPv4 of vmmob-ip4, table 7700, priority 77"},
    ),
    (
        "ip link del vmmob-ip4",
        {"tunnel vmmob-ip4", "route 10.77.0.6/32", "route 10.77.0.6/32 in table 7700"},
    ),
    (
        "ip link del vmmob-ip6 && ip link add vmmob-ip6 type ip6tnl local fd00:1::1",
        {"tunnel vmmob-ip6", "route fd77::6/128"},
    ),
    (
        f"ip route replace 10.77.0.6/32 {OUTER.replace('99', '98')} dev vmmob-ip4 "
        "proto 77 metric 7",
        {"route 10.77.0.6/32"},
    ),
    (
        f"ip route replace 10.77.0.6/32 {OUTER} ttl 9 dev vmmob-ip4 proto 77 metric 7",
        {"route 10.77.0.6/32"},
    ),
    (
        "ip -6 route replace fd77::6/128 dev vmmob-ip6 proto 77 metric 7 table 7700",
        {"route fd77::6/128 in table 7700"},
    ),
    (
        "nft add element inet vmmobility_tunnels accepted4 { 10.0.98.2 . 0x0a4d0005 }",
        {"guard 10.0.98.2 to 10.77.0.5/32"},
    ),
    (
        "nft delete element inet vmmobility_tunnels accepted6 "
        "{ fd00:1::2 . 0xfd770000000000000000000000000005 }",
        {"guard fd00:1::2 to fd77::5/128"},
    ),
    (
        "nft delete element inet vmmobility_tunnels refused4 { 10.77.0.5 }",
        {"counter 10.77.0.5/32"},
    ),
    ("nft add element inet vmmobility_tunnels refused4 { 10.99.0.1 }", {"counter 10.99.0.1/32"}),
    ("nft flush chain inet vmmobility_tunnels arriving", {"guard"}),
    ("nft add rule inet vmmobility_tunnels arriving meta mark set 0x766d0077", {"guard"}),
    (
        "nft add chain inet vmmobility_tunnels evil { type filter hook input priority 0 ; }",
        {"guard"},
    ),
    ("nft delete table inet vmmobility_tunnels", {"guard"}),
    ("ip tuntap add dev vmmob-tun mode tun", {"tunnel vmmob-tun"}),
]


def of(back_end: str, text: str) -> str:
    """The same in the names of that back end's devices."""
    names = KERNEL_TUNNELS if back_end == "kernel" else dict.fromkeys((4, 6), TUN_NAME)
    for version, name in names.items():
        text = text.replace(f"TUNNEL{version}", name)
    return text


def each_change() -> Iterator[object]:
    """(back end, commands, expected), so that no test asks for what its back end has not."""
    for back_end, own in (("relay", RELAY_CHANGES), ("kernel", KERNEL_CHANGES)):
        for commands, expected in (*CHANGES, *own):
            yield pytest.param(back_end, commands, expected, id=f"{back_end}-{commands}")
