"""A frame for nobody, the first in the tap of a guest that waits for its memory.

QEMU reads one frame from a tap before the guest's memory has come, with the short virtio header
of a device that nobody has set up yet, and gives it to the guest after that with the long one: the
guest drops it, shifted by two octets (QEMU 7.2).  So the first early packet of a move would be
lost.  This frame is that one.

Not here: when a guest waits (qemu.py).  Rests on AF_PACKET.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress

ETHER_TYPE = 0x88B5  # IEEE 802: for local experiments; guests know none
SOURCE = bytes([2, 0, 0, 0, 0, 0])
LEAST = 60  # octets of a frame


def spend_first_frames(taps: Iterable[tuple[str, bytes]]) -> None:
    """Put one into each tap (its name, its guest's MAC), which QEMU has opened.

    Where that cannot be one early packet is lost, and nothing else: it is no error."""
    for name, mac in taps:
        frame = (mac + SOURCE + ETHER_TYPE.to_bytes(2, "big")).ljust(LEAST, b"\0")
        with suppress(OSError), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as out:
            out.bind((name, 0))
            out.send(frame)
