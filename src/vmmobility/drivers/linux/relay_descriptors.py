"""The relay's descriptors (TUN device, raw sockets of tunnels and of ICMP), held by two processes.

The relay works with them; the daemon only holds them, so that they stay open when the relay is
killed: packets then wait in the kernel's queues for the next relay, which inherits them.  A daemon
that adopts a relay takes copies out of it.  Whichever of the two dies, nothing is lost; if both
die at once, what comes before their return is.  Not here: when they are read (relay.py).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from vmmobility.drivers.linux.tap import open_tun

DESCRIPTORS = "--descriptors"
"""The relay's option that names those that it inherits."""
_ICMP = "icmp"
_BUFFER_BYTES = 32 << 20
_SEND_PATIENCE_US = 50_000
_BUFFER_OPTIONS = ((33, socket.SO_RCVBUF), (32, socket.SO_SNDBUF))
"""SO_RCVBUFFORCE and SO_SNDBUFFORCE pass the system's limits; without the right, the plain ones."""
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_LEVEL = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
_MTU_DISCOVER = {4: 10, 6: 23}
_RECVERR = {4: 11, 6: 25}
_TRAFFIC_CLASS = {4: socket.IP_TOS, 6: socket.IPV6_TCLASS}
_RECVTCLASS = socket.IPV6_RECVTCLASS
_CONTROL_OCTETS = 64
_PROTOCOL = {4: 4, 6: 41}
_ICMP_PROTOCOL = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_NO_ICMP = {4: (255, 1, b"\xff" * 4), 6: (socket.IPPROTO_ICMPV6, 1, b"\xff" * 32)}
"""ICMP_FILTER and ICMP6_FILTER that let no message in: (level, option, value)."""
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_TUNGETIFF = 0x800454D2
_PIDFD_GETFD = 438  # the same number on every architecture


def tunnel_socket(version: int, locator: str) -> socket.socket:
    """The raw socket of one family; reads are made non-blocking by their flag.

    Sending blocks for a moment where the kernel's queue is full, rather than to lose packets.
    """
    raw = socket.socket(_FAMILY[version], socket.SOCK_RAW | socket.SOCK_CLOEXEC, _PROTOCOL[version])
    raw.bind((locator, 0))
    for forced, plain in _BUFFER_OPTIONS:
        try:
            raw.setsockopt(socket.SOL_SOCKET, forced, _BUFFER_BYTES)
        except PermissionError:
            raw.setsockopt(socket.SOL_SOCKET, plain, _BUFFER_BYTES)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, _SEND_PATIENCE_US))
    forbid_fragments(raw, version, True)
    # Errors wait in a queue of their own, with what they are about; without it the kernel would
    # not let an unconnected IPv6 socket learn the path's MTU.
    raw.setsockopt(_LEVEL[version], _RECVERR[version], 1)
    return raw


def forbid_fragments(raw: socket.socket, version: int, forbidden: bool) -> None:
    """Whether what the socket sends may be fragmented, here or on the way.

    Forbidden: Don't Fragment is set, and what exceeds the path's known MTU is refused (EMSGSIZE).
    """
    mode = _PMTUDISC_DO if forbidden else _PMTUDISC_DONT
    raw.setsockopt(_LEVEL[version], _MTU_DISCOVER[version], mode)


def mark_congestion(raw: socket.socket, version: int, marks: int) -> None:
    """What congestion marks the socket's packets carry; their DSCP is 0."""
    raw.setsockopt(_LEVEL[version], _TRAFFIC_CLASS[version], marks)


def show_congestion(raw: socket.socket, version: int) -> None:
    """Have the socket show the marks of what comes, for `read_encapsulated`."""
    if version == 6:
        raw.setsockopt(socket.IPPROTO_IPV6, _RECVTCLASS, 1)


