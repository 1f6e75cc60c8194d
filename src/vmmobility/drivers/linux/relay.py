"""The relay's program: packets between the TUN device and IP-in-IP tunnels, control beside.

    python -m vmmobility.drivers.linux.relay --tun vmmob-tun --state-dir DIR --ipv4 A --ipv6 B

One thread, one epoll loop, batches of reads.  IPv4-in-IPv4 is protocol 4 (RFC 2003), IPv6-in-IPv6
protocol 41 (RFC 2473), both by raw sockets.  The process outlives the daemon: traffic flows on
(fail static), and the next daemon adopts it over the control socket (relay_control.py).  Without
--tun it moves no packets, and only answers neighbours.

Not here: the decisions (relay_table.py), sending and path MTUs (relay_sender.py), the NDP answers
(neighbour_proxy.py).
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv6Address
from pathlib import Path

from vmmobility.drivers.linux.neighbour_proxy import NeighbourProxy
from vmmobility.drivers.linux.relay_control import Control
from vmmobility.drivers.linux.relay_descriptors import (
    DESCRIPTORS,
    RelayDescriptors,
    from_text,
    open_all,
    read_encapsulated,
    still_there,
)
from vmmobility.drivers.linux.relay_sender import Sender
from vmmobility.drivers.linux.relay_table import Decision, RelayTable, Verdict

_BATCH = 64
"""Packets read from one descriptor before the others get their turn: bounds control's wait."""


class Relay:
    """The devices, the table between them and the loop."""

    def __init__(
        self, descriptors: RelayDescriptors | None, proxy: NeighbourProxy, control: Control
    ) -> None:
        self._proxy = proxy
        self._control = control
        self.table: RelayTable = control.table
        self._tun = -1
        self._handlers: dict[int, Callable[[], None]] = {}
        self._versions: dict[int, int] = {}
        if descriptors is None:
            return  # the kernel's tunnels carry the packets: an open raw socket would get them, too
        tun = self._tun = descriptors.tun
        raws = {version: socket.socket(fileno=fd) for version, fd in descriptors.raw.items()}
        icmp = {version: socket.socket(fileno=fd) for version, fd in descriptors.icmp.items()}
        self._sender = Sender(raws, icmp, self.table, time.monotonic)
        self._handlers[tun] = self._read_tun
        for version, raw in raws.items():
            self._handlers[raw.fileno()] = _reader(self, raw, version)
            self._versions[raw.fileno()] = version

    def run(self) -> None:
        """Work until the control socket orders a stop."""
        poll = select.epoll()
        poll.register(self._proxy.fileno(), select.EPOLLIN)
        self._control.attach(poll)
        # Without a table every packet would be a stray: what comes before it waits.
        waiting = list(self._handlers)
        self._handlers[self._proxy.fileno()] = self._proxy.handle
        while not self._control.stopping:
            while waiting and self._control.told:
                poll.register(waiting.pop(), select.EPOLLIN)
            ready = poll.poll()
            for descriptor, events in ready:
                handler = self._handlers.get(descriptor)
                if handler is None:
                    self._control.handle(descriptor, events)
                    continue
                if events & select.EPOLLERR and descriptor in self._versions:
                    self._sender.take_errors(self._versions[descriptor])
                handler()

    def _read_tun(self) -> None:
        read, decide, act, tun = os.read, self.table.from_kernel, self._act, self._tun
        for _ in range(_BATCH):
            try:
                packet = read(tun, 65536)
            except BlockingIOError:
                return
            except OSError:
                # The device is down or gone: the daemon repairs it, and starts us again.
                self._control.stopping = not still_there(tun)
                return
            act(decide(packet), packet[0] >> 4 if packet else 0)

    def read_tunnel(self, raw: socket.socket, version: int) -> None:
        """Take a batch of encapsulated packets."""
        decide, act = self.table.from_peer, self._act
        for _ in range(_BATCH):
            try:
                packet, marks, peer = read_encapsulated(raw, version)
            except OSError:
                return
            act(decide(packet, version, peer, marks), version)

    def _act(self, decision: Decision, version: int) -> None:
        verdict, peer, packet, entry = decision
        if verdict is Verdict.SEND:
            self._sender.send(version, peer, packet, entry)
        elif verdict is Verdict.DELIVER:
            try:
                os.write(self._tun, packet)
            except OSError:
                if entry is not None:
                    entry.counters["drop_send_failed"] += 1


def _reader(relay: Relay, raw: socket.socket, version: int) -> Callable[[], None]:
    return lambda: relay.read_tunnel(raw, version)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vmmobility relay")
    parser.add_argument("--tun", default="")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--ipv4", default="")
    parser.add_argument("--ipv6", default="")
    parser.add_argument("--gateway-mac", required=True)
    parser.add_argument("--gateway6", default="fe80::1")
    parser.add_argument(DESCRIPTORS, default="")
    return parser.parse_args(argv)


def _only_one(state_dir: Path) -> int:
    """Hold the lock that makes this the only relay of its folder; exit where there is one."""
    descriptor = os.open(state_dir / "relay.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("another relay holds the lock")
    os.truncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def main(argv: Sequence[str]) -> None:
    """Run the relay until it is ordered to stop."""
    args = _arguments(argv)
    lock = _only_one(args.state_dir)
    locators = {v: a for v, a in ((4, args.ipv4), (6, args.ipv6)) if a}
    proxy = NeighbourProxy(
        bytes.fromhex(args.gateway_mac.replace(":", "")), IPv6Address(args.gateway6)
    )
    descriptors = None
    if args.descriptors:
        descriptors = from_text(args.descriptors)
    elif args.tun:
        descriptors = open_all(args.tun, locators)
    # The configuration is what an adopting daemon compares with its own.
    configuration = list(argv)
    if DESCRIPTORS in configuration:
        at = configuration.index(DESCRIPTORS)
        del configuration[at : at + 2]
    path = args.state_dir / "relay.sock"
    named = descriptors.as_text() if descriptors is not None else ""
    control = Control(path, RelayTable(), proxy, configuration, named)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    relay = Relay(descriptors, proxy, control)
    # The table is small and long-lived: collections in the packet path would only be pauses.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        relay.run()
    finally:
        control.close()
        os.close(lock)


if __name__ == "__main__":
    main(sys.argv[1:])
