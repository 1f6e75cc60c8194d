"""What LinuxDataPlane must be told: addresses, folders, names; no behaviour.

Rests on ownership.py for the defaults that every NVE shares.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Literal

from vmmobility.drivers.linux.ownership import DEFAULT_GATEWAY_MAC
from vmmobility.wire.values import Address, Prefix

TunnelWish = Literal["auto", "kernel", "relay"]
"""Which tunnels to use; auto: the kernel's where it has them, else the relay's."""

_GATEWAY4, _GATEWAY6 = IPv4Address("169.254.1.1"), IPv6Address("fe80::1")


@dataclass(frozen=True, slots=True)
class ServerEnds:
    """The two ends of a server's access link: its address, and this NVE's, of one family."""

    server: Address
    own: Address


@dataclass(frozen=True, slots=True)
class LinuxSettings:
    """Settings of the Linux data plane.

    ipv4, ipv6:       this NVE's own locators (at least one)
    state_dir:        folder of the relay's control socket, lock and log
    underlays:        underlay interface names; empty: those that hold the locators
    gateway_mac:      the taps' MAC, the same at every NVE (6 octets)
    gateway4/6:       the guests' default gateways, answered on every tap
    tap_queue_length: packets that wait for a guest that is about to resume
    relay_python:     the interpreter that runs the relay process
    dc_prefixes:      of all hosts in the data centres, VMs too; empty: every sender counts as one
    tunnel:           which tunnels to use
    servers:          those that stand apart from this NVE, by name
    """

    ipv4: IPv4Address | None
    ipv6: IPv6Address | None
    state_dir: Path
    underlays: tuple[str, ...] = field(default=())
    gateway_mac: bytes = DEFAULT_GATEWAY_MAC
    gateway4: IPv4Address = _GATEWAY4
    gateway6: IPv6Address = _GATEWAY6
    tap_queue_length: int = 10_000
    relay_python: str = sys.executable
    dc_prefixes: tuple[Prefix, ...] = ()
    tunnel: TunnelWish = "auto"
    servers: Mapping[str, ServerEnds] = field(default_factory=dict)

    def locator(self, version: int) -> Address | None:
        """This NVE's own locator of IP version 4 or 6, or None."""
        return self.ipv4 if version == 4 else self.ipv6