def read_encapsulated(raw: socket.socket, version: int) -> tuple[bytes, int, str]:
    """The inner packet that comes next, the outer one's congestion marks, and its sender.

    Raises BlockingIOError where nothing waits, OSError for an error that came.
    """
    if version == 4:
        # A raw IPv4 socket shows the outer header as well; its length is in words.
        packet, address = raw.recvfrom(65536, socket.MSG_DONTWAIT)
        return packet[(packet[0] & 15) * 4 :], packet[1] & 3, address[0]
    packet, control, _, address = raw.recvmsg(65536, _CONTROL_OCTETS, socket.MSG_DONTWAIT)
    # The one thing that the socket is asked to show: an int in the machine's order.
    marks = int.from_bytes(control[0][2], sys.byteorder) & 3 if control else 0
    return packet, marks, address[0]


def icmp_socket(version: int, locator: str) -> socket.socket:
    """A raw socket that sends ICMP messages from the locator, and hears none.

    Past the TUN device: what comes in there can reach nothing but taps.
    """
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    icmp = socket.socket(_FAMILY[version], kind, _ICMP_PROTOCOL[version])
    icmp.setsockopt(*_NO_ICMP[version])
    icmp.bind((locator, 0))
    return icmp


def still_there(tun: int) -> bool:
    """Whether the TUN device of that descriptor exists."""
    try:
        fcntl.ioctl(tun, _TUNGETIFF, bytes(40))  # fails with EBADFD once the device is removed
    except OSError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class RelayDescriptors:
    """raw, icmp: IP version -> the descriptor of the tunnel's socket, and of ICMP's."""

    tun: int
    raw: Mapping[int, int]
    icmp: Mapping[int, int]

    @property
    def all(self) -> tuple[int, ...]:
        """Every number."""
        return (self.tun, *self.raw.values(), *self.icmp.values())

    @property
    def usable(self) -> bool:
        """Whether a relay could work with them."""
        return still_there(self.tun)

    def as_text(self) -> str:
        """For a command line: "tun=7,4=8,6=9,icmp4=10,icmp6=11"."""
        raw = [f"{version}={number}" for version, number in self.raw.items()]
        icmp = [f"{_ICMP}{version}={number}" for version, number in self.icmp.items()]
        return ",".join([f"tun={self.tun}", *raw, *icmp])

    def close(self) -> None:
        """Let go of them here."""
        for descriptor in self.all:
            os.close(descriptor)


def open_all(tun_name: str, locators: Mapping[int, str]) -> RelayDescriptors:
    """Attach to the TUN device and open the raw sockets.  Raises OSError."""
    opened = [tun := open_tun(tun_name)]
    raw, icmp = {}, {}
    try:
        for version, locator in locators.items():
            raw[version] = tunnel_socket(version, locator).detach()
            opened.append(raw[version])
            icmp[version] = icmp_socket(version, locator).detach()
            opened.append(icmp[version])
    except OSError:
        for descriptor in opened:
            os.close(descriptor)
        raise
    return RelayDescriptors(tun, raw, icmp)


def from_text(text: str) -> RelayDescriptors:
    """What as_text() has written: numbers of this process, or of the one that says so."""
    numbers = {name: int(number) for name, number in (w.split("=") for w in text.split(","))}
    return RelayDescriptors(
        numbers["tun"],
        {version: numbers[str(version)] for version in (4, 6) if str(version) in numbers},
        {v: numbers[f"{_ICMP}{v}"] for v in (4, 6) if f"{_ICMP}{v}" in numbers},
    )


def copies_of(pid: int, text: str) -> RelayDescriptors:
    """This process's own copies of those that process `pid` names.  Raises OSError."""
    theirs = from_text(text)
    handle = os.pidfd_open(pid)
    mine: list[int] = []
    try:
        for number in theirs.all:
            mine.append(_copy(handle, number))
    except OSError:
        for descriptor in mine:
            os.close(descriptor)
        raise
    finally:
        os.close(handle)
    raw, icmp = mine[1 : 1 + len(theirs.raw)], mine[1 + len(theirs.raw) :]
    return RelayDescriptors(
        mine[0],
        dict(zip(theirs.raw, raw, strict=True)),
        dict(zip(theirs.icmp, icmp, strict=True)),
    )


def _copy(handle: int, number: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(_PIDFD_GETFD, handle, number, 0)
    if descriptor < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"pidfd_getfd: {os.strerror(error)}")
    return int(descriptor)  # close-on-exec already
