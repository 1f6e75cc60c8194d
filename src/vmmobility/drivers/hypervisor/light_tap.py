"""A light VM's taps: opened here or in another namespace, copied between, handed over.

Not here: when (light_nic.py).  Standard library only.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Callable

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TAP, _IFF_NO_PI = 0x2, 0x1000
_CLONE_NEWNET = 0x40000000
_FRAME = 65600
_BATCH = 64


def pump(source: int, sink: int) -> int:
    """Copy the frames that wait, at most a batch; how many."""
    for number in range(_BATCH):
        try:
            frame = os.read(source, _FRAME)
        except OSError:
            return number  # no more, or the tap is down
        with contextlib.suppress(OSError):
            os.write(sink, frame)
    return _BATCH


def open_tap(name: str) -> int:
    """Attach to a tap of the calling thread's namespace, without header or offloads."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
        fcntl.ioctl(descriptor, _TUNSETOFFLOAD, 0)
    except OSError as error:
        os.close(descriptor)
        raise OSError(error.errno, f"tap {name}: {error.strerror}") from error
    return descriptor


def in_namespace(name: str, work: Callable[[], list[int]]) -> list[int]:
    """Do `work` inside the network namespace of /run/netns and come back."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(there, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter namespace {name}")
        try:
            return work()
        finally:
            libc.setns(home, _CLONE_NEWNET)
    finally:
        os.close(home)
        os.close(there)


def send_descriptors(door: str, descriptors: list[int]) -> None:
    """Hand open taps to the process that listens at the unix socket `door`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as passage:
        passage.connect(door)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        passage.sendmsg([b"eth0"], rights)


def receive_descriptors(passage: socket.socket, count: int) -> list[int]:
    """The taps that come through `passage`."""
    room = socket.CMSG_SPACE(count * array.array("i").itemsize)
    _, extra, _, _ = passage.recvmsg(16, room)
    for level, kind, data in extra:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors = array.array("i")
            descriptors.frombytes(data)
            return list(descriptors)
    raise ConnectionError("the source sent no network card")
