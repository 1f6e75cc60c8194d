"""The relay's descriptors (TUN device, raw sockets), held by two processes at once.

The relay works with them; the daemon only holds them, so that they stay open when the relay is
killed: packets then wait in the kernel's queues for the next relay, which inherits them.  A daemon
that adopts a relay takes copies out of it.  Whichever of the two dies, nothing is lost; if both
die at once, what comes before their return is.  Not here: reading them (relay.py).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from vmmobility.drivers.linux.tap import open_tun

DESCRIPTORS = "--descriptors"
"""The relay's option that names those that it inherits."""
_BUFFER_BYTES = 32 << 20
_SEND_PATIENCE_US = 50_000
_BUFFER_OPTIONS = ((33, socket.SO_RCVBUF), (32, socket.SO_SNDBUF))
"""SO_RCVBUFFORCE and SO_SNDBUFFORCE pass the system's limits; without the right, the plain ones."""
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT = 10, 23, 0
_PROTOCOL = {4: 4, 6: 41}
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
    # Bigger than a router on the way allows: fragment the outer packet rather than lose it.
    if version == 4:
        raw.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
    else:
        raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
    return raw


def still_there(tun: int) -> bool:
    """Whether the TUN device of that descriptor exists."""
    try:
        fcntl.ioctl(tun, _TUNGETIFF, bytes(40))  # fails with EBADFD once the device is removed
    except OSError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class RelayDescriptors:
    """raw: IP version -> a raw socket's descriptor."""

    tun: int
    raw: Mapping[int, int]

    @property
    def all(self) -> tuple[int, ...]:
        """Every number."""
        return (self.tun, *self.raw.values())

    @property
    def usable(self) -> bool:
        """Whether a relay could work with them."""
        return still_there(self.tun)

    def as_text(self) -> str:
        """For a command line: "tun=7,4=8,6=9"."""
        return ",".join([f"tun={self.tun}", *(f"{v}={fd}" for v, fd in self.raw.items())])

    def close(self) -> None:
        """Let go of them here."""
        for descriptor in self.all:
            os.close(descriptor)


def open_all(tun_name: str, locators: Mapping[int, str]) -> RelayDescriptors:
    """Attach to the TUN device and open the raw sockets.  Raises OSError."""
    opened = [tun := open_tun(tun_name)]
    raw = {}
    try:
        for version, locator in locators.items():
            raw[version] = tunnel_socket(version, locator).detach()
            opened.append(raw[version])
    except OSError:
        for descriptor in opened:
            os.close(descriptor)
        raise
    return RelayDescriptors(tun, raw)


def from_text(text: str) -> RelayDescriptors:
    """What as_text() has written: numbers of this process, or of the one that says so."""
    numbers = dict(word.split("=") for word in text.split(","))
    tun = int(numbers.pop("tun"))
    return RelayDescriptors(tun, {int(version): int(fd) for version, fd in numbers.items()})


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
    return RelayDescriptors(mine[0], dict(zip(theirs.raw, mine[1:], strict=True)))


def _copy(handle: int, number: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(_PIDFD_GETFD, handle, number, 0)
    if descriptor < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"pidfd_getfd: {os.strerror(error)}")
    return int(descriptor)  # close-on-exec already
