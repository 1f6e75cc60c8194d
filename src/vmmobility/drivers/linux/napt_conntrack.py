"""Entries of the kernel's flow table as values, both ways (ctnetlink, IPv4).

An entry has two ways: the original one, as the first packet came in, and the reply, as answers
come in; where they are not each other's inverse the flow is translated.  Builders give a
netlink.Request; parsers read the bodies of a dump.

Not here: which entries are whose (napt_flows.py).  Rests on netlink.py.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from vmmobility.drivers.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Netlink,
    Request,
    attribute,
    parse_attributes,
)
from vmmobility.errors import DataPlaneError

NETLINK_NETFILTER = 12
_CT_NEW, _CT_GET, _CT_DELETE, _CT_STATS = 0x100, 0x101, 0x102, 0x104
_HEADER = struct.pack("=BBH", socket.AF_INET, 0, 0)
_NESTED = 0x8000

_ORIGINAL, _REPLY, _STATUS, _PROTOINFO, _NAT_SRC, _TIMEOUT = 1, 2, 3, 4, 6, 7
_ID, _NAT_DST, _FILTER = 12, 13, 25
_STAT_INSERT_FAILED, _STAT_DROP = 9, 10

SEEN_REPLY, ASSURED, _CONFIRMED = 1 << 1, 1 << 2, 1 << 3
SNAT, DNAT = 1 << 4, 1 << 5
_LIBERAL = 0x08
_FILTER_IP_SOURCE = 1 << 0

ICMP, TCP = 1, 6
_PORTED = {TCP, 17, 33, 132, 136}
_ECHO_REQUEST, _ECHO_REPLY = 8, 0

TCP_STATES = (
    "NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT",
    "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2",
)  # fmt: skip
_OPENING = {"NONE", "SYN_SENT", "SYN_SENT2"}


@dataclass(frozen=True, slots=True)
class Way:
    """One way of a flow: who sends, to whom.

    ICMP: the identifier is both ports; icmp_type tells a question from an answer.
    """

    protocol: int
    source: IPv4Address
    destination: IPv4Address
    source_port: int = 0
    destination_port: int = 0
    icmp_type: int = 0
    icmp_code: int = 0

    def inverse(self) -> Way:
        """As answers go where nothing is translated."""
        if self.protocol == ICMP:
            kind = {8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 17: 18, 18: 17}.get(
                self.icmp_type, self.icmp_type
            )
        else:
            kind = 0
        return replace(
            self,
            source=self.destination,
            destination=self.source,
            source_port=self.destination_port,
            destination_port=self.source_port,
            icmp_type=kind,
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the flow table; `ident` is the kernel's name of it."""

    original: Way
    reply: Way
    status: int
    timeout_s: int
    tcp_state: str = ""
    ident: bytes = b""

    @property
    def translated(self) -> bool:
        """Whether an address or a port changes on the way."""
        return bool(self.status & (SNAT | DNAT))


def entries(netlink: Netlink) -> Iterator[Entry]:
    """Every IPv4 entry.  Raises DataPlaneError for an answer that cannot be read."""
    return _read(netlink, b"")


def entries_from(netlink: Netlink, source: IPv4Address, *, reply: bool) -> Iterator[Entry]:
    """The entries whose original way (or whose reply) comes from this address."""
    flags = struct.pack("=I", _FILTER_IP_SOURCE)
    chosen = _nest(_FILTER, attribute(2 if reply else 1, flags))
    address = _nest(1, attribute(1, source.packed))
    return _read(netlink, _nest(_REPLY if reply else _ORIGINAL, address) + chosen)


def _read(netlink: Netlink, wanted: bytes) -> Iterator[Entry]:
    for body in netlink.dump(_CT_GET, _HEADER + wanted):
        try:
            entry = _entry(body)
        except (struct.error, ValueError, KeyError, IndexError) as error:
            raise DataPlaneError(
                f"ctnetlink: the kernel's answer cannot be read: {error}", "resynchronise later"
            ) from error
        yield entry


def _entry(body: bytes) -> Entry:
    found = parse_attributes(body[4:])
    state = ""
    protocol = parse_attributes(found.get(_PROTOINFO, b""))
    if 1 in protocol:
        number = parse_attributes(protocol[1]).get(1, b"\0")[0]
        state = TCP_STATES[number] if number < len(TCP_STATES) else "NONE"
    return Entry(
        _way(found[_ORIGINAL]),
        _way(found[_REPLY]),
        int.from_bytes(found.get(_STATUS, b""), "big"),
        int.from_bytes(found.get(_TIMEOUT, b""), "big"),
        state,
        found.get(_ID, b""),
    )


