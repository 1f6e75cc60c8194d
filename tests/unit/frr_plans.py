"""Plans that stand for each kind of router; their configurations are kept in frr_goldens/.

Not here: what is asserted of them (test_frr.py).
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

from vmmobility.drivers.frr.plan import (
    BgpPlan,
    InterfacePlan,
    Neighbour,
    RouterPlan,
    StaticRoute,
)

VM_PREFIXES = tuple(map(ip_network, ("10.1.0.0/24", "10.2.0.0/24", "fd01::/64", "fd02::/64")))
OWN = (ip_network("10.1.0.0/24"), ip_network("fd01::/64"))

TOR = RouterPlan(
    "tor-1",
    IPv4Address("10.255.0.1"),
    (
        InterfacePlan("border-1", "active"),
        InterfacePlan("segment", "active", shared=True),
        InterfacePlan("nve-1", "passive"),
    ),
    static=(
        StaticRoute(OWN[0], ip_address("10.0.1.2")),
        StaticRoute(OWN[1], ip_address("fd00:0:1::2")),
    ),
    vm_prefixes=VM_PREFIXES,
)
BORDER = RouterPlan(
    "border-1",
    IPv4Address("10.255.0.2"),
    (
        InterfacePlan("tor-1", "active"),
        InterfacePlan("border-2", "passive", uplink=True),
        InterfacePlan("internet", "passive", uplink=True),
    ),
    vm_prefixes=VM_PREFIXES,
    covering=OWN,
    bgp=BgpPlan(
        65001,
        (
            Neighbour(ip_address("10.0.9.2"), 65002, inside=True),
            Neighbour(ip_address("fd00:0:9::2"), 65002, inside=True),
            Neighbour(ip_address("10.0.10.2"), 65100, inside=False),
            Neighbour(ip_address("fd00:0:a::2"), 65100, inside=False),
        ),
    ),
)
INTERNET = RouterPlan(
    "internet",
    IPv4Address("10.255.0.3"),
    (InterfacePlan("border-1", "passive", uplink=True), InterfacePlan("outside", "passive")),
    igp="none",
    covering=(ip_network("10.0.11.0/24"), ip_network("fd00:0:b::/64")),
    bgp=BgpPlan(
        65100,
        (
            Neighbour(ip_address("10.0.10.1"), 65001, inside=False),
            Neighbour(ip_address("fd00:0:a::1"), 65001, inside=False),
        ),
        transit=True,
    ),
)
PLANS = {
    "tor-ospf": TOR,
    "tor-isis": replace(TOR, igp="isis"),
    "border-ospf": BORDER,
    "border-isis": replace(BORDER, igp="isis"),
    "internet": INTERNET,
}
