"""rtnetlink's words for circuits between an NVE and its servers: VXLAN devices, and small bridges.

A circuit is a VXLAN of two ends: one number (VNI), one address each side, nothing learnt.  Rests on
netlink.py.  Not here: which circuits there are (plan.py, server_circuits.py); other messages
(rtnetlink.py).
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
from vmmobility.wire.server_frames import CIRCUIT_PORT
from vmmobility.wire.values import Address

CIRCUIT_MTU = 1500  # octets of a guest's packets; the access link fragments what does not fit it
NUMBERS = 1 << 24

_RTM_NEWLINK = 16
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 10, 18
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_ID, _LEARNING, _PORT, _UDP_CSUM = 1, 7, 15, 18
_REMOTE = {4: 2, 6: 16}
_LOCAL = {4: 4, 6: 17}
_AGEING, _SNOOPING = 4, 23
_LINK = struct.Struct("=BxHiII")


@dataclass(frozen=True, slots=True)
class CircuitLink:
    """A circuit's end as the kernel shows it.  usual: it learns nothing, and has our port."""

    number: int
    remote: Address | None
    local: Address | None
    usual: bool = True


def new_circuit(
    name: str, circuit: int, remote: Address, local: Address, mac: bytes | None = None
) -> Request:
    """Make an end, down.  mac: of the device, None: whatever the kernel gives it."""
    data = u32(_ID, circuit) + _ends(remote, local) + attribute(_LEARNING, b"\0")
    data += attribute(_PORT, CIRCUIT_PORT.to_bytes(2, "big")) + attribute(_UDP_CSUM, b"\1")
    parts = text(_IFLA_IFNAME, name) + u32(_IFLA_MTU, CIRCUIT_MTU)
    parts += attribute(_IFLA_ADDRESS, mac) if mac is not None else b""
    return _new(parts, "vxlan", data)


def turn_circuit(index: int, remote: Address, local: Address) -> Request:
    """Let an end lead to another address; nothing else of it changes."""
    info = text(_IFLA_INFO_KIND, "vxlan") + attribute(_IFLA_INFO_DATA, _ends(remote, local))
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + attribute(_IFLA_LINKINFO, info)
    return Request(_RTM_NEWLINK, 0, body)


def new_bridge(name: str) -> Request:
    """Make a bridge, down, that gives to each port what the other sends, and remembers nothing."""
    data = u32(_AGEING, 0) + attribute(_SNOOPING, b"\0")
    return _new(text(_IFLA_IFNAME, name) + u32(_IFLA_MTU, CIRCUIT_MTU), "bridge", data)


def join_bridge(index: int, bridge: int) -> Request:
    """Make a device a port of a bridge."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + u32(_IFLA_MASTER, bridge)
    return Request(_RTM_NEWLINK, 0, body)


def _ends(remote: Address, local: Address) -> bytes:
    return attribute(_REMOTE[remote.version], remote.packed) + attribute(
        _LOCAL[local.version], local.packed
    )


def _new(parts: bytes, kind: str, data: bytes) -> Request:
    info = text(_IFLA_INFO_KIND, kind) + attribute(_IFLA_INFO_DATA, data)
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + parts + attribute(_IFLA_LINKINFO, info)
    return Request(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def read_circuit(found: Attributes) -> CircuitLink | None:
    """The circuit's end that a link is, by its attributes; None if it is of another kind."""
    info = parse_attributes(found.get(_IFLA_LINKINFO, b""))
    if info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0") != b"vxlan":
        return None
    data = parse_attributes(info.get(_IFLA_INFO_DATA, b""))
    remote, local = (
        next((ip_address(data[key]) for key in keys.values() if key in data), None)
        for keys in (_REMOTE, _LOCAL)
    )
    usual = data.get(_PORT, b"")[:2] == CIRCUIT_PORT.to_bytes(2, "big")
    usual = usual and not number(data.get(_LEARNING, b"\1"))
    return CircuitLink(number(data.get(_ID, b"\0")), remote, local, usual)


def master_of(found: Attributes) -> int:
    """The index of the bridge that a link is a port of; 0: none."""
    return number(found.get(_IFLA_MASTER, b"\0"))
