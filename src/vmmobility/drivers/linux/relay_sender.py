"""Encapsulation at its sockets: packets to peers, path MTUs learnt, inner senders told.

The outer packet may not be fragmented where the inner one may not be, so routers on the way tell
this node of a smaller MTU, the kernel remembers it, and refuses what is bigger (EMSGSIZE).  Then
the sender of the inner packet is told, as RFC 2003 section 5.1 and RFC 2473 section 7.1 want it.
What may be fragmented is: outside, once, here if the path's MTU is known.

Not here: who gets a packet (relay_table.py), the errors' octets (size_errors.py).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Mapping
from ipaddress import ip_address

from vmmobility.drivers.linux import sysctl
from vmmobility.drivers.linux.congestion_marks import marks_of
from vmmobility.drivers.linux.relay_descriptors import (
    forbid_fragments,
    mark_congestion,
    show_congestion,
)
from vmmobility.drivers.linux.relay_table import Entry, Packet, RelayTable
from vmmobility.drivers.linux.size_errors import (
    LEAST_MTU,
    MIN_PMTU4,
    OUTER_HEADER,
    Allowance,
    believed_mtu,
    inner_mtu,
    message,
    must_stay_whole,
    octets,
    tellable,
)

_LEVEL = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
_RECVERR = {4: 11, 6: 25}
_EXTENDED_ERROR = struct.Struct("@IBBBBII")
"""struct sock_extended_err: errno, origin, type, code, padding, info (the MTU), data."""
_LOCAL, _ICMP, _ICMP6 = 1, 2, 3
_TOO_BIG = {4: (_ICMP, 3, 4), 6: (_ICMP6, 2, 0)}
_QUOTE_OCTETS, _CONTROL_OCTETS = 2048, 512
_TRIES = 3
"""An error that came in the meantime fails one sending that has nothing to do with it."""


class Sender:
    """The raw sockets of one relay: tunnels by IP version, and those for ICMP errors."""

    def __init__(
        self,
        raw: Mapping[int, socket.socket],
        icmp: Mapping[int, socket.socket],
        table: RelayTable,
        clock: Callable[[], float],
    ) -> None:
        self._raw, self._icmp = raw, icmp
        self._table = table
        self._clock = clock
        self._allowance = Allowance()
        self._whole = dict.fromkeys(raw, True)
        self._marks = dict.fromkeys(raw, 0)
        # Older kernels show it in the first network namespace alone.
        self._least4 = int(sysctl.read("net/ipv4/route/min_pmtu") or MIN_PMTU4)
        for version, one in raw.items():
            # An inherited socket is as its last relay has left it.
            forbid_fragments(one, version, True)
            mark_congestion(one, version, 0)
            show_congestion(one, version)

    def send(self, version: int, peer: str, packet: Packet, entry: Entry | None) -> None:
        """Encapsulate a packet to a peer."""
        raw = self._raw.get(version)
        if raw is None:
            _count(entry, "drop_send_failed")
            return
        # RFC 2003 section 3.1: with Don't Fragment inside, it MUST be set outside.
        whole = must_stay_whole(packet, version)
        if whole is not self._whole[version]:
            self._forbid(raw, version, whole)
        # RFC 6040 section 4.1: the marks outside are those inside.
        marks = marks_of(packet, version)
        if marks != self._marks[version]:
            mark_congestion(raw, version, marks)
            self._marks[version] = marks
        try:
            raw.sendto(packet, (peer, 0))
        except OSError as error:
            self._send_again(raw, version, peer, packet, entry, error)

    def _forbid(self, raw: socket.socket, version: int, whole: bool) -> None:
        forbid_fragments(raw, version, whole)
        self._whole[version] = whole

    def _send_again(
        self, raw: socket.socket, version: int, peer: str, packet: Packet, entry: Entry | None,
        error: OSError,
    ) -> None:  # fmt: skip
        """After a refusal: learn why, try again where it was another packet's, tell or count."""
        for _ in range(_TRIES):
            if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                break  # a full queue: it has had its patience
            path_mtu = self.take_errors(version)
            if error.errno == errno.EMSGSIZE and path_mtu is not None:
                self._too_big(raw, version, peer, packet, entry, path_mtu)
                return
            try:
                raw.sendto(packet, (peer, 0))
                return
            except OSError as another:
                error = another
        too_big = error.errno == errno.EMSGSIZE
        _count(entry, "too_big_untold" if too_big else "drop_send_failed")

    def _too_big(
        self, raw: socket.socket, version: int, peer: str, packet: Packet, entry: Entry | None,
        path_mtu: int,
    ) -> None:  # fmt: skip
        """A packet that the kernel knows not to fit the path to a peer."""
        if must_stay_whole(packet, version) and len(packet) > LEAST_MTU[version]:
            self._tell(packet, version, path_mtu, entry)
            return
        # RFC 2473 section 7.1 (b): a packet that every IPv6 link takes is fragmented outside.
        self._forbid(raw, version, False)
        try:
            raw.sendto(packet, (peer, 0))
        except OSError:
            _count(entry, "drop_send_failed")

    def _tell(self, packet: Packet, version: int, path_mtu: int, entry: Entry | None) -> None:
        """Tell a packet's sender what fits; count where it cannot be told.

        An error that is sent passes nftables, which counts it for the VM (filter.py).
        """
        icmp = self._icmp.get(version)
        if icmp is None or not tellable(packet, version) or not self._allowance.take(self._clock()):
            _count(entry, "too_big_untold")
            return
        source = packet[12:16] if version == 4 else packet[8:24]
        error = message(packet, version, inner_mtu(path_mtu, version))
        try:
            icmp.sendto(error, (str(ip_address(bytes(source))), 0))
        except OSError:
            _count(entry, "too_big_untold")
            return
        _count(entry, "too_big_told")

    def take_errors(self, version: int) -> int | None:
        """Empty a tunnel socket's error queue; the path MTU of what was refused here, if any was.

        Of a packet that a router on the way has dropped for its size, the inner sender is told.
        """
        raw, refused = self._raw[version], None
        while True:
            try:
                quote, control, _, address = raw.recvmsg(
                    _QUOTE_OCTETS, _CONTROL_OCTETS, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT
                )
            except OSError:
                return refused
            for level, kind, content in control:
                if (level, kind) != (_LEVEL[version], _RECVERR[version]):
                    continue
                if len(content) < _EXTENDED_ERROR.size:
                    continue
                number, origin, one, code, _, mtu, _ = _EXTENDED_ERROR.unpack_from(content)
                if origin == _LOCAL and number == errno.EMSGSIZE:
                    refused = mtu
                elif (origin, one, code) == _TOO_BIG[version]:
                    self._dropped_on_the_way(quote, version, address[0], mtu)

    def _dropped_on_the_way(self, quote: bytes, version: int, peer: str, path_mtu: int) -> None:
        """RFC 2003 section 4.1, RFC 2473 section 8.2: a tunnel's error is the inner sender's, too.

        The quote may be forged: nothing is told but of a packet that this node could have sent
        to that peer, now or before, and that is too big for the path as the quote has it.  Nor is
        its sender told less than what the kernel believes: that is what the next one must fit.
        """
        entry = self._table.entry_of(quote, version)
        if entry is None or peer not in entry.sent_to:
            return
        fits = path_mtu - OUTER_HEADER[version] >= octets(quote, version)
        if fits or not must_stay_whole(quote, version):
            return
        believed = believed_mtu(path_mtu, version, self._least4)
        if octets(quote, version) > inner_mtu(believed, version):
            self._tell(quote, version, believed, entry)
        else:
            _count(entry, "too_big_untold")  # over IPv6 the next one is fragmented outside


def _count(entry: Entry | None, what: str) -> None:
    if entry is not None:
        entry.counters[what] += 1
