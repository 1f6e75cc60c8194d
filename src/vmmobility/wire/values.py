"""The values that messages carry and that every floor above speaks in.

Not here: how they look as bytes (options.py) or what is done with them (engine/).
Rests on `ipaddress` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network

FAMILIES = (4, 6)


@dataclass(frozen=True, slots=True, order=True)
class VmKey:
    """A VM's name: (virtual network identifier, VM-ID)."""

    vni: int
    vm_id: str

    def __str__(self) -> str:
        return self.vm_id if self.vni == 0 else f"{self.vni}/{self.vm_id}"


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface of a VM: its MAC (6 octets) and its addresses as prefixes of any length."""

    mac: bytes
    prefixes: tuple[Prefix, ...]

    @property
    def mac_text(self) -> str:
        return self.mac.hex(":")


@dataclass(frozen=True, slots=True)
class Nve:
    """A network virtualization edge: its NVE-ID and a locator (underlay address) a family."""

    nve_id: str
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None

    def locator(self, version: int) -> Address | None:
        """The locator of IP version 4 or 6, or None."""
        return self.ipv4 if version == 4 else self.ipv6

    @property
    def locators(self) -> tuple[Address, ...]:
        return tuple(a for a in (self.ipv4, self.ipv6) if a is not None)
