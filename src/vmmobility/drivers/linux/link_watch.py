"""Who is told when an interface comes, goes, turns up or down, or takes other sizes of packets.

Routes go with their interface, and nobody else tells: a link that is restarted has lost the host
routes by it.  Taps of ours are left out.  Not here: what follows (the audit: driver.py).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable

from vmmobility.drivers.linux.netlink import split_messages
from vmmobility.drivers.linux.ownership import is_our_tap
from vmmobility.drivers.linux.rtnetlink import RTM_DELLINK, RTM_NEWLINK, read_link
from vmmobility.errors import DataPlaneError

_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_LINK = 270, 1, 1
_DATAGRAM_BYTES = 1 << 16


class LinkWatch:
    """Calls `changed` in the event loop; also where the kernel says that words were lost."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._known: dict[int, tuple[str, bool, int]] = {}
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Begin to listen, in the running loop."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_LINK)
        asyncio.get_running_loop().add_reader(self._socket, self._ready)

    def close(self) -> None:
        """Listen no more."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _ready(self) -> None:
        assert self._socket is not None
        differs = False
        while True:
            try:
                data, sender = self._socket.recvfrom(_DATAGRAM_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                differs = True
                if error.errno != errno.ENOBUFS:
                    self.close()
                    break
                continue
            if sender[0] == 0:
                differs = self._take(data) or differs
        if differs:
            self._changed()

    def _take(self, datagram: bytes) -> bool:
        """Whether anything differs that routes or tunnels rest on; what cannot be read may."""
        differs = False
        try:
            for kind, _, _, body in split_messages(datagram):
                if kind not in (RTM_NEWLINK, RTM_DELLINK):
                    continue
                link = read_link(body)
                if is_our_tap(link.name):
                    continue
                now = (link.name, link.up, link.mtu) if kind == RTM_NEWLINK else None
                differs = differs or now != self._known.get(link.index)
                if now is None:
                    self._known.pop(link.index, None)
                else:
                    self._known[link.index] = now
        except (struct.error, ValueError, IndexError, DataPlaneError):
            return True
        return differs
