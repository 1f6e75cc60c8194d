"""rtnetlink's words for tunnels: devices without fixed ends, and routes that name theirs.

A device in collect-metadata mode ("external") has no peer of its own: each packet brings its outer
addresses with it, from the route that led it in (a light-weight tunnel, RTA_ENCAP).  Rests on
netlink.py.  Not here: when they are made (kernel_tunnels.py); other messages (rtnetlink.py).
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address

from vmmobility.drivers.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Attributes,
    Request,
    attribute,
    number,
    parse_attributes,
    text,
    u32,
)
from vmmobility.wire.values import Address

KINDS = {4: "ipip", 6: "ip6tnl"}
"""The kernel's names of the devices that carry IPv4 in IPv4, and IPv6 in IPv6."""

EXTERNAL = " external"
"""Ends the kind of a link that is in collect-metadata mode."""

_RTM_NEWLINK = 16
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO = 3, 4, 18
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_IPTUN_PROTO, _IFLA_IPTUN_COLLECT_METADATA = 9, 19
_INNER_PROTOCOL = {4: 4, 6: 41}

RTA_ENCAP_TYPE, RTA_ENCAP = 21, 22
_ENCAP_TYPE = {4: 2, 6: 4}  # LWTUNNEL_ENCAP_IP, LWTUNNEL_ENCAP_IP6
_ID, _DESTINATION, _SOURCE, _HOP_LIMIT, _FLAGS = 1, 2, 3, 4, 6
_HOPS = 64
_DONT_FRAGMENT = b"\x01\x00"  # TUNNEL_DONT_FRAGMENT, in network order


@dataclass(frozen=True, slots=True)
class Encapsulation:
    """The outer header that a route gives its packets; both ends of one IP version.

    usual: False where its other fields (hop limit, flags) are not those that we write, or where
    the encapsulation is of another kind; the ends are None then, if it has none
    """

    source: Address | None
    destination: Address | None
    usual: bool = True


def new_tunnel(name: str, version: int, mtu: int) -> Request:
    """Make a device, down, that encapsulates packets of an IP version in the same version."""
    data = attribute(_IFLA_IPTUN_PROTO, bytes([_INNER_PROTOCOL[version]]))
    data += attribute(_IFLA_IPTUN_COLLECT_METADATA, b"")
    info = text(_IFLA_INFO_KIND, KINDS[version]) + attribute(_IFLA_INFO_DATA, data)
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0)
    body += text(_IFLA_IFNAME, name) + u32(_IFLA_MTU, mtu) + attribute(_IFLA_LINKINFO, info)
    return Request(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def link_kind(found: Attributes) -> str:
    """The kind of a link by its attributes, such as `veth` or `ipip external`; "" without one."""
    info = parse_attributes(found.get(_IFLA_LINKINFO, b""))
    kind = info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace")
    if kind in KINDS.values():
        data = parse_attributes(info.get(_IFLA_INFO_DATA, b""))
        kind += EXTERNAL if _IFLA_IPTUN_COLLECT_METADATA in data else ""
    return kind


def encapsulation_attributes(made: Encapsulation) -> bytes:
    """A route's attributes.  Raises ValueError for one that has not both its ends.

    The outer hop limit is our own, not the inner packet's: it has the underlay to cross.  The outer
    DF bit stands, so that the kernel learns the path's MTU; where the inner packet may be
    fragmented the guard takes it away again (tunnel_guard.py; RFC 2003 Section 3.1).
    """
    if made.source is None or made.destination is None:
        raise ValueError("an encapsulation needs both its ends")
    version = made.destination.version
    inner = attribute(_ID, bytes(8)) + attribute(_DESTINATION, made.destination.packed)
    inner += attribute(_SOURCE, made.source.packed) + attribute(_HOP_LIMIT, bytes([_HOPS]))
    if version == 4:
        inner += attribute(_FLAGS, _DONT_FRAGMENT)
    kind = _ENCAP_TYPE[version].to_bytes(2, "little" if _LITTLE else "big")
    return attribute(RTA_ENCAP_TYPE, kind) + attribute(RTA_ENCAP, inner)


_LITTLE = struct.pack("=H", 1) == b"\x01\x00"


def read_encapsulation(found: Attributes) -> Encapsulation | None:
    """The encapsulation of a route by its attributes.  Raises ValueError for ends that are none."""
    if RTA_ENCAP_TYPE not in found:
        return None
    kind = number(found[RTA_ENCAP_TYPE])
    inner = parse_attributes(found.get(RTA_ENCAP, b""))
    if kind not in _ENCAP_TYPE.values() or not {_DESTINATION, _SOURCE} <= inner.keys():
        return Encapsulation(None, None, usual=False)
    source, destination = ip_address(inner[_SOURCE]), ip_address(inner[_DESTINATION])
    flags = _DONT_FRAGMENT if destination.version == 4 else b"\0\0"
    usual = inner.get(_HOP_LIMIT) == bytes([_HOPS]) and inner.get(_FLAGS, b"\0\0") == flags
    return Encapsulation(source, destination, usual and not any(inner.get(_ID, b"")))