def _way(body: bytes) -> Way:
    found = parse_attributes(body)
    addresses, ends = parse_attributes(found[1]), parse_attributes(found[2])
    protocol = ends[1][0]
    source, destination = IPv4Address(addresses[1]), IPv4Address(addresses[2])
    if protocol == ICMP:
        ident = int.from_bytes(ends.get(4, b""), "big")
        kind, code = ends.get(5, b"\0")[0], ends.get(6, b"\0")[0]
        return Way(protocol, source, destination, ident, ident, kind, code)
    ports = [int.from_bytes(ends.get(kind, b""), "big") for kind in (2, 3)]
    return Way(protocol, source, destination, ports[0], ports[1])


def create(entry: Entry) -> Request:
    """Enter a flow that is under way elsewhere.

    The kernel is told the plain reply and what to translate, and makes the reply of it.  A TCP
    flow's windows are not known here: both ways are `liberal`, so that no segment is out of
    window (RFC 5382 asks for no such check).
    """
    original, reply = entry.original, entry.reply
    body = _nest(_ORIGINAL, _pack(original)) + _nest(_REPLY, _pack(original.inverse()))
    if entry.status & SNAT:
        body += _nest(_NAT_SRC, _target(reply.destination, reply.destination_port))
    if entry.status & DNAT:
        body += _nest(_NAT_DST, _target(reply.source, reply.source_port))
    status = entry.status & (SEEN_REPLY | ASSURED) | _CONFIRMED
    body += attribute(_STATUS, status.to_bytes(4, "big"))
    body += attribute(_TIMEOUT, entry.timeout_s.to_bytes(4, "big"))
    if original.protocol == TCP:
        number = TCP_STATES.index(entry.tcp_state or "ESTABLISHED")
        flags = bytes([_LIBERAL, _LIBERAL])
        state = attribute(1, bytes([number])) + attribute(4, flags) + attribute(5, flags)
        body += _nest(_PROTOINFO, _nest(1, state))
    return Request(_CT_NEW, NLM_F_CREATE | NLM_F_EXCL, _HEADER + body)


def answered(protocol: int, tcp_state: str) -> int:
    """The status of a flow that both sides have spoken in, as far as its state tells."""
    if protocol == TCP and tcp_state in _OPENING:
        return 0
    return SEEN_REPLY | ASSURED


def delete(entry: Entry) -> Request:
    """Remove exactly this entry."""
    body = _nest(_ORIGINAL, _pack(entry.original))
    return Request(_CT_DELETE, 0, _HEADER + body + attribute(_ID, entry.ident))


def _nest(kind: int, value: bytes) -> bytes:
    return attribute(kind | _NESTED, value)


def _pack(way: Way) -> bytes:
    addresses = attribute(1, way.source.packed) + attribute(2, way.destination.packed)
    ends = attribute(1, bytes([way.protocol]))
    if way.protocol == ICMP:
        ends += attribute(4, way.source_port.to_bytes(2, "big"))
        ends += attribute(5, bytes([way.icmp_type])) + attribute(6, bytes([way.icmp_code]))
    elif way.protocol in _PORTED:
        ends += attribute(2, way.source_port.to_bytes(2, "big"))
        ends += attribute(3, way.destination_port.to_bytes(2, "big"))
    return _nest(1, addresses) + _nest(2, ends)


def _target(address: IPv4Address, port: int) -> bytes:
    body = attribute(1, address.packed) + attribute(2, address.packed)
    if port:
        number = port.to_bytes(2, "big")
        body += _nest(3, attribute(1, number) + attribute(2, number))
    return body


def failures(netlink: Netlink) -> tuple[int, int]:
    """(flows that could not be entered, packets dropped for that or for a full table) so far."""
    failed = dropped = 0
    for body in netlink.dump(_CT_STATS, _HEADER):
        found = parse_attributes(body[4:])
        failed += int.from_bytes(found.get(_STAT_INSERT_FAILED, b""), "big")
        dropped += int.from_bytes(found.get(_STAT_DROP, b""), "big")
    return failed, dropped
