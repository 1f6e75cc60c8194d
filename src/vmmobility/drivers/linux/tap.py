"""Persistent tap and TUN devices through /dev/net/tun: made, opened, let go.

Not here: their link settings (ports.py) or addresses.  They belong to no process: a device
outlives the daemon and the relay, so that routes to it outlive them too.
"""

from __future__ import annotations

import fcntl
import os
import struct

from vmmobility.errors import DataPlaneError, EnvironmentProblem

TUN_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TUN, _IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x1, 0x2, 0x1000, 0x4000


def check_tun_device() -> None:
    """Raise EnvironmentProblem unless tap and TUN devices can be made here."""
    try:
        os.close(os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise EnvironmentProblem(
            f"{TUN_DEVICE}: {error.strerror}", "load the kernel module `tun` and run as root"
        ) from error


def _open(name: str, flags: int) -> int:
    descriptor = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def create_tap(name: str) -> None:
    """Make a persistent tap (with the virtio header, as QEMU attaches), or find it there.

    Raises DataPlaneError.  A tap that a hypervisor holds open is there already: no error.
    """
    try:
        descriptor = _open(name, _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        try:
            fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataPlaneError(f"tap {name}: {error.strerror}", "is the name taken?") from error


def create_tun(name: str) -> None:
    """Make a persistent TUN device, or find it there.  Raises DataPlaneError."""
    try:
        os.close(open_tun(name))
    except OSError as error:
        raise DataPlaneError(f"TUN {name}: {error.strerror}", "is a relay left over?") from error


def open_tun(name: str) -> int:
    """Attach to a TUN device and keep it persistent; answers the non-blocking descriptor.

    Persistent even where this made it: routes to it must outlive whoever holds it.
    Raises OSError.
    """
    descriptor = _open(name, _IFF_TUN | _IFF_NO_PI)
    fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
    return descriptor


def open_tap(name: str) -> int:
    """Attach to a tap as a guest would, without the virtio header.  Raises OSError."""
    return _open(name, _IFF_TAP | _IFF_NO_PI)
