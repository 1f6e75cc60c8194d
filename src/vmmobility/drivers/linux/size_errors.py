"""The ICMP errors about packets that are too big: whether one may be sent, and its octets.

Pure: packets in, messages out.  Fragmentation Needed (RFC 792, RFC 1191) and Packet Too Big (RFC
4443), from a tunnel's entry to the sender of the packet inside (RFC 2003 section 5.1, RFC 2473
section 7.1).  Not here: path MTUs and sockets (relay_sender.py).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

Packet = bytes | bytearray | memoryview

OUTER_HEADER = {4: 20, 6: 40}
LEAST_MTU = {4: 68, 6: 1280}
"""No link's MTU is smaller (RFC 791, RFC 8200 section 5), so no sender is told of a smaller one."""
MIN_PMTU4 = 552
"""The least path MTU that Linux takes from an IPv4 router's error, unless told otherwise
(Documentation/networking/ip-sysctl.rst: route/min_pmtu)."""
_ERROR_OCTETS = {4: 576, 6: 1280}
"""The longest error as a whole: RFC 1812 section 4.3.2.3; RFC 4443 section 2.4 (c)."""
_IP_HEADER = {4: 20, 6: 40}
_ICMP_HEADER = 8
_DONT_FRAGMENT, _FRAGMENT_OFFSET = 0x4000, 0x1FFF
_ICMP4, _ICMP6, _FRAGMENT, _AUTHENTICATION = 1, 58, 44, 51
_ERRORS4 = frozenset((3, 4, 5, 11, 12))
_REDIRECT6 = 137
_EXTENSIONS = frozenset((0, 43, 60, _FRAGMENT, _AUTHENTICATION))
_LONGEST_CHAIN = 8
_FRAG_NEEDED = (3, 4)
_TOO_BIG6 = 2


def inner_mtu(path_mtu: int, version: int) -> int:
    """What of a tunnel's path is left for packets inside; never less than any link's least."""
    return max(path_mtu - OUTER_HEADER[version], LEAST_MTU[version])


def believed_mtu(told: int, version: int, least4: int) -> int:
    """What a router's error makes the kernel believe of a path's MTU, in octets.

    told:   what the error says; 0 from a router older than RFC 1191, which names no MTU
    least4: the kernel's setting net.ipv4.route.min_pmtu
    """
    return max(told, least4 if version == 4 else LEAST_MTU[6])


def must_stay_whole(packet: Packet, version: int) -> bool:
    """Whether no router may fragment the packet: all of IPv6, IPv4 with Don't Fragment."""
    return version == 6 or bool(packet[6] & 0x40)


def octets(packet: Packet, version: int) -> int:
    """The packet's whole length by its header, also where it is quoted in part."""
    if version == 4:
        return int.from_bytes(packet[2:4], "big")
    return int.from_bytes(packet[4:6], "big") + _IP_HEADER[6]


def tellable(packet: Packet, version: int) -> bool:
    """Whether the packet's sender may be sent an ICMP error about it.

    RFC 1812 section 4.3.2.7, RFC 4443 section 2.4 (e): not about an ICMP error, nor to a source
    that is no single host; nor about a fragment other than the first, whose protocol is unknown.
    """
    return _tellable4(packet) if version == 4 else _tellable6(packet)


def _tellable4(packet: Packet) -> bool:
    if len(packet) < _IP_HEADER[4] or not _is_one_host(IPv4Address(bytes(packet[12:16]))):
        return False
    if IPv4Address(bytes(packet[16:20])).is_multicast:
        return False
    if int.from_bytes(packet[6:8], "big") & _FRAGMENT_OFFSET:
        return False
    if packet[9] != _ICMP4:
        return True
    start = (packet[0] & 15) * 4
    # Cut short before its type: an error as well as anything else.
    return len(packet) > start and packet[start] not in _ERRORS4


def _tellable6(packet: Packet) -> bool:
    if len(packet) < _IP_HEADER[6] or not _is_one_host(IPv6Address(bytes(packet[8:24]))):
        return False
    following, place = packet[6], _IP_HEADER[6]
    for _ in range(_LONGEST_CHAIN):
        if following == _ICMP6:
            return len(packet) > place and packet[place] >= 128 and packet[place] != _REDIRECT6
        if following not in _EXTENSIONS:
            return True
        if len(packet) < place + 8:
            return False
        if following == _FRAGMENT:
            if int.from_bytes(packet[place + 2 : place + 4], "big") >> 3:
                return False
            length = 8
        elif following == _AUTHENTICATION:
            length = (packet[place + 1] + 2) * 4  # RFC 4302 section 2.2
        else:
            length = 8 + packet[place + 1] * 8
        following, place = packet[place], place + length
    return False


def _is_one_host(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address) and (address.packed[0] == 0 or address.packed[0] >= 240):
        return False
    if isinstance(address, IPv6Address) and address.is_link_local:
        return False
    return not (address.is_multicast or address.is_loopback or address.is_unspecified)


def message(packet: Packet, version: int, mtu: int) -> bytes:
    """The ICMP message about the packet, without IP header.

    ICMPv4's checksum is filled in; ICMPv6's, over addresses too, is the sending socket's.
    """
    room = _ERROR_OCTETS[version] - _IP_HEADER[version] - _ICMP_HEADER
    quoted = bytes(packet[:room])
    if version == 6:
        return struct.pack("!BBHI", _TOO_BIG6, 0, 0, mtu) + quoted
    body = struct.pack("!BBHHH", *_FRAG_NEEDED, 0, 0, mtu) + quoted
    return body[:2] + _checksum(body).to_bytes(2, "big") + body[4:]


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


@dataclass(slots=True)
class Allowance:
    """A token bucket (RFC 4443 section 2.4 (f), RFC 1812 section 4.3.2.8): errors of one node.

    per_s: how many a second in the long run      burst: how many at once
    """

    per_s: float = 5000.0
    burst: float = 1000.0
    _left: float = field(default=0.0, init=False)
    _since: float = field(default=float("-inf"), init=False)

    def take(self, now: float) -> bool:
        """Whether one more may be sent at this time (monotonic seconds)."""
        self._left = min(self.burst, self._left + (now - self._since) * self.per_s)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
