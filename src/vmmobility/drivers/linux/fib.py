"""The kernel's main routing table, and a router's own beside it, mirrored: a dump, then every word.

The words come on a socket of their own, read when the event loop finds some (or when somebody
wants to look: `drain`).  Where the kernel removes routes in silence (IPv4: a link goes down, an
address or a next hop object goes away), where words were lost or a dump broke, all is read again.
Not here: look-ups (fib_table.py), messages (fib_messages.py), what follows (router_driver.py).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

from vmmobility.drivers.linux import rtnetlink
from vmmobility.drivers.linux.fib_messages import dump_routes, read_route
from vmmobility.drivers.linux.fib_table import FibTable
from vmmobility.drivers.linux.netlink import (
    SOL_NETLINK,
    Netlink,
    number,
    parse_attributes,
    split_messages,
)
from vmmobility.drivers.linux.ownership import HOLD_TABLE, MAIN_TABLE
from vmmobility.errors import DataPlaneError

_ADD_MEMBERSHIP = 1
_GROUP_LINK, _GROUP_ADDRESS4, _GROUP_ROUTE4, _GROUP_ROUTE6, _GROUP_NEXTHOP = 1, 5, 7, 11, 32
_RTM_DELADDR, _RTM_NEWNEXTHOP, _RTM_DELNEXTHOP = 21, 104, 105
_NHA_ID, _NEXTHOP_HEADER = 1, 8
_LINK = struct.Struct("=BxHiII")
_IFLA_NAME = 3
_UP, _RUNNING = 0x1, 0x40
"""IFF_UP, IFF_RUNNING: what of an interface the routes hang on."""

_SO_RCVBUFFORCE = 33
_DATAGRAM_BYTES = 1 << 16
_TURN = 500
"""Words read before the event loop has its turn; each takes some 10 microseconds."""
_RETRY_S, _SETTLE_S = 0.1, 0.25
"""After a broken dump; after a link's change, of which the kernel tells before it acts on it."""


class _LinkState(NamedTuple):
    name: str
    up: bool
    running: bool


