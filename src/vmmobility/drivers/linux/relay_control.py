"""The relay's control socket: newline-delimited JSON orders, each answered in order.

    {"op": "hello"}                                     -> version, pid, configuration, descriptors
    {"op": "set", "entries": [...], "ports": [...], "inside": [...]}  -> the whole table
    {"op": "change", "put": [...], "gone": ["0/vm"]}    -> some entries; "ports" where they changed
    {"op": "counters"}                                  -> {"vms": {...}, "strays": {...}}
    {"op": "stop"}

A wrong order is answered with `"ok": false` and changes nothing.  Control never blocks: the
packets have the thread.  Not here: packets (relay.py), the daemon's side (relay_client.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmmobility.drivers.linux.inside import Inside
from vmmobility.drivers.linux.neighbour_proxy import NeighbourProxy, read_ports
from vmmobility.drivers.linux.relay_table import RelayTable, read_entry

VERSION = 3
_READ_BYTES = 1 << 20
_LONGEST_ORDER = 64 << 20


class Control:
    """Listens, and keeps the table and the ports as ordered."""

    def __init__(
        self, path: Path, table: RelayTable, proxy: NeighbourProxy, configuration: list[str],
        descriptors: str = "",
    ) -> None:  # fmt: skip
        self.table = table
        self.stopping = False
        self.told = False  # whether a daemon has said what the table holds
        self._descriptors = descriptors
        self._proxy = proxy
        self._configuration = configuration
        self._path = path
        self._poll: select.epoll | None = None
        self._clients: dict[int, _Client] = {}
        # The lock says that no other relay lives: a socket file here is a dead one's.
        path.unlink(missing_ok=True)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._listening.setblocking(False)
        previous = os.umask(0o077)
        try:
            self._listening.bind(str(path))
        finally:
            os.umask(previous)
        self._listening.listen(8)

    def attach(self, poll: select.epoll) -> None:
        """Have the loop's epoll watch the socket."""
        self._poll = poll
        poll.register(self._listening.fileno(), select.EPOLLIN)

    def handle(self, descriptor: int, events: int) -> None:
        """Work on one descriptor of ours that is ready."""
        if descriptor == self._listening.fileno():
            self._accept()
            return
        client = self._clients.get(descriptor)
        if client is None or self._poll is None:
            return
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            orders = client.read()
            if orders is None:
                self._drop(descriptor)
                return
            for order in orders:
                client.answer(self._obey(order))
        if not client.flush():
            self._drop(descriptor)
            return
        wanted = select.EPOLLIN | (select.EPOLLOUT if client.waiting else 0)
        self._poll.modify(descriptor, wanted)

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError:
            return
        connection.setblocking(False)
        self._clients[connection.fileno()] = _Client(connection)
        if self._poll is not None:
            self._poll.register(connection.fileno(), select.EPOLLIN)

    def _drop(self, descriptor: int) -> None:
        client = self._clients.pop(descriptor)
        if self._poll is not None:
            self._poll.unregister(descriptor)
        client.connection.close()

    def _obey(self, line: bytes) -> dict[str, Any]:
        try:
            order = json.loads(line)
            return {"ok": True, **self._do(order)}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    def _do(self, order: Mapping[str, Any]) -> dict[str, Any]:
        operation = order["op"]
        if operation == "change":
            put = [read_entry(one) for one in order.get("put", ())]
            ports = read_ports(order["ports"]) if "ports" in order else self._proxy.ports
            self.table.change(put, [str(vm) for vm in order.get("gone", ())])
            self._proxy.ports = ports
            self.told = True
        elif operation == "set":
            entries = [read_entry(one) for one in order["entries"]]
            inside = Inside(order.get("inside", ()))
            self._proxy.ports = read_ports(order["ports"])
            self.table.inside = inside
            self.table.replace_all(entries)
            self.told = True
        elif operation == "counters":
            strays = {**self.table.strays, "neighbours_answered": self._proxy.answered}
            return {"vms": self.table.counters(), "strays": strays}
        elif operation == "hello":
            return {
                "version": VERSION,
                "pid": os.getpid(),
                "configuration": self._configuration,
                "descriptors": self._descriptors,
            }
        elif operation == "stop":
            self.stopping = True
        else:
            raise ValueError(f"unknown order {operation!r}")
        return {}

    def close(self) -> None:
        """Close the socket and remove its file."""
        for client in self._clients.values():
            with contextlib.suppress(OSError):
                client.flush()
            client.connection.close()
        self._listening.close()
        self._path.unlink(missing_ok=True)


class _Client:
    """One connection: its unfinished order and its unsent answers."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._partial = b""
        self._unsent = b""

    @property
    def waiting(self) -> bool:
        return bool(self._unsent)

    def read(self) -> list[bytes] | None:
        """The orders that are complete now; None where the connection has ended."""
        try:
            data = self.connection.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        self._partial += data
        if not data or len(self._partial) > _LONGEST_ORDER:
            return None
        *orders, self._partial = self._partial.split(b"\n")
        return orders

    def answer(self, content: Mapping[str, Any]) -> None:
        self._unsent += json.dumps(content, separators=(",", ":")).encode() + b"\n"

    def flush(self) -> bool:
        """Send what the socket takes; False where the connection has ended."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self.connection.send(self._unsent) :]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True