class Fib:
    """Tables main and 7701 as the kernel has them.

    changed:    called on the loop, once for many words, after the main table changed or `shaken`
    shaken:     routes may have gone without a word since somebody set it back
    current:    False while the table cannot be read; it is tried again
    reloads:    how often all was read
    receive_bytes: the socket's buffer for words that wait
    """

    def __init__(self, changed: Callable[[], None], receive_bytes: int = 8 << 20) -> None:
        self._changed = changed
        self._receive_bytes = receive_bytes
        self._buffer = bytearray(_DATAGRAM_BYTES)
        self._tables = {MAIN_TABLE: FibTable(), HOLD_TABLE: FibTable()}
        self._links: dict[int, _LinkState] = {}
        self._socket: socket.socket | None = None
        self._netlink: Netlink | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._later: asyncio.TimerHandle | None = None
        self._told: asyncio.Handle | None = None
        self._doubt = False
        self.shaken = False
        self.current = False
        self.reloads = 0

    @property
    def main(self) -> FibTable:
        """What the routing daemon, the operator and we have put into the main table."""
        return self._tables[MAIN_TABLE]

    @property
    def hold(self) -> FibTable:
        """The router's own table."""
        return self._tables[HOLD_TABLE]

    @property
    def tables(self) -> Mapping[int, FibTable]:
        """Both, by number."""
        return self._tables

    def interface(self, ifindex: int) -> str:
        """An interface's name."""
        link = self._links.get(ifindex)
        return link.name if link is not None else f"interface {ifindex}"

    # -- life ---------------------------------------------------------------------------------

    def start(self, netlink: Netlink) -> None:
        """Listen, then read all, `netlink` being asked.  Raises DataPlaneError."""
        self.close()
        self._netlink, self._loop = netlink, asyncio.get_running_loop()
        self._socket = self._listen()
        self._loop.add_reader(self._socket, self._ready)
        self.reload()

    def _listen(self) -> socket.socket:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        made = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        try:
            made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, self._receive_bytes)
        except OSError:  # without CAP_NET_ADMIN over the machine: what the machine allows
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_bytes)
        made.bind((0, 0))
        groups = (_GROUP_LINK, _GROUP_ADDRESS4, _GROUP_ROUTE4, _GROUP_ROUTE6, _GROUP_NEXTHOP)
        for group in groups:
            try:
                made.setsockopt(SOL_NETLINK, _ADD_MEMBERSHIP, group)
            except OSError as error:
                made.close()
                raise DataPlaneError(
                    f"netlink: changes of the routing table are not told: {error}",
                    "the kernel must be 5.3 or newer",
                ) from error
        return made

    def close(self) -> None:
        """Listen no more; what was read stays."""
        for handle in (self._later, self._told):
            if handle is not None:
                handle.cancel()
        self._later = self._told = None
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
        self._socket = None
        self.current = False

    # -- words --------------------------------------------------------------------------------

    def _ready(self) -> None:
        self._read(_TURN)

    def drain(self) -> None:
        """Take in every word that the kernel has said until now."""
        self._read(None)

    def _read(self, most: int | None) -> None:
        if self._socket is None:
            return
        if not self._hear(most):
            self._doubt = True
        if self._doubt:
            self._mend()

    def _hear(self, most: int | None) -> bool:
        """Read words; False where some were lost or made no sense."""
        assert self._socket is not None
        whole, count = True, 0
        while most is None or count < most:
            count += 1
            try:
                size, sender = self._socket.recvfrom_into(self._buffer)
            except BlockingIOError:
                break
            except OSError as error:
                whole = False
                if error.errno != errno.ENOBUFS:
                    break
                continue
            if sender[0] == 0:
                whole = self._take(bytes(memoryview(self._buffer)[:size])) and whole
        return whole

    def _take(self, datagram: bytes) -> bool:
        try:
            for kind, flags, _, body in split_messages(datagram):
                if kind in (rtnetlink.RTM_NEWROUTE, rtnetlink.RTM_DELROUTE):
                    self._route(kind, flags, body)
                elif kind in (rtnetlink.RTM_NEWLINK, rtnetlink.RTM_DELLINK):
                    self._link(kind, body)
                elif kind == _RTM_DELADDR:
                    self._shake()
                elif kind in (_RTM_NEWNEXTHOP, _RTM_DELNEXTHOP):
                    self._next_hop_object(body)
        except (struct.error, ValueError, IndexError):
            return False
        return True

    def _route(self, kind: int, flags: int, body: bytes) -> None:
        route = read_route(body, self._tables)
        if route is None:
            return
        table = self._tables[route.table]
        if kind == rtnetlink.RTM_NEWROUTE:
            changed = table.learn(route, flags)
        else:
            changed = table.forget(route)
        self._doubt = self._doubt or table.unsure
        if changed and route.table == MAIN_TABLE:
            self._tell()

    def _link(self, kind: int, body: bytes) -> None:
        family, _, index, flags, _ = _LINK.unpack_from(body)
        if family != socket.AF_UNSPEC:
            return
        before = self._links.get(index)
        if kind == rtnetlink.RTM_DELLINK:
            self._links.pop(index, None)
            self._shake()
            return
        name = parse_attributes(body[_LINK.size :]).get(_IFLA_NAME, b"")
        named = name.rstrip(b"\0").decode(errors="replace")
        now = self._links[index] = _LinkState(named, bool(flags & _UP), bool(flags & _RUNNING))
        if before is not None and before != now:
            self._shake()

    def _next_hop_object(self, body: bytes) -> None:
        """An object that routes name: those may go, or lead elsewhere, without a word."""
        found = parse_attributes(body[_NEXTHOP_HEADER:])
        used = number(found.get(_NHA_ID, b""))
        if any(used in table.nh_ids for table in self._tables.values()):
            self._shake()

    def _shake(self) -> None:
        """Routes may go in silence: read all now, and once more when the kernel has acted."""
        self.shaken = self._doubt = True
        self._soon(_SETTLE_S)

    # -- reading all --------------------------------------------------------------------------

    def reload(self) -> None:
        """Read all from the kernel.  Raises DataPlaneError; then nothing is current."""
        if self._socket is None or self._netlink is None:
            raise DataPlaneError("the routing table is not followed", "call start() first")
        self._doubt = False
        try:
            self._load(self._netlink)
        except (DataPlaneError, OSError) as error:
            self.current, self._doubt = False, True
            self._soon(_RETRY_S)
            if isinstance(error, DataPlaneError):
                raise
            raise DataPlaneError(f"the routing table cannot be read: {error}") from error

    def _load(self, netlink: Netlink) -> None:
        # What is heard from here on is newer than the dump, or does no harm.
        self._hear(None)
        # The kernel tells of a link before it acts, but under a lock that this look-up waits for.
        rtnetlink.link_named(netlink, "lo")
        links = {
            link.index: _LinkState(link.name, link.up, link.running)
            for link in rtnetlink.links(netlink)
        }
        if any(links.get(index) != state for index, state in self._links.items()):
            self._shake()
        self._links, self._doubt = links, False
        fresh = {number: FibTable() for number in self._tables}
        for route in dump_routes(netlink, self._tables):
            fresh[route.table].append(route)
        changed = fresh[MAIN_TABLE] != self.main
        self._tables = fresh
        self.current = True
        self.reloads += 1
        if changed or self.shaken:
            self._tell()

    def _mend(self) -> None:
        """Read all again, in the loop's own time if it cannot be now."""
        try:
            self.reload()
        except DataPlaneError:
            self._tell()  # whoever watches sees that it is not current

    def _soon(self, delay_s: float) -> None:
        if self._loop is None:
            return
        if self._later is not None:
            self._later.cancel()
        self._later = self._loop.call_later(delay_s, self._once_more)

    def _once_more(self) -> None:
        self._later = None
        self.shaken = True
        self._mend()

    def _tell(self) -> None:
        if self._told is None and self._loop is not None:
            self._told = self._loop.call_soon(self._telling)

    def _telling(self) -> None:
        self._told = None
        self._changed()
